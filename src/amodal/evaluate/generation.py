"""A protocol of generation: as many volumes made of nobody as there are real ones, by modality, with their metadata.

Distances of distributions with their intervals and floors (`metrics.features`), diversity (`metrics.diversity`). A
feature network other than the paper's gives other numbers: its name then stands in the metric's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.contract import Progress
from ..core.errors import AmodalError, InputError
from ..core.rng import seed_of
from ..data.volume import Source, Study
from ..metrics import features
from ..metrics.diversity import POOLED, diversity
from ..metrics.extractors import Extractor, extract
from ..metrics.features import Features, Measure
from ..metrics.statistics import Score
from ..model.generate import generate, steps_of
from ..report.evaluation import Evaluation, evaluation_page
from ..report.page import write
from . import store
from .plan import Plan, environment
from .protocols import about
from .results import next_to
from .subject import MODEL

VARIED = 100  # volumes of each modality whose diversity is measured
PAPERS = {"fid": "medicalnet", "mmd": "medicalnet"}  # the network that gives a metric its plain name
NAMES = {"frechet": "fid", "mmd": "mmd"}
GENERATE = "generate"
_MADE, _REAL = "made", "real"


@dataclass(frozen=True)
class Generated:
    """Measures by modality ("all": pooled) and metric, as scores too; why subjects failed; what was written."""

    measures: Mapping[str, Mapping[str, Measure]]
    scores: tuple[Score, ...]
    failed: Mapping[str, str]
    files: Mapping[str, Path]


def generation(
    sources: Sequence[Source], model: Any, out: str | Path, *, prepare: Callable[[Source], Study], plan: Plan,
    extractor: Extractor, progress: Progress | None = None,
) -> Generated:  # fmt: skip
    """Generate beside every real volume one of its modality and metadata, and compare the two cohorts.

    What was generated is kept as features in `out/subjects` and not made again; writes results.csv, results.json and
    report.html. InputError for fewer than two subjects, or a model that does not generate.
    """
    protocol, folder, failed = plan.protocol, Path(out), {}
    steps = steps_of(model, plan.steps)
    run = {
        "protocol": about(protocol),
        "models": {MODEL: {"id": model.id, "method": model.name, "sha256": model.sha256, "steps": steps}},
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "preparation": extractor.preparation},
        "seed": plan.seed,
    }
    for done, source in enumerate(sources):
        try:
            _subject(folder, source, model, protocol, prepare, plan, extractor, run)
        except Exception as error:  # one subject's fault must not cost the others
            failed[source.label] = str(error) if isinstance(error, AmodalError) else f"{type(error).__name__}: {error}"
        if progress is not None:
            progress(done + 1, len(sources))
    labels = [s.label for s in sources if s.label not in failed]
    if len(labels) < 2:
        why = next(iter(failed.values()), "too few were given")
        raise InputError(f"{len(labels)} subjects could be used and two at least are needed: {why}")
    measures = _measures(folder, labels, protocol.modalities, extractor)
    scores = tuple(
        Score("cohort", GENERATE, modality, metric, MODEL, m.value)
        for modality, row in measures.items()
        for metric, m in row.items()
    )
    return _write(folder, run, plan, measures, scores, failed, labels)


def _subject(
    folder: Path, source: Source, model: Any, protocol: Any, prepare: Callable[[Source], Study], plan: Plan,
    extractor: Extractor, run: Mapping[str, Any],
) -> None:  # fmt: skip
    """Features of a subject's real volumes and of those generated beside them; the volumes too, for diversity."""
    place = folder / "subjects" / store.safe(source.label)
    made = {"run": run, "inputs": store.inputs(source)}
    if not plan.overwrite and store.read(place / "generated.json") == store.plain(made):
        return
    study = protocol.prepare(prepare(source))
    place.mkdir(parents=True, exist_ok=True)
    for name in (m for m in protocol.modalities if m in study):
        seed = seed_of(plan.seed, source.label, name)
        # what a model cannot be told it is not told
        row = dict(study.metadata) if model.method.encode_metadata([study.metadata]) is not None else None
        (other,) = generate(model, 1, seed, modalities=[name], metadata=row, steps=plan.steps)
        for kind, one in ((_REAL, study), (_MADE, protocol.space.enter(other))):
            low, high = protocol.ruler.bounds(name, one[name].data)
            volume = ((one[name].data - low) / (high - low)).clip(0, 1).astype(np.float32)
            extract(extractor, [(source.label, volume)]).save(place / f"{kind}_{name}.npz")
            temporary = place / f".{kind}_{name}.{os.getpid()}.npy"
            np.save(temporary, volume.astype(np.float16), allow_pickle=False)
            os.replace(temporary, place / f"{kind}_{name}.npy")
    write(place / "generated.json", store.to_json(made))


def _measures(
    folder: Path, labels: Sequence[str], names: Sequence[str], extractor: Extractor
) -> dict[str, dict[str, Measure]]:
    """Distances and diversity by modality, and pooled under "all"."""
    cohorts = {
        name: [_features(folder, labels, kind, [name]) for kind in (_MADE, _REAL)]
        for name in names
        if len(_files(folder, labels, _REAL, name, "npz")) > 1
    }
    if len(cohorts) > 1:
        cohorts["all"] = [_features(folder, labels, kind, list(cohorts)) for kind in (_MADE, _REAL)]
    out: dict[str, dict[str, Measure]] = {}
    for name, (made, real) in cohorts.items():
        found = features.compare(made, real, ("frechet", "mmd"))
        out[name] = {_called(m.metric, extractor): m for m in found}
    images = [
        {m: _Volumes(_files(folder, labels, kind, m, "npy")[:VARIED]) for m in cohorts if m != "all"}
        for kind in (_MADE, _REAL)
    ]
    for name, measure in diversity(images[0], 1.0, images[1]).items():
        out["all" if name == POOLED else name]["msssim"] = measure
    return out


def _called(metric: str, extractor: Extractor) -> str:
    name = NAMES[metric]
    return name if extractor.name.startswith(PAPERS[name]) else f"{name} ({extractor.name})"


def _files(folder: Path, labels: Sequence[str], kind: str, name: str, ending: str) -> list[Path]:
    found = [folder / "subjects" / store.safe(label) / f"{kind}_{name}.{ending}" for label in labels]
    return [path for path in found if path.is_file()]


def _features(folder: Path, labels: Sequence[str], kind: str, names: Sequence[str]) -> Features:
    """The kept features of one kind as one cohort, a subject's volumes in one group."""
    parts = [Features.load(path) for name in names for path in _files(folder, labels, kind, name, "npz")]
    first = parts[0]
    return Features(
        np.concatenate([p.values for p in parts]),
        tuple(label for p in parts for label in p.labels),
        first.extractor,
        first.sha256,
        first.preparation,
        tuple(label for p in parts for label in p.labels),
        first.standardise,
    )


class _Volumes(Sequence[np.ndarray]):
    """Volumes on disk, read when they are asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return np.load(self.paths[index], allow_pickle=False).astype(np.float32)


def _write(
    folder: Path, run: Mapping[str, Any], plan: Plan, measures: Mapping[str, Mapping[str, Measure]],
    scores: tuple[Score, ...], failed: Mapping[str, str], labels: Sequence[str],
) -> Generated:  # fmt: skip
    beside = next_to(plan.protocol, scores)
    listed = {m: {k: v.to_dict() for k, v in row.items()} for m, row in measures.items()}
    content = {
        "run": run,
        "protocol": run["protocol"],
        "models": run["models"],
        "data": plan.data,
        "n": len(labels),
        "subjects": {"cohort": list(labels)},
        "failed": failed,
        "measures": listed,
        "published": [asdict(b) for b in beside],
        "environment": environment(),
    }
    files = {name: folder / name for name in ("results.csv", "results.json", "report.html")}
    write(files["results.csv"], store.to_csv(scores))
    write(files["results.json"], store.with_scores(content, scores))
    lead = f"Beside the real volumes of {len(labels)} subjects as many were generated, and the two cohorts compared."
    notes = [f"{modality}: {m}" for modality, row in measures.items() for m in row.values()]
    shown = Evaluation(
        scores, failed=failed, beside=beside, lead=lead, title="How near is the generated cohort?", notes=notes,
        kind="generation",
        protocol={k: content[k] for k in ("protocol", "models", "environment")},
    )  # fmt: skip
    evaluation_page(files["report.html"], shown)
    return Generated(measures, scores, failed, files)

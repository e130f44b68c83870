"""Does a model give its training images back? What it made beside what it was trained on, by modality.

`audit`: completions of subjects it never saw. Every modality of every subject is hidden once and made; the volumes of
one modality then meet those of the training set and the truths of the same subjects (`metrics.privacy`). Membership is
also tried by the loss of the model's last stage.
`audit_generated`: a dataset of nobody, as `amodal generate` writes it; read as studies, on the grid of the training set
and in windows found as there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.config import from_dict
from ..core.contract import Batch, Grid, Progress
from ..core.errors import AmodalError, InputError
from ..data import bids
from ..data.dataset import Cache
from ..data.frame import Frame
from ..data.volume import Source, Study
from ..metrics.extractors import Extractor
from ..metrics.membership import losses
from ..metrics.privacy import Audit
from ..metrics.privacy import audit as examine
from ..report.page import write
from ..report.privacy import privacy_page
from . import store
from .plan import environment

SLICES = 4  # of a study, from its middle, whose loss a method of slices is asked for
GENERATED = "generated"  # a layout: subjects of nobody
_MADE, _TRUE = "made", "true"


def audit(
    sources: Sequence[Source], model: Any, training: Cache, out: str | Path, *, prepare: Callable[[Source], Study],
    extractor: Extractor | None = None, steps: int | None = None, seed: int = 0, data: str = "",
    progress: Progress | None = None,
) -> tuple[dict[str, Audit], dict[str, str]]:  # fmt: skip
    """Audits by modality, and why subjects failed; writes audit.json and privacy.html into `out`.

    Completions are kept in `out/subjects` and not made again. InputError where subjects are those trained on.
    """
    folder, failed = Path(out), {}
    if known := sorted({s.label for s in sources} & set(training.labels)):
        raise InputError(
            f"{known[0]} is also the name of a subject trained on; the audit needs subjects that the model never saw."
        )
    names = [m for m in model.modalities if m in training.modalities]
    about = {"model": model.sha256, "steps": steps, "seed": seed}
    for done, source in enumerate(sources):
        try:
            _complete(folder, source, model, names, prepare, steps, seed, about)
        except Exception as error:  # one subject's fault must not cost the others
            failed[source.label] = str(error) if isinstance(error, AmodalError) else f"{type(error).__name__}: {error}"
        if progress is not None:
            progress(done + 1, len(sources) + len(names))
    labels = [s.label for s in sources if s.label not in failed]
    attack = _losses(model, training, folder, labels, names, seed)
    found: dict[str, Audit] = {}
    for k, name in enumerate(names):
        made, true = (list(_paths(folder, labels, kind, name)) for kind in (_MADE, _TRUE))
        if made:
            volumes = (_load(made), _volumes(training, name), _load(true))
            found[name] = examine(*volumes, extractor=extractor, losses=attack, seed=seed)
        if progress is not None:
            progress(len(sources) + k + 1, len(sources) + len(names))
    if not found:
        raise InputError("no subject could be completed, so there is nothing to audit; give complete subjects.")
    _write(folder, {"id": "audit v1", **about, "data": data}, found, failed)
    return found, failed


def audit_generated(
    sources: Sequence[Source], training: Cache, out: str | Path, *, unseen: Cache | None = None,
    prepare: Callable[[Source], Study], extractor: Extractor | None = None, seed: int = 0, data: str = "",
    progress: Progress | None = None,
) -> tuple[dict[str, Audit], dict[str, str]]:  # fmt: skip
    """Audits of generated subjects by modality, and why some could not be read; writes as `audit` does.

    `unseen`: real subjects that were held out of training; without them there is no pull and no attack by distance. The
    cohort is kept in `out/generated` as the training set is. InputError where it shares no modality with that, or
    nothing of it can be read.
    """
    folder, failed = Path(out), {}
    names = [m for m in training.modalities if any(m in s.files for s in sources)]
    if not names:
        there = ", ".join(sorted({m for s in sources for m in s.files}))
        raise InputError(f"{there} were generated, the model learned {', '.join(training.modalities)}; give its own.")

    def studies() -> Iterator[Study]:
        for done, source in enumerate(sources):
            try:
                yield prepare(source)
            except AmodalError as error:
                failed[source.label] = str(error)
            if progress is not None:
                progress(done + 1, len(sources) + len(names))

    try:
        grid = from_dict(Grid, dict(training.grid))
        made = Cache.build(studies(), grid, training.modalities, folder / "generated", overwrite=True)
    except InputError as error:
        if len(failed) < len(sources):
            raise
        raise InputError(f"no generated subject could be read: {next(iter(failed.values()))}") from error
    found: dict[str, Audit] = {}
    for k, name in enumerate(names):
        if any(name in entry.windows for entry in made.entries):
            others = () if unseen is None else _volumes(unseen, name)
            found[name] = examine(
                _volumes(made, name), _volumes(training, name), others, extractor=extractor, seed=seed
            )
        if progress is not None:
            progress(len(sources) + k + 1, len(sources) + len(names))
    weights = sorted({sha for source in sources for path in source.files.values() if (sha := _made_by(path))})
    about = {"id": "audit of a generated cohort v1", "models": weights, "subjects": len(made), "seed": seed}
    _write(folder, {**about, "data": data}, found, failed)
    return found, failed


def generated_in(folder: Path) -> list[Source]:
    """The subjects of nobody that `amodal generate` wrote into a folder; none, where it is anything else."""
    found = []
    for place in sorted(p for p in folder.glob("sub-*") if p.is_dir()):
        files = {}
        for path in sorted(place.glob("*/*_desc-synth_*.nii.gz")):
            name = bids.parse(path.name)
            if name is not None and name.modality is not None and _sidecar(path).get("Sources") == []:
                files[name.modality] = path
        if files:
            found.append(Source(place.name, None, files, {}, folder.absolute(), GENERATED))
    return found


def of_nobody(sources: Sequence[Source]) -> bool:
    """Whether these are `generated_in` a folder."""
    return any(source.layout == GENERATED for source in sources)


def _sidecar(image: Path) -> dict[str, Any]:
    """What stands beside an image; nothing, where that cannot be read."""
    try:
        about = json.loads(image.with_name(image.name.removesuffix(".nii.gz") + ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _made_by(image: Path) -> str:
    """The sha256 of the weights that made a generated image, as its sidecar says; "" if it does not."""
    return _sidecar(image).get("Synthetic", {}).get("Weights", {}).get("SHA256", "")


def _write(folder: Path, about: Mapping[str, Any], found: Mapping[str, Audit], failed: Mapping[str, str]) -> None:
    protocol = {**about, "environment": environment()}
    audits = {name: a.to_dict() for name, a in found.items()}
    write(folder / "audit.json", store.to_json({"protocol": protocol, "failed": dict(failed), "audits": audits}))
    privacy_page(folder / "privacy.html", found, protocol)


def _complete(
    folder: Path, source: Source, model: Any, names: Sequence[str], prepare: Callable[[Source], Study],
    steps: int | None, seed: int, about: Mapping[str, Any],
) -> None:  # fmt: skip
    """Hide each modality of a subject once; what is made and its truth are kept on the network's grid, in [0, 1]."""
    place = folder / "subjects" / store.safe(source.label)
    made = {"about": dict(about), "inputs": store.inputs(source)}
    if store.read(place / "audit.json") == store.plain(made):
        return
    study = prepare(source).only(*names)
    if len(study) < 2:
        raise InputError(f"{source.label} has {', '.join(study) or 'nothing'}; one to hide and one to start from.")
    frame = Frame.of(study[study.reference], model.grid)
    for name in study:
        full = model.complete(study.without(name), missing=[name], seed=seed, steps=steps)
        truth = (model.window(name, study[name]).enter(study[name].data) + 1) / 2
        for kind, x in ((_MADE, full.scaled[name]), (_TRUE, truth)):
            _save(place / f"{kind}_{name}.npy", frame.enter(study[name].like(np.asarray(x, np.float32)), fill=0.0))
    write(place / "audit.json", store.to_json(made))


def _save(path: Path, x: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npy")
    np.save(temporary, x.astype(np.float16), allow_pickle=False)
    os.replace(temporary, path)


def _paths(folder: Path, labels: Sequence[str], kind: str, name: str) -> Iterator[tuple[str, Path]]:
    for label in labels:
        path = folder / "subjects" / store.safe(label) / f"{kind}_{name}.npy"
        if path.is_file():
            yield f"{label} {name}", path


def _load(paths: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, np.ndarray]]:
    for label, path in paths:
        yield label, np.load(path, allow_pickle=False).astype(np.float32)


def _volumes(cache: Cache, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The volumes of a modality in [0, 1], one at a time."""
    index = cache.modalities.index(name)
    for label in cache.labels:
        images, present = cache.stack(label)
        if present[index]:
            yield f"{label} {name}", (images[index].astype(np.float32) + 1) / 2


def _losses(
    model: Any, training: Cache, folder: Path, labels: Sequence[str], names: Sequence[str], seed: int
) -> tuple[list[float], list[float]] | None:
    """The loss of the last stage on studies trained on and on others; None where a study of either lacks something."""
    if tuple(training.modalities) != tuple(model.modalities):
        return None
    known = [(x, there) for x, there in map(training.stack, training.labels) if there.all()]
    others = [_stack(folder, label, model.modalities) for label in labels]
    whole = [x for x in others if x is not None]
    if min(len(known), len(whole)) < 2:
        return None
    stage = model.method.stages()[-1]
    with torch.no_grad():
        first, second = (
            losses(stage, [_batch(model, x) for x in group], seed=seed) for group in ([x for x, _ in known], whole)
        )
    return first, second


def _stack(folder: Path, label: str, names: Sequence[str]) -> np.ndarray | None:
    paths = [folder / "subjects" / store.safe(label) / f"{_TRUE}_{name}.npy" for name in names]
    if not all(path.is_file() for path in paths):
        return None
    return np.stack([2 * np.load(path, allow_pickle=False).astype(np.float32) - 1 for path in paths])


def _batch(model: Any, images: np.ndarray) -> Batch:
    """The middle slices of a study, or the study, all modalities present."""
    x = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    if model.method.dims == 2:
        middle = x.shape[-1] // 2
        x = x[..., max(middle - SLICES // 2, 0) : middle + SLICES // 2].movedim(-1, 0).contiguous()
    else:
        x = x[None]
    present = torch.ones(*x.shape[:2], *[1] * (x.ndim - 2), dtype=torch.bool)
    metadata = model.method.encode_metadata([{}] * len(x))
    return Batch(x, present, metadata).to(next(model.method.parameters()).device)

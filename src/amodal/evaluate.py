"""The trust test: hide what is there, make it, and measure how near it came, beside two baselines.

For each subject and each pattern of hidden modalities the model sees the rest only. Images are compared in [0, 1], the
truth scaled by its own intensity window, inside the head mask of everything acquired; the data range is 1.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from . import __version__
from .core.config import to_dict
from .core.contract import Progress
from .core.errors import AmodalError, InputError
from .core.modality import MODALITIES, canonical
from .data.intensity import Window
from .data.volume import Source, Study
from .metrics import image
from .metrics.baselines import KINDS, Baselines
from .metrics.statistics import Score, Verdict, summarise, verdict
from .report import figures
from .report.page import Evaluation, evaluation_page, write

if TYPE_CHECKING:
    from .model import Model

LOG = logging.getLogger(__name__)
MODEL = "model"  # the name of the model's rows, beside those of `baselines.KINDS`
METRICS: dict[str, Callable[[np.ndarray, np.ndarray, float, np.ndarray], float]] = {
    "psnr": image.psnr,
    "ssim": image.ssim,
    "mae": image.mae,
}
COLUMNS = ("subject", "pattern", "modality", "metric", "method", "value")
Patterns = str | Sequence[str | Sequence[str]]


@dataclass(frozen=True)
class Trial:
    """What is tested, and how: the same for all subjects."""

    model: Model
    baselines: Baselines | None
    prepare: Callable[[Source], Study]
    steps: int | None
    seed: int


@dataclass(frozen=True)
class Truth:
    """What was acquired: as a stack [M, X, Y, Z] in [-1, 1] (-1 where absent), which modalities are there, the head."""

    study: Study
    stack: np.ndarray
    present: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Table:
    """What an evaluation found. `failed` and `skipped` say why by subject; `files` are what was written."""

    scores: tuple[Score, ...]
    verdicts: tuple[Verdict, ...]
    failed: Mapping[str, str]
    skipped: Mapping[str, str]
    protocol: Mapping[str, Any]
    files: Mapping[str, Path]


def evaluate(
    sources: Sequence[Source],
    model: Model,
    out: str | Path,
    *,
    prepare: Callable[[Source], Study],
    patterns: Patterns = "each",
    steps: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Table:
    """Evaluate a model on complete subjects; writes results.csv, results.json and report.html into `out`.

    `patterns` are the modalities hidden together: "each" hides one at a time, "all" every set that leaves one, or a
    list such as ["FLAIR", "T2w+FLAIR"]. A subject is measured on the modalities it has. What a subject fails on is
    recorded and the others go on. Finished subjects are kept in `out/subjects` and not done again.
    InputError if there is no subject, a pattern is unknown, or `out` holds an evaluation made otherwise.
    """
    folder, chosen = Path(out), parse_patterns(patterns, model.modalities)
    protocol = _protocol(model, chosen, steps, seed)
    _check(sources, folder, protocol, overwrite, workers)
    baselines = Baselines.from_dict(model.card["baselines"]) if model.card.get("baselines") else None
    test = Trial(model, baselines, prepare, steps, seed)
    plans = {s.label: _hidden(chosen, [m for m in s.files if m in model.modalities]) for s in sources}
    tick = _ticker(sum(len(p) for p in plans.values()), progress)

    def run(source: Source) -> dict[str, Any]:
        kept = folder / "subjects" / _safe(source.label) / "scores.json"
        found = None if overwrite else _finished(kept, source, protocol)
        if found is None:
            inputs = _inputs(source)  # before they are read
            found = _subject(test, source, plans[source.label], kept.parent, tick)
            if "scores" in found:
                write(kept, _json({"protocol": protocol, "inputs": inputs, **found}))
        else:
            tick(len(plans[source.label]))
        return found

    start = time.perf_counter()
    if workers == 1:  # in this thread, so that an interrupt stops it at once
        results = {s.label: run(s) for s in sources}
    else:
        with ThreadPoolExecutor(max_workers=workers) as pool:
            results = dict(zip([s.label for s in sources], pool.map(run, sources)))
    return _write(results, folder, protocol, model, time.perf_counter() - start)


def parse_patterns(patterns: Patterns, modalities: Sequence[str]) -> str | tuple[tuple[str, ...], ...]:
    """ "each", "all", or the hidden sets as canonical names in canonical order; InputError for what the model lacks."""
    if isinstance(patterns, str) and patterns in ("each", "all"):
        return patterns
    listed = patterns.split(",") if isinstance(patterns, str) else patterns
    sets = []
    for pattern in listed:
        names = {canonical(n) for n in (pattern.split("+") if isinstance(pattern, str) else pattern)}
        if unknown := sorted(names - set(modalities)):
            raise InputError(
                f"{unknown[0]} cannot be hidden: the model knows {', '.join(modalities)}; choose among them."
            )
        sets.append(tuple(m for m in MODALITIES if m in names))
    if not sets:
        raise InputError('no pattern to evaluate; give "each", "all", or a list such as ["FLAIR", "T2w+FLAIR"].')
    return tuple(dict.fromkeys(sets))


def measure(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray, axis: int = 2) -> dict[str, float]:
    """PSNR (dB), SSIM and MAE of an image in [0, 1] within a mask, data range 1, and its stripes beside the truth's."""
    scores = {name: metric(prediction, truth, 1.0, mask) for name, metric in METRICS.items()}
    return {**scores, "stripes": image.stripe_ratio(prediction, [truth], mask, axis)}


def slice_axis(affine: np.ndarray) -> int:
    """The voxel axis along which axial slices are stacked: the one nearest to foot-head."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])


def _hidden(patterns: str | tuple[tuple[str, ...], ...], there: Sequence[str]) -> list[tuple[str, ...]]:
    """The sets to hide from a subject: each must be there, and something must be left."""
    if isinstance(patterns, tuple):
        return [p for p in patterns if set(p) < set(there)]
    largest = len(there) - 1 if patterns == "all" else min(1, len(there) - 1)
    return [p for size in range(1, largest + 1) for p in combinations(there, size)]


def _subject(
    test: Trial, source: Source, plan: Sequence[tuple[str, ...]], folder: Path, tick: Callable[[int], None]
) -> dict[str, Any]:
    """All patterns of one subject: its scores, or why there are none. What goes wrong here is told, not raised."""
    if source.problem is None and not plan:
        have = ", ".join(source.files) or "nothing"
        return {"skipped": f"it has {have}: there is nothing to hide that leaves something the model knows."}
    done, start = 0, time.perf_counter()
    try:
        truth = _truth(test.prepare(source).only(*test.model.modalities), test.model)
        scores: list[Score] = []
        for hidden in plan:
            scores += _pattern(test, truth, hidden, folder)
            done += 1
            tick(1)
    except Exception as error:  # one subject's fault must not cost the others
        tick(len(plan) - done)
        LOG.debug("%s failed", source.label, exc_info=True)
        return {"failed": str(error) if isinstance(error, AmodalError) else f"{type(error).__name__}: {error}"}
    rows = [{**asdict(s), "value": _finite(s.value)} for s in scores]
    return {"scores": rows, "seconds": round(time.perf_counter() - start, 2)}


def _truth(study: Study, model: Model) -> Truth:
    present = np.array([name in study for name in model.modalities])
    stack = np.full((len(present), *study[study.reference].shape), -1, np.float32)
    for m, name in enumerate(model.modalities):
        if present[m]:
            data = study[name].data
            stack[m] = Window.of(data, model.grid.percentiles).enter(data)
    return Truth(study, stack, present, image.head_mask((stack[present] + 1) / 2))


def _pattern(test: Trial, truth: Truth, hidden: tuple[str, ...], folder: Path) -> list[Score]:
    """Hide some modalities, make them, measure them. The model gets a study that does not hold them at all."""
    study, names = truth.study, test.model.modalities
    given = study.without(*hidden)
    completion = test.model.complete(given, missing=list(hidden), seed=test.seed, steps=test.steps)
    seen = np.array([name in given for name in names])
    affine = study[study.reference].affine
    axis = slice_axis(affine)
    pattern, scores = "+".join(hidden), []
    for name in hidden:
        target = (truth.stack[names.index(name)] + 1) / 2
        guess = np.asarray(completion.scaled[name], np.float32)
        if guess.shape != target.shape or not np.isfinite(guess).all():
            raise AmodalError(f"the model made a {name} of shape {guess.shape} that does not fit or is not finite.")
        made = {MODEL: guess, **_baselines(test, truth, seen, name)}
        for method, prediction in made.items():
            found = measure(prediction, target, truth.mask, axis)
            scores += [Score(study.label, pattern, name, metric, method, v) for metric, v in found.items()]
        views = [figures.ras(x, affine) for x in (target, made[MODEL], truth.mask)]
        picture = figures.strip(views[0][0], views[1][0], views[0][1], views[2][0])
        write(_picture(folder, pattern, name), picture)
    return scores


def _baselines(test: Trial, truth: Truth, seen: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """What each baseline makes of what is seen, in [0, 1]; those not fitted for it are left out."""
    known, inputs = test.baselines, [m for m, flag in zip(test.model.modalities, seen) if flag]
    if known is None:
        return {}
    usable = [kind for kind in KINDS if known.available(kind, name, inputs)]
    return {kind: (known.predict(truth.stack, seen, name, kind) + 1) / 2 for kind in usable}


def _protocol(model: Model, patterns: Any, steps: int | None, seed: int) -> dict[str, Any]:
    """How it is measured; two evaluations compare only where this is the same."""
    return {
        "name": "hide-and-make v1",
        "patterns": patterns if isinstance(patterns, str) else ["+".join(p) for p in patterns],
        "mask": "head: any acquired image above 0.05 of its window, largest component, holes filled",
        "scaling": f"images to [0, 1] by the truth's own window, percentiles {tuple(model.grid.percentiles)}",
        "data_range": 1.0,
        "ssim": "Gaussian window, sigma 1.5, 11 voxels, 3-D, mean over the mask",
        "stripes": "through-plane over in-plane gradient energy, as a multiple of the truth's",
        "model": {"id": model.id, "method": model.name, "sha256": model.sha256, "precision": model.precision},
        "modalities": list(model.modalities),
        "steps": to_dict(model.method.config).get("steps") if steps is None else steps,
        "seed": seed,
        "version": __version__,
    }


def _check(sources: Sequence[Source], folder: Path, protocol: Mapping[str, Any], overwrite: bool, workers: int) -> None:
    if not sources:
        raise InputError("there is no subject to evaluate; give a dataset with at least one complete subject.")
    if workers < 1:
        raise InputError(f"workers={workers}: choose 1 or more.")
    labels = [s.label for s in sources]
    if twice := next((name for name in labels if labels.count(name) > 1), None):
        raise InputError(f"two subjects are called {twice}; rename one of them.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the results.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose a folder you may write to.") from error
    results = folder / "results.json"
    if results.exists() and not overwrite and _read(results).get("protocol") != _plain(protocol):
        raise InputError(f"{folder} holds an evaluation made otherwise; choose another folder or give --overwrite.")


def _finished(kept: Path, source: Source, protocol: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stored scores of a subject, if they were made in the same way from the same files."""
    found = _read(kept) if kept.exists() else {}
    same = found.get("protocol") == _plain(protocol) and found.get("inputs") == _plain(_inputs(source))
    return found if same else None


def _inputs(source: Source) -> dict[str, list[Any]]:
    """What tells whether a file has changed: its path, size and time."""
    stats = {name: (str(path), path.stat()) for name, path in source.files.items() if path.exists()}
    return {name: [path, stat.st_size, stat.st_mtime_ns] for name, (path, stat) in stats.items()}


def _write(
    results: Mapping[str, dict[str, Any]], folder: Path, protocol: dict[str, Any], model: Model, seconds: float
) -> Table:
    scores = tuple(
        Score(**{**row, "value": _number(row["value"])}) for r in results.values() for row in r.get("scores", ())
    )
    failed = {label: r["failed"] for label, r in results.items() if "failed" in r}
    skipped = {label: r["skipped"] for label, r in results.items() if "skipped" in r}
    modalities = [m for m in model.modalities if any(s.modality == m for s in scores)]
    verdicts = tuple(verdict(scores, m, MODEL, KINDS) for m in modalities)
    files = {name: folder / name for name in ("results.csv", "results.json", "report.html")}
    done = {s.subject for s in scores}
    write(files["results.csv"], _csv(scores))
    content = {
        "protocol": protocol,
        "n": len(done),
        "subjects": sorted(done),
        "failed": failed,
        "skipped": skipped,
        "summary": [asdict(s) for s in summarise(scores)],
        "verdicts": [asdict(v) for v in verdicts],
        "seconds": round(seconds, 2),
    }
    write(files["results.json"], _json(content))
    pictures = {
        (s.subject, s.pattern, s.modality): _picture(folder / "subjects" / _safe(s.subject), s.pattern, s.modality)
        for s in scores
    }
    evaluation_page(files["report.html"], Evaluation(scores, verdicts, failed, skipped, protocol, pictures))
    return Table(scores, verdicts, failed, skipped, protocol, files)


def _csv(scores: Iterable[Score]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows([getattr(s, c) if c != "value" else f"{s.value:.6g}" for c in COLUMNS] for s in scores)
    return text.getvalue()


def _ticker(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Counts finished patterns over all workers and reports them one call at a time."""
    lock, done = threading.Lock(), [0]

    def tick(count: int) -> None:
        with lock:
            done[0] += count
            if progress is not None and count:
                progress(done[0], total)

    return tick


def _picture(folder: Path, pattern: str, name: str) -> Path:
    return folder / f"{pattern}_{name}.jpg"


def _safe(label: str) -> str:
    """A label as a folder's name."""
    return re.sub(r"[^\w.-]", "_", label)


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of ours; empty if it is none (then it is made again)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _finite(value: float) -> float | str | None:
    """As JSON can hold it: JSON knows neither infinity nor nan."""
    return value if math.isfinite(value) else None if math.isnan(value) else "inf"


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def _plain(value: Any) -> Any:
    return json.loads(_json(value))


def _json(value: Any) -> str:
    return json.dumps(_strict(value), indent=1, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return _finite(value) if isinstance(value, float) else value

"""Does a model give its training images back? Completions of subjects it never saw beside what it was trained on.

Every modality of every subject is hidden once and made; the volumes of one modality then meet those of the training set
and the truths of the same subjects (`metrics.privacy`). Membership is also tried by the loss of the model's last stage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.contract import Batch, Progress
from ..core.errors import AmodalError, InputError
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
            volumes = (_load(made), _trained(training, name), _load(true))
            found[name] = examine(*volumes, extractor=extractor, losses=attack, seed=seed)
        if progress is not None:
            progress(len(sources) + k + 1, len(sources) + len(names))
    if not found:
        raise InputError("no subject could be completed, so there is nothing to audit; give complete subjects.")
    protocol = {"id": "audit v1", **about, "data": data, "environment": environment()}
    audits = {name: a.to_dict() for name, a in found.items()}
    write(folder / "audit.json", store.to_json({"protocol": protocol, "failed": failed, "audits": audits}))
    privacy_page(folder / "privacy.html", found, protocol)
    return found, failed


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


def _trained(training: Cache, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The training volumes of a modality in [0, 1], one at a time."""
    index = training.modalities.index(name)
    for label in training.labels:
        images, present = training.stack(label)
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

"""Missing slices of a stack: a gap is opened in what was acquired, made, and measured beside interpolation (CoPeDiT,
Table 3). Only the slices of the gap are measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import AmodalError, InputError
from ..core.rng import seed_of
from ..metrics.statistics import Score
from ..model.slices import complete_slices, interpolated, slice_axis
from .measure import Target
from .subject import MODEL, Trial, Truth

if TYPE_CHECKING:
    from ..model import Model

_RULE = re.compile(r"slices:(\d+(?:,\d+)*)")
KINDS = ("linear", "cubic")  # interpolation between the neighbours, by name


def lengths(patterns: Any) -> tuple[int, ...]:
    """How many slices in a row are hidden (`slices:8,16,24`); empty where patterns are of another kind."""
    found = _RULE.fullmatch(patterns) if type(patterns) is str else None
    return tuple(map(int, found[1].split(","))) if found else ()


def gap(label: str, length: int, count: int) -> list[int]:
    """Which of `count` slices are hidden: `length` in a row, from a place drawn once for the subject's name."""
    if not 0 < length < count:
        raise InputError(f"{label} has {count} slices; {length} of them cannot be hidden.")
    first = int(np.random.default_rng(seed_of(0, "gap", label, length)).integers(count - length + 1))
    return list(range(first, first + length))


def pattern(
    trial: Trial, method: str, model: Model, truth: Truth, hidden: Sequence[str], folder: Path,
    counts: dict[str, np.ndarray],
) -> list[Score]:  # fmt: skip
    """Open one gap (`("8 slices",)`), make it, measure its slices."""
    study = truth.study
    (name,) = study.modalities
    volume, target = study[name], truth.targets[name]
    axis = slice_axis(volume)
    gone = gap(study.label, int(hidden[0].split()[0]), volume.shape[axis])
    full = complete_slices(model, volume, gone, samples=trial.samples, seed=trial.seed, steps=trial.steps)
    if not np.isfinite(full.volume.data).all():
        raise AmodalError(f"the model made slices of {study.label} that are not finite.")
    made = {method: truth.unit(name, full.volume.data)}
    if method == MODEL:
        made |= _between(np.moveaxis(target.image, axis, -1), gone, axis)
    part = tuple(gone if a == axis else slice(None) for a in range(3))
    cut = Target(target.image[part], target.head[part], axis, trial.ruler)
    found = {who: cut.scores(np.asarray(image[part], np.float32)) for who, image in made.items()}
    return [Score(study.label, hidden[0], name, m, who, v) for who, row in found.items() for m, v in row.items()]


def _between(image: np.ndarray, gone: Sequence[int], axis: int) -> Mapping[str, np.ndarray]:
    """The stack, slices last, with the gap filled by interpolation of what is left."""
    places = np.setdiff1d(np.arange(image.shape[-1]), gone)
    out = {}
    for kind in KINDS:
        whole = image.copy()
        whole[..., gone] = interpolated(image[..., places], places, np.array(gone), kind == "cubic").clip(0, 1)
        out[kind] = np.moveaxis(whole, -1, axis)
    return out

"""What a model that perceives completeness sees in a study: how much is missing, and what, without being told.

A file's label is checked in the same way: shown alone, its image is what the model takes to be the only one there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..core.contract import Batch
from ..core.errors import InputError
from ..data.volume import Study, Volume
from .slices import dense_stack, empty_slices
from .system import Model

PERCEIVING = ("copedit",)  # methods whose networks answer these questions
SURE = 0.6  # a label is doubted where another one is this probable
LENGTHS = ("a quarter", "half", "three quarters")


@dataclass(frozen=True)
class Seen:
    """`missing`: probability of each contrast (or slice) that it is missing. `count`: of each number of missing
    contrasts, none too (or quarters of the stack). `taken_for`: file's label -> probability of each contrast that it is
    this."""

    subject: str
    count: Mapping[str, float]
    missing: Mapping[str, float]
    taken_for: Mapping[str, Mapping[str, float]]
    words: str
    warnings: tuple[str, ...] = ()


def perceive(model: Model, study: Study) -> Seen:
    """The perception of a study whose volumes share one grid; InputError if the model knows none of them."""
    names = model.modalities
    if not any(name in study for name in names):
        raise InputError(f"{study.label}: the model sees {', '.join(names)}, none of which is there; give one.")
    stack, there = model.stack(study)
    whole = _ask(model, stack, there)
    alone: dict[str, dict[str, float]] = {}
    for k, name in enumerate(names):
        if there[k]:
            shown = 1 - _ask(model, stack, np.arange(len(names)) == k)[1]
            alone[name] = dict(zip(names, _rounded(shown / shown.sum())))
    count = dict(zip(map(str, range(len(names))), _rounded(np.array([max(0.0, 1 - whole[0].sum()), *whole[0]]))))
    missing = dict(zip(names, _rounded(whole[1])))
    most = max(count, key=lambda k: count[k])
    gone = ", ".join(f"{name} ({100 * p:.0f} %)" for name, p in missing.items() if p > 0.5) or "nothing"
    words = f"the model perceives {most} missing ({100 * count[most]:.0f} %): {gone}."
    return Seen(study.label, count, missing, alone, words, _doubts(alone))


def perceive_stack(model: Model, volume: Volume) -> Seen:
    """The perception of a stack; slices that hold nothing are not shown."""
    label = volume.name
    dense = dense_stack(model, volume, np.setdiff1d(np.arange(max(volume.shape)), empty_slices(volume)))
    images, shown = dense.placed(model.method.config.size[2])
    count, missing = _ask(model, images[None], shown.reshape(1, 1, 1, -1))
    numbers = {str(k): p for k, p in enumerate(_rounded(missing))}
    quarters = dict(zip(LENGTHS, _rounded(count)))
    most = max(quarters, key=lambda k: quarters[k])
    gone = [k for k, p in enumerate(missing) if p > 0.5]
    words = f"the model perceives {most} of the stack missing ({100 * quarters[most]:.0f} %), places {gone or 'none'}."
    return Seen(label, quarters, numbers, {}, words)


def _ask(model: Model, stack: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the counts, and of every place that it is missing; `there` broadcasts to the stack's axes."""
    present = torch.from_numpy(there.reshape(len(stack), *(there.shape[1:] or (1, 1, 1))))[None]
    device = next(model.method.parameters()).device
    seen = model.method.perceive(Batch(torch.from_numpy(stack)[None], present).to(device))
    return seen.count[0].float().cpu().numpy(), seen.missing[0].float().cpu().numpy()


def _doubts(alone: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """A sentence for each file whose label the model does not believe."""
    found = []
    for label, taken in alone.items():
        best = max(taken, key=lambda name: taken[name])
        if best != label and taken[best] >= SURE:
            found.append(f"the file given as {label} looks like {best} ({100 * taken[best]:.0f} %); check its label.")
    return tuple(found)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), 4) for v in values]

"""What a model that perceives completeness sees in a study: how much is missing, and what, without being told.

A file's label is checked in the same way: shown alone, its image is what the model takes to be the only one there.
Where several files are given, no two of them are taken for the same contrast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..core.contract import Batch
from ..core.errors import InputError
from ..data.volume import Study, Volume
from .slices import Dense, dense_stack, empty_slices, slice_axis
from .system import Model

PERCEIVING = ("copedit",)  # methods whose networks answer these questions
SURE = 0.6  # a label is doubted where another one is this probable
LENGTHS = ("no more than an eighth", "a quarter", "half", "three quarters")


@dataclass(frozen=True)
class Seen:
    """`missing`: probability of each contrast (or slice of the file) that it is missing. `count`: of each number of
    missing contrasts, none too (or quarters of the network's stack). `taken_for`: file's label -> probability of each
    contrast that it is this."""

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
            alone[name] = dict(zip(names, shown / shown.sum()))
    count = dict(zip(map(str, range(len(names))), _rounded(whole[0])))
    missing = dict(zip(names, _rounded(whole[1])))
    most = max(count, key=lambda k: count[k])
    gone = ", ".join(f"{name} ({100 * p:.0f} %)" for name, p in missing.items() if p > 0.5) or "nothing"
    words = f"the model perceives {most} missing ({100 * count[most]:.0f} %): {gone}."
    taken = {label: dict(zip(names, _rounded(list(found.values())))) for label, found in alone.items()}
    return Seen(study.label, count, missing, taken, words, _doubts(alone))


def perceive_stack(model: Model, volume: Volume) -> Seen:
    """The perception of a stack; slices that hold nothing are not shown."""
    dense = dense_stack(model, volume, np.setdiff1d(np.arange(max(volume.shape)), empty_slices(volume)))
    length = model.method.config.size[2]
    images, shown = dense.placed(length)
    count, missing = _ask(model, images[None], shown.reshape(1, 1, 1, -1))
    quarters = dict(zip(LENGTHS, _rounded(count)))
    places = _places(dense, volume.shape[slice_axis(volume)], length)
    numbers = {str(k): p for k, p in zip(places, _rounded(missing[list(places.values())]))}
    most = max(quarters, key=lambda k: quarters[k])
    gone = _ranges([int(k) for k, p in numbers.items() if p > 0.5]) or "none"
    where = f"slices of the file (from 0): {gone}"
    words = f"the model perceives {most} of its {length} places missing ({100 * quarters[most]:.0f} %); {where}."
    return Seen(volume.name, quarters, numbers, {}, words)


def _places(dense: Dense, slices: int, length: int) -> dict[int, int]:
    """Where the slices of a file lie among the `length` places that the network sees; those beyond it do not."""
    depth = len(dense.there)
    at = np.arange(slices) * dense.inner
    at = (depth - 1 - at if dense.frame.lines[2].step < 0 else at) - (depth - length) // 2
    return {k: int(place) for k, place in enumerate(at) if 0 <= place < length}


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as people write them: [1, 4, 5, 6] -> "1, 4 to 6"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _ask(model: Model, stack: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the counts, none first, and of every place that it is missing; `there` broadcasts to the
    stack's axes."""
    present = torch.from_numpy(there.reshape(len(stack), *(there.shape[1:] or (1, 1, 1))))[None]
    device = next(model.method.parameters()).device
    seen = model.method.perceive(Batch(torch.from_numpy(stack)[None], present).to(device))
    return seen.count[0].numpy(), seen.missing[0].numpy()


def _doubts(alone: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """A sentence for each file whose label the model does not believe.

    Two files of a study are not one contrast: what each is taken for is what makes all of them together most likely.
    So of two that both look like T1w the one that looks less like it is no wrong T1w.
    """
    labels, names = list(alone), list(next(iter(alone.values())))
    cost = -np.log([[max(alone[label][name], 1e-300) for name in names] for label in labels])
    found = []
    for row, column in zip(*linear_sum_assignment(cost)):
        label, best = labels[row], names[column]
        if best != label and alone[label][best] >= SURE:
            found.append(
                f"the file given as {label} looks like {best} ({100 * alone[label][best]:.0f} %); check its label."
            )
    return tuple(found)


def _rounded(values: np.ndarray | list[float]) -> list[float]:
    return [round(float(v), 4) for v in values]

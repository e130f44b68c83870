"""A model makes subjects of nobody: every modality it knows, on one grid."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..core.contract import Progress, share
from ..core.errors import InputError
from ..core.modality import canonical
from ..core.rng import Rng, seed_of
from ..data.volume import Study, Volume
from ..methods import METHODS
from .system import Model

STEPS = 24  # of a method whose own number was chosen for completion, where much is known
Metadata = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
_EMPTY = -0.96  # what is darker in every modality is background


def check(model: Model, modalities: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The modalities to make, in the model's order. InputError, before anything is made, if that cannot be."""
    if "generation" not in METHODS[model.name].TASKS:
        can = ", ".join(name for name, method in METHODS.items() if "generation" in method.TASKS)
        raise InputError(f"{model.name} completes studies and does not generate; train one of {can}.")
    wanted = {canonical(name) for name in modalities} or set(model.modalities)
    if unknown := sorted(wanted - set(model.modalities)):
        raise InputError(f"the model does not know {unknown[0]}; it makes {', '.join(model.modalities)}.")
    if any(rows) and model.method.encode_metadata(rows) is None:
        raise InputError(f"{model.name} knows images alone and takes no --meta; leave it out.")
    if model.method.dims == 2 and model.outlines is None:
        raise InputError(
            "the model holds no outlines of its training subjects, which a method of slices begins from; train it anew."
        )
    return tuple(m for m in model.modalities if m in wanted)


def steps_of(model: Model, steps: int | None) -> int:
    """How many steps a subject takes: as many as are asked for, else the method's own number."""
    return steps or max(model.method.config.steps, STEPS)


def generate(
    model: Model, n: int, seed: int = 0, *, modalities: Sequence[str] = (), metadata: Metadata = (),
    steps: int | None = None, progress: Progress | None = None,
) -> Iterator[Study]:  # fmt: skip
    """`n` subjects of nobody, one at a time; subject i is the same whatever n. `metadata`: what is asked of them, for
    methods that are conditioned on it: a row for all, or a list of rows, which is gone through again if it is short."""
    rows = [metadata] if isinstance(metadata, Mapping) else list(metadata or ()) or [{}]
    names = check(model, modalities, rows)
    method = model._with()
    method.config = dataclasses.replace(method.config, steps=steps_of(model, steps))
    make = _slices if method.dims == 2 else _volume
    for i, row in zip(range(n), itertools.cycle(rows)):
        stack, spacing = make(model, method, seed_of(seed, "generate", i), names, row, share(progress, i, n))
        yield _study(model, stack.float().cpu().numpy(), spacing, names, f"sub-synth{i + 1:04d}", row)


def _slices(
    model: Model, method: Any, seed: int, names: Sequence[str], row: Mapping[str, Any], progress: Progress | None
) -> tuple[Tensor, Sequence[float]]:
    """A stack [M, X, Y, Z] in [-1, 1] by a method of slices, and its spacing."""
    assert model.outlines is not None
    outline = model.outlines.draw(seed, model.grid.multiple).movedim(-1, 0)
    count = len(outline)
    conditions = _conditions(method, [row] * count, names) | {"outline": outline}
    out = method.generate(count, tuple(outline.shape[2:]), Rng.of(seed, count, "slice"), conditions, progress)
    return out.movedim(0, -1), model.outlines.spacing.tolist()


def _volume(
    model: Model, method: Any, seed: int, names: Sequence[str], row: Mapping[str, Any], progress: Progress | None
) -> tuple[Tensor, Sequence[float]]:
    """A stack [M, X, Y, Z] in [-1, 1] by a method of volumes, and its spacing."""
    if not all(model.grid.size):
        raise InputError(f"{model.name} has no fixed size of volumes, so none can be generated; train it anew.")
    out = method.generate(1, model.grid.size, Rng.of(seed, 1), _conditions(method, [row], names), progress)
    return out[0], [low for low, _ in model.grid.spacing]


def _conditions(method: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Tensor]:
    wanted = torch.tensor([name in names for name in method.modalities])
    return {**(method.encode_metadata(rows) or {}), "wanted": wanted}


def _study(
    model: Model, stack: np.ndarray, spacing: Sequence[float], names: Sequence[str], label: str, row: Mapping[str, Any]
) -> Study:
    """Intensities in the units of each modality, around the middle of the field of view."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(stack.shape[1:]) - 1) / 2 * np.array(spacing)
    outside = (stack <= _EMPTY).all(0)
    volumes = {}
    for name in names:
        data = model.scale(name).leave(stack[model.modalities.index(name)]).astype(np.float32)
        data[outside] = model._empty(name)
        volumes[name] = Volume(data, affine)
    return Study(label, volumes, metadata=row, notes=(f"SYNTHETIC: made by amodal {__version__}, of nobody.",))

"""The contract between layers: what a method is given, what it gives back, and how it says how it learns.

Images are [B, M, *spatial] in [-1, 1], modality order as in the method's config, voxel axes RAS+; time 0 is clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .rng import Rng

Progress = Callable[[int, int], None]  # (done, of): called after every sampling step


def share(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """The progress of part number `part` of `parts` equal ones, told as progress of the whole."""
    return None if progress is None else lambda done, of: progress(part * of + done, parts * of)


@dataclass(frozen=True)
class Grid:
    """The network's voxel grid, RAS+.

    `size`: voxels per axis, 0 = as they come, padded to a multiple of `multiple`.
    `spacing`: per axis the range of millimetres the network was trained on; inside it voxels stay where they are (no
    interpolation at all), outside it they are resampled to the nearer bound; a range of one value fixes the spacing.
    `percentiles`: the intensity window mapped to [-1, 1], see `data.intensity`.
    """

    size: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] = ((0.7, 1.6), (0.7, 1.6), (0.7, 8.0))
    percentiles: tuple[float, float] = (0.5, 99.5)
    multiple: tuple[int, int, int] = (16, 16, 1)


@dataclass(frozen=True)
class Measurement:
    """What the scanner gave instead of an image, for one or more modalities: y = mask F S x + noise."""

    kspace: Tensor
    sampled: Tensor
    maps: Tensor | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Batch:
    """A stack of modalities with a presence mask.

    `images` [B, M, *spatial] in [-1, 1]; what is absent may hold anything finite. `present` is bool and broadcasts to
    `images`: [B, M, 1, 1] for modalities, finer for slices and voxels.
    """

    images: Tensor
    present: Tensor
    metadata: Mapping[str, Tensor] | None = None
    measurement: Measurement | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        metadata = None if self.metadata is None else {k: v.to(device) for k, v in self.metadata.items()}
        return Batch(self.images.to(device, dtype), self.present.to(device), metadata, self.measurement)


@dataclass(frozen=True)
class Player:
    """One side of a training game: its parameters and its loss, a function of what `forward` returned."""

    name: str
    parameters: Callable[[], Iterable[torch.nn.Parameter]]
    loss: Callable[[Any], tuple[Tensor, Mapping[str, float]]]


@dataclass(frozen=True)
class Stage:
    """One stage of training: `forward(batch, rng)` computes what the players' losses need, then each steps in turn."""

    name: str
    forward: Callable[[Batch, Rng], Any]
    players: tuple[Player, ...] = field(default=())


class Method(Protocol):
    """A method of completion (a `torch.nn.Module`). `dims`: 2 if a sample is an axial slice, 3 if it is a volume."""

    config: Any
    dims: int
    modalities: tuple[str, ...]

    def stages(self) -> tuple[Stage, ...]: ...

    def steps_for(self, samples: int) -> int: ...  # sampling steps, unless told otherwise

    def complete(self, batch: Batch, rng: Rng, progress: Progress | None = None) -> Tensor: ...  # [B, M, *spatial]

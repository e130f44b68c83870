"""The contract between layers: what a method is given, what it gives back, and how it says how it learns.

Images are [B, M, *spatial] in [-1, 1], modality order as in the method's config, voxel axes RAS+; time 0 is clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """What the scanner gave of one modality instead of an image: y = sampled * F(maps * phase * m) + noise.

    m is the magnitude image, real and not negative, F the centred orthonormal Fourier transform of a slice.
    `kspace` [B, C, X, Y] complex64, zero frequency at N // 2, coils whitened; `sampled` bool, broadcasts to it (lines
    of phase encoding: [1, 1, 1, Y]); `maps` [B or 1, C, X, Y] complex sensitivities (None: one coil that sees all
    alike); `phase` [B or 1, X, Y] complex of modulus 1 (None: 1). `noise`: SD of its real and of its imaginary part.
    `quadrature`: SD of the image at right angles to `phase`, in magnitudes: how far the phase is off (0: it is exact).
    `window`: the magnitudes that are -1 and 1 in `Batch.images`. `corner`: the voxel of `Batch.images` (which may be
    padded) where the grid of the measurement begins.
    """

    kspace: Tensor
    sampled: Tensor
    maps: Tensor | None = None
    noise: float = 0.0
    phase: Tensor | None = None
    window: tuple[float, float] = (0.0, 1.0)
    corner: tuple[int, int] = (0, 0)
    quadrature: float = 0.0

    def __len__(self) -> int:
        return len(self.kspace)

    def __getitem__(self, part: slice) -> Measurement:
        """Some of the slices."""
        return self._each(lambda v: v if len(v) == 1 else v[part])

    def to(self, device: torch.device | str) -> Measurement:
        return self._each(lambda v: v.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Measurement:
        names = [name for name in ("kspace", "sampled", "maps", "phase") if getattr(self, name) is not None]
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)


@dataclass(frozen=True)
class Batch:
    """A stack of modalities with a presence mask.

    `images` [B, M, *spatial] in [-1, 1]; what is absent may hold anything finite. `present` is bool and broadcasts to
    `images`: [B, M, 1, 1] for modalities, finer for slices and voxels. `measurement`: by modality, what was
    measured of it in place of an image; such a modality is not `present`.
    """

    images: Tensor
    present: Tensor
    metadata: Mapping[str, Tensor] | None = None
    measurement: Mapping[str, Measurement] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        metadata = None if self.metadata is None else {k: v.to(device) for k, v in self.metadata.items()}
        measured = None if self.measurement is None else {k: v.to(device) for k, v in self.measurement.items()}
        return Batch(self.images.to(device, dtype), self.present.to(device), metadata, measured)


def itself(loss: Tensor) -> tuple[Tensor, Mapping[str, float]]:
    """The loss of a stage whose `forward` returns it, and nothing else to log."""
    return loss, {}


@dataclass(frozen=True)
class Player:
    """One side of a training game: its parameters and its loss (and what is logged), a function of what `forward`
    returned."""

    name: str
    parameters: Callable[[], Iterable[torch.nn.Parameter]]
    loss: Callable[[Any], tuple[Tensor, Mapping[str, float]]] = itself


@dataclass(frozen=True)
class Stage:
    """One stage of training: `forward(batch, rng)` computes what the players' losses need, then each steps in turn.

    `share`: its part of the steps and minutes that the plan gives. `rate`: its learning rate, unless the plan has one.
    `begin`: called once before the first step (not when a run is resumed) with the data, batch number -> Batch, to fix
    what is not learned by steps, in registered buffers: the scale of latents, tables.
    """

    name: str
    forward: Callable[[Batch, Rng], Any]
    players: tuple[Player, ...] = field(default=())
    share: float = 1.0
    rate: float | None = None
    begin: Callable[[Callable[[int], Batch]], None] | None = None


class Method(Protocol):
    """A method of completion (a `torch.nn.Module`). `dims`: 2 if a sample is an axial slice, 3 if it is a volume."""

    config: Any
    dims: int
    modalities: tuple[str, ...]

    @property
    def sampler(self) -> str: ...  # how it samples, in a word for the provenance

    def stages(self) -> tuple[Stage, ...]: ...

    def encode_metadata(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor] | None: ...  # None: not used

    def steps_for(self, samples: int) -> int: ...  # sampling steps, unless told otherwise

    def complete(self, batch: Batch, rng: Rng, progress: Progress | None = None) -> Tensor: ...  # [B, M, *spatial]

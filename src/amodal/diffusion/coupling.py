"""Noise that is alike in neighbouring slices, against stripes through the plane of a volume made by a 2-D prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..core.rng import Rng


def correlate(noise: Tensor, length: float) -> Tensor:
    """Noise [Z, ...], each slice standard normal still, neighbours alike over a Gaussian of `length` slices."""
    if length <= 0 or len(noise) == 1:
        return noise
    z = torch.arange(len(noise), dtype=noise.dtype, device=noise.device)
    weights = torch.exp(-0.5 * ((z[:, None] - z[None]) / length) ** 2)
    weights = weights / weights.norm(dim=1, keepdim=True)  # unit variance at the ends too
    return (weights @ noise.flatten(1)).reshape(noise.shape)


@dataclass(frozen=True)
class _Coupled:
    rng: Rng
    length: float

    def normal_like(self, x: Tensor) -> Tensor:
        return correlate(self.rng.normal_like(x), self.length)


def couple(rng: Rng, length: float) -> Rng:
    """For samplers, which ask for `normal_like` alone: the noise of slices in order, alike over `length` of them."""
    return rng if length <= 0 else cast(Rng, _Coupled(rng, length))

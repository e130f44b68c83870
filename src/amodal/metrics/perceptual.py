"""Perceptual distance in the features of a given network (LPIPS, Zhang et al. 2018, equation 1).

The network is the user's own: any function from images [N, 1, *spatial] in [-1, 1] to feature maps of several levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import InputError
from .pair import Image, inside, pair

FeatureMaps = Callable[[Tensor], Sequence[Tensor]]  # [N, 1, *spatial] in [-1, 1] -> [N, C, *smaller] of each level
POOL: dict[int, Callable[..., Tensor]] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
TINY = 1e-10


@torch.no_grad()
def lpips(
    prediction: Image,
    truth: Image,
    data_range: float,
    features: FeatureMaps,
    weights: Sequence[Tensor] | None = None,
    mask: Image | None = None,
    *,
    dims: int,
    low: float = 0.0,
    chunk: int = 8,
) -> float:
    """Squared distances of channel-normalised features, weighted by channel, averaged over space, summed over levels.

    `features` takes images whose `low` became -1 and `low + data_range` 1. `weights`: one vector [C] a level (the
    published linear layers); None weighs channels alike, divided by their number. `dims` 2: a volume is compared slice
    by slice along its last axis, `chunk` at a time, and averaged; 3: the network takes volumes. A mask is pooled to
    the size of each level; slices outside it do not count.
    """
    x, y = (2 * torch.from_numpy(v - low / data_range).float() - 1 for v in pair(prediction, truth, data_range))
    if dims not in (2, 3) or dims > x.ndim:
        raise InputError(f"dims={dims} for images of {x.ndim} axes: choose 2, or 3 for volumes.")
    there = torch.ones_like(x) if mask is None else torch.from_numpy(inside(mask, tuple(x.shape))).float()
    x, y, there = (_samples(v, dims) for v in (x, y, there))
    keep = there.flatten(1).any(1)
    parts = zip(*(v[keep].split(chunk) for v in (x, y, there)))
    total = [(_distance(a, b, m, features, weights), m.flatten(1).sum(1)) for a, b, m in parts]
    distance, size = (torch.cat(v) for v in zip(*total))
    return float((distance * size).sum() / size.sum())


def _samples(x: Tensor, dims: int) -> Tensor:
    """[N, 1, *spatial]: the volume, the image, or all slices of the volume."""
    return x[None, None] if x.ndim == dims else x.movedim(-1, 0)[:, None]


def _distance(x: Tensor, y: Tensor, where: Tensor, features: FeatureMaps, weights: Sequence[Tensor] | None) -> Tensor:
    """[N], summed over levels."""
    levels = list(zip(features(x), features(y)))
    if weights is not None and len(weights) != len(levels):
        raise InputError(f"{len(weights)} weight vectors for {len(levels)} levels of features; give one for each.")
    out = torch.zeros(len(x))
    for level, (a, b) in enumerate(levels):
        difference = (_unit(a.float()) - _unit(b.float())) ** 2
        weight = torch.full((a.shape[1],), 1 / a.shape[1]) if weights is None else weights[level].flatten().float()
        spatial = (difference * weight.reshape(1, -1, *(1,) * (a.ndim - 2))).sum(1, keepdim=True)
        share = POOL[a.ndim - 2](where, tuple(a.shape[2:]))
        out += (spatial * share).flatten(1).sum(1) / share.flatten(1).sum(1)
    return out


def _unit(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(1, keepdim=True).sqrt() + TINY)

"""Similar cooperative filtering of what a skip connection carries (CoLa-Diff, section 2.1, Eq. 4).

Two levels of the Haar transform. The approximation A of the last level and the diagonal details D of both go through
block matching (delta): every block becomes a weighted mean of the blocks most like it. The horizontal and vertical
details H, V of both levels are thresholded (gamma). Then the inverse transform. Everything is differentiable but the
choice of the blocks, and the filter begins as the exact identity.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...nn.layout import crop_to, pad_to
from ...nn.wavelet import haar, unhaar

BLOCK = 4  # voxels per axis of a block
SIMILAR = 8  # blocks that are averaged
WINDOW = 12  # voxels per axis by which a similar block may lie away


class CooperativeFilter(nn.Module):
    """f [B, C, X, Y] -> f* of the same shape. All it changes is added, times gates that start at 0."""

    LEVELS = 2

    def __init__(self, channels: int, similar: int = SIMILAR):
        super().__init__()
        # the diagonal of each level; on the last the approximation with it, which is of the same size
        self.match = nn.ModuleList(Match(channels, n, similar) for n in [1] * (self.LEVELS - 1) + [2])
        self.shrink = nn.ModuleList(Shrink(2 * channels) for _ in range(self.LEVELS))  # H and V of each level

    def forward(self, f: Tensor) -> Tensor:
        change = self.change(pad_to(f, 2**self.LEVELS), 0)
        return f + crop_to(change, f.shape[2:])

    def change(self, f: Tensor, level: int) -> Tensor:
        """What filtering adds to f: as the transform is linear, the transform of what is added to each band."""
        low, first, second, diagonal = haar(f).chunk(4, dim=1)
        sides = self.shrink[level](torch.cat([first, second], dim=1))
        if level + 1 < self.LEVELS:
            low, diagonal = self.change(low, level + 1), self.match[level](diagonal)
        else:
            low, diagonal = self.match[level](torch.cat([low, diagonal])).chunk(2)
        return unhaar(torch.cat([low, sides, diagonal], dim=1))


class Shrink(nn.Module):
    """gamma: what a soft threshold takes from each channel, sign(h) min(|h|, threshold), times a gate, negated."""

    def __init__(self, channels: int):
        super().__init__()
        self.threshold = nn.Parameter(torch.full((channels,), -3.0))  # softplus: 0.05
        self.gate = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        threshold = _across(F.softplus(self.threshold), h)
        return _across(-self.gate, h) * torch.clamp(h, -threshold, threshold)


class Match(nn.Module):
    """delta: how the mean of the most similar blocks differs from each block, times a gate; several bands at once."""

    def __init__(self, channels: int, bands: int = 1, similar: int = SIMILAR):
        super().__init__()
        self.similar = similar
        self.gate = nn.Parameter(torch.zeros(bands, channels))
        self.sharpness = nn.Parameter(torch.zeros(bands))  # log of how fast weights fall with the distance

    def forward(self, a: Tensor) -> Tensor:
        """a [bands B, C, X, Y], one band after the other -> what to add to it, the same shape."""
        inner, samples = a.shape[2:], len(a) // len(self.gate)
        gate, sharpness = (v.repeat_interleave(samples, 0) if samples > 1 else v for v in (self.gate, self.sharpness))
        gate, sharpness, block = gate.to(a.dtype)[..., None, None], sharpness.float()[:, None, None], min(BLOCK, *inner)
        if max(inner) <= block:  # there is but one (every parameter takes part, as several processes want it)
            return 0 * gate * sharpness[..., None].to(a.dtype) * a
        whole = pad_to(a, block)
        distance, index = nearest(whole.float().mean(1, keepdim=True), block, self.similar)  # [bands B, P, K]
        usual = distance.detach().mean(-1, keepdim=True) + 1e-6  # a distance of 1 is what is usual at this place
        weights = torch.softmax(distance / usual * -sharpness.exp(), dim=-1)
        many = blocks(whole, block, max(1, block // 2))
        # a product with a matrix that is mostly 0 is faster than to gather K blocks for each
        spread = weights.new_zeros(*weights.shape[:2], many.shape[1]).scatter_(2, index, weights).to(a.dtype)
        found = torch.bmm(spread, many).unflatten(1, [size // block for size in whole.shape[2:]])
        picture = found.unflatten(-1, (block, block, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2).movedim(-1, 1)
        return gate * (crop_to(picture, inner) - a)


def blocks(x: Tensor, size: int, step: int) -> Tensor:
    """[B, C, X, Y] -> [B, P, size^2 C]: all blocks `step` apart, rows first."""
    cells = x.unfold(2, size, step).unfold(3, size, step)  # [B, C, rows, columns, size, size]
    return cells.permute(0, 2, 3, 4, 5, 1).reshape(len(x), cells.shape[2] * cells.shape[3], -1)


def nearest(x: Tensor, block: int, similar: int) -> tuple[Tensor, Tensor]:
    """The `similar` blocks within the window that are most like each block of x [B, 1, X, Y] (whole blocks).

    Mean squared distances [B, P, K], which gradients pass through, and indices [B, P, K] into the blocks half a block
    apart. A block is the first of its own list.
    """
    step = max(1, block // 2)
    one, many = blocks(x, block, block), blocks(x, block, step)
    distance = torch.cdist(one, many, compute_mode="donot_use_mm_for_euclid_dist").square() / block**2
    spatial = tuple(x.shape[2:])
    fewest = math.prod(min((size - block) // step, WINDOW // step) + 1 for size in spatial)  # in a corner
    index = (distance.detach() + _allowed(spatial, block, x.device)).topk(min(similar, fewest), largest=False).indices
    return distance.gather(2, index), index


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training, too, whoever asks first
def _allowed(spatial: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    """What is added to distances before the choice, [P, Q]: infinity beyond the window, less than nothing to itself."""
    here, there = (_places(spatial, block, s, device) for s in (block, max(1, block // 2)))
    apart = (here[:, None] - there[None]).abs().amax(-1)
    return torch.where(apart > WINDOW, torch.inf, torch.where(apart == 0, -1.0, 0.0))


def _places(spatial: Sequence[int], block: int, step: int, device: torch.device) -> Tensor:
    """Where the blocks of `blocks` begin, [P, 2] voxels."""
    axes = [torch.arange(0, size - block + 1, step, device=device) for size in spatial]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def _across(v: Tensor, x: Tensor) -> Tensor:
    return v.to(x.dtype).reshape(-1, 1, 1)

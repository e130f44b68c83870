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
        self.match = nn.ModuleList(Match(channels, similar) for _ in range(self.LEVELS + 1))  # A, then D of each level
        self.shrink = nn.ModuleList(Shrink(2 * channels) for _ in range(self.LEVELS))  # H and V of each level

    def forward(self, f: Tensor) -> Tensor:
        change = self.change(pad_to(f, 2**self.LEVELS), 0)
        return f + crop_to(change, f.shape[2:])

    def change(self, f: Tensor, level: int) -> Tensor:
        """What filtering adds to f: as the transform is linear, the transform of what is added to each band."""
        low, first, second, diagonal = haar(f).chunk(4, dim=1)
        if level + 1 < self.LEVELS:
            low = self.change(low, level + 1)
        else:
            low = self.match[0](low)
        sides = self.shrink[level](torch.cat([first, second], dim=1))
        return unhaar(torch.cat([low, sides, self.match[level + 1](diagonal)], dim=1))


class Shrink(nn.Module):
    """gamma: what a soft threshold takes from each channel, sign(h) min(|h|, threshold), times a gate, negated."""

    def __init__(self, channels: int):
        super().__init__()
        self.threshold = nn.Parameter(torch.full((channels,), -3.0))  # softplus: 0.05
        self.gate = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor) -> Tensor:
        threshold = _across(F.softplus(self.threshold), h)
        return -_across(self.gate, h) * torch.minimum(torch.maximum(h, -threshold), threshold)


class Match(nn.Module):
    """delta: how the mean of the most similar blocks differs from each block, times a gate."""

    def __init__(self, channels: int, similar: int = SIMILAR):
        super().__init__()
        self.similar = similar
        self.gate = nn.Parameter(torch.zeros(channels))
        self.sharpness = nn.Parameter(torch.zeros(()))  # log of how fast weights fall with the distance

    def forward(self, a: Tensor) -> Tensor:
        """a [B, C, X, Y] -> what to add to it, the same shape."""
        block = min(BLOCK, *a.shape[2:])
        step = max(1, block // 2)
        whole = pad_to(a, block)
        spatial, mean = whole.shape[2:], whole.float().mean(1, keepdim=True)
        one, many = blocks(mean, block, block), blocks(mean, block, step)
        index = nearest(one, many, spatial, block, self.similar)  # [B, P, K]
        samples = torch.arange(len(a), device=a.device)[:, None, None]
        distance = (many[samples, index] - one[:, :, None]).square().mean(-1)
        usual = distance.detach().mean(-1, keepdim=True) + 1e-6  # a distance of 1 is what is usual at this place
        weights = torch.softmax(-self.sharpness.float().exp() * distance / usual, dim=-1)
        # a product with a matrix that is mostly 0 is faster than to gather K blocks for each
        spread = weights.new_zeros(len(a), one.shape[1], many.shape[1]).scatter(2, index, weights).to(a.dtype)
        found = torch.bmm(spread, blocks(whole, block, step)).unflatten(1, [size // block for size in spatial])
        picture = found.unflatten(-1, (block, block, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2).movedim(-1, 1)
        return _across(self.gate, a) * (crop_to(picture, a.shape[2:]) - a)


def blocks(x: Tensor, size: int, step: int) -> Tensor:
    """[B, C, X, Y] -> [B, P, size^2 C]: all blocks `step` apart, rows first."""
    cells = x.unfold(2, size, step).unfold(3, size, step)  # [B, C, rows, columns, size, size]
    return cells.permute(0, 2, 3, 4, 5, 1).reshape(len(x), cells.shape[2] * cells.shape[3], -1)


@torch.no_grad()
def nearest(one: Tensor, many: Tensor, spatial: Sequence[int], block: int, similar: int) -> Tensor:
    """The `similar` blocks of `many` [B, Q, D] within the window that are most like each of `one` [B, P, D]: indices
    [B, P, K]. A block is the first of its own list.
    """
    step = max(1, block // 2)
    distance = many.square().sum(-1).unsqueeze(1) - 2 * torch.bmm(one, many.transpose(1, 2))  # and |one|^2: no matter
    apart = _apart(tuple(spatial), block, one.device)
    distance = distance.masked_fill(apart > WINDOW, torch.inf).masked_fill(apart == 0, -torch.inf)
    fewest = math.prod(min((size - block) // step, WINDOW // step) + 1 for size in spatial)  # in a corner
    return distance.topk(min(similar, fewest), dim=-1, largest=False).indices


@functools.lru_cache(maxsize=64)
def _apart(spatial: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    """How many voxels lie between the starts of blocks and of those they may be like, [P, Q], the larger axis."""
    here, there = (_places(spatial, block, s, device) for s in (block, max(1, block // 2)))
    return (here[:, None] - there[None]).abs().amax(-1)


def _places(spatial: Sequence[int], block: int, step: int, device: torch.device) -> Tensor:
    """Where the blocks of `blocks` begin, [P, 2] voxels."""
    axes = [torch.arange(0, size - block + 1, step, device=device) for size in spatial]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def _across(v: Tensor, x: Tensor) -> Tensor:
    return v.to(x.dtype).reshape(-1, 1, 1)

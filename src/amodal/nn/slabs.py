"""Convolutional layers in slabs along the first spatial axis: bounded memory, and the very result of the whole.

A slab is read with the halo its kernel asks for (zeros beyond the image, where the layer itself would pad), and group
norms take their mean and variance from the whole tensor, summed in pieces that do not depend on the slabs. Nothing is
blended. In channels-last order a slab is one piece of memory. `budget`: values in a slab, at least one plane; 0 runs a
layer in one, with gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import winograd
from .blocks import Residual, Up
from .layout import CHANNELS_LAST
from .norm import activate as activated
from .norm import rows

BUDGET = {"cpu": 1 << 23}  # values: few enough for the allocator to reuse their memory
ELSEWHERE = 1 << 26  # a GPU wants large pieces
PIECE = 1 << 19  # values summed at a time for means and variances, at most

Norm = tuple[nn.GroupNorm, Tensor, Tensor]  # with the mean and the variance of every channel, [C]


def budget_for(x: Tensor) -> int:
    """How many values a slab should have where x lies."""
    return BUDGET.get(x.device.type, ELSEWHERE)


def statistics(x: Tensor, norm: nn.GroupNorm) -> Norm:
    """Mean and variance of the groups of x [1, C, *spatial], a value a channel [C], in float32 or finer."""
    fine = torch.promote_types(x.dtype, torch.float32)
    flat = rows(x)[0]
    total, square = [], []
    for piece in flat.split(max(1, PIECE // flat.shape[1])):
        piece = piece.to(fine)
        total.append(piece.sum(0))
        square.append((piece * piece).sum(0))
    groups = (norm.num_groups, -1)
    mean, power = (torch.stack(v).double().sum(0).reshape(groups).mean(1) / len(flat) for v in (total, square))
    variance = (power - mean**2).clamp(min=0)
    width = flat.shape[1] // norm.num_groups
    mean, variance = (v.repeat_interleave(width).to(fine) for v in (mean, variance))
    return norm, mean, variance


def activate(x: Tensor, norm: Norm) -> Tensor:
    """SiLU of the group norm of part of a tensor whose statistics are known; one pass each."""
    layer, mean, variance = norm
    weight, bias = layer.weight.to(mean.dtype), layer.bias.to(mean.dtype)
    return F.silu(F.batch_norm(x, mean, variance, weight, bias, False, 0.0, layer.eps), inplace=True)


def convolve(
    layer: nn.Conv2d | nn.Conv3d, x: Tensor, budget: int, norm: nn.GroupNorm | None = None, add: Tensor | None = None,
    skip: nn.Module | None = None,
) -> Tensor:  # fmt: skip
    """layer(silu(norm(x))), plus skip(add) if given; `add` is overwritten where skip is the identity.

    x [1, C, *spatial]; kernel and padding as `blocks.conv` makes them, any stride.
    """
    if not budget:
        h = x if norm is None else activated(x, norm)
        h = winograd.convolve(layer, h)
        return h if add is None or skip is None else h.add_(skip(add))
    known = None if norm is None else statistics(x, norm)
    stride, kernel, padding = layer.stride[0], layer.kernel_size[0], int(layer.padding[0])
    size = (x.shape[2] + 2 * padding - kernel) // stride + 1
    out = add if isinstance(skip, nn.Identity) else None
    for first, last in spans(size, x, budget // stride, layer.out_channels / stride ** (x.ndim - 3)):
        part = cut(x, first * stride - padding, (last - 1) * stride - padding + kernel, known)
        part = winograd.convolve(layer, part, halo=True)
        if add is not None and skip is not None:
            part.add_(skip(add[:, :, first:last]))
        out = buffer(part, size) if out is None else out
        out[:, :, first:last] = part
    assert out is not None
    return out


def residual(block: Residual, x: Tensor, budget: int) -> Tensor:
    """block(x); x is overwritten if the block keeps the number of channels and there is a budget."""
    if not budget:
        return block(x)
    h = convolve(block.conv1, x, budget, block.norm1)
    return convolve(block.conv2, h, budget, block.norm2, x, block.skip)


def upsample(block: Up, x: Tensor, budget: int) -> Tensor:
    """block(x), twice the size."""
    if not budget:
        return block(x)
    out, size = None, 2 * x.shape[2]
    for first, last in spans(x.shape[2], x, budget, block.conv.out_channels * 2 ** (x.ndim - 2)):
        part = block(cut(x, first - 1, last + 1), halo=True)
        out = buffer(part, size) if out is None else out
        out[:, :, 2 * first : 2 * last] = part
    assert out is not None
    return out


def spans(size: int, x: Tensor, budget: int, outputs: float) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of every slab of a result of `size` planes, which have `outputs` values for each voxel of
    a plane of x."""
    plane = max(x.shape[1], outputs) * x[0, 0, 0].numel()
    planes = max(1, int(budget / plane))
    for first in range(0, size, planes):
        yield first, min(first + planes, size)


def cut(x: Tensor, first: int, last: int, norm: Norm | None = None) -> Tensor:
    """Planes first .. last - 1, activated if there is a norm, zeros for planes the image does not have."""
    low, high = max(first, 0), min(last, x.shape[2])
    part = x[:, :, low:high]
    part = part if norm is None else activate(part, norm)
    if low == first and high == last:
        return part
    sides = [0] * 2 * (x.ndim - 3) + [low - first, last - high]
    return F.pad(part, sides).contiguous(memory_format=CHANNELS_LAST[x.ndim - 2])


def buffer(part: Tensor, size: int) -> Tensor:
    """An empty tensor like `part`, with `size` planes, channels-last."""
    shape = (*part.shape[:2], size, *part.shape[3:])
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=CHANNELS_LAST[part.ndim - 2])

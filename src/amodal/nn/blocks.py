"""The blocks of a convolutional network, 2-D and 3-D from one code: residual block and resampling.

Every block keeps the memory format of its input. Out of training, tensors that nobody needs any more are overwritten.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .norm import activate, group_norm
from .winograd import TWICE, convolve, derived, short, shortest


class Pointwise2d(nn.Conv2d):
    """A convolution of one tap: see `pointwise`."""

    def forward(self, input: Tensor) -> Tensor:
        return pointwise(self, super().forward, input)


class Pointwise3d(nn.Conv3d):
    """A convolution of one tap: see `pointwise`."""

    def forward(self, input: Tensor) -> Tensor:
        return pointwise(self, super().forward, input)


def pointwise(layer: nn.Conv2d | nn.Conv3d, long: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `long` makes of x: of channels-last on a CPU, without gradients, as the matrix product it is (the
    convolution of one thread would first copy x)."""
    last = x.movedim(1, -1)
    if torch.is_grad_enabled() or x.device.type != "cpu" or not last.is_contiguous():
        return long(x)
    return F.linear(last, layer.weight.flatten(1), layer.bias).movedim(-1, 1)


CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
POINTWISE: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: Pointwise2d, 3: Pointwise3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {2: F.conv_transpose2d, 3: F.conv_transpose3d}

M = TypeVar("M", bound=nn.Module)


def zero(layer: M) -> M:
    """The layer with all parameters 0: a block that ends in it begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def conv(dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d | nn.Conv3d:
    """A convolution that keeps the size (divided by the stride)."""
    return (POINTWISE if kernel == stride == 1 else CONV)[dims](inputs, outputs, kernel, stride, padding=kernel // 2)


def half(x: Tensor) -> Tensor:
    """Mean over cells of 2 voxels per axis: [B, C, *spatial] -> [B, C, *spatial / 2]."""
    dims = x.ndim - 2
    corners = itertools.product((slice(0, None, 2), slice(1, None, 2)), repeat=dims)  # (3-D avg_pool: no bf16 on CPU)
    return functools.reduce(torch.add, (x[(slice(None), slice(None), *corner)] for corner in corners)) * 0.5**dims


def twice(x: Tensor) -> Tensor:
    """Every voxel repeated along every axis: [B, C, *spatial] -> [B, C, *spatial * 2]."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


RESAMPLE: dict[str, Callable[[Tensor], Tensor]] = {"down": half, "up": twice}


class Residual(nn.Module):
    """norm, SiLU, conv, norm modulated by the embedding, SiLU, dropout, conv that begins as 0; plus the input."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        groups: int,
        dropout: float = 0.0,
        resample: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = conv(dims, inputs, outputs)
        self.norm2 = group_norm(outputs, groups)
        self.conv2 = zero(conv(dims, outputs, outputs))
        self.skip = nn.Identity() if inputs == outputs else conv(dims, inputs, outputs, kernel=1)
        self.dropout, self.resample = dropout, resample

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """x [B, inputs, *spatial], modulation [B, 2 outputs] -> [B, outputs, *spatial]."""
        h = activate(x, self.norm1)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = activate(convolve(self.conv1, h), self.norm2, modulation)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return convolve(self.conv2, h, add=self.skip(x))


class Down(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.conv = conv(dims, channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.conv, x)


class Up(nn.Module):
    """Nearest-neighbour upsampling by 2 and a convolution, in one: a transposed convolution, stride 2, 4 taps per axis.

    Of the 3 taps per axis two always meet the same repeated voxel: added beforehand, they leave (2/3)^dims of the
    multiplications, and the upsampled tensor is never made.
    """

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.dims = dims
        self.conv = conv(dims, channels, channels)

    def forward(self, x: Tensor, halo: bool = False) -> Tensor:
        """x [B, C, *spatial] -> twice the size; `halo`: x has its neighbours along the first axis."""
        if way := shortest(self.conv, x, (TWICE,), taps=4):
            return short(way, self.conv, x, halo)
        # with one voxel more at both ends the first three and last three planes belong to the neighbours
        sides = (1 + 2 * halo, *(1,) * (self.dims - 1))
        return TRANSPOSED[self.dims](x, self.weight(), self.conv.bias, stride=2, padding=sides)

    def weight(self) -> Tensor:
        """The weight of the transposed convolution, [in, out, 4, ...], channels-last."""
        return derived(self.conv, merged)


def merged(weight: Tensor) -> Tensor:
    """The weight of a convolution after upsampling -> that of the transposed convolution without it."""
    dims = weight.ndim - 2
    taps = weight.transpose(0, 1).movedim(1, -1).flatten(1, -2)  # [in, 3^dims, out]
    taps = torch.matmul(taps.new_tensor(merge(dims)), taps)
    return taps.unflatten(1, (4,) * dims).movedim(-1, 1)


@functools.cache
def merge(dims: int) -> tuple[tuple[float, ...], ...]:
    """[4^dims, 3^dims]: the taps of a convolution after upsampling -> the taps of the transposed convolution."""
    axis = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    rows = itertools.product(axis, repeat=dims)
    return tuple(tuple(math.prod(taps) for taps in itertools.product(*row)) for row in rows)

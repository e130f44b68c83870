"""The orthonormal Haar transform, 2-D and 3-D: half the size, 2^dims times the channels, nothing lost.

Filters l = [1, 1] / sqrt 2 and h = [-1, 1] / sqrt 2 along every axis (WFDM, section 2.5.2; its Eq. 4 for the order).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import CHANNELS_LAST


def bands(dims: int) -> tuple[str, ...]:
    """The names of the sub-bands in the order of `haar`: LL, LH, HL, HH in 2-D; LLL, LLH, ..., HHH in 3-D.

    The first letter belongs to the first spatial axis.
    """
    return tuple("".join(letters) for letters in itertools.product("LH", repeat=dims))


def haar(x: Tensor) -> Tensor:
    """[B, C, *spatial], sizes even -> [B, 2^dims C, *spatial / 2]: first every channel's LL(L), then the next band's.

    Norms and inner products stay as they are. ValueError: an odd size.
    """
    dims = x.ndim - 2
    if odd := [size for size in x.shape[2:] if size % 2]:
        raise ValueError(f"size {odd[0]} of {list(x.shape)} is odd; pad it to an even one")
    for axis in reversed(range(2, x.ndim)):  # the last axis first, so that the first axis varies slowest
        near, far = (x[(slice(None),) * axis + (slice(side, None, 2),)] for side in (0, 1))
        x = torch.cat([near + far, far - near], dim=1)
    return x * 2 ** (-dims / 2)


def unhaar(x: Tensor) -> Tensor:
    """The inverse of `haar`: [B, 2^dims C, *spatial] -> [B, C, *spatial * 2]. ValueError: bands are lacking."""
    dims = x.ndim - 2
    if x.shape[1] % 2**dims:
        raise ValueError(f"{x.shape[1]} channels are no whole number of {2**dims} sub-bands")
    at = -1 if x.is_contiguous(memory_format=CHANNELS_LAST[dims]) else 1  # a stack would lose the layout otherwise
    x, first = x.movedim(1, at), 1 if at == -1 else 2
    for axis in range(first, first + dims):
        low, high = x.chunk(2, dim=at)
        x = torch.stack([low - high, low + high], dim=axis + 1).flatten(axis, axis + 1)
    return x.movedim(at, 1) * 2 ** (-dims / 2)


def low(x: Tensor) -> Tensor:
    """The first band of `haar` by itself: [B, C, *spatial], sizes even -> [B, C, *spatial / 2]."""
    return haar(x)[:, : x.shape[1]]


def with_low(x: Tensor, band: Tensor) -> Tensor:
    """x [B, C, *spatial] with another first band, [B, C, *spatial / 2]; all other bands stay."""
    change = (band - low(x)) * 2 ** (-(x.ndim - 2) / 2)
    return x + F.interpolate(change, scale_factor=2.0, mode="nearest")

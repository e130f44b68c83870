"""How a tensor lies in memory: channels last (what convolutions want), and voxels folded into channels and back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS_LAST: dict[int, torch.memory_format] = {2: torch.channels_last, 3: torch.channels_last_3d}


def channels_last(x: Tensor) -> Tensor:
    """x [B, C, *spatial] with the channel as the fastest axis in memory; no copy where it already is."""
    return x.contiguous(memory_format=CHANNELS_LAST[x.ndim - 2])


def convert(net: nn.Module, dtype: torch.dtype | None = None, keep: Sequence[str] = ("embed",)) -> nn.Module:
    """`net`, in place: convolution weights channels-last, parameters of type `dtype` (None: as they are).

    `keep`: names of submodules that stay as they are; the time embedding is cheap, and every layer would see its error.
    So do group norms, which count in float32. To be called once, when a network is loaded, not cast at every step.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.GroupNorm) or any(part in keep for part in name.split(".")):
            continue
        for parameter in module.parameters(recurse=False):
            data = parameter.data if dtype is None else parameter.data.to(dtype)
            parameter.data = channels_last(data) if data.ndim - 2 in CHANNELS_LAST else data
    return net


def fold(x: Tensor, patch: int) -> Tensor:
    """[B, C, *spatial] -> [B, C * patch^dims, *spatial / patch]: pixel unshuffle for any dims, channels last."""
    if patch == 1:
        return channels_last(x)
    offsets = itertools.product(range(patch), repeat=x.ndim - 2)
    cells = [x[(slice(None), slice(None), *(slice(o, None, patch) for o in offset))] for offset in offsets]
    return channels_last(torch.stack(cells, dim=2).flatten(1, 2))


def unfold(x: Tensor, patch: int) -> Tensor:
    """The inverse of `fold`: [B, C * patch^dims, *spatial] -> [B, C, *spatial * patch], contiguous."""
    dims = x.ndim - 2
    if patch == 1:
        return x
    cells = x.movedim(1, -1).unflatten(-1, (-1, *(patch,) * dims))  # [B, *spatial, C, patch...]
    order = [axis for d in range(dims) for axis in (1 + d, 2 + dims + d)]
    shape = [size * patch for size in x.shape[2:]]
    return cells.permute(0, 1 + dims, *order).reshape(len(x), -1, *shape)


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """x [B, C, *spatial] repeated at its far edges until every spatial size is a multiple of `multiple`."""
    short = [-size % multiple for size in x.shape[2:]]
    if not any(short):
        return x
    return F.pad(x, [n for missing in reversed(short) for n in (0, missing)], mode="replicate")


def crop_to(x: Tensor, spatial: Sequence[int]) -> Tensor:
    """The near corner of x [B, C, *spatial]: the inverse of `pad_to`."""
    return x[(slice(None), slice(None), *(slice(0, size) for size in spatial))]

"""Group normalisation with a modulation, fast for channels-last tensors on a CPU (elsewhere it is torch's own)."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import native
from .layout import channels_last

SMALL = 1024  # below so many voxels torch's group norm takes a slow way for channels-last, not for contiguous tensors
WORTH = 1 << 15  # values from which the compiled function pays
LINE, PIECE = 16, 512  # of activate.c: channels are a multiple of the one; so many voxels are summed at a time
CHUNK = 1 << 19  # values at a time in the backward pass, so that its float32 temporaries stay in the cache


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the largest number of groups that divides both `groups` and `channels`."""
    return nn.GroupNorm(math.gcd(groups, channels), channels)


def normalise(x: Tensor, norm: nn.GroupNorm, modulation: Tensor | None = None) -> Tensor:
    """norm(x) (1 + scale) + shift of x [B, C, *spatial] with modulation = [scale, shift], [B, 2 C].

    Adaptive group norm, Dhariwal & Nichol 2021, section 3.1. Weight and bias take in the modulation, so that the
    tensor is passed over once.
    """
    weight, bias = modulated(norm, modulation, torch.promote_types(x.dtype, torch.float32))
    if x.device.type == "cpu":
        return OnCpu.apply(x, weight, bias, norm.num_groups, norm.eps)
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if len(weight) == 1:
        return F.group_norm(x, norm.num_groups, weight[0], bias[0], norm.eps)
    weight, bias = (v.reshape(*v.shape, *(1,) * (x.ndim - 2)) for v in (weight, bias))
    return torch.addcmul(bias, F.group_norm(x, norm.num_groups, eps=norm.eps), weight)


def modulated(norm: nn.GroupNorm, modulation: Tensor | None, fine: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias of a modulated norm: [1, C], or [B, C] where there is a modulation."""
    weight, bias = norm.weight.to(fine).unsqueeze(0), norm.bias.to(fine).unsqueeze(0)
    if modulation is None:
        return weight, bias
    scale, shift = modulation.to(fine).chunk(2, dim=1)
    return weight * (1 + scale), torch.addcmul(bias + shift, bias, scale)


def activate(x: Tensor, norm: nn.GroupNorm, modulation: Tensor | None = None) -> Tensor:
    """SiLU of `normalise`. On a CPU, of channels-last and without gradients, by code compiled here (activate.c) where
    that can be had: x is read twice and written once, in place of three and two times."""
    if found := compiled(x):
        return at_once(found, x, norm, modulation)
    return F.silu(normalise(x, norm, modulation), inplace=not torch.is_grad_enabled())


def compiled(x: Tensor) -> Any:
    """The function of activate.c, if it serves x."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or x.dtype not in (torch.float32, torch.bfloat16):
        return None
    if x.numel() < WORTH or x.shape[1] % LINE or not x.movedim(1, -1).is_contiguous():
        return None
    return function(x.dtype == torch.bfloat16)


@functools.cache
def function(half: bool) -> Any:
    library = native.library("activate", half)
    if library is None:
        return None
    whole, address = ctypes.c_int64, ctypes.c_void_p
    library.activate.restype = None
    library.activate.argtypes = [*[address] * 4, *[whole] * 5, ctypes.c_double, whole, address]
    return library.activate


def at_once(call: Callable[..., None], x: Tensor, norm: nn.GroupNorm, modulation: Tensor | None) -> Tensor:
    """`activate` by the compiled function."""
    weight, bias = (v.contiguous() for v in modulated(norm, modulation, torch.float32))
    channels, voxels = x.shape[1], math.prod(x.shape[2:])
    out = torch.empty_like(x)
    scratch = torch.empty(2 * channels * (1 + -(-voxels // PIECE)))
    call(
        x.data_ptr(), out.data_ptr(), weight.data_ptr(), bias.data_ptr(), channels * (len(weight) > 1), len(x), voxels,
        channels, norm.num_groups, norm.eps, torch.get_num_threads(), scratch.data_ptr(),
    )  # fmt: skip
    return out


class OnCpu(torch.autograd.Function):
    """Group norm of x [B, C, *spatial], weight and bias [1, C] for all samples or [B, C] for each, in float32 or finer.

    Forward torch's own kernel, but its backward pass in bf16 takes up to a hundred times as long as its forward
    pass, the one below some ten times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        if len(weight) == 1:
            out, mean, rate = kernel(x, weight[0], bias[0], groups, eps)
        else:
            samples = [kernel(*sample, groups, eps) for sample in zip(x.split(1), weight, bias)]
            out, mean, rate = (torch.cat(parts) for parts in zip(*samples))
        ctx.save_for_backward(x, weight, mean, rate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, towards: Tensor) -> tuple[Tensor | None, ...]:
        """With y = x s + b per channel, s = weight * rate: all that is needed are the sums of y' and of y' x."""
        x, weight, mean, rate = ctx.saved_tensors
        width = x.shape[1] // mean.shape[1]
        mean, rate = mean.repeat_interleave(width, 1), rate.repeat_interleave(width, 1)
        grad, grads = torch.empty_like(x), []
        for sample, (m, r) in enumerate(zip(mean, rate)):
            scale = weight[sample % len(weight)]
            pairs = list(zip(*(v[sample].split(max(1, CHUNK // len(m))) for v in (rows(x), rows(towards)))))
            totals = [(u.sum(0), (u * v).sum(0)) for v, u in ((v.to(m.dtype), u.to(m.dtype)) for v, u in pairs)]
            by_bias, product = (torch.stack(t).sum(0) for t in zip(*totals))
            by_weight = (product - m * by_bias) * r
            count = sum(len(v) for v, _ in pairs)
            level, slope = (per_group(scale * d, width) / (count * width) for d in (by_bias, by_weight))
            a, b, c = scale * r, -slope * r * r, (slope * r * m - level) * r  # x' = a y' + b x + c
            parts = [torch.addcmul(torch.addcmul(c, v.to(m.dtype), b), u.to(m.dtype), a).to(x.dtype) for v, u in pairs]
            grad[sample] = torch.cat(parts).unflatten(0, x.shape[2:]).movedim(-1, 0)
            grads.append((by_weight, by_bias))
        by_weight, by_bias = (torch.stack(g) for g in zip(*grads))
        if len(weight) == 1:
            by_weight, by_bias = by_weight.sum(0, keepdim=True), by_bias.sum(0, keepdim=True)
        return grad, by_weight, by_bias, None, None


def kernel(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """torch's group norm: (the result, mean [B, groups], 1 / deviation [B, groups])."""
    voxels = math.prod(x.shape[2:])
    given = x.contiguous() if voxels < SMALL else x
    out, mean, rate = torch.native_group_norm(given, weight, bias, len(x), x.shape[1], voxels, groups, eps)
    return (out if given is x else channels_last(out)), mean, rate


def rows(x: Tensor) -> Tensor:
    """[B, C, *spatial] -> [B, N, C]; a view if x is channels-last."""
    return x.movedim(1, -1).flatten(1, -2)


def per_group(x: Tensor, width: int) -> Tensor:
    """[..., C] -> [..., C]: each channel's value replaced by the sum over its group of `width` channels."""
    grouped = x.unflatten(-1, (-1, width))
    return grouped.sum(-1, keepdim=True).expand_as(grouped).flatten(-2)

"""AdamW, its rate over time, and its moments as flat named tensors (which is how a checkpoint keeps them)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW

DECAYS: dict[str, Callable[[float], float]] = {
    "none": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
}


def factor(step: int, progress: float, warmup: int, decay: str) -> float:
    """What multiplies the learning rate at `step` (counted from 0), `progress` in [0, 1] of the stage."""
    return min(1.0, (step + 1) / max(1, warmup)) * DECAYS[decay](min(1.0, max(0.0, progress)))


def adamw(parameters: Sequence[Parameter], rate: float, betas: tuple[float, float], weight_decay: float) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), in its fused form where the device has one."""
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return AdamW(parameters, lr=rate, betas=betas, weight_decay=weight_decay, fused=fused)


def step(optimizer: AdamW, rate: float) -> None:
    """One step at this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def moments(optimizer: AdamW, names: Mapping[Parameter, str]) -> dict[str, Tensor]:
    """The optimiser's state as `<parameter>/<what>` -> tensor."""
    return {f"{names[p]}/{what}": value for p in names for what, value in optimizer.state.get(p, {}).items()}


def restore(optimizer: AdamW, names: Mapping[Parameter, str], saved: Mapping[str, Tensor]) -> None:
    """Put saved moments back, each in the memory layout of its parameter (the fused step reads both linearly)."""
    found = {name: p for p, name in names.items()}
    for key, value in saved.items():
        name, _, what = key.rpartition("/")
        parameter = found[name]
        like = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else value.clone()
        where = parameter.device if optimizer.defaults["fused"] or what != "step" else "cpu"
        optimizer.state[parameter][what] = like.copy_(value).to(where)


def average(parameters: Iterable[Parameter], mean: Callable[[Tensor], Tensor]) -> None:
    """Replace the gradients by their mean over the processes; `mean` reduces one flat tensor."""
    parameters = list(parameters)
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = mean(torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]))
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = torch.empty_like(p).copy_(part.view(p.shape))


def channels_last(module: torch.nn.Module) -> None:
    """Lay out convolution weights with channels last, 2-D and 3-D alike (the fast layout in bf16)."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for p in module.parameters():
        if p.dim() in formats:
            p.data = p.data.contiguous(memory_format=formats[p.dim()])

"""Inference in two stages (section 3.4), given a denoiser that is bent towards what is known.

M      `start`, the time a first guess is noised to        S   `steps` from there to the clean image
near   the time of stage 2                                 N   `iterations` of stage 2
w      weight of the newest prediction in the average
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.contract import Progress
from ...core.rng import Rng
from ...diffusion.denoiser import Denoise
from ...diffusion.process import Process
from ...diffusion.samplers import renoise


def stage1(
    denoise: Denoise, process: Process, guess: Tensor, start: int, steps: int, rng: Rng,
    progress: Progress | None = None,
) -> Tensor:  # fmt: skip
    """The guess (known channels: the images themselves) noised to `start`, then refined in `steps`."""
    times = falling(start, steps).to(guess.device)
    return renoise(denoise, process, noised(process, guess, times[0], rng), times, rng, progress)


def stage2(
    denoise: Denoise, process: Process, x0: Tensor, near: int, stride: int, iterations: int, weight: float, rng: Rng,
    progress: Progress | None = None,
) -> Tensor:  # fmt: skip
    """x0 <- (1 - w) x0 + w D(noised x0) again and again at the small time `near` (Eq. 5), then down by `stride`."""
    tail = list(range(near - stride, 0, -stride))[: iterations - 1]
    turns = iterations - len(tail)
    time = torch.tensor(float(near), device=x0.device)
    for turn in range(turns):
        predicted = denoise(noised(process, x0, time, rng), time.expand(len(x0)))
        x0 = (1 - weight) * x0 + weight * predicted
        if progress is not None:
            progress(turn + 1, iterations)
    if not tail:
        return x0
    times = torch.tensor([*map(float, tail), 0.0], device=x0.device)
    rest = None if progress is None else lambda done, of: progress(turns + done, iterations)
    return renoise(denoise, process, noised(process, x0, times[0], rng), times, rng, rest)


def falling(start: int, steps: int) -> Tensor:
    """steps + 1 whole times from `start` to 0."""
    return torch.linspace(start, 0, steps + 1, dtype=torch.float64).round().float()


def noised(process: Process, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
    """alpha_t x0 + sigma_t eps."""
    alpha, sigma = process.at(t)
    return alpha * x0 + sigma * rng.normal_like(x0)

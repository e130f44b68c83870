"""Samplers: functions of a denoiser, a process, a noisy start and a falling grid of times. They share one step.

ddim       Song et al. 2021; eta = 0 deterministic (Euler on a rectified flow), eta = 1 ancestral DDPM
heun       second order: the step is taken again with the mean of both ends' predictions
multistep  DPM-Solver++(2M), Lu et al. 2022: second order at one evaluation a step
repaint    ancestral, each step taken `repeats` times with the noise put back between (Lugmayr et al. 2022)
renoise    x_s = alpha_s x0 + sigma_s eps with fresh noise; not a sampler of the law but of plug-in refinement
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.contract import Progress
from ..core.rng import Rng
from .denoiser import Denoise
from .process import Process

Take = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t, s): x at time t -> x at time s


def step(
    process: Process, x: Tensor, x0: Tensor, t: Tensor, s: Tensor, eta: float = 0.0, rng: Rng | None = None
) -> Tensor:
    """From time t down to s, given the prediction x0 (DDIM, Eq. 12 of Song et al. 2021, for any alpha and sigma)."""
    (at, st), (as_, ss) = process.at(t), process.at(s)
    up = torch.zeros_like(ss)
    if eta > 0 and ss > 0:
        forward = st**2 - (at / as_) ** 2 * ss**2  # variance added between s and t
        up = eta * (forward.clamp(min=0) ** 0.5) * ss / st
    direction = (ss**2 - up**2).clamp(min=0) ** 0.5 / st
    x = as_ * x0 + direction * (x - at * x0)
    if up > 0:
        if rng is None:
            raise ValueError("eta > 0 needs a random stream")
        x = x + up * rng.normal_like(x)
    return x


def _walk(x: Tensor, times: Tensor, progress: Progress | None, take: Take) -> Tensor:
    times = times.to(x.device)
    for i in range(len(times) - 1):
        x = take(x, times[i], times[i + 1])
        if progress is not None:
            progress(i + 1, len(times) - 1)
    return x


def _each(t: Tensor, x: Tensor) -> Tensor:
    return t.expand(len(x))


def ddim(
    denoise: Denoise, process: Process, x: Tensor, times: Tensor, rng: Rng | None = None, eta: float = 0.0,
    progress: Progress | None = None,
) -> Tensor:  # fmt: skip
    """x [B, ...] at times[0] -> a sample at times[-1]; the last step returns the prediction when it ends at 0."""

    def take(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return step(process, x, denoise(x, _each(t, x)), t, s, eta, rng)

    return _walk(x, times, progress, take)


def heun(denoise: Denoise, process: Process, x: Tensor, times: Tensor, progress: Progress | None = None) -> Tensor:
    """Two evaluations a step, second order; the step that ends at the clean image stays first order, as in EDM."""

    def take(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        first = denoise(x, _each(t, x))
        guess = step(process, x, first, t, s)
        if process.at(s)[1] == 0:
            return guess
        return step(process, x, (first + denoise(guess, _each(s, x))) / 2, t, s)

    return _walk(x, times, progress, take)


def multistep(denoise: Denoise, process: Process, x: Tensor, times: Tensor, progress: Progress | None = None) -> Tensor:
    """Second order from the previous prediction; first order in the first step and where log-SNR has no end."""
    past: list[tuple[Tensor, Tensor]] = []  # (log-SNR/2 of the previous time, prediction there)

    def log_snr(t: Tensor) -> Tensor:
        alpha, sigma = process.at(t)
        return alpha.double().log() - sigma.double().log()

    def take(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x0, here, there = denoise(x, _each(t, x)), log_snr(t), log_snr(s)
        use = x0
        if past and torch.isfinite(past[-1][0]) and torch.isfinite(there):
            ratio = ((here - past[-1][0]) / (there - here)).to(x0.dtype)
            use = x0 + (x0 - past[-1][1]) / (2 * ratio)
        past[:] = [(here, x0)]
        return step(process, x, use, t, s)

    return _walk(x, times, progress, take)


def repaint(
    denoise: Denoise, process: Process, x: Tensor, times: Tensor, rng: Rng, repeats: int = 10,
    progress: Progress | None = None,
) -> Tensor:  # fmt: skip
    """Ancestral steps with time travel: what a projection broke between known and unknown is mended by going back."""

    def take(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        for turn in range(repeats):
            down = step(process, x, denoise(x, _each(t, x)), t, s, 1.0, rng)
            if turn == repeats - 1:
                break
            (at, st), (as_, ss) = process.at(t), process.at(s)
            up = (st**2 - (at / as_) ** 2 * ss**2).clamp(min=0) ** 0.5
            x = at / as_ * down + up * rng.normal_like(x)
        return down

    return _walk(x, times, progress, take)


def renoise(
    denoise: Denoise, process: Process, x: Tensor, times: Tensor, rng: Rng, progress: Progress | None = None
) -> Tensor:
    """The prediction noised afresh to the next time, step after step."""

    def take(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x0 = denoise(x, _each(t, x))
        alpha, sigma = process.at(s)
        return alpha * x0 + sigma * rng.normal_like(x0) if sigma > 0 else x0

    return _walk(x, times, progress, take)

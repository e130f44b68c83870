"""Subjects of nobody: the prior alone, slices of one head drawn together (the paper's unconditional generation).

A 2-D prior does not know which slice of a head it draws. Sampling therefore begins not at pure noise but a little
before, around an `outline`: the blurred mean of training subjects, which says where along the body each slice lies and
how large the head is there, and nothing finer (as SDEdit does with a sketch, Meng et al. 2022). Neighbouring slices
share noise, in the start and in every ancestral step.
"""

from __future__ import annotations

from torch import Tensor

from ...core.contract import Progress
from ...core.rng import Rng
from ...diffusion.coupling import couple
from ...diffusion.denoiser import Denoise
from ...diffusion.process import Process
from ...diffusion.samplers import ddim, multistep

BEGIN = 0.6  # alpha of the time at which an outline is joined with noise


def begin_time(process: Process, alpha: float = BEGIN) -> Tensor:
    """The latest time whose alpha is at least this."""
    times = process.grid(int(process.end) if process.end > 1 else 1000).flip(0)  # rising
    return times[int((process.at(times)[0] >= alpha).sum()) - 1]


def draw(
    denoise: Denoise, process: Process, noise: Tensor, rng: Rng, steps: int, eta: float, coupling: float,
    outline: Tensor | None = None, progress: Progress | None = None,
) -> Tensor:  # fmt: skip
    """Slices [Z, M, X, Y] from `noise` and, if it is given, an outline of the same shape in [-1, 1].

    `eta` = 0: the deterministic second-order solver; above: ancestral DDIM with coupled noise.
    """
    times = process.grid(steps)
    if outline is not None:
        begin = begin_time(process)
        times = (times / process.end * begin).round() if process.end > 1 else times * begin
        alpha, sigma = process.at(begin.to(noise.device))
        noise = alpha * outline + sigma * noise
    if eta > 0:
        return ddim(denoise, process, noise, times, couple(rng, coupling), eta, progress)
    return multistep(denoise, process, noise, times, progress)

"""Noising processes. A process is two numbers: x_t = alpha_t x_0 + sigma_t eps, with t = 0 the clean image.

DDPM(T, schedule)   Ho et al. 2020; schedules linear (same), scaled_linear (Rombach et al. 2022),
                    cosine (Nichol & Dhariwal 2021)
RectifiedFlow()     Liu et al. 2023: alpha = 1 - t, sigma = t
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..core.errors import InputError

Schedule = Literal["linear", "scaled_linear", "cosine"]


class Process(Protocol):
    """What samplers and losses need to know of a noising process."""

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, float32, the shape of t."""
        ...

    def draw(self, u: Tensor) -> Tensor:
        """The training time for a uniform number u in [0, 1)."""
        ...

    def grid(self, steps: int) -> Tensor:
        """steps + 1 falling times, from pure noise to 0."""
        ...

    def label(self, t: Tensor) -> Tensor:
        """What the network is told about t: the index of the step, -1 for the clean image."""
        ...

    @property
    def end(self) -> float:
        """The time of pure noise."""
        ...


def _betas(schedule: Schedule, steps: int, first: float, last: float) -> Tensor:
    if schedule == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64) ** 2
    k = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((k + 0.008) / 1.008 * math.pi / 2) ** 2  # Nichol & Dhariwal 2021, Eq. 17
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


@dataclass(frozen=True)
class DDPM:
    """The discrete variance-preserving process. Time t = k in 1..T carries the k-th step (label k - 1); 0 is clean.

    `first`, `last`: beta at both ends; unused by the cosine schedule.
    """

    steps: int = 1000
    schedule: Schedule = "cosine"
    first: float = 1e-4
    last: float = 0.02

    @property
    def end(self) -> float:
        return float(self.steps)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        k = t.round().long()
        alpha, sigma = _tables(self, t.device)
        return alpha[k], sigma[k]

    def draw(self, u: Tensor) -> Tensor:
        return (u * self.steps).floor() + 1

    def grid(self, steps: int) -> Tensor:
        if not 1 <= steps <= self.steps:
            raise InputError(f"steps={steps}: choose 1 to {self.steps}, the steps trained.")
        return torch.linspace(self.steps, 0, steps + 1, dtype=torch.float64).round().float()

    def label(self, t: Tensor) -> Tensor:
        return t - 1


@cache
@torch.inference_mode(False)  # what is kept must serve training, too, whoever asks first
def _tables(process: DDPM, device: torch.device) -> tuple[Tensor, Tensor]:
    betas = _betas(process.schedule, process.steps, process.first, process.last)
    bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])
    return bar.sqrt().float().to(device), (1 - bar).sqrt().float().to(device)


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path from noise to image, t in [0, 1]; DDIM with eta = 0 on it is Euler's method.

    `shift`: how far times lean to noise, in training and in the grid (Esser et al. 2024, Eq. 23; 1: not at all). Of
    a large image much shows through noise in which a small one is lost.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise InputError(f"shift={self.shift:g}: choose a number above 0; 1 is no shift.")

    @property
    def end(self) -> float:
        return 1.0

    def _lean(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.float()
        return 1 - t, t

    def draw(self, u: Tensor) -> Tensor:
        return self._lean(1 - u)  # (0, 1]: time 0 is clean, there is nothing to learn

    def grid(self, steps: int) -> Tensor:
        if steps < 1:
            raise InputError(f"steps={steps}: choose at least 1.")
        return self._lean(torch.linspace(1, 0, steps + 1))

    def label(self, t: Tensor) -> Tensor:
        return t * 1000 - 1  # DDPM's convention too: the clean image is at -1

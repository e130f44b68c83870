"""FastDPM: fewer steps of a trained process, chosen beforehand (Kong & Ping 2021, the paper's "acceleration")."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ...core.errors import InputError

Selection = Literal["linear", "quadratic"]


def chosen(total: int, steps: int, selection: Selection = "linear") -> list[int]:
    """The labels tau_0 < tau_1 < ... (0 .. total - 1) of `steps` steps; fewer where the quadratic choice repeats one.

    linear: floor(i (T - 1) / (S - 1)). quadratic: floor((i sqrt(0.8 T) / (S - 1))^2). One step alone is the last label.
    """
    if not 1 <= steps <= total:
        raise InputError(f"steps={steps}: choose 1 to {total}, the steps trained.")
    if steps == 1:
        return [total - 1]
    if selection == "linear":
        return [i * (total - 1) // (steps - 1) for i in range(steps)]
    top = math.sqrt(0.8 * total)
    return sorted({min(total - 1, math.floor((i * top / (steps - 1)) ** 2 + 1e-6)) for i in range(steps)})


def times(total: int, steps: int, selection: Selection = "linear") -> Tensor:
    """The falling times of a sampler, from the last chosen step (label tau is time tau + 1) to 0, the clean image."""
    return torch.tensor([tau + 1.0 for tau in reversed(chosen(total, steps, selection))] + [0.0])

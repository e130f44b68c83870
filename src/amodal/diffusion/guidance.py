"""Classifier-free guidance (Ho & Salimans 2022): what is asked for, further from what is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoise

Conditional = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, condition) -> x_0


class Other(NamedTuple):
    """A condition to go away from: x_0 = other + `weight` (asked - other) at times from `low` to `high` (in a limited
    interval: Kynkäänniemi et al. 2024). A weight of 1 is no guidance."""

    weight: float
    condition: Tensor
    low: float
    high: float


def guided(net: Conditional, condition: Tensor, others: Sequence[Other]) -> Denoise:
    """The denoiser of a condition, away from each of the `others`; those that are the condition itself cost nothing."""
    others = [o for o in others if o.weight != 1 and not torch.equal(o.condition, condition)]
    if not others:  # nothing waits for the value of t
        return lambda x, t: net(x, t, condition)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        asked = net(x, t, condition)
        found, now = asked, float(t.max())
        for other in others:
            if other.low <= now <= other.high:
                found = found + (other.weight - 1) * (asked - net(x, t, other.condition))
        return found

    return denoise

"""Sums and gatherings over the processes of a distributed run; with one process they are the identity."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def summed(x: Tensor) -> Tensor:
    """The sum of x over all processes; no gradient."""
    if world() == 1:
        return x
    x = x.detach().clone()
    distributed.all_reduce(x)
    return x


def gathered(x: Tensor) -> Tensor:
    """x [B, ...] of every process, [B * processes, ...] in order of rank; gradients reach one's own part.

    That part's gradient is multiplied by the number of processes: a loss of all features is the same everywhere, and
    averaging the gradients over processes (which is what training does) then gives exactly the gradient of the loss.
    """
    if (count := world()) == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(count)]
    distributed.all_gather(parts, x.detach().contiguous())
    parts[distributed.get_rank()] = x * count - x.detach() * (count - 1) if x.is_floating_point() else x
    return torch.cat(parts)

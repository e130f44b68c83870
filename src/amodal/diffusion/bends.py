"""Functions from a denoiser to a denoiser that need no physics: clipping, chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoise


def clip(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Keep predictions in the range of images."""
    return lambda x, t: denoise(x, t).clamp(low, high)


def chunked(denoise_part: Callable[[slice], Denoise], size: int) -> Denoise:
    """Evaluate a batch in pieces of at most `size` samples; `denoise_part(slice)` is the denoiser of those samples.

    Memory is bounded by `size`, the result does not depend on it.
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        parts = [slice(i, min(i + size, len(x))) for i in range(0, len(x), size)]
        return torch.cat([denoise_part(p)(x[p], t[p]) for p in parts])

    return denoise

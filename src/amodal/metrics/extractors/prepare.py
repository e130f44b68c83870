"""What is done to a volume before a network sees it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...core.errors import InputError

BEYOND = 0.5  # how far outside [0, 1] intensities may lie before they are taken for another scale


def zscore(volume: np.ndarray) -> Tensor:
    """[1, 1, X, Y, Z], mean 0 and standard deviation 1 over the whole volume (WFDM, section 2.5.7)."""
    x = torch.from_numpy(np.ascontiguousarray(volume, np.float32))
    return ((x - x.mean()) / x.std(correction=0))[None, None]


def unit(volume: np.ndarray) -> Tensor:
    """[X, Y, Z] clipped to [0, 1]; InputError if the intensities are on another scale."""
    low, high = float(volume.min()), float(volume.max())
    if low < -BEYOND or high > 1 + BEYOND:
        raise InputError(f"intensities from {low:g} to {high:g}: scale volumes so that black is 0 and white is 1.")
    return torch.from_numpy(np.ascontiguousarray(volume, np.float32)).clamp(0, 1)

"""Drawing the slices of a volume together, which a 2-D prior would otherwise treat as strangers."""

from __future__ import annotations

import torch
from torch import Tensor

from ...diffusion.denoiser import Denoise
from ...diffusion.process import Process


def smooth(denoise: Denoise, process: Process, strength: float) -> Denoise:
    """Draw every slice's prediction to the mean of its neighbours, by strength * sigma_t^2: coarse structure agrees
    between slices, detail, decided late, stays each slice's own."""

    def bent(x: Tensor, t: Tensor) -> Tensor:
        x0 = denoise(x, t)
        sigma = process.at(t.reshape(-1)[0])[1]
        padded = torch.cat([x0[:1], x0, x0[-1:]])
        return torch.lerp(x0, (padded[:-2] + padded[2:]) / 2, float(strength * sigma**2 * 2 / 3))

    return bent

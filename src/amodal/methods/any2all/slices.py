"""Coupling the slices of a volume, which a 2-D prior would otherwise treat as strangers (stripes through the plane)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...diffusion.denoiser import Denoise
from ...diffusion.process import Process


def correlate(noise: Tensor, length: float) -> Tensor:
    """Noise [Z, ...], each slice standard normal still, neighbours alike over a Gaussian of `length` slices."""
    if length <= 0 or len(noise) == 1:
        return noise
    z = torch.arange(len(noise), dtype=noise.dtype, device=noise.device)
    weights = torch.exp(-0.5 * ((z[:, None] - z[None]) / length) ** 2)
    weights = weights / weights.norm(dim=1, keepdim=True)  # unit variance at the ends too
    return (weights @ noise.flatten(1)).reshape(noise.shape)


def smooth(denoise: Denoise, process: Process, strength: float) -> Denoise:
    """Draw every slice's prediction to the mean of its neighbours, by strength * sigma_t^2: coarse structure agrees
    between slices, detail, decided late, stays each slice's own."""

    def bent(x: Tensor, t: Tensor) -> Tensor:
        x0 = denoise(x, t)
        sigma = process.at(t.reshape(-1)[0])[1]
        padded = torch.cat([x0[:1], x0, x0[-1:]])
        return torch.lerp(x0, (padded[:-2] + padded[2:]) / 2, float(strength * sigma**2 * 2 / 3))

    return bent

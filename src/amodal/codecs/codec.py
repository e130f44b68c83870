"""What a latent method asks of an autoencoder, and the scale that makes latents of unit variance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn


class Codec(Protocol):
    """An autoencoder of single images (a `torch.nn.Module`). `factor`: image voxels per latent voxel, on every axis."""

    channels: int
    factor: int

    def encode(self, x: Tensor) -> Tensor: ...  # [N, 1, *spatial] in [-1, 1] -> [N, channels, *spatial / factor]

    def decode(self, z: Tensor) -> Tensor: ...  # and back


class Identity(nn.Module):
    """No codec: the latent is the image."""

    channels, factor = 1, 1

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


class Whitening(nn.Module):
    """Zero mean and unit variance for every latent channel: buffers, measured once and stored with the weights.

    A prior's noising process assumes data of unit variance. `fit` belongs into `Stage.begin` of the prior's stage.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))  # 1 / standard deviation

    @torch.no_grad()
    def fit(self, latents: Iterable[Tensor]) -> None:
        """Measure latents [N, C, *spatial]; a channel that never varies keeps the scale 1. ValueError: none given."""
        count, total, square = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for z in latents:
            values = z.detach().double().cpu().transpose(0, 1).flatten(1)
            count += values.shape[1]
            total, square = total + values.sum(1), square + (values**2).sum(1)
        if not count:
            raise ValueError("no latents to measure")
        mean = total / count
        deviation = (square / count - mean**2).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, torch.ones_like(deviation)))

    def enter(self, z: Tensor) -> Tensor:
        """The codec's latents [N, C, *spatial] -> standardised, float32."""
        mean, scale = (per_channel(v, z) for v in (self.mean, self.scale))
        return (z.float() - mean) * scale

    def leave(self, z: Tensor) -> Tensor:
        """Standardised latents -> the codec's, float32."""
        mean, scale = (per_channel(v, z) for v in (self.mean, self.scale))
        return z.float() / scale + mean


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[C] -> [C, 1, ...], float32: one number a channel of `like` [N, C, *spatial]."""
    return values.float().reshape(-1, *(1,) * (like.ndim - 2))

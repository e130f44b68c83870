"""The prior's network: MDiT3D, and what the paper's Table 8 compares it with, all seen as (z, t, condition) -> z_0."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ...nn.dit import DiT
from ...nn.unet import UNet, UNetConfig
from .config import Config


class Joint(nn.Module):
    """Slots as channels of one volume: a transformer without blocks across slots. `planes`: every axial latent slice
    for itself (DiT, Peebles & Xie 2023); else the volume as a whole (DiT-3D, Mo et al. 2023)."""

    def __init__(self, config: Config, planes: bool):
        super().__init__()
        patch = (*config.prior.patch[:2], 1) if planes else config.prior.patch
        inner = replace(config.prior, across=False, inject="both", stacked=planes, patch=patch)
        self.planes = planes
        self.net = DiT(inner, config.slots * config.codec.channels, config.condition)

    def forward(
        self, z: Tensor, label: Tensor, condition: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        b, s, c, x, y, depth = z.shape
        fold, unfold = (_planes, _volume) if self.planes else (lambda v: v, lambda v: v)
        merged = [None if v is None else fold(v.reshape(b, 1, s * c, x, y, depth)) for v in (z, context)]
        return unfold(self.net(merged[0], label, condition, merged[1])).reshape(z.shape)


def _planes(v: Tensor) -> Tensor:
    """[B, 1, C, X, Y, Z] -> [B, Z, C, X, Y, 1]."""
    return v.movedim(5, 1).squeeze(2).unsqueeze(5)


def _volume(v: Tensor) -> Tensor:
    """The inverse of `_planes`."""
    return v.squeeze(5).unsqueeze(2).movedim(1, 5)


class UNetPrior(nn.Module):
    """Slots as channels of one volume for a 3-D U-Net (as in latent diffusion, Rombach et al. 2022)."""

    def __init__(self, config: Config):
        super().__init__()
        n, width = config.slots * config.codec.channels, config.prior.hidden // 2
        self.deep = config.layout == "slices"
        self.net = UNet(
            UNetConfig(
                n, n, (width, 2 * width), 2, (False, True), max(16, width // 2), dims=3, groups=16,
                vector=config.condition, concat=n if config.prior.context else 0,
            )
        )  # fmt: skip

    def forward(
        self, z: Tensor, label: Tensor, condition: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        b, s, c, *spatial = z.shape
        given = None if context is None else context.reshape(b, s * c, *spatial).to(z)
        return self.net(z.reshape(b, s * c, *spatial), label, given, vector=condition).reshape(z.shape)


def network(config: Config) -> nn.Module:
    """The network of a config."""
    makers = {
        "mdit": lambda: DiT(config.prior, config.codec.channels, config.condition),
        "dit3d": lambda: Joint(config, planes=False),
        "dit": lambda: Joint(config, planes=True),
        "unet": lambda: UNetPrior(config),
    }
    return makers[config.backbone]()


def slots(config: Config, z: Tensor) -> Tensor:
    """Latents as the prior wants them: [B, M, C, X, Y, Z] -> [B, slots, C, X, Y, Z or 1]."""
    return z if config.layout == "modalities" else z[:, 0].movedim(-1, 1).unsqueeze(-1)


def latents(config: Config, z: Tensor) -> Tensor:
    """The inverse of `slots`."""
    return z if config.layout == "modalities" else torch.movedim(z.squeeze(-1), 1, -1).unsqueeze(1)

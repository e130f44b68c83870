"""The denoiser's network: the house's U-Net, with tokens; published: its attention blocks are whole transformers.

The latter are those of latent diffusion (Rombach et al. 2022): group norm, projection in, self-attention,
cross-attention to the tokens, a gated feed-forward layer, each after a layer norm, and a projection out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.contract import Batch
from ...core.rng import Rng
from ...diffusion.denoiser import Denoiser, expand
from ...nn.attention import attend, picture
from ...nn.blocks import zero
from ...nn.norm import group_norm, normalise, rows
from ...nn.unet import UNet, UNetConfig


class Transformer(nn.Module):
    """x [B, C, *spatial], tokens [B, N, tokens] -> [B, C, *spatial]; begins as the identity."""

    def __init__(self, channels: int, heads: int, groups: int, tokens: int):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.enter, self.leave = nn.Linear(channels, channels), zero(nn.Linear(channels, channels))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.qkv, self.mix = nn.Linear(channels, 3 * channels, bias=False), nn.Linear(channels, channels)
        self.q, self.kv = nn.Linear(channels, channels, bias=False), nn.Linear(tokens, 2 * channels, bias=False)
        self.look = nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        h = self.enter(rows(normalise(x, self.norm)))
        q, k, v = self.qkv(self.norms[0](h)).chunk(3, dim=-1)
        h = h + self.mix(attend(q, k, v, self.heads))
        k, v = self.kv(tokens.to(self.kv.weight.dtype)).chunk(2, dim=-1)
        h = h + self.look(attend(self.q(self.norms[1](h)), k, v, self.heads))
        value, gate = self.up(self.norms[2](h)).chunk(2, dim=-1)
        h = h + self.down(value * F.gelu(gate))
        return x + picture(self.leave(h), x)


class Network(nn.Module):
    """x_t [B, M, X, Y], label [B], tokens [B, P, W] -> what is predicted [B, M, X, Y]. A U-Net with twice as many
    outputs gives the variance of a step in the other half."""

    def __init__(self, config: UNetConfig, transformers: bool):
        super().__init__()
        self.unet = UNet(config)
        if transformers:
            for name, block in list(self.unet.named_modules()):
                if name.endswith(".attention"):
                    channels = block.out.out_features
                    heads = max(1, channels // config.head_size)
                    self.unet.set_submodule(name, Transformer(channels, heads, config.groups, config.tokens))

    def forward(self, x: Tensor, label: Tensor, tokens: Tensor) -> Tensor:
        return self.both(x, label, tokens)[:, : x.shape[1]]

    def begin(self, data: Callable[[int], Batch]) -> None:
        """There is nothing to fix before training."""

    def both(self, x: Tensor, label: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, label, tokens=tokens)


def variance_loss(prior: Denoiser, x0: Tensor, rng: Rng, tokens: Tensor, where: Tensor) -> Tensor:
    """Squared error of the noise plus the variational bound on the step's variance, in bits (Nichol & Dhariwal 2021,
    section 3.1; the mean is not trained by the bound). `where`: the voxels that count."""
    process = prior.process
    t = process.draw(rng.uniform().to(x0.device))
    eps = rng.normal_like(x0)
    xt = prior.noised(x0, t, eps)
    noise, mix = cast(Network, prior.net).both(xt, process.label(t), tokens).float().chunk(2, dim=1)
    (a, s), (b, _) = ((expand(v, x0) for v in process.at(u)) for u in (t, t - 1))
    beta = 1 - (a / b) ** 2  # of this one step
    # the variance of x_{t-1} given x_t and x0 lies below it by the ratio of noise; in the last step it is 0, so that of
    # the step before stands in
    later = t.clamp(min=2)
    shrink = expand(2 * (process.at(later - 1)[1].log() - process.at(later)[1].log()), x0)
    log_most, log_least = beta.log(), beta.log() + shrink
    log_variance = log_least + (mix + 1) / 2 * (log_most - log_least)
    # means of x_{t-1} given x_t differ by their noise alone
    gap = (a / b).reciprocal() * beta / s * (noise.detach() - eps)
    kl = 0.5 * (log_variance - log_least + (log_least - log_variance).exp() - 1 + gap**2 * (-log_variance).exp())
    first = 0.5 * (math.log(2 * math.pi) + log_variance + gap**2 * (-log_variance).exp()) - math.log(2 / 255)
    bound = torch.where(expand(t, x0) == 1, first, kl) / math.log(2)
    error = ((noise - eps) ** 2 + bound) * where
    return error.sum() / where.expand_as(error).sum().clamp(min=1)

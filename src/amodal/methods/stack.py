"""The network of a prior with one time a modality, for methods that show what is known clean, at time 0.

A U-Net that also sees g = alpha_t x_t, in which noise fades out and what is clean stands out; plus a voxelwise
quadratic map of the stack whose coefficients a small network makes from the alphas. The map alone is voxelwise
regression for every subset of clean modalities at once; the U-Net adds what neighbours know.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..diffusion.process import Process
from ..nn.embed import full_precision
from ..nn.unet import UNet, UNetConfig


class StackNet(nn.Module):
    """x_t [B, M, X, Y], label [B, M] (and tokens, if the config has them) -> what the denoiser predicts, like x_t."""

    def __init__(self, config: UNetConfig, process: Process, hidden: int = 64):
        super().__init__()
        m = config.in_channels
        self.process, self.m = process, m
        self.unet = UNet(replace(config, concat=m))
        last = nn.Linear(hidden, m * features(m))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        # called embed: kept in fp32 with the other embeddings
        self.embed = nn.Sequential(nn.Linear(m, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)

    def forward(self, x: Tensor, label: Tensor, tokens: Tensor | None = None) -> Tensor:
        if self.training or x.device.type != "cpu":
            return self.batch(x, label, tokens)
        # one by one, as in the U-Net: what a sample becomes does not depend on its batch, to the bit; a single sample
        # too, so that gradients are summed in one order
        given = [None] * len(x) if tokens is None else tokens.split(1)
        return torch.cat([self.batch(a, b, c) for a, b, c in zip(x.split(1), label.split(1), given)])

    def batch(self, x: Tensor, label: Tensor, tokens: Tensor | None = None) -> Tensor:
        """All samples at once."""
        label = label.reshape(len(x), -1).expand(-1, self.m)
        alpha = self.process.at((label + 1).clamp(0, self.process.end))[0]
        gated = alpha[..., None, None] * x
        with full_precision(x.device):
            weights = self.embed(4 * alpha - 2).reshape(len(x), self.m, -1)
            voxelwise = torch.einsum("bij,bjxy->bixy", weights, quadratic(x.float(), gated.float()))
        return self.unet(x, label, gated, tokens).float() + voxelwise


def features(m: int) -> int:
    """How many numbers of a voxel `quadratic` makes for m modalities."""
    return 1 + 2 * m + m * (m + 1) // 2


def quadratic(x: Tensor, gated: Tensor) -> Tensor:
    """1, x_i, g_i and all products g_i g_j: [B, M, X, Y] twice -> [B, features(M), X, Y]."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return torch.cat([torch.ones_like(x[:, :1]), x, gated, gated[:, i] * gated[:, j]], dim=1)

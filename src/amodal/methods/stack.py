"""The network of a prior with one time a modality, for methods that show what is known clean, at time 0.

A U-Net beside a map of single voxels that knows the noise levels, of either kind:

Quadratic   learned: all products of the stack, with coefficients that a small network makes of the alphas
Estimate    fitted: the posterior mean of a Gaussian mixture (`nn.mixture`)

The U-Net sees what the map shows it and adds what neighbours know. Each map is voxelwise regression for every subset
of clean modalities at once; the fitted one is so before any training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..core.contract import Batch
from ..diffusion.denoiser import Prediction, expand, target
from ..diffusion.process import Process
from ..nn.embed import full_precision
from ..nn.mixture import Mixture, fit
from ..nn.unet import UNet, UNetConfig


class StackNet(nn.Module):
    """x_t [B, M, X, Y], label [B, M] (and tokens, if the config has them) -> what the denoiser predicts, like x_t.
    `components` of the fitted map; 0: the learned one."""

    def __init__(self, config: UNetConfig, process: Process, prediction: Prediction, components: int = 0):
        super().__init__()
        m = config.in_channels
        self.process, self.m = process, m
        self.unet = UNet(replace(config, concat=m))
        self.voxelwise = Estimate(m, components, prediction) if components else Quadratic(m)

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
        shown, out = self.voxelwise(x, *self.process.at((label + 1).clamp(0, self.process.end)))
        return self.unet(x, label, shown, tokens).float() + out

    def begin(self, data: Callable[[int], Batch]) -> None:
        """Before the first step: fix what the map does not learn."""
        self.voxelwise.begin(data)


class Quadratic(nn.Module):
    """x_t, alpha and sigma [B, M] -> g = alpha x_t, in which noise fades out and what is clean stands out; and
    1, x_i, g_i and g_i g_j times coefficients that depend on the alphas. Begins at 0."""

    def __init__(self, m: int, hidden: int = 64):
        super().__init__()
        last = nn.Linear(hidden, m * features(m))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        # called embed: kept in fp32 with the other embeddings
        self.embed = nn.Sequential(nn.Linear(m, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)

    def begin(self, data: Callable[[int], Batch]) -> None:
        """It is learned as the rest is."""

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        gated = expand(alpha, x) * x
        with full_precision(x.device):
            weights = self.embed(4 * alpha - 2).reshape(*x.shape[:2], -1)
            return gated, torch.einsum("bij,bjxy->bixy", weights, quadratic(x.float(), gated.float()))


class Estimate(nn.Module):
    """x_t, alpha and sigma [B, M] -> E[x_0 | x_t] of every voxel by itself, and what predicts it."""

    def __init__(self, m: int, components: int, prediction: Prediction):
        super().__init__()
        self.mixture, self.prediction = Mixture(m, components), prediction

    def begin(self, data: Callable[[int], Batch]) -> None:
        """Fit the mixture to voxels of the first batches."""
        fit(self.mixture, data)

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        x0 = self.mixture(x, alpha, sigma)
        return x0, target(x0, x.float(), expand(alpha, x), expand(sigma, x), self.prediction)


def features(m: int) -> int:
    """How many numbers of a voxel `quadratic` makes for m modalities."""
    return 1 + 2 * m + m * (m + 1) // 2


def quadratic(x: Tensor, gated: Tensor) -> Tensor:
    """1, x_i, g_i and all products g_i g_j: [B, M, X, Y] twice -> [B, features(M), X, Y]."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return torch.cat([torch.ones_like(x[:, :1]), x, gated, gated[:, i] * gated[:, j]], dim=1)

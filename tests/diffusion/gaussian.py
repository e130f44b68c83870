"""The Gaussian world: x ~ N(m, C), where the best denoiser is linear and every law is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amodal.core.rng import Rng
from amodal.diffusion.process import Process


@dataclass(frozen=True)
class Gaussian:
    """A prior over stacks [B, M, N]; `mean` [D], `cov` [D, D] with D = M N."""

    mean: Tensor
    cov: Tensor
    process: Process
    shape: tuple[int, ...]

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t] for t [B], or t [B, M] with a time a modality: G = C A (A C A + S^2)^-1 with diagonal A, S."""
        if not (t == t[:1]).all():
            return torch.cat([self.denoise(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
        alpha, sigma = self.process.at(t[0])
        per = self.mean.numel() // alpha.numel()
        a, s = (v.double().reshape(-1).repeat_interleave(per) for v in (alpha, sigma))
        seen = a[:, None] * self.cov * a + torch.diag(s**2 + 1e-12)
        gain = torch.linalg.solve(seen, a[:, None] * self.cov)
        out = self.mean + (x.flatten(1).double() - a * self.mean) @ gain
        return out.reshape(x.shape).to(x.dtype)

    def posterior(self, known: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the rest given that entries `known` (bool [D]) equal y."""
        k, u = known, ~known
        gain = self.cov[u][:, k] @ torch.linalg.inv(self.cov[k][:, k])
        return self.mean[u] + gain @ (y - self.mean[k]), self.cov[u][:, u] - gain @ self.cov[k][:, u]


def world(process: Process, modalities: int = 2, voxels: int = 2, seed: int = 0) -> Gaussian:
    """A well-conditioned world with correlations between modalities and voxels, within about [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    d = modalities * voxels
    root = torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5
    cov = 0.15 * (root @ root.T + 0.3 * torch.eye(d, dtype=torch.float64))
    return Gaussian(0.3 * torch.randn(d, generator=g, dtype=torch.float64), cov, process, (modalities, voxels))


def law(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sample mean and covariance of [B, ...]."""
    flat = x.flatten(1).double()
    return flat.mean(0), torch.cov(flat.T)


def start(truth: Gaussian, n: int) -> Tensor:
    """x [n, M, N] at the end of time: pure noise, but for the little signal that a schedule leaves there."""
    rng = Rng([7])
    alpha, sigma = truth.process.at(torch.tensor(truth.process.end))
    eps = rng.normal(n, *truth.shape)[0].double()
    root = torch.linalg.cholesky(truth.cov)
    x0 = truth.mean + rng.normal(n, len(truth.mean))[0].double() @ root.T
    return alpha * x0.reshape(eps.shape) + sigma * eps


class Streams:
    """Random numbers for many toy samples at once, from one stream."""

    def __init__(self, seed: int = 0):
        self.rng = Rng([seed])

    def normal_like(self, x: Tensor) -> Tensor:
        return self.rng.normal(*x.shape)[0].to(x)

"""What a network predicts is settled here, once: a Denoiser is a network seen as (x_t, t) -> x_0.

Every training target is linear in the image and the noise, target = p x0 + q eps, so with x_t = a x0 + s eps
    x0 = (q x_t - s out) / (a q - s p).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.rng import Rng
from .process import Process

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, ...], t [B] or [B, M]) -> x_0 [B, ...]
Prediction = Literal["noise", "x0", "v", "flow"]
Norm = Literal["l1", "l2"]
NORMS: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}

# prediction -> (p, q) of the target p x0 + q eps, for given alpha and sigma
TARGETS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "noise": lambda a, s: (torch.zeros_like(a), torch.ones_like(a)),
    "x0": lambda a, s: (torch.ones_like(a), torch.zeros_like(a)),
    "v": lambda a, s: (-s, a),
    "flow": lambda a, s: (-torch.ones_like(a), torch.ones_like(a)),
}


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Append axes so that t [B] or [B, M] broadcasts over x [B, M, *spatial]."""
    return t.reshape(*t.shape, *[1] * (x.ndim - t.ndim))


def x0_from(out: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The clean image a network output stands for. At sigma = 0 that is x itself."""
    p, q = TARGETS[prediction](alpha, sigma)
    scale = alpha * q - sigma * p
    scale = torch.where(scale.abs() < 1e-6, torch.full_like(scale, 1e-6), scale)  # noise prediction at alpha = 0
    x0 = (q * x - sigma * out) / scale
    return torch.where(sigma == 0, x, x0)


def target(x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The network output that stands for a clean image: `x0_from` the other way round. At sigma = 0 it does not matter,
    and is 0."""
    p, q = TARGETS[prediction](alpha, sigma)
    out = p * x0 + q * (x - alpha * x0) / sigma.clamp(min=1e-6)
    return torch.where(sigma == 0, torch.zeros_like(out), out)


def around(guess: Tensor, variance: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t] where x_0 is normal around a guess with a variance (Wiener): where a network that is shown the guess
    begins."""
    weight = alpha * variance / (alpha**2 * variance + sigma**2).clamp(min=1e-4)
    return guess + weight * (x - alpha * guess)


class Denoiser(nn.Module):
    """A network, the process it was trained on, and what it predicts. The process travels with the weights."""

    def __init__(
        self, net: nn.Module, process: Process, prediction: Prediction = "noise", snr_limit: float = 0.0,
        norm: Norm = "l2",
    ):  # fmt: skip
        """`snr_limit`: gamma of min-SNR weighting (Hang et al. 2023); 0 is the plain mean. `norm`: of the loss."""
        super().__init__()
        self.net, self.process, self.prediction, self.snr_limit = net, process, prediction, snr_limit
        self.norm = norm

    def forward(self, x: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        """x_t [B, M, *spatial] at t [B] (or [B, M]: a time a modality) -> x_0, float32."""
        alpha, sigma = (expand(v, x) for v in self.process.at(t))
        out = self.net(x, self.process.label(t), *condition)
        return x0_from(out.float(), x.float(), alpha, sigma, self.prediction)

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """q(x_t | x_0): alpha_t x_0 + sigma_t eps."""
        alpha, sigma = (expand(v, x0) for v in self.process.at(t))
        return alpha * x0 + sigma * eps

    def loss(
        self, x0: Tensor, rng: Rng, *condition: Tensor, t: Tensor | None = None,
        where: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """The (weighted) mean error of the prediction, squared or absolute, over the voxels `where` (default: all), or
        by the weights that it gives x_t and the network's label of t."""
        t = self.process.draw(rng.uniform().to(x0.device)) if t is None else t
        eps = rng.normal_like(x0)
        alpha, sigma = (expand(v, x0) for v in self.process.at(t))
        p, q = TARGETS[self.prediction](alpha, sigma)
        x, label = alpha * x0 + sigma * eps, self.process.label(t)
        out = self.net(x, label, *condition).float()
        error = NORMS[self.norm](out - (p * x0 + q * eps)) * self.weight(alpha, sigma)
        if where is None:
            return error.mean()
        if callable(where):
            with torch.no_grad():
                where = where(x, label)
        where = where.expand_as(error)
        return (error * where).sum() / where.sum().clamp(min=1)

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """min(SNR, gamma) in x0 space, carried to that of the prediction: an x0 error of e is one of (p - q a/s) e."""
        if self.snr_limit == 0:
            return torch.ones_like(alpha)
        p, q = TARGETS[self.prediction](alpha, sigma)
        safe = sigma.clamp(min=1e-4)
        snr = (alpha / safe) ** 2
        return snr.clamp(max=self.snr_limit) / ((p - q * alpha / safe) ** 2).clamp(min=1e-8)

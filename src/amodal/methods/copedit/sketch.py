"""The simple answer that the prior begins with, where it has a context: beyond the paper.

Slices: those missing interpolated between their neighbours. Modalities: what every voxel says of the others by itself,
the mean of a Gaussian mixture (`nn.mixture`). Both say how sure they are: a variance, averaged to one number d for
each voxel of the latent. The prior sees the sketch's latent and predicts what it lacks:

    z_0 = around(z_sketch, v, z_t) + sqrt(v sigma^2 / (alpha^2 v + sigma^2)) f(...)           v = a d
    x   = sketch + D(z_0) - D(z_sketch)

`around` is the best estimate of a latent that lies about the sketch's with the variance v, and the root is what that
estimate still lacks; a, for each slot and channel, is measured before training. Neither latent is quantised on the way
to the image: two roundings would be noise in the difference. What the codec would lose of the sketch is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.contract import Batch
from ...diffusion.denoiser import around
from ...nn.mixture import HEAD, Mixture, estimate, fit
from .backbones import slots
from .config import Config
from .patterns import filled, neighbours, telling

LEAST = 1e-2  # of the mean variance: nothing is so sure that the prior may not change it
FIELD = 9  # voxels in the plane over which a stack's differences are averaged


class Sketch(nn.Module):
    """Sketches of what is missing, and how far latents are from them. `scale`: the mean of d; `away`: a."""

    scale: Tensor
    away: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        brain = config.layout == "modalities"
        self.mixture = Mixture(len(config.modalities), config.components) if brain else None
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("away", torch.ones(config.slots, config.codec.channels))

    def begin(self, data: Callable[[int], Batch]) -> None:
        """Fit what is fitted to the first training batches."""
        if self.mixture is not None:
            fit(self.mixture, data, HEAD)

    @torch.no_grad()
    def forward(self, images: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, M, *spatial] of any size with all that is missing filled in, and its variance (0 of what is
        present, which broadcasts to the images)."""
        present = present.expand(*images.shape[:2], *present.shape[2:])
        whole = filled_each(images, present)
        if self.mixture is None:
            return whole, bridged(whole, present)
        shown = telling(present)
        mean, variance = estimate(self.mixture, whole, shown)
        kept = shown[..., None, None, None]
        return torch.where(kept, whole, mean), torch.where(kept, 0.0, variance)

    def doubts(self, variance: Tensor) -> Tensor:
        """d as the prior's slots have it: the variance of images [B, M, *spatial] -> [B, slots, 1, *spatial]."""
        d = F.avg_pool3d(variance.flatten(0, 1)[:, None], self.config.codec.factor)
        return slots(self.config, d.unflatten(0, variance.shape[:2]))

    def variance(self, doubts: Tensor) -> Tensor:
        """v [B, slots, C, *spatial]."""
        return self.away[..., None, None, None] * (doubts / self.scale).clamp(min=LEAST)

    @torch.no_grad()
    def measure(self, found: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Measure `scale` and `away` on latents' differences from their sketches [B, slots, C, *spatial], d, and which
        slots were made [B, slots]."""
        square, number = torch.zeros_like(self.away), torch.zeros_like(self.away[:, :1])
        total = torch.zeros_like(number)
        for difference, doubts, made in found:
            square += (made[..., None] * difference.square().flatten(3).mean(3)).sum(0)
            total += (made[..., None] * doubts.flatten(3).mean(3)).sum(0)
            number += made.sum(0)[:, None]
        if total.sum() > 0:
            self.scale.copy_(total.sum() / number.sum())
            away = square / (total / self.scale).clamp(min=1e-6)
            self.away.copy_(torch.where(total > 0, away, self.away).clamp(min=1e-6))


def begun(guess: Tensor, variance: Tensor, out: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z_0 of a network's output for x_t, a sketch's latent and the variance about it."""
    lacks = sigma * (variance / (alpha**2 * variance + sigma**2)).sqrt()
    return around(guess, variance, x, alpha, sigma) + lacks * out


def filled_each(images: Tensor, present: Tensor) -> Tensor:
    """Images [B, M, X, Y, Z] with the gaps within each interpolated, -1 where there is nothing of one."""
    return filled(images.flatten(0, 1)[:, None], present.flatten(0, 1)[:, None]).reshape(images.shape)


def bridged(whole: Tensor, present: Tensor) -> Tensor:
    """The variance of interpolated slices [B, 1, X, Y, Z] up to a factor: that of a random walk along z which is held
    where slices are present, n m / (n + m) at n and m slices from them, times how uneven the image is in the plane."""
    z = torch.arange(whole.shape[-1], device=whole.device)
    low, high = neighbours(present)
    below, above = (z - low).clamp(min=0).float(), (high - z).clamp(min=0).float()
    walk = torch.where(low == high, below + above, below * above / (below + above).clamp(min=1))
    plane = whole[:, 0].movedim(-1, 1)  # [B, Z, X, Y]
    mean, square = (F.avg_pool2d(v, FIELD, 1, FIELD // 2, count_include_pad=False) for v in (plane, plane**2))
    uneven = (square - mean**2).clamp(min=0).movedim(1, -1)[:, None]
    return torch.where(present, 0.0, walk * uneven)

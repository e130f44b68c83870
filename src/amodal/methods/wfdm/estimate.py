"""What every voxel says of a wanted image by itself, and how prior and adapter go on from it (not in the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.contract import Batch
from ...diffusion.denoiser import around
from ...nn.layout import pad_to
from ...nn.mixture import HEAD, Mixture, estimate, fit, spread

LEAST = 1e-2  # of the mean variance: nothing is so sure that prior and adapter may not change it


class Estimate(nn.Module):
    """A Gaussian mixture over a voxel's modalities gives an image x^ of the one wanted, and its variance. The adapter
    is shown z^ = E(x^) and d, that variance averaged over a latent's voxels (1 over all of training), as the last of
    what is known. The wanted latent lies around z^ with a variance v = a d, a of each channel measured before training;
    and the prior, which sees z_t, predicts it with a variance S (`Prior.open`). With p its prediction and f what the
    adapter says,

        z_0 = z^ + v / (v + S) (p - z^) + sqrt(v S / (v + S)) f

    What the codec loses of the estimate, x^ - D(z^), is added to what is made. `scale`: the mean of d before it was 1.
    """

    variance: Tensor
    scale: Tensor

    def __init__(self, modalities: int, components: int, channels: int):
        super().__init__()
        self.channels = channels
        self.mixture = Mixture(modalities, components)
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, p: Tensor, known: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 without f, and what f is multiplied by; p [B, C, *spatial] and its variance S, which broadcasts to it."""
        guess, doubt = self.split(known)
        v = self.variance.reshape(-1, *[1] * (p.dim() - 2)) * doubt
        return around(guess, v, p, torch.ones_like(s), s.sqrt()), (v * s / (v + s)).sqrt()

    def split(self, known: Tensor) -> tuple[Tensor, Tensor]:
        """z^ [B, C, *spatial] and d [B, 1, *spatial]."""
        last = known[:, -self.channels - 1 :].float()
        return last[:, :-1], last[:, -1:].clamp(min=LEAST)

    def images(self, images: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """What those `shown` [B, M] of images [B, M, *spatial] say of all: mean and variance."""
        return estimate(self.mixture, images, shown)

    def doubts(self, variance: Tensor, factor: int) -> Tensor:
        """d of variances [B, 1, *spatial]: [B, 1, *spatial / factor]."""
        return F.avg_pool3d(pad_to(variance, factor), factor) / self.scale

    def begin(self, data: Callable[[int], Batch]) -> None:
        """Fit the mixture."""
        fit(self.mixture, data, HEAD)
        self.scale.fill_(1.0)

    def measure(self, found: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure `variance` and `scale` on latents wanted and what is known beside them."""
        variance, scale = spread((z - self.split(known)[0], known[:, -1:]) for z, known in found)
        self.variance.copy_(variance.clamp(min=1e-4))
        self.scale.copy_(scale.clamp(min=1e-6))

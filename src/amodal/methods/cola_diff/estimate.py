"""What every voxel says of the target by itself, and how a latent network begins with it (not in the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...core.contract import Batch
from ...diffusion.denoiser import Prediction, target
from ...nn.mixture import Mixture, fit
from .conditions import Task

HEAD = -0.9  # the mixture is one of voxels where any modality is brighter than this, of [-1, 1]
FEWEST = 1e-4  # variance of a latent channel around its estimate, at least


class FirstGuess(nn.Module):
    """A Gaussian mixture over a voxel's modalities gives an image of the target; its latent kappa^ is the first of the
    conditions. What is wanted lies around it with a variance v of each latent channel, measured before training, so

        E[kappa_0 | kappa_t, kappa^] = kappa^ + alpha v / (alpha^2 v + sigma^2) (kappa_t - alpha kappa^)

    is what the network begins with, at every time; and what the codec loses of the image, x^ - D(kappa^), is added to
    what is made. Without components there is none of it.
    """

    def __init__(self, channels: int, modalities: int, components: int, prediction: Prediction):
        super().__init__()
        self.components, self.channels, self.prediction = components, channels, prediction
        if components:
            self.mixture = Mixture(modalities, components)
            self.register_buffer("variance", torch.ones(channels))
            self.variance: Tensor

    def forward(self, x: Tensor, y: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What is added to the network's prediction: kappa_t and conditions, alpha and sigma [B, 1, 1, 1]."""
        if not self.components:
            return torch.zeros_like(x)
        guess, v = y[:, : self.channels].float(), self.variance[:, None, None]
        mean = guess + alpha * v / (alpha**2 * v + sigma**2) * (x - alpha * guess)
        return target(mean, x, alpha, sigma, self.prediction)

    @torch.no_grad()
    def image(self, images: Tensor, task: Task) -> Tensor:
        """[N, M, X, Y] -> the estimate of the target from what is given, [N, 1, X, Y] in [-1, 1]; -1 where all that is
        given is."""
        given = task.given.float()
        seen = torch.where(task.given[..., None, None], images, torch.zeros_like(images))
        made = self.mixture(seen, given, 1 - given)[torch.arange(len(images), device=images.device), task.target]
        outside = (images <= -1).logical_or(~task.given[..., None, None]).all(1) & task.given.any(1)[:, None, None]
        return torch.where(outside, torch.full_like(made, -1.0), made.clamp(-1, 1))[:, None]

    def begin(self, data: Callable[[int], Batch]) -> None:
        """Fit the mixture."""
        if self.components:
            fit(self.mixture, data, HEAD)

    def measure(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """How far latents lie from their estimates, by pairs of latents wanted and conditions."""
        if self.components:
            away = [(kappa - y[:, : self.channels].float()).square().mean((0, 2, 3)) for kappa, y in pairs]
            self.variance.copy_(torch.stack(away).mean(0).clamp(min=FEWEST))

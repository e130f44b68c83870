"""What every voxel says of the target by itself, and how a latent network begins with it (not in the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.contract import Batch
from ...diffusion.denoiser import Prediction, around, target
from ...nn.layout import pad_to
from ...nn.mixture import HEAD, Mixture, estimate, fit, spread
from .conditions import Task

FEWEST = 1e-4  # variance of a latent around its estimate, at least


class FirstGuess(nn.Module):
    """A Gaussian mixture over a voxel's modalities gives an image of the target, x^, and how sure it is, s^2 (its
    posterior variance). kappa^ = E(x^) and d, which is s^2 averaged over a latent's voxels (1 over all of training),
    are the first of the conditions. What is wanted lies around kappa^ with a variance a d, a of each latent channel
    measured before training, so

        E[kappa_0 | kappa_t, kappa^] = kappa^ + alpha a d / (alpha^2 a d + sigma^2) (kappa_t - alpha kappa^)

    is what the network begins with, at every time. What the codec loses of an image, x - D(E(x)), no latent can say:
    of x^ it is added to the posterior mean, of x^ + s eps, with new eps, to each draw. Without components there is
    none of it.
    """

    def __init__(self, channels: int, modalities: int, components: int, prediction: Prediction):
        super().__init__()
        self.components, self.channels, self.prediction = components, channels, prediction
        if components:
            self.mixture = Mixture(modalities, components)
            self.register_buffer("variance", torch.ones(channels))
            self.register_buffer("doubt", torch.ones(()))
            self.variance: Tensor
            self.doubt: Tensor

    def forward(self, x: Tensor, y: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What is added to the network's prediction: kappa_t and conditions, alpha and sigma [B, 1, 1, 1]."""
        if not self.components:
            return torch.zeros_like(x)
        guess, doubt = self.split(y)
        v = self.variance[:, None, None] * doubt
        return target(around(guess, v, x, alpha, sigma), x, alpha, sigma, self.prediction)

    def split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """kappa^ [B, channels, ...] and d [B, 1, ...] of the conditions."""
        return y[:, : self.channels].float(), y[:, self.channels : self.channels + 1].float().clamp(min=FEWEST)

    def estimate(self, images: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        """[N, M, X, Y] -> x^, in [-1, 1], and s^2 of the target from what is given, [N, 1, X, Y] each."""
        at = torch.arange(len(images), device=images.device), task.target
        mean, variance = estimate(self.mixture, images, task.given)
        return mean[at][:, None], variance[at][:, None]

    def doubts(self, variance: Tensor, factor: int) -> Tensor:
        """s^2 [N, 1, X, Y] -> d [N, 1, X / factor, Y / factor]."""
        return functional.avg_pool2d(pad_to(variance, factor), factor) / self.doubt

    def begin(self, data: Callable[[int], Batch]) -> None:
        """Fit the mixture."""
        if self.components:
            fit(self.mixture, data, HEAD)

    def measure(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """How far latents lie from their estimates, by pairs of latents wanted and conditions."""
        if not self.components:
            return
        found = ((kappa, *self.split(y)) for kappa, y in pairs)
        variance, doubt = spread((kappa - guess, doubt) for kappa, guess, doubt in found)
        self.variance.copy_(variance.clamp(min=FEWEST))
        self.doubt.copy_(doubt.clamp(min=FEWEST))

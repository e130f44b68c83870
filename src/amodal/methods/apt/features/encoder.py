"""The image encoder: given weights, frozen; or trained here on the user's own images, by guessing covered patches.

The latter is masked image modelling (Xie et al. 2022): most patches are covered, and a linear layer guesses their
pixels from what the encoder makes of the rest. No labels, no download, some minutes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....core.rng import Rng
from ....nn.layout import fold
from .vit import ViT, ViTConfig

COVERED = 0.6  # of the patches


class Encoder(nn.Module):
    """Images to tokens, standardised over the training set. `own`: trained here, else its weights are frozen."""

    mean: Tensor
    spread: Tensor

    def __init__(self, config: ViTConfig, own: bool, patches: bool):
        """`patches`: the tokens of an image are its patches', otherwise the one vector of the image."""
        super().__init__()
        self.vit = ViT(config)
        self.patches = patches
        self.register_buffer("mean", torch.zeros(config.outputs))
        self.register_buffer("spread", torch.ones(config.outputs))
        self.cover = nn.Parameter(0.02 * torch.randn(config.width)) if own else None
        self.guess = nn.Linear(config.outputs, config.patch**2) if own else None
        if not own:
            self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, M, X, Y] -> tokens [B, P, M, W], P = 1 unless `patches`. One image at a time out of training on a CPU:
        what becomes of an image then does not depend on its batch, to the bit."""
        flat = images.flatten(0, 1).unsqueeze(1)
        parts = [flat] if self.training or images.device.type != "cpu" else flat.split(1)
        wanted = slice(1, None) if self.patches else slice(0, 1)
        tokens = torch.cat([self.vit(part)[:, wanted] for part in parts])
        return self.standard(tokens).unflatten(0, images.shape[:2]).transpose(1, 2)

    def vectors(self, images: Tensor) -> Tensor:
        """[N, X, Y] -> one standardised vector each [N, W]."""
        return self.standard(self.vit(images.unsqueeze(1))[:, 0])

    def standard(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean) / self.spread

    def measure(self, images: Tensor) -> None:
        """Fix mean and spread of the features over images [N, X, Y]."""
        with torch.no_grad():
            found = torch.cat([self.vit(part.unsqueeze(1))[:, 0].float() for part in images.split(64)])
            self.mean.copy_(found.mean(0))
            self.spread.copy_(found.std(0, correction=0).clamp(min=1e-4))

    def loss(self, images: Tensor, rng: Rng) -> Tensor:
        """Mean squared error of the covered patches' guessed pixels; images [N, 1, X, Y]."""
        assert self.guess is not None
        vit = self.vit
        x = vit.prepare(images)
        covered = rng.uniform(vit.config.patches).to(images.device) < COVERED
        seen = vit.hidden(x, covered, self.cover)[:, -vit.config.patches :]
        guess = self.guess(vit.head(seen)).float()
        pixels = fold(x[:, :1], vit.config.patch).flatten(2).transpose(1, 2)
        error = F.mse_loss(guess, pixels, reduction="none").mean(-1)
        return (error * covered).sum() / covered.sum().clamp(min=1)

"""The simple answer that the prior begins with, where it has a context: beyond the paper.

Slices: those missing interpolated between their neighbours (`patterns.filled`). Modalities: every missing voxel by
regression on a cubic of the given intensities, in closed form for every pattern from one matrix of moments.
The prior sees the sketch's latent, predicts what it lacks, and what the codec would lose of the sketch is kept:

    z_0 = z_sketch + w_t (z_t - alpha_t z_sketch) + f(...)         w_t = alpha v / (alpha^2 v + sigma^2)
    x   = sketch + D(z_0) - D(z_sketch)

w_t is the best weight (Wiener) of a noisy latent if its distance from the sketch's has the variance v.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

HEAD = -0.9  # voxels are learned from where any image is brighter than this, of [-1, 1]
RIDGE = 1e-3  # of the features' mean square: a cubic must not run wild on images of another kind
DEGREE = 3
VOXELS = 1 << 18  # at a time


class Regression(nn.Module):
    """The moments of [1, x_i, x_i x_j, x_i x_j x_k] of `count` images over the voxels of heads, measured once."""

    moments: Tensor

    def __init__(self, count: int):
        super().__init__()
        degrees = range(1, DEGREE + 1)
        self.terms = [term for n in degrees for term in combinations_with_replacement(range(count), n)]
        self.size = 1 + len(self.terms)
        self.register_buffer("moments", torch.eye(self.size))

    @torch.no_grad()
    def fit(self, stacks: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure (images [B, M, *spatial], which are there [B, M]): pairs of features where both are there."""
        totals, voxels = (torch.zeros(self.size, self.size, dtype=torch.float64) for _ in range(2))
        for images, there in stacks:
            for image, flags in zip(images.cpu(), there.cpu()):
                rows = image.flatten(1)
                rows = rows[:, (rows[flags] > HEAD).any(0)].to(totals)
                known = self.features(flags[:, None].to(totals))
                features = self.features(rows) * known
                totals += features @ features.T
                voxels += rows.shape[1] * known @ known.T
        self.moments.copy_(torch.where(voxels > 0, totals / voxels.clamp(min=1), torch.eye(self.size)))

    def features(self, rows: Tensor) -> Tensor:
        """[M, V] -> [features, V]."""
        found: dict[tuple[int, ...], Tensor] = {(): torch.ones_like(rows[0])}
        for term in self.terms:
            found[term] = found[term[:-1]] * rows[term[-1]]
        return torch.stack(list(found.values()))

    def forward(self, images: Tensor, given: Tensor) -> Tensor:
        """images [B, M, *spatial] with those not `given` [B, M] made of the others; -1 where all others are."""
        return torch.stack([self._one(image, flags) for image, flags in zip(images.float(), given)])

    def _one(self, image: Tensor, given: Tensor) -> Tensor:
        if given.all() or not given.any():
            return image
        rows = image.flatten(1)
        known = torch.where(given[:, None], rows, torch.zeros_like(rows))
        moments, there = self.moments.double().cpu(), given.cpu()
        use, wanted = self.features(there[:, None].float())[:, 0] > 0, 1 + torch.nonzero(~there)[:, 0]
        normal, right = moments[use][:, use], moments[use][:, wanted]
        ridge = RIDGE * normal.diagonal().mean() * torch.eye(len(normal)).double()
        weights = torch.linalg.solve(normal + ridge, right).T.to(rows)  # [missing, used features]
        parts = [weights @ self.features(part)[use.to(rows.device)] for part in known.split(VOXELS, 1)]
        made = torch.cat(parts, 1).clamp(-1, 1)
        made = torch.where((rows[given] <= -1).all(0), torch.full_like(made, -1.0), made)
        return rows.index_copy(0, (wanted - 1).to(rows.device), made).reshape(image.shape)

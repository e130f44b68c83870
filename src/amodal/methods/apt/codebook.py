"""The prior codebook: which modality, bent by which curve and scaled by how much, is the best first guess of another.

Section 3.3. Computed from the training set before the prior learns, saved with the weights as tables:
    votes[target, source, curve]   part of the training slices in which that pair's features were most alike
    error[target, source, curve]   mean squared error of the scaled guess, in units of [0, 1]
    scale[target, source, curve]   sigma_{tar,trn}: mean intensity of the target over that of the bent source
and, for retrieval, the fused features of some training slices, each with its own scales and errors. No image is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# P0 .. P3 as the curve's heights over equally spaced intensities -1, -1/3, 1/3, 1. (With them as both coordinates, as
# the text may be read, a curve runs along the diagonal: the two rising ones are the identity, the falling ones -x.)
CURVES: dict[str, tuple[float, float, float, float]] = {
    "rising": (-1.0, -1.0, 1.0, 1.0),
    "rising, soft": (-1.0, -0.5, 0.5, 1.0),
    "falling": (1.0, 1.0, -1.0, -1.0),
    "falling, soft": (1.0, 0.5, -0.5, -1.0),
}
BACKGROUND = 0.04  # of [0, 1]: darker is background, and stays it
Ranking = Literal["votes", "error"]
LARGEST = 4.0  # no image is scaled by more than this


def bezier(x: Tensor, points: Sequence[float]) -> Tensor:
    """The cubic Bezier curve of Eq. 3 at intensities x in [-1, 1], r = (x + 1) / 2."""
    r = ((x + 1) / 2).clamp(0, 1)
    s = 1 - r
    a, b, c, d = points
    return a * s**3 + 3 * b * s**2 * r + 3 * c * s * r**2 + d * r**3


def bend(x: Tensor, curve: str) -> Tensor:
    """An image in [-1, 1] through a curve; the background stays at -1."""
    return torch.where(x > 2 * BACKGROUND - 1, bezier(x, CURVES[curve]), torch.full_like(x, -1.0))


def variants(images: Tensor) -> Tensor:
    """[..., X, Y] -> [..., K, X, Y]: every curve's."""
    return torch.stack([bend(images, curve) for curve in CURVES], dim=-3)


@dataclass(frozen=True)
class Row:
    """One line of the book. `share`: the part of the training slices that voted for it."""

    target: str
    source: str
    curve: str
    scale: float
    share: float
    error: float


class Codebook(nn.Module):
    """The tables, for `modalities` in order, and the features of `memory` training slices [memory, width]."""

    votes: Tensor
    error: Tensor
    scale: Tensor
    keys: Tensor
    own_scale: Tensor
    own_error: Tensor

    def __init__(self, modalities: Sequence[str], width: int, memory: int):
        super().__init__()
        self.modalities = tuple(modalities)
        table = (len(self.modalities), len(self.modalities), len(CURVES))
        self.register_buffer("votes", torch.zeros(table))
        self.register_buffer("error", torch.ones(table))
        self.register_buffer("scale", torch.ones(table))
        self.register_buffer("keys", torch.zeros(memory, width))
        self.register_buffer("own_scale", torch.ones(memory, *table))
        self.register_buffer("own_error", torch.ones(memory, *table))

    def fit(
        self, images: Tensor, present: Tensor, vectors: Callable[[Tensor], Tensor], fused: Callable[..., Tensor]
    ) -> None:
        """Fill the tables from training slices [N, M, X, Y] with presence [N, M]. `vectors`: [n, X, Y] -> [n, W];
        `fused(images, present)` -> [n, W], what slices are retrieved by."""
        with torch.no_grad():
            found = [_slice(i, p, vectors) for i, p in zip(images, present)]
            votes, ratio, error, pairs = (torch.stack(parts) for parts in zip(*found))
            weight = pairs.sum(0).clamp(min=1)
            self.votes.copy_(votes.sum(0) / weight)
            mean_target, mean_bent = (means.sum(0) for means in ratio.unbind(1))
            self.scale.copy_(_ratio(mean_target, mean_bent))
            self.error.copy_(torch.where(pairs.any(0), (error * pairs).sum(0) / weight, torch.ones_like(weight)))
            n = min(len(self.keys), len(images))
            if n:
                own = _ratio(ratio[:n, 0], ratio[:n, 1])
                self.keys[:n] = fused(images[:n], present[:n])
                self.own_scale[:n] = torch.where(pairs[:n], own, self.scale)
                self.own_error[:n] = torch.where(pairs[:n], error[:n], self.error)

    def ranking(self, target: int, by: Ranking, near: Tensor | None = None) -> list[Row]:
        """The sources of a target, best first, each with its best curve. `near`: indices of retrieved slices, whose
        own scales and errors then stand in for those of the whole training set."""
        scale, error = self.scale, self.error
        if near is not None:
            scale, error = self.own_scale[near].median(0).values, self.own_error[near].mean(0)
        votes = self.votes[target]
        order = error[target] if by == "error" or near is not None else 1e-3 * error[target] - votes  # (ties: error)
        best = order.argmin(-1).tolist()
        sources = [source for source in order.amin(-1).argsort(stable=True).tolist() if source != target]
        tables = (scale, self.votes, error)
        return [self._row(target, source, best[source], tables) for source in sources]

    def row(self, target: int, source: int, curve: int) -> Row:
        """One entry of the tables."""
        return self._row(target, source, curve, (self.scale, self.votes, self.error))

    def _row(self, target: int, source: int, curve: int, tables: tuple[Tensor, ...]) -> Row:
        numbers = (float(table[target, source, curve]) for table in tables)
        return Row(self.modalities[target], self.modalities[source], tuple(CURVES)[curve], *numbers)

    def table(self, by: Ranking) -> list[Row]:
        """Every target's ranking."""
        return [row for target in range(len(self.modalities)) for row in self.ranking(target, by)]

    def guess(self, images: Tensor, present: Tensor, by: Ranking, near: Tensor | None = None) -> Tensor:
        """First guesses of one slice [M, X, Y] from what is `present` (bool, voxelwise): every voxel from the best
        source that is there; what is present stays as it is; 0 where nothing is."""
        out = torch.where(present, images, torch.zeros_like(images))
        for target in range(len(self.modalities)):
            filled = present[target].clone()
            for row in self.ranking(target, by, near):
                if filled.all():
                    break
                source = self.modalities.index(row.source)
                here = present[source] & ~filled
                if here.any():
                    out[target] = torch.where(here, prior(images[source], row), out[target])
                    filled |= here
        return out

    def nearest(self, vector: Tensor, k: int) -> Tensor:
        """Indices of the k training slices whose fused features are most like `vector` [W]."""
        return (self.keys @ vector.to(self.keys)).topk(min(k, len(self.keys))).indices


def prior(source: Tensor, row: Row) -> Tensor:
    """The guess a row stands for: sigma Phi(B, x) on the scale of [0, 1], back in [-1, 1]."""
    return ((bend(source, row.curve) + 1) / 2 * row.scale).clamp(0, 1) * 2 - 1


def _slice(images: Tensor, present: Tensor, vectors: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Of one slice: votes [M, M, K], means of target and bent source [2, M, M, K], errors, and which pairs are."""
    m, k = len(images), len(CURVES)
    images = torch.where(present[:, None, None], images, torch.full_like(images, -1.0))
    bent = variants(images)
    pairs = (present[:, None] & present[None] & ~torch.eye(m, dtype=torch.bool, device=images.device))[..., None]
    pairs = pairs.expand(m, m, k)
    unit, bent_unit = (images + 1) / 2, (bent + 1) / 2
    means = torch.stack([unit.mean((1, 2))[:, None, None].expand(m, m, k), bent_unit.mean((2, 3)).expand(m, m, k)])
    guess = (bent_unit * _ratio(*means)[..., None, None]).clamp(0, 1)
    error = ((unit[:, None, None] - guess) ** 2).mean((-2, -1))
    a, b = F.normalize(vectors(images), dim=-1), F.normalize(vectors(bent.flatten(0, 1)), dim=-1)
    alike = (a @ b.T).reshape(m, m, k).masked_fill(~pairs, -torch.inf).flatten(1)
    votes = F.one_hot(alike.argmax(1), m * k).reshape(m, m, k) * pairs
    return votes.to(images), means * pairs, error, pairs


def _ratio(target: Tensor, bent: Tensor) -> Tensor:
    """sigma, 1 where one of the two is empty."""
    usable = (bent > 1e-3) & (target > 1e-3)
    return torch.where(usable, target / bent.clamp(min=1e-3), torch.ones_like(bent)).clamp(1 / LARGEST, LARGEST)

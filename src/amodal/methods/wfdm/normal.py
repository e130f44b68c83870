"""What latents would follow if they were normal: where the prior begins (not in the paper).

z_0 ~ N(B x, U U^T + V)     x: 1 and what is known of the subject; B, U and V by modality, channel and place; V diagonal
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...diffusion.denoiser import Prediction, around, expand, target
from ...diffusion.process import Process
from ...nn.embed import full_precision
from ...nn.wavelet import low, with_low
from .schema import Schema

Latents = tuple[Tensor, Tensor, Tensor, Tensor]  # [N, C, *spatial], which modality [N], values and known [N, P]

FIRM = 1.0  # subjects' worth of doubt that what is known of a subject shows at all (ridge)
TRUST = 8.0  # volumes' worth of belief that all places of a channel vary alike
LEAST = 0.05  # of a place's variance is its own, whatever few volumes say


def time_of(process: Process, label: Tensor) -> Tensor:
    """The time that a network is told of by a label (`Process.label` the other way round)."""
    return (label + 1) * process.end / 1000


def left(variance: Tensor | float, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What is left open of a normal z_0 with a variance by alpha z_0 + sigma eps: a variance."""
    return sigma**2 * variance / (alpha**2 * variance + sigma**2)


class Normal(nn.Module):
    """A regression of latents on what is known, for volumes that lie in one space, and on what varies together in them
    (`factors`: in so many directions, as in factor analysis). Given z_t it says what z_0 is on average; the network
    adds to that, in units of what each place by itself leaves open.

    x [B, Q]: 1; numbers as z-scores, 0 if not known; for every state of the other fields 1 if it is so.
    `variance`: around the regression; `rest`: where factors are told too, or the low band of z_0 is given (`parted`).
    """

    slopes: Tensor
    variance: Tensor
    rest: Tensor
    factors: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, modalities: int, schema: Schema, channels: int, size: Sequence[int], process: Process,
        prediction: Prediction, parted: bool = False, factors: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.modalities, self.process, self.prediction = modalities, process, prediction
        self.parted, self.together = parted, factors
        self.states = [f.states for f in schema.fields]
        count = 1 + sum(max(1, n) for n in self.states)
        self.register_buffer("slopes", torch.zeros(modalities, count, channels, *size))
        self.register_buffer("variance", torch.ones(modalities, channels, *size))
        if factors:
            self.register_buffer("factors", torch.zeros(modalities, factors, channels, *size))
        if parted or factors:
            self.register_buffer("rest", torch.ones(modalities, channels, *size))
        self.register_buffer("mean", torch.zeros(len(schema)))
        self.register_buffer("deviation", torch.ones(len(schema)))

    def forward(
        self, out: Tensor, z: Tensor, mean: Tensor, t: Tensor, vector: Tensor, band: Tensor | None = None
    ) -> Tensor:
        """The prediction, of what the network says of z_t; `mean`: of z_0 (`expected`); `band`: the low band of z_0, if
        it is given."""
        kind, z = z.dtype, z.float()
        alpha, sigma = self._at(z, t)
        variance = self._own(self.split(vector)[0], band is not None)
        z0 = around(mean.float(), variance, z, alpha, sigma) + left(variance, alpha, sigma).sqrt() * out.float()
        z0 = z0 if band is None else with_low(z0, band.float())
        return target(z0, z, alpha, sigma, self.prediction).to(kind)

    def expected(self, z: Tensor, t: Tensor, vector: Tensor, band: Tensor | None = None) -> Tensor:
        """B x + U a, what latents are on average for what is known of the subject and what z_t [B, C, *spatial] says of
        the factors; or B x with the low `band` that is given."""
        which, values, known = self.split(vector)
        mean = torch.einsum("bq,bq...->b...", self.regressors(values, known), self.slopes[which].float())
        if band is not None:
            return with_low(mean, band.float())
        if not self.together:
            return mean
        with full_precision(z.device):
            return mean + self._together(z.float(), mean, t, which)

    def surprise(self, z: Tensor, mean: Tensor, t: Tensor, vector: Tensor) -> Tensor:
        """How far z_t lies from what `mean` of z_0 lets expect, in units of its deviation there."""
        z, (alpha, sigma) = z.float(), self._at(z, t)
        return (z - alpha * mean.float()) / (alpha**2 * self._own(self.split(vector)[0]) + sigma**2).sqrt()

    def _together(self, z: Tensor, mean: Tensor, t: Tensor, which: Tensor) -> Tensor:
        """U E[a | z_t], a ~ N(0, 1): Woodbury's way, by an equation for each sample of as many unknowns as factors."""
        alpha, sigma = self._at(z, t)
        u, shape = self.factors[which].float().flatten(2), z.shape
        weight = (1 / (alpha**2 * self._own(which) + sigma**2).clamp(min=1e-6)).flatten(1)[:, None]
        alpha = alpha.reshape(-1, 1, 1)
        inner = torch.eye(u.shape[1], device=u.device) + alpha**2 * (u * weight) @ u.mT
        a = torch.linalg.solve(
            inner, alpha * (u * weight) @ (z - expand(alpha.flatten(), z) * mean).flatten(1)[..., None]
        )
        return (u.mT @ a).reshape(shape)

    def _at(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (expand(v, z) for v in self.process.at(time_of(self.process, t)))
        return alpha, sigma

    def _own(self, which: Tensor, given: bool = False) -> Tensor:
        """The variance of each place by itself [B, C, *spatial]."""
        return (self.rest if given or self.together else self.variance)[which].float()

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which modality [B], values and known [B, P]."""
        which, rest = vector[:, : self.modalities].argmax(1), vector[:, self.modalities :].float()
        values, known = rest.chunk(2, dim=1)
        return which, values, known

    def regressors(self, values: Tensor, known: Tensor) -> Tensor:
        """x [B, Q]."""
        z = (values - self.mean) / self.deviation
        columns = [torch.ones_like(known[:, :1])]
        for i, states in enumerate(self.states):
            column = F.one_hot(values[:, i].long().clamp(0, states), states + 1)[:, 1:] if states else z[:, i : i + 1]
            columns.append(column * known[:, i : i + 1])
        return torch.cat(columns, dim=1)

    @torch.no_grad()
    def fit(self, found: Iterable[Latents], mean: Tensor, deviation: Tensor) -> None:
        """Fit to latents [N, C, *spatial], which modality each is of [N], values and known [N, P]; `mean`, `deviation`:
        of the numbers in the training table."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        count, spatial = self.slopes.shape[1], self.slopes.shape[2:]
        pairs = torch.zeros(self.modalities, count, count, dtype=torch.float64)
        products = torch.zeros(self.modalities, count, *spatial, dtype=torch.float64)
        squares, without = torch.zeros(2, self.modalities, *spatial, dtype=torch.float64)
        number, kept = torch.zeros(self.modalities), []
        for z, which, values, known in found:
            x, z = self.regressors(values, known.float()).double().cpu(), z.double().cpu()
            kept += [(z.float(), x, which)] if self.together else []
            details = _without_low(z) if self.parted else z
            for row, one, detail, m in zip(x, z, details, which.tolist()):
                pairs[m] += torch.outer(row, row)
                products[m] += row.reshape(-1, *[1] * len(spatial)) * one
                squares[m] += one**2
                without[m] += detail**2
                number[m] += 1
        ridge = FIRM * torch.eye(count, dtype=torch.float64)
        ridge[0, 0] = 1e-6  # the mean is not doubted
        slopes = torch.linalg.solve(pairs + ridge, products.flatten(2)).reshape(products.shape)
        self.slopes.copy_(slopes)
        self.variance.copy_(_variance(squares, products, slopes, pairs, number))
        if self.parted:  # what is left of the details, whose regression is the details of the regression
            products, slopes = _without_low(products), _without_low(slopes)
            self.rest.copy_(_variance(without, products, slopes, pairs, number))
        if kept:
            self._factor(*(torch.cat(parts) for parts in zip(*kept)))

    def _factor(self, z: Tensor, x: Tensor, which: Tensor) -> None:
        """The directions in which latents [N, C, *spatial] vary most around the regression on x [N, Q], each place in
        units of its own deviation; what they explain, and what is left."""
        for m in range(self.modalities):
            part, deviation = which == m, self.variance[m].float().cpu().sqrt()
            mean = torch.einsum("nq,q...->n...", x[part].float(), self.slopes[m].float().cpu())
            away = ((z[part] - mean) / deviation).flatten(1)
            _, across = torch.linalg.eigh((away @ away.T).double() / max(len(away), 1))  # the strongest come last
            count = min(self.together, len(away))
            along = away.T @ across[:, len(away) - count :].float() / max(len(away), 1) ** 0.5
            self.factors[m] = 0
            self.factors[m, :count] = (along.T.reshape(count, *deviation.shape) * deviation).to(self.factors)
            self.rest[m] = self.variance[m] * (1 - (along**2).sum(1)).clamp(min=LEAST).reshape(deviation.shape)


def _without_low(x: Tensor) -> Tensor:
    """x [..., C, X, Y, Z] with a low band of 0."""
    flat = x.reshape(-1, *x.shape[-4:])
    return with_low(flat, torch.zeros_like(low(flat))).reshape(x.shape)


def _variance(squares: Tensor, products: Tensor, slopes: Tensor, pairs: Tensor, number: Tensor) -> Tensor:
    """What a regression leaves open [M, C, *spatial], of sums over volumes: squares [M, C, *spatial], products with the
    regressors [M, Q, C, *spatial], `pairs` of those [M, Q, Q]; shrunk to a channel's mean where volumes are few."""
    rest = squares - 2 * (slopes * products).sum(1) + torch.einsum("mq...,mqr,mr...->m...", slopes, pairs, slopes)
    rest, number = rest.clamp(min=0), number.reshape(-1, *[1] * (squares.dim() - 1))
    alike = (rest / number.clamp(min=1)).mean(tuple(range(2, rest.dim())), keepdim=True)
    return ((rest + TRUST * alike) / (number + TRUST)).clamp(min=1e-4)

"""What latents would follow if they were normal and every place by itself: where the prior begins (not in the paper).

z_0 ~ N(B x, V)      x: 1 and what is known of the subject; B and V by modality, channel and place
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...diffusion.denoiser import Prediction, around, expand, target
from ...diffusion.process import Process
from ...nn.wavelet import low, with_low
from .schema import Schema

FIRM = 1.0  # subjects' worth of doubt that what is known of a subject shows at all (ridge)
TRUST = 8.0  # volumes' worth of belief that all places of a channel vary alike


def time_of(process: Process, label: Tensor) -> Tensor:
    """The time that a network is told of by a label (`Process.label` the other way round)."""
    return (label + 1) * process.end / 1000


def left(variance: Tensor | float, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What is left open of a normal z_0 with a variance by alpha z_0 + sigma eps: a variance."""
    return sigma**2 * variance / (alpha**2 * variance + sigma**2)


class Normal(nn.Module):
    """A regression of latents on what is known, for volumes that lie in one space. Given z_t it says what z_0 is on
    average; the network adds to that, in units of what is left open.

    x [B, Q]: 1; numbers as z-scores, 0 if not known; for every state of the other fields 1 if it is so.
    `rest`: the variance where the low band of z_0 is given besides (`parted`).
    """

    slopes: Tensor
    rest: Tensor
    variance: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, modalities: int, schema: Schema, channels: int, size: Sequence[int], process: Process,
        prediction: Prediction, parted: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.modalities, self.process, self.prediction, self.parted = modalities, process, prediction, parted
        self.states = [f.states for f in schema.fields]
        count = 1 + sum(max(1, n) for n in self.states)
        self.register_buffer("slopes", torch.zeros(modalities, count, channels, *size))
        self.register_buffer("variance", torch.ones(modalities, channels, *size))
        if parted:
            self.register_buffer("rest", torch.ones(modalities, channels, *size))
        self.register_buffer("mean", torch.zeros(len(schema)))
        self.register_buffer("deviation", torch.ones(len(schema)))

    def forward(
        self, out: Tensor, z: Tensor, mean: Tensor, t: Tensor, vector: Tensor, band: Tensor | None = None
    ) -> Tensor:
        """The prediction, of what the network says of z_t; `mean`: of z_0 by the regression (`expected`); `band`: the
        low band of z_0, if it is given."""
        kind, z = z.dtype, z.float()
        alpha, sigma = (expand(v, z) for v in self.process.at(time_of(self.process, t)))
        variance = (self.variance if band is None else self.rest)[self.split(vector)[0]].float()
        z0 = around(mean.float(), variance, z, alpha, sigma) + left(variance, alpha, sigma).sqrt() * out.float()
        z0 = z0 if band is None else with_low(z0, band.float())
        return target(z0, z, alpha, sigma, self.prediction).to(kind)

    def expected(self, vector: Tensor, band: Tensor | None = None) -> Tensor:
        """B x, what latents are on average for what is known, with the low `band` that is given: [B, C, *spatial]."""
        which, values, known = self.split(vector)
        mean = torch.einsum("bq,bq...->b...", self.regressors(values, known), self.slopes[which].float())
        return mean if band is None else with_low(mean, band.float())

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
    def fit(self, found: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], mean: Tensor, deviation: Tensor) -> None:
        """Fit to latents [N, C, *spatial], which modality each is of [N], values and known [N, P]; `mean`, `deviation`:
        of the numbers in the training table."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        count, spatial = self.slopes.shape[1], self.slopes.shape[2:]
        pairs = torch.zeros(self.modalities, count, count, dtype=torch.float64)
        products = torch.zeros(self.modalities, count, *spatial, dtype=torch.float64)
        squares, without = torch.zeros(2, self.modalities, *spatial, dtype=torch.float64)
        number = torch.zeros(self.modalities)
        for z, which, values, known in found:
            x, z = self.regressors(values, known.float()).double().cpu(), z.double().cpu()
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

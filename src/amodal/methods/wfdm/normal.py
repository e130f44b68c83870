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
    """

    slopes: Tensor
    variance: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, modalities: int, schema: Schema, channels: int, size: Sequence[int], process: Process,
        prediction: Prediction,
    ):  # fmt: skip
        super().__init__()
        self.modalities, self.process, self.prediction = modalities, process, prediction
        self.states = [f.states for f in schema.fields]
        count = 1 + sum(max(1, n) for n in self.states)
        self.register_buffer("slopes", torch.zeros(modalities, count, channels, *size))
        self.register_buffer("variance", torch.ones(modalities, channels, *size))
        self.register_buffer("mean", torch.zeros(len(schema)))
        self.register_buffer("deviation", torch.ones(len(schema)))

    def forward(self, out: Tensor, z: Tensor, mean: Tensor, t: Tensor, vector: Tensor) -> Tensor:
        """The prediction, of what the network says of z_t; `mean`: of z_0 by the regression (`expected`)."""
        kind, z = z.dtype, z.float()
        alpha, sigma = (expand(v, z) for v in self.process.at(time_of(self.process, t)))
        variance = self.variance[self.split(vector)[0]].float()
        z0 = around(mean.float(), variance, z, alpha, sigma) + left(variance, alpha, sigma).sqrt() * out.float()
        return target(z0, z, alpha, sigma, self.prediction).to(kind)

    def expected(self, vector: Tensor) -> Tensor:
        """B x, what latents are on average for what is known: [B, C, *spatial]."""
        which, values, known = self.split(vector)
        return torch.einsum("bq,bq...->b...", self.regressors(values, known), self.slopes[which].float())

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
        products = torch.zeros(self.modalities, count, spatial.numel(), dtype=torch.float64)
        squares, number = (
            torch.zeros(self.modalities, spatial.numel(), dtype=torch.float64),
            torch.zeros(self.modalities),
        )
        for z, which, values, known in found:
            x, flat = self.regressors(values, known.float()).double().cpu(), z.flatten(1).double().cpu()
            for row, one, m in zip(x, flat, which.tolist()):
                pairs[m] += torch.outer(row, row)
                products[m] += torch.outer(row, one)
                squares[m] += one**2
                number[m] += 1
        ridge = FIRM * torch.eye(count, dtype=torch.float64)
        ridge[0, 0] = 1e-6  # the mean is not doubted
        slopes = torch.linalg.solve(pairs + ridge, products)
        rest = squares - 2 * (slopes * products).sum(1) + torch.einsum("mqn,mqr,mrn->mn", slopes, pairs, slopes)
        rest, number = rest.clamp(min=0).reshape(-1, *spatial), number.reshape(-1, *[1] * len(spatial))
        alike = (rest / number.clamp(min=1)).flatten(2).mean(2).reshape(*rest.shape[:2], *[1] * (len(spatial) - 1))
        self.slopes.copy_(slopes.reshape(self.slopes.shape))
        self.variance.copy_(((rest + TRUST * alike) / (number + TRUST)).clamp(min=1e-4))

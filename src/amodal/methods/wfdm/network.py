"""What the diffusion is conditioned on, and with what networks (section 2.5.5).

    e_time + e_modality     | joined | -> one (scale, shift) per residual block of the U-Net
    P(e_meta), e_meta = encoder(d, r)  |

The condition travels as one vector [B, M + 2 P]: modality (one of M), values d, availability r. `Adapter` is ControlNet
(Zhang et al. 2023) in three dimensions: it sees the latents of what a subject has and adds to a frozen U-Net.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...diffusion.denoiser import Denoiser, expand, target, x0_from
from ...nn.blocks import conv, zero
from ...nn.embed import full_precision, sinusoidal
from ...nn.layout import channels_last, crop_to, fold, pad_to, unfold
from ...nn.norm import activate, group_norm
from ...nn.unet import UNet, UNetConfig, build, plan
from ...nn.winograd import convolve
from .estimate import Estimate
from .normal import Latents, Normal, left, time_of
from .schema import NO, YES, Schema

USUAL, MOST = 2.0, 20.0  # squares of surprise: what is below is no surprise, what is above no greater one


def width_of(modalities: int, schema: Schema) -> int:
    """The width of a condition's vector."""
    return modalities + 2 * len(schema)


def known_width(channels: int, modalities: int, estimate: bool) -> int:
    """Channels of what is known beside a latent of so many channels."""
    return (modalities + estimate) * (channels + 1)


def condition(which: Tensor, modalities: int, values: Tensor, known: Tensor) -> Tensor:
    """Which modality [B], values and known [B, P] -> [B, M + 2 P]; what is not known becomes 0."""
    known = known.to(which.device)
    values = torch.where(known, values.to(which.device), 0.0)
    return torch.cat([F.one_hot(which, modalities).float(), values, known.float()], dim=1)


def unconditional(vector: Tensor, modalities: int) -> Tensor:
    """The same modality with nothing known of the subject."""
    return torch.cat([vector[:, :modalities], torch.zeros_like(vector[:, modalities:])], dim=1)


def contrary(vector: Tensor, modalities: int, schema: Schema) -> Tensor:
    """The same with every flag that is set not set."""
    flags = torch.tensor([f.kind == "flag" for f in schema.fields], device=vector.device)
    which, values, known = vector.split([modalities, len(schema), len(schema)], dim=1)
    return torch.cat([which, torch.where(flags & (values == YES), NO, values), known], dim=1)


def shown(config: UNetConfig, aligned: bool) -> UNetConfig:
    """The U-Net of a prior that sees latents, and beside them what they are on average where volumes are `aligned`."""
    return replace(config, in_channels=config.in_channels * (1 + aligned))


class MetadataEncoder(nn.Module):
    """values and known [B, P] -> [B, width]. Numbers enter as z-scores, categories and flags by embeddings with a state
    of their own for "not known", and the availability mask as it is.

    Buffers hold what the training data were like: `mean`, `deviation`, `low`, `high` of numbers [P], and `counts`
    [P, states + 1]: how often each state was seen (0: not known; a number known counts as 1).
    """

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    counts: Tensor

    def __init__(self, schema: Schema, width: int, each: int = 16):
        super().__init__()
        p, most = len(schema), max([f.states for f in schema.fields] + [1])
        self.numbers = [i for i, f in enumerate(schema.fields) if f.kind == "number"]
        self.states = [i for i, f in enumerate(schema.fields) if f.kind != "number"]
        for name, value in {"mean": 0.0, "deviation": 1.0, "low": 0.0, "high": 0.0}.items():
            self.register_buffer(name, torch.full((p,), value))
        self.register_buffer("counts", torch.zeros(p, most + 1))
        self.tables = nn.ModuleList(nn.Embedding(schema.fields[i].states + 1, each) for i in self.states)
        self.first = nn.Linear(len(self.numbers) + each * len(self.states) + p, width)
        self.second = nn.Linear(width, width)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        z = (values - self.mean) / self.deviation * known
        states = [table(values[:, i].long()) for table, i in zip(self.tables, self.states)]
        return self.second(F.silu(self.first(torch.cat([z[:, self.numbers], *states, known], dim=1))))

    @torch.no_grad()
    def fit(self, values: Tensor, known: Tensor) -> None:
        """Take the statistics of a training set's table [N, P]. A number that never varies keeps the deviation 1."""
        count = known.sum(0).clamp(min=1)
        mean = torch.where(known, values, 0.0).sum(0) / count
        square = torch.where(known, (values - mean) ** 2, 0.0).sum(0) / count
        is_number = torch.zeros(len(mean), dtype=torch.bool)
        is_number[self.numbers] = True
        any_known = known.any(0)
        use = is_number & any_known
        self.mean.copy_(torch.where(use, mean, 0.0))
        self.deviation.copy_(torch.where(use & (square > 0), square.sqrt(), 1.0))
        for buffer, found in (
            (self.low, torch.where(known, values, torch.inf).amin(0)),
            (self.high, torch.where(known, values, -torch.inf).amax(0)),
        ):
            buffer.copy_(torch.where(any_known, found, 0.0))
        state = torch.where(is_number, known.to(values.dtype), values).long()
        self.counts.copy_(F.one_hot(state, self.counts.shape[1]).sum(0))


class ConditionEmbedding(nn.Module):
    """Takes the place of `nn.embed.Embedding` in the U-Net. (All of it is called embed there, so it stays in fp32.)"""

    def __init__(self, width: int, embed: int, widths: tuple[int, ...], modalities: int, schema: Schema, meta: int):
        super().__init__()
        self.width, self.modalities, self.widths, self.fields = width, modalities, widths, len(schema)
        self.first, self.second = nn.Linear(width, embed), nn.Linear(embed, embed)
        self.modality = nn.Linear(modalities, embed, bias=False)
        self.metadata = MetadataEncoder(schema, meta)
        self.project = nn.Linear(meta, embed)
        self.modulation = nn.Linear(2 * embed, 2 * sum(widths))

    def forward(self, t: Tensor, vector: Tensor) -> list[Tensor]:
        """t [B], vector [B, M + 2 P] -> for every width w a modulation [B, 2 w]."""
        with full_precision(t.device):
            target, values, known = vector.float().split([self.modalities, self.fields, self.fields], dim=1)
            time = self.second(F.silu(self.first(sinusoidal(t.reshape(len(t)), self.width)))) + self.modality(target)
            joined = torch.cat([time, self.project(F.silu(self.metadata(values, known)))], dim=1)
            return list(self.modulation(F.silu(joined)).split([2 * w for w in self.widths], dim=1))


class Seen(NamedTuple):
    """What a prior's U-Net is `shown` of z_t, and what is expected of z_0 [B, C, *spatial]."""

    z: Tensor
    mean: Tensor | None
    shown: Tensor


class Prior(nn.Module):
    """The conditional U-Net: z_t [B, C, *spatial], t [B], vector [B, M + 2 P] -> what the denoiser predicts.

    Where volumes lie in one space (`normal`) it adds to a regression, and is shown what that expects: a network of
    convolutions does not know where it is, and what is there in most people. There it can be given the low `band` of
    z_0 too, [B, C, *spatial / 2]: that is then part of what is expected, and it predicts the details. Where factors
    explain most of z_t it is shown what they do not explain, for it cannot take alpha_t times the mean from z_t itself.
    """

    def __init__(
        self, config: UNetConfig, modalities: int, schema: Schema, meta: int, normal: Normal | None = None
    ):  # fmt: skip
        super().__init__()
        config = replace(shown(config, normal is not None), vector=width_of(modalities, schema))
        self.unet, self.normal = UNet(config), normal
        embed = config.embed or 4 * config.channels[0]
        widths = self.unet.embed.widths
        own = ConditionEmbedding(config.channels[0], embed, widths, modalities, schema, meta)
        self.unet.embed = own  # type: ignore[assignment]

    @property
    def metadata(self) -> MetadataEncoder:
        """What encodes the metadata, with the statistics of the training set."""
        return cast(ConditionEmbedding, self.unet.embed).metadata

    def forward(self, z: Tensor, t: Tensor, vector: Tensor, band: Tensor | None = None) -> Tensor:
        return self.controlled(self.seen(z, t, vector, band), t, vector, band=band)

    def seen(self, z: Tensor, t: Tensor, vector: Tensor, band: Tensor | None = None) -> Seen:
        """z_t, or how far it is from what was expected (factors), and beside it what is expected of z_0 (`aligned`)."""
        if self.normal is None:
            return Seen(z, None, z)
        mean = self.normal.expected(z, t, vector, band)
        pair = (self.normal.surprise(z, mean, t, vector), mean / 2) if self.normal.together else (z, mean)
        return Seen(z, mean, torch.cat([v.to(z) for v in pair], dim=1))

    def focus(self, z: Tensor, t: Tensor, vector: Tensor, strength: float) -> Tensor:
        """Weights of a loss [B, 1, *spatial], mean 1: more where z_t is unlike what was expected over 3 x 3 x 3 places.
        They know z_t alone, so what is learned stays the mean of z_0; what is rare is learned sooner."""
        normal = cast(Normal, self.normal)
        surprise = normal.surprise(z, normal.expected(z, t, vector), t, vector)
        together = 27**0.5 * F.avg_pool3d(F.pad(surprise, [1] * 6), 3, stride=1)
        weight = (1 + strength * (together**2 - USUAL).clamp(0, MOST)).amax(1, keepdim=True)
        return weight / weight.mean()

    def controlled(
        self, seen: Seen, t: Tensor, vector: Tensor, *controls: Tensor, band: Tensor | None = None
    ) -> Tensor:
        """The prediction from what is `seen`, with what an adapter adds to skip connections and middle."""
        out = self.unet(seen.shown, t, vector=vector, controls=controls)
        if self.normal is None or seen.mean is None:
            return out
        return self.normal(out, seen.z, seen.mean, t, vector, band)

    def fit(self, values: Tensor, known: Tensor, latents: Iterable[Latents]) -> None:
        """Take the statistics of a training set's table [N, P], and of its latents (`Normal.fit`) if wanted."""
        told = self.metadata
        told.fit(values, known)
        if self.normal is not None:
            self.normal.fit(latents, told.mean, told.deviation)

    def open(self, vector: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The variance of z_0 given z_t, if latents were normal: with the law they begin with, or else a unit one."""
        if self.normal is None:
            return left(1.0, alpha, sigma)
        return left(self.normal.variance[vector[:, : self.normal.modalities].argmax(1)].float(), alpha, sigma)


class Adapter(nn.Module):
    """A copy of the prior's encoder and middle that also sees the known latents; what it adds begins as nothing.

    Beyond ControlNet it adds to the prior's output too, from its finest level: what is known voxel by voxel need not
    pass through frozen layers. `known` [B, M (C + 1), *spatial]: for each modality its latent (0 if absent) and a
    channel that says if it is there; with an `estimate` C + 1 channels more (`Estimate`).
    """

    def __init__(self, config: UNetConfig, modalities: int, schema: Schema, meta: int, estimate: bool = False):
        super().__init__()
        self.config = config = replace(config, vector=width_of(modalities, schema))
        encoder, middle, _ = plan(config)
        first, rows = config.channels[0], [*encoder, *middle]
        modulated = ("step",) if config.resample == "conv" else ("step", "down", "up")
        widths = tuple(row.outputs * (row.kind in modulated) for row in rows)
        embed = config.embed or 4 * first
        self.embed = ConditionEmbedding(first, embed, widths, modalities, schema, meta)
        cell = config.patch**config.dims
        self.stem = conv(config.dims, config.in_channels * cell, first)
        self.known = conv(config.dims, known_width(config.out_channels, modalities, estimate) * cell, first)
        self.encoder, self.middle = build(config, encoder), build(config, middle)
        outputs = [first, *(row.outputs for row in encoder), middle[-1].outputs]
        self.out = nn.ModuleList(zero(conv(config.dims, n, n, kernel=1)) for n in outputs)
        self.norm = group_norm(first, config.groups)
        self.direct = zero(conv(config.dims, first, config.out_channels * cell))

    def forward(self, seen: Tensor, t: Tensor, vector: Tensor, known: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What to add to the output of the U-Net, and to every skip connection and the middle; `seen`: what the prior's
        U-Net is shown."""
        given, spatial, kind = iter(self.embed(t, vector)), seen.shape[2:], seen.dtype
        seen, known = (fold(self._fit(v), self.config.patch) for v in (seen, known))
        x = channels_last(convolve(self.known, known, add=convolve(self.stem, seen)))
        found = [x]
        for block in self.encoder:
            found.append(x := block(x, next(given), None))
        for block in self.middle:
            x = block(x, next(given), None)
        finest = activate(found[self.config.blocks], self.norm)
        direct = crop_to(unfold(convolve(self.direct, finest), self.config.patch), spatial).to(kind)
        return direct, tuple(out(v) for out, v in zip(self.out, [*found, x]))

    def _fit(self, v: Tensor) -> Tensor:
        return pad_to(v.to(self.stem.weight.dtype), self.config.multiple)

    @torch.no_grad()
    def take(self, prior: Prior) -> None:
        """Begin as the prior: its stem, encoder, middle and embedding. What sees the known latents begins at random."""
        unet = prior.unet
        for own, other in ((self.stem, unet.stem), (self.encoder, unet.encoder), (self.middle, unet.middle)):
            own.load_state_dict(other.state_dict())
        state, size = unet.embed.state_dict(), len(self.embed.modulation.bias)
        state = {k: v[:size] if k.startswith("modulation.") else v for k, v in state.items()}
        self.embed.load_state_dict(state)


class Controlled(nn.Module):
    """The prior with the adapter, as one network of (z, t, vector, known). With an estimate what they say is added to
    it (`Estimate`)."""

    def __init__(self, prior: Denoiser, adapter: Adapter, estimate: Estimate | None = None):
        super().__init__()
        self.prior, self.adapter, self.estimate = prior, adapter, estimate

    def forward(self, z: Tensor, t: Tensor, vector: Tensor, known: Tensor) -> Tensor:
        if self.training or z.device.type != "cpu":
            return self.batch(z, t, vector, known)
        # one by one, as in the U-Net
        return torch.cat([self.batch(*sample) for sample in zip(*(v.split(1) for v in (z, t, vector, known)))])

    def batch(self, z: Tensor, t: Tensor, vector: Tensor, known: Tensor) -> Tensor:
        """All samples at once."""
        prior, net = self.prior, cast(Prior, self.prior.net)
        seen = net.seen(z, t, vector)
        direct, controls = self.adapter(seen.shown, t, vector, known)
        out = net.controlled(seen, t, vector, *controls)
        if self.estimate is None:
            return out + direct
        alpha, sigma = (expand(v, z) for v in prior.process.at(time_of(prior.process, t)))
        z = z.float()
        p = x0_from(out.float(), z, alpha, sigma, prior.prediction)
        mean, lacks = self.estimate(p, known, net.open(vector, alpha, sigma))
        return target(mean + lacks * direct.float(), z, alpha, sigma, prior.prediction)

"""Codecs on Haar coefficients: the Wavelet-Fusion VAE (WFDM, section 2.5.2) and what it is compared with.

    c1 = W(v)             8 bands at half size; w1 = P1(c1) is the encoder's input                     Eq. 4, 5
    c2 = W(S(c1))         S: the lower bands; w2 = P2(c2) joins the encoder at a quarter of the size    Eq. 6
    z = mean + std eps    4 channels at a quarter of the size
    v' = W^-1(fuse(c1', W^-1(c2')))                      c1', c2': what the decoder says

`fusion` with attention is the paper's WF-SA-VAE, without it WF-VAE; `wavelet` its Wavelet VAE, a light bottleneck on
the 64 bands of two whole stages; `plain` its VAE-GAN, the layout of MAISI, which learns both halvings from voxels.
`Stages` are the transforms alone, which lose nothing. Latents have one global scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.rng import Rng
from ..nn.attention import attend, picture
from ..nn.blocks import Down, Residual, Up, conv, half, zero
from ..nn.layout import channels_last, fold, pad_to, unfold
from ..nn.norm import group_norm, normalise, rows
from ..nn.slabs import budget_for, convolve, residual, upsample
from ..nn.wavelet import bands, haar, unhaar
from . import kl
from .kl import KLConfig, Reconstruction, draw

FACTOR = 4  # two halvings
LIMITS = -30.0, 20.0  # of the log variance


@dataclass(frozen=True)
class WaveletConfig:
    """`widths`: channels at half and at a quarter of the size (`plain`: at the full size before). `blocks`: residual
    blocks there. `subset`: the bands that are transformed twice. `attention`: inner width of the self-attention at a
    quarter of the size (0: none), heads of `head_size`; its keys and values are means over cells of `pool` voxels per
    axis (1: every voxel). `linear`: a linear map of each cell of 4 voxels an axis lies beside both networks; it begins
    as the lowest cosines: a little training goes far (the paper has none).
    """

    kind: Literal["fusion", "wavelet", "plain"] = "fusion"
    dims: Literal[2, 3] = 3
    channels: int = 4
    widths: tuple[int, ...] = (64, 256)
    blocks: int = 2
    subset: tuple[str, ...] = ("LLL", "LLH", "LHL", "LHH")
    attention: int = 64
    head_size: int = 64
    pool: Literal[1, 2] = 2
    groups: int = 32
    linear: bool = False

    def __post_init__(self) -> None:
        known = bands(self.dims)
        if not self.subset or set(self.subset) - set(known) or len(set(self.subset)) < len(self.subset):
            raise InputError(f"subset={list(self.subset)}: name some of {', '.join(known)}, each once.")
        levels = 3 if self.kind == "plain" else 2
        if len(self.widths) != levels:
            raise InputError(
                f"widths={list(self.widths)}: a codec of kind {self.kind} has {levels} sizes, give as many."
            )
        if min(self.channels, self.blocks, *self.widths) < 1:
            found = f"channels={self.channels}, widths={list(self.widths)}, blocks={self.blocks}"
            raise InputError(f"{found}: choose numbers of 1 or more.")
        if self.attention > self.head_size and self.attention % self.head_size:
            raise InputError(f"head_size={self.head_size}: choose one that divides attention={self.attention}.")


class SelfAttention(nn.Module):
    """Self-attention of a feature map in a narrower space, keys and values pooled; begins as the identity."""

    def __init__(self, config: WaveletConfig, width: int):
        super().__init__()
        inner = config.attention
        self.heads, self.pool = max(1, inner // config.head_size), config.pool
        self.norm = group_norm(width, config.groups)
        self.query, self.pair = nn.Linear(width, inner), nn.Linear(width, 2 * inner)
        self.out = zero(nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        h = normalise(x, self.norm)
        coarse = half(pad_to(h, 2)) if self.pool == 2 else h
        key, value = self.pair(rows(coarse)).chunk(2, dim=-1)
        return x + picture(self.out(attend(self.query(rows(h)), key, value, self.heads)), x)


class Encoder(nn.Module):
    """v [1, 1, *spatial] -> (mean, log variance), each [1, channels, *spatial / 4]."""

    def __init__(self, config: WaveletConfig):
        super().__init__()
        dims, (first, second) = config.dims, config.widths
        self.fuses, every = config.kind == "fusion", 2**dims
        self.subset = [bands(dims).index(name) for name in config.subset]
        if self.fuses:
            self.stem = conv(dims, every, first)
            self.near = _residuals(config, first)
            self.down = Down(dims, first)
            self.bands = conv(dims, every * len(self.subset), first)
            self.fuse = conv(dims, 2 * first, second, kernel=1)
        else:
            self.stem = conv(dims, every**2, second)
        self.far = _residuals(config, second)
        self.attention = SelfAttention(config, second) if config.attention else None
        self.norm = group_norm(second, config.groups)
        self.last = conv(dims, second, second)
        self.mean, self.log_variance = (conv(dims, second, config.channels, kernel=1) for _ in range(2))

    def forward(self, v: Tensor, budget: int = 0) -> tuple[Tensor, Tensor]:
        kind, c1 = self.mean.weight.dtype, haar(v)
        if self.fuses:
            h = convolve(self.stem, _ready(c1, kind), budget)
            h = _run(self.near, h, budget)
            h = convolve(self.down.conv, h, budget)
            c2 = haar(c1[:, self.subset])
            h = self.fuse(torch.cat([h, convolve(self.bands, _ready(c2, kind), budget)], dim=1))
        else:
            h = convolve(self.stem, _ready(haar(c1), kind), budget)
        h = convolve(self.last, _deep(self, h, budget), budget, self.norm)
        return _fine(self.mean(h)), _fine(self.log_variance(h)).clamp(*LIMITS)


class Decoder(nn.Module):
    """z [1, channels, *spatial / 4] -> v [1, 1, *spatial]."""

    def __init__(self, config: WaveletConfig):
        super().__init__()
        dims, (first, second) = config.dims, config.widths
        self.fuses, every = config.kind == "fusion", 2**dims
        self.subset = [bands(dims).index(name) for name in config.subset]
        count = len(self.subset)
        self.stem = conv(dims, config.channels, second)
        self.far = _residuals(config, second)
        self.attention = SelfAttention(config, second) if config.attention else None
        self.norm = group_norm(second, config.groups)
        self.coarse = conv(dims, second, every * count if self.fuses else every**2)
        if self.fuses:
            self.narrow = conv(dims, second, first, kernel=1)
            self.up = Up(dims, first)
            self.near = _residuals(config, first)
            self.norm_near = group_norm(first, config.groups)
            self.fine = conv(dims, first, every)
            self.merge = conv(dims, 2 * count, count, kernel=1)
            with torch.no_grad():  # the mean of both, at first
                both = torch.eye(count).repeat(1, 2) / 2
                zero(self.merge).weight.copy_(both.reshape(self.merge.weight.shape))

    def forward(self, z: Tensor, budget: int = 0) -> Tensor:
        h = _deep(self, convolve(self.stem, _ready(z, self.stem.weight.dtype), budget), budget)
        c2 = _fine(convolve(self.coarse, h, budget, self.norm))
        if not self.fuses:
            return unhaar(unhaar(c2))
        h = upsample(self.up, self.narrow(h), budget)
        h = _run(self.near, h, budget)
        c1 = _fine(convolve(self.fine, h, budget, self.norm_near))
        lower = torch.cat([c1[:, self.subset], unhaar(c2)], dim=1)
        found = _fine(self.merge(lower.to(self.merge.weight.dtype)))
        c1 = torch.cat([_band(c1, found, self.subset, i) for i in range(c1.shape[1])], dim=1)
        return unhaar(c1)


class PlainEncoder(nn.Module):
    """v -> (mean, log variance) without wavelets: `kl.Encoder`, in slabs."""

    def __init__(self, config: WaveletConfig):
        super().__init__()
        self.net = kl.Encoder(_plain(config))

    def forward(self, v: Tensor, budget: int = 0) -> tuple[Tensor, Tensor]:
        net = self.net
        h = _run(net.levels, channels_last(convolve(net.stem, _ready(v, net.stem.weight.dtype), budget)), budget)
        mean, log_variance = _fine(convolve(net.head, h, budget, net.norm)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LIMITS)


class PlainDecoder(nn.Module):
    """z -> v without wavelets: `kl.Decoder`, in slabs."""

    def __init__(self, config: WaveletConfig):
        super().__init__()
        self.net = kl.Decoder(_plain(config))

    def forward(self, z: Tensor, budget: int = 0) -> Tensor:
        net = self.net
        h = _run(net.levels, convolve(net.stem, _ready(z, net.stem.weight.dtype), budget), budget)
        return _fine(convolve(net.head, h, budget, net.norm))


SIDES: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "fusion": (Encoder, Decoder), "wavelet": (Encoder, Decoder), "plain": (PlainEncoder, PlainDecoder),
}  # fmt: skip
RUN: dict[type[nn.Module], Callable[[Any, Tensor, int], Tensor]] = {
    Residual: residual, Up: upsample, Down: lambda block, x, budget: convolve(block.conv, x, budget),
}  # fmt: skip


class WaveletCodec(nn.Module):
    """The codec. Any size: images are padded to a multiple of 4, so `decode` may give a few voxels more.

    Inside, images are v = (x + 1) / 2, so that the background has no coefficients. Out of training volumes go through
    one by one and layer by layer in slabs: memory is that of two feature maps, and the result that of the whole.
    """

    scale: Tensor
    factor = FACTOR

    def __init__(self, config: WaveletConfig):
        super().__init__()
        self.config, self.channels = config, config.channels
        encoder, decoder = SIDES[config.kind]
        self.encoder, self.decoder = encoder(config), decoder(config)
        self.inward = self.outward = None
        if config.linear:
            rows, gain = _cosines(config)
            self.inward = kl.Linear(FACTOR, config.dims, rows * gain)
            self.outward = kl.Linear(FACTOR, config.dims, (rows / gain).T)
            _quiet(config.kind, self.encoder, self.decoder)
        self.register_buffer("scale", torch.ones(()))  # s_z = 1 / standard deviation, section 2.5.3

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, 1, *spatial] in [-1, 1] -> (mean, log variance) of the unscaled latent, float32."""
        return self._inward((pad_to(x.float(), FACTOR) + 1) / 2)

    def image(self, latent: Tensor) -> Tensor:
        """An unscaled latent -> x [N, 1, *spatial], float32."""
        return 2 * self._outward(latent) - 1

    def _inward(self, v: Tensor, budget: int = 0) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(v, budget)
        return mean if self.inward is None else mean + _line(self.inward, fold(v, FACTOR)), log_variance

    def _outward(self, z: Tensor, budget: int = 0) -> Tensor:
        v = self.decoder(z, budget)
        return v if self.outward is None else v + unfold(_line(self.outward, z), FACTOR)

    def forward(self, x: Tensor, rng: Rng) -> Reconstruction:
        """Through a draw of the latent and back, for training. x: sizes that 4 divides."""
        mean, log_variance = self.posterior(x)
        return Reconstruction(self.image(draw(mean, log_variance, rng)), mean, log_variance)

    @property
    def influence(self) -> Tensor:
        """How far an error in each channel of the latent moves the image, squared, by the linear path [C, 1, ...]; 1
        without one."""
        if self.outward is None:
            return self.scale.new_ones(self.channels, *[1] * self.config.dims)
        return self.outward.map.weight.detach().float().square().sum(0)

    @torch.no_grad()
    def encode(self, x: Tensor, budget: int | None = None) -> Tensor:
        """The scaled mean: x [N, 1, *spatial] -> z [N, channels, *ceil(spatial / 4)]. `budget`: values in a slab (None:
        what suits the device, 0: no slabs)."""
        budget = budget_for(x) if budget is None else budget
        v = (pad_to(x.float(), FACTOR) + 1) / 2
        return torch.cat([self._inward(part, budget)[0] for part in v.split(1)]) * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor, budget: int | None = None) -> Tensor:
        """z [N, channels, *spatial] scaled -> x [N, 1, *spatial * 4]."""
        budget = budget_for(z) if budget is None else budget
        return torch.cat([2 * self._outward(part, budget) - 1 for part in (z.float() / self.scale).split(1)])

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Set the scale so that the latents of all images [N, 1, *spatial] together have variance 1."""
        count, total, square = 0, 0.0, 0.0
        for x in images:
            z = (self.encode(x) / self.scale).double()
            count, total, square = count + z.numel(), total + z.sum().item(), square + (z**2).sum().item()
        deviation = max(square / count - (total / count) ** 2, 0.0) ** 0.5
        self.scale.fill_(1 / max(deviation, 1e-6))


def _cosines(config: WaveletConfig) -> tuple[Tensor, Tensor]:
    """The lowest cosines of a cell [channels, FACTOR^dims], and gains [channels, 1] by which latents of images, whose
    spectrum falls, come to vary more alike: 1 + 2 |frequency|."""
    rows = kl.cosines(KLConfig(config.channels, (1, 1, 1), dims=config.dims))
    squares = torch.arange(FACTOR, device="cpu") ** 2
    frequency = torch.stack(torch.meshgrid(*[squares] * config.dims, indexing="ij")).sum(0).flatten().sort().values
    gain = 1 + 2 * frequency[: config.channels].float().sqrt()
    return rows, torch.cat([gain, gain.new_ones(config.channels - len(gain))])[:, None]


def _quiet(kind: str, encoder: Any, decoder: Any) -> None:
    """Let both networks begin by saying nothing, and latents nearly without noise."""
    if kind == "plain":
        ends, spread = (encoder.net.head, decoder.net.head), encoder.net.head.bias.data.chunk(2)[1]
    else:
        ends = (encoder.mean, encoder.log_variance, decoder.coarse, *([decoder.fine] if decoder.fuses else []))
        spread = encoder.log_variance.bias.data
    for last in ends:
        zero(last)
    spread.fill_(kl.QUIET)


class Stages(nn.Module):
    """One or more stages of the Haar transform as a codec: it keeps all numbers, so it loses none."""

    def __init__(self, stages: int = 1, dims: int = 3):
        super().__init__()
        self.stages, self.channels, self.factor = stages, 2 ** (dims * stages), 2**stages

    def encode(self, x: Tensor) -> Tensor:
        for _ in range(self.stages):
            x = haar(x)
        return x

    def decode(self, z: Tensor) -> Tensor:
        for _ in range(self.stages):
            z = unhaar(z)
        return z


def _residuals(config: WaveletConfig, width: int) -> nn.ModuleList:
    return nn.ModuleList(Residual(config.dims, width, width, config.groups) for _ in range(config.blocks))


def _deep(side: Encoder | Decoder, h: Tensor, budget: int) -> Tensor:
    """Residual blocks, with attention after the first, at a quarter of the size."""
    for index, block in enumerate(side.far):
        h = _run((block,), h, budget)
        if index == 0 and side.attention is not None:
            h = side.attention(h)
    return h


def _run(levels: Iterable[nn.Module], h: Tensor, budget: int) -> Tensor:
    for block in levels:
        h = RUN[type(block)](block, h, budget)
    return h


def _plain(config: WaveletConfig) -> KLConfig:
    return KLConfig(config.channels, config.widths, config.blocks, config.dims, groups=config.groups)


def _line(line: kl.Linear, x: Tensor) -> Tensor:
    return _fine(line(_ready(x, line.map.weight.dtype)))


def _ready(x: Tensor, kind: torch.dtype) -> Tensor:
    return channels_last(x.to(kind))


def _fine(x: Tensor) -> Tensor:
    """In float32 or finer: coefficients of bf16 would show as noise in the image."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _band(c1: Tensor, found: Tensor, subset: list[int], index: int) -> Tensor:
    """Band `index` of the reconstructed first stage: fused where it is of the subset."""
    place = subset.index(index) if index in subset else -1
    return c1[:, index : index + 1] if place < 0 else found[:, place : place + 1]

"""A U-Net of the guided-diffusion family, 2-D and 3-D (Ho et al. 2020; Dhariwal & Nichol 2021, appendix).

Conditions enter by three doors: `concat` (more input channels), `tokens` (cross-attention), `vector` (with the time);
`controls`, the features of another network, are added to what the encoder and the middle leave (Zhang et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from .attention import Attention
from .blocks import RESAMPLE, Down, Residual, Up, conv, zero
from .embed import Embedding
from .layout import channels_last, crop_to, fold, pad_to, unfold
from .norm import activate, group_norm
from .winograd import convolve


@dataclass(frozen=True)
class UNetConfig:
    """`channels` and `attention` are per level, fine to coarse; each level halves the size, the middle always attends.

    `blocks`: residual blocks per level (the decoder has one more). `patch`: voxels per axis folded into channels before
    the first convolution. `times`: number of time inputs. `tokens`, `vector`, `concat`: widths of the three doors for
    conditions, 0 for none. `embed`: width of the time embedding (None: 4 * channels[0]). `resample`: by convolutions,
    or by residual blocks that resample (guided-diffusion's models at 256x256).
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...] = (64, 128, 192)
    blocks: int = 2
    attention: tuple[bool, ...] = (False, False, True)
    head_size: int = 64
    dims: Literal[2, 3] = 2
    patch: int = 1
    times: int = 1
    tokens: int = 0
    vector: int = 0
    concat: int = 0
    groups: int = 32
    dropout: float = 0.0
    embed: int | None = None
    resample: Literal["conv", "residual"] = "conv"

    def __post_init__(self) -> None:
        if not self.channels or len(self.attention) != len(self.channels):
            found = f"attention={list(self.attention)}, channels={list(self.channels)}"
            raise InputError(f"{found}: give both one value per level.")
        attending = [c for c, on in zip(self.channels, (*self.attention[:-1], True)) if on]
        if bad := [c for c in attending if c > self.head_size and c % self.head_size]:
            raise InputError(f"head_size={self.head_size}: choose one that divides channels={bad[0]}.")

    @property
    def multiple(self) -> int:
        """Sizes that are a multiple of this need no padding."""
        return self.patch * 2 ** (len(self.channels) - 1)


class Row(NamedTuple):
    """One block: a `Step`, or a `Resize` "down" or "up"; `skip` channels of its input come from the encoder."""

    kind: Literal["step", "down", "up"]
    inputs: int
    outputs: int
    attention: bool = False
    skip: int = 0


class Step(nn.Module):
    """A residual block and, on some levels, attention."""

    def __init__(self, config: UNetConfig, row: Row):
        super().__init__()
        self.joins = row.skip > 0
        self.residual = Residual(config.dims, row.inputs, row.outputs, config.groups, config.dropout)
        heads = max(1, row.outputs // config.head_size)
        self.attention = Attention(row.outputs, heads, config.groups, config.tokens) if row.attention else None

    def forward(self, x: Tensor, modulation: Tensor, tokens: Tensor | None) -> Tensor:
        x = self.residual(x, modulation)
        return x if self.attention is None else self.attention(x, tokens)


class Resize(nn.Module):
    """The change of size between two levels."""

    def __init__(self, config: UNetConfig, row: Row):
        super().__init__()
        self.joins = False
        self.modulated = config.resample == "residual"
        width = row.outputs
        self.block: nn.Module = (
            Residual(config.dims, width, width, config.groups, config.dropout, RESAMPLE[row.kind])
            if self.modulated
            else {"down": Down, "up": Up}[row.kind](config.dims, width)
        )

    def forward(self, x: Tensor, modulation: Tensor, tokens: Tensor | None) -> Tensor:
        return self.block(x, modulation) if self.modulated else self.block(x)


def plan(config: UNetConfig) -> tuple[list[Row], list[Row], list[Row]]:
    """The blocks of encoder, middle and decoder. Stem and encoder leave a skip connection after every block."""
    width, last = config.channels[0], len(config.channels) - 1
    levels = list(enumerate(zip(config.channels, config.attention)))
    encoder, decoder, skips = [], [], [width]
    for level, (outputs, attention) in levels:
        for _ in range(config.blocks):
            encoder.append(Row("step", width, outputs, attention))
            skips.append(width := outputs)
        if level < last:
            encoder.append(Row("down", width, width))
            skips.append(width)
    middle = [Row("step", width, width, True), Row("step", width, width)]
    for level, (outputs, attention) in reversed(levels):
        for _ in range(config.blocks + 1):
            skip = skips.pop()
            decoder.append(Row("step", width + skip, outputs, attention, skip))
            width = outputs
        if level > 0:
            decoder.append(Row("up", width, width))
    return encoder, middle, decoder


def build(config: UNetConfig, rows: list[Row]) -> nn.ModuleList:
    """The modules of the rows of a `plan`."""
    return nn.ModuleList(Step(config, row) if row.kind == "step" else Resize(config, row) for row in rows)


class UNet(nn.Module):
    """x [B, in_channels, *spatial], t [B] or [B, times] in [0, 1000] -> [B, out_channels, *spatial] of the type of x.

    Any size. At first it gives exactly 0 (its last convolution is 0). In eval mode on a CPU samples go through one by
    one: what a sample becomes does then not depend on its batch, to the bit (kernels choose their order of summation by
    the size of the batch); its activations stay in the cache; and a batch needs the memory of one sample.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        encoder, middle, decoder = plan(config)
        cell = config.patch**config.dims
        first = config.channels[0]
        modulated = ("step",) if config.resample == "conv" else ("step", "down", "up")
        widths = [row.outputs * (row.kind in modulated) for row in (*encoder, *middle, *decoder)]
        self.embed = Embedding(first, config.embed or 4 * first, widths, config.times, config.vector)
        self.stem = conv(config.dims, (config.in_channels + config.concat) * cell, first)
        self.encoder, self.middle, self.decoder = (build(config, rows) for rows in (encoder, middle, decoder))
        self.norm = group_norm(first, config.groups)
        self.head = zero(conv(config.dims, first, config.out_channels * cell))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        concat: Tensor | None = None,
        tokens: Tensor | None = None,
        vector: Tensor | None = None,
        controls: Sequence[Tensor] = (),
    ) -> Tensor:
        """concat [B, concat, *spatial], tokens [B, N, tokens], vector [B, vector]; each only if the config has it.

        controls: none, or one of the shape of every skip connection, and one of that of the middle.
        """
        check(self.config, x, t, concat, tokens, vector)
        if self.training or x.device.type != "cpu" or len(x) == 1:
            return self.batch(x, t, concat, tokens, vector, controls)
        parts = [(None,) * len(x) if g is None else g.split(1) for g in (x, t, concat, tokens, vector)]
        beside = zip(*(c.split(1) for c in controls)) if controls else [()] * len(x)
        return torch.cat([self.batch(a, s, c, k, v, own) for a, s, c, k, v, own in zip(*parts, beside)])

    def batch(
        self, x: Tensor, t: Tensor, concat: Tensor | None, tokens: Tensor | None, vector: Tensor | None,
        controls: Sequence[Tensor] = (),
    ) -> Tensor:  # fmt: skip
        """All samples at once."""
        kind, spatial = x.dtype, x.shape[2:]
        x = x if concat is None else torch.cat([x, concat.to(x.dtype)], dim=1)
        x = fold(pad_to(x.to(self.head.weight.dtype), self.config.multiple), self.config.patch)
        x = channels_last(convolve(self.stem, x))  # (of one input channel torch cannot tell the layout)
        x = activate(self.body(x, self.embed(t, vector), tokens, controls), self.norm)
        return crop_to(unfold(convolve(self.head, x), self.config.patch), spatial).to(kind)

    def body(
        self, x: Tensor, modulation: list[Tensor], tokens: Tensor | None, controls: Sequence[Tensor] = ()
    ) -> Tensor:
        """Encoder, middle and decoder: [B, channels[0], *spatial] -> the same shape."""
        given = iter(modulation)
        skips = [x]
        for block in self.encoder:
            x = block(x, next(given), tokens)
            skips.append(x)
        for block in self.middle:
            x = block(x, next(given), tokens)
        if controls:
            skips, x = [skip + c for skip, c in zip(skips, controls, strict=False)], x + controls[-1]
        for block in self.decoder:
            x = block(torch.cat([x, skips.pop()], dim=1) if block.joins else x, next(given), tokens)
        return x


def check(
    config: UNetConfig, x: Tensor, t: Tensor, concat: Tensor | None, tokens: Tensor | None, vector: Tensor | None
) -> None:
    """ValueError, in a sentence, if what is given is not what the network was built for."""
    given = {
        "x": (x, 1, config.in_channels, 2 + config.dims),
        "concat": (concat, 1, config.concat, 2 + config.dims),
        "tokens": (tokens, -1, config.tokens, 3),
        "vector": (vector, -1, config.vector, 2),
    }
    for name, (value, axis, width, ndim) in given.items():
        if (value is not None) != (width > 0):
            raise ValueError(f"{name} is {'missing' if value is None else 'given'}: the network has {name}={width}")
        if value is not None and (value.ndim != ndim or value.shape[axis] != width or len(value) != len(x)):
            wanted = f"{ndim} axes, {len(x)} samples and width {width} on axis {axis}"
            raise ValueError(f"{name} {list(value.shape)}: expected {wanted}")
    if t.shape not in ((len(x),), (len(x), config.times)):
        raise ValueError(f"t {list(t.shape)}: expected [{len(x)}] or [{len(x)}, {config.times}]")

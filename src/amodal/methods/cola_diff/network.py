"""The latent space network eps(kappa_t, t, y) of CoLa-Diff (its Fig. 1 D to F and section 2.1).

y         auto-weighted conditions -> N transformer blocks -> a map for every decoder level
kappa_t   5x5 and 7x7 convolutions, fused by attention (AFF) -> encoder of 1-3-1 residual blocks -> decoder
skips     similar cooperative filtering
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...core.errors import InputError
from ...nn.attention import Attention, attend, picture
from ...nn.blocks import Down, Residual, conv, half, zero
from ...nn.embed import Embedding, sinusoidal
from ...nn.layout import channels_last, crop_to, fold, pad_to, unfold
from ...nn.norm import activate, group_norm, normalise, rows
from .filtering import SIMILAR, CooperativeFilter
from .weighting import AutoWeight


@dataclass(frozen=True)
class NetConfig:
    """`channels`, `attention`: per level, fine to coarse. `blocks`: residual blocks per level and side. `width`,
    `depth`: of the mapping of conditions. `modified`: 1-3-1 blocks and AFF, or a plain U-Net. `fusion`: AFF before the
    network or on every level. `weighting`, `filtering`: auto-weight adaptation, cooperative filtering of the skips.
    `join`: the weighed conditions are also added, through a convolution, to the encoder's first features (LDM joins
    them to the noisy latent).
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    attention: tuple[bool, ...] = (False, True, True, True)
    blocks: int = 2
    head_size: int = 64
    groups: int = 32
    width: int = 256
    depth: int = 4
    modified: bool = True
    fusion: Literal["input", "levels"] = "input"
    weighting: bool = True
    filtering: bool = True
    similar: int = SIMILAR
    join: bool = False

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or len(self.attention) != len(self.channels):
            raise InputError(
                f"channels={list(self.channels)}, attention={list(self.attention)}: give both one value for each of at "
                "least two levels."
            )
        if bad := [c for c in (*self.channels, self.width) if c > self.head_size and c % self.head_size]:
            raise InputError(f"head_size={self.head_size}: choose one that divides {bad[0]}.")


class Fusion(nn.Module):
    """Two receptive fields X (5x5) and Y (7x7), fused: 2 (w X + (1 - w) Y), w = S(local(X + Y) + global(X + Y)).

    Attentional feature fusion (Dai et al. 2021), with group norms: batch norms would mix the noise levels of a batch.
    """

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.small, self.large = conv(2, inputs, outputs, 5), conv(2, inputs, outputs, 7)
        self.near, self.far = Squeeze(outputs, groups), Squeeze(outputs, 1)  # (a single voxel: one group)

    def forward(self, x: Tensor) -> Tensor:
        a, b = channels_last(self.small(x)), channels_last(self.large(x))
        both = a + b
        w = torch.sigmoid(self.near(both) + self.far(both.mean((2, 3), keepdim=True)))
        return 2 * (b + w * (a - b))


class Squeeze(nn.Module):
    """Channel attention of AFF: 1x1 convolution to a quarter of the channels, norm, ReLU, 1x1 back, norm."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        inner = max(2, channels // 4)
        self.enter, self.leave = conv(2, channels, inner, 1), conv(2, inner, channels, 1)
        self.norm1, self.norm2 = group_norm(inner, groups), group_norm(channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return normalise(self.leave(torch.relu(normalise(self.enter(x), self.norm1))), self.norm2)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after a norm and SiLU, plus the input; the last begins as 0."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (group_norm(w, groups) for w in (inputs, outputs, outputs))
        self.first, self.middle = conv(2, inputs, outputs, 1), conv(2, outputs, outputs, 3)
        self.last = zero(conv(2, outputs, outputs, 1))
        self.skip = nn.Identity() if inputs == outputs else conv(2, inputs, outputs, 1)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [B, inputs, X, Y], modulation [B, 2 outputs] -> [B, outputs, X, Y]."""
        h = self.first(activate(x, self.norm1))
        h = self.middle(activate(h, self.norm2))
        return self.last(activate(h, self.norm3, modulation)) + self.skip(x)


class Block(nn.Module):
    """A transformer block: layer norm and attention among all tokens, layer norm and MLP, each added."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(attend(q, k, v, self.heads))
        return x + self.mlp(self.norm2(x))


class Mapping(nn.Module):
    """Conditions y [B, C, X, Y] -> what is added to the decoder of each level, fine to coarse (`join`: to the encoder).

    A token is 2 x 2 latent voxels, its place told from the centre. The finest level gets a token's four voxels back.
    """

    def __init__(self, conditions: int, config: NetConfig):
        super().__init__()
        width = config.width
        self.weigh = AutoWeight(conditions) if config.weighting else nn.Identity()
        self.join = nn.ModuleList([conv(2, conditions, config.channels[0])] if config.join else [])
        self.enter = conv(2, 4 * conditions, width, 1)
        heads = max(1, width // config.head_size)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        levels = (4 * config.channels[0], *config.channels[1:])
        self.leave = nn.ModuleList(conv(2, width, n, 1) for n in levels)

    def forward(self, y: Tensor) -> list[Tensor]:
        y = channels_last(self.weigh(y))
        x = self.enter(fold(y, 2))
        tokens = rows(x) + _places(x).to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        x = channels_last(picture(self.norm(tokens), x))
        maps = [channels_last(unfold(self.leave[0](x), 2)), self.leave[1](x)]
        for leave in list(self.leave)[2:]:
            x = half(x)
            maps.append(leave(x))
        return maps + [join(y) for join in self.join]


def _places(x: Tensor) -> Tensor:
    """Sines and cosines of where each voxel of x [B, C, X, Y] lies from the centre: [X Y, C]."""
    wide = x.shape[1] // 2
    row, column = (torch.arange(n, dtype=torch.float32, device=x.device) - (n - 1) / 2 for n in x.shape[2:])
    first = sinusoidal(row, wide, 100.0)[:, None].expand(-1, len(column), -1)
    second = sinusoidal(column, x.shape[1] - wide, 100.0)[None].expand(len(row), -1, -1)
    return torch.cat([first, second], dim=-1).flatten(0, 1)


class Level(nn.Module):
    """The residual blocks of one level and side, and attention after the last of them where there is any."""

    def __init__(self, kind: type[Bottleneck] | None, inputs: int, outputs: int, attention: bool, config: NetConfig):
        super().__init__()
        widths = [inputs] + [outputs] * config.blocks
        self.blocks = nn.ModuleList(
            kind(a, b, config.groups) if kind else Residual(2, a, b, config.groups)
            for a, b in itertools.pairwise(widths)
        )
        heads = max(1, outputs // config.head_size)
        self.attention = Attention(outputs, heads, config.groups) if attention else nn.Identity()

    def forward(self, x: Tensor, modulation: list[Tensor]) -> Tensor:
        for block, given in zip(self.blocks, modulation):
            x = block(x, given)
        return self.attention(x)


class LatentNet(nn.Module):
    """kappa_t [B, latent, X, Y], label [B], y [B, conditions, X, Y], known [B, vector] -> [B, 2 latent, X, Y]: what is
    predicted (the noise), and how the variance lies between its bounds.

    `maps(y)` does not depend on time: computed once, `evaluate` takes it at every step. Any size. Out of training on a
    CPU samples go through one by one, so that none depends on its batch.
    """

    def __init__(self, config: NetConfig, latent: int, conditions: int, vector: int):
        super().__init__()
        self.config, widths = config, config.channels
        self.multiple = 2 ** (len(widths) - 1)
        before = (widths[0], *widths[:-1])
        modulated = [w for w in widths for _ in range(config.blocks)]
        modulated += [widths[-1]] * 2 + [w for w in reversed(widths) for _ in range(config.blocks)]
        self.embed = Embedding(widths[0], 4 * widths[0], modulated, vector=vector)
        self.mapping = Mapping(conditions, config)
        kind = Bottleneck if config.modified else None
        fuse = config.modified
        self.stem = Fusion(latent, widths[0], config.groups) if fuse else conv(2, latent, widths[0])
        self.encoder = nn.ModuleList(
            Level(kind, a, b, on, config) for a, b, on in zip(before, widths, config.attention)
        )
        every = fuse and config.fusion == "levels"
        self.fuse = nn.ModuleList(Fusion(a, a, config.groups) if every else nn.Identity() for a in before[1:])
        self.down = nn.ModuleList(Down(2, a) for a in before[1:])
        self.filters = nn.ModuleList(
            CooperativeFilter(w, config.similar) if config.filtering else nn.Identity() for w in widths
        )
        last = widths[-1]
        self.middle = nn.ModuleList(Residual(2, last, last, config.groups) for _ in range(2))
        self.attention = Attention(last, max(1, last // config.head_size), config.groups)
        self.decoder = nn.ModuleList(
            Level(None, 2 * w, w, on, config) for w, on in zip(reversed(widths), reversed(config.attention))
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in zip(reversed(widths[:-1]), reversed(widths[1:]))
        )
        self.norm = group_norm(widths[0], config.groups)
        self.head = zero(conv(2, widths[0], 2 * latent))

    def forward(self, x: Tensor, label: Tensor, y: Tensor, known: Tensor) -> Tensor:
        return self.evaluate(x, label, self.maps(y), known)

    def maps(self, y: Tensor) -> list[Tensor]:
        """What the conditions add to the decoder on each level; then with `join` to the encoder."""
        if self.training or y.device.type != "cpu" or len(y) == 1:
            return self._maps(y)
        return [torch.cat(parts) for parts in zip(*(self._maps(part) for part in y.split(1)))]

    def _maps(self, y: Tensor) -> list[Tensor]:
        return self.mapping(pad_to(y.to(self.head.weight.dtype), self.multiple))

    def evaluate(self, x: Tensor, label: Tensor, maps: list[Tensor], known: Tensor) -> Tensor:
        """One evaluation, given `maps(y)`; float32."""
        if self.training or x.device.type != "cpu" or len(x) == 1:
            return self._evaluate(x, label, maps, known)
        parts = zip(x.split(1), label.split(1), zip(*(m.split(1) for m in maps)), known.split(1))
        return torch.cat([self._evaluate(a, b, list(c), d) for a, b, c, d in parts])

    def _evaluate(self, x: Tensor, label: Tensor, maps: list[Tensor], known: Tensor) -> Tensor:
        spatial = x.shape[2:]
        x = self.stem(channels_last(pad_to(x.to(self.head.weight.dtype), self.multiple)))
        x = channels_last(x + maps[-1] if self.config.join else x)
        x = self.body(x, self.embed(label, known), maps)
        return crop_to(self.head(activate(x, self.norm)), spatial).float()

    def body(self, x: Tensor, modulation: list[Tensor], maps: list[Tensor]) -> Tensor:
        """Encoder, middle and decoder: [B, channels[0], X, Y] -> the same shape."""
        given, n, skips = iter(modulation), self.config.blocks, []
        for level, encode in enumerate(self.encoder):
            if level:
                x = self.fuse[level - 1](self.down[level - 1](x))
            x = encode(x, [next(given) for _ in range(n)])
            skips.append(self.filters[level](x))
        x = self.middle[0](x, next(given))
        x = self.middle[1](self.attention(x), next(given))
        for index, decode in enumerate(self.decoder):
            level = len(skips) - 1 - index
            x = torch.cat([x + maps[level], skips[level]], dim=1)
            x = decode(x, [next(given) for _ in range(n)])
            if level:
                x = self.up[index](x)
        return x

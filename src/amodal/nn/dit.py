"""A diffusion transformer for volumes that come as slots: modalities side by side, or slabs one above the other.

Blocks alternate between attention within each slot and attention across the slots at each place. Peebles & Xie 2023
(adaLN-zero), Su et al. 2024 (rotary positions), Shazeer 2020 (SwiGLU), Zhang & Sennrich 2019 (RMSNorm).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import InputError
from .attention import weighted
from .blocks import zero
from .embed import full_precision, sinusoidal

EPS = 1e-4  # of RMSNorm
PERIOD = 10000.0
TIMES = 256  # width of the sinusoids of time
ROTARY = (3 / 8, 3 / 8, 1 / 4)  # the shares of a head's numbers that turn with x, y and z


@dataclass(frozen=True)
class DiTConfig:
    """`patch`: latent voxels per token along x, y, z. `inject`: which blocks take the condition. `context`: a second
    latent per slot is given on further channels. `stacked`: slots lie one above the other along z and so share one
    axis of positions; else they share all positions. `across`: False leaves out the blocks across slots. `everywhere`:
    blocks make their modulation anew for every sequence, the same each time; only to count as the paper does.
    """

    hidden: int = 768
    blocks: int = 16
    heads: int = 12
    patch: tuple[int, int, int] = (2, 2, 2)
    inject: Literal["across", "within", "both"] = "across"
    context: bool = False
    stacked: bool = False
    across: bool = True
    everywhere: bool = False

    def __post_init__(self) -> None:
        if self.hidden % 6 or self.hidden % (16 * self.heads):
            raise InputError(
                f"hidden={self.hidden}, heads={self.heads}: choose a width that 6 divides, in heads of 16, 32, 48, ..."
            )
        if self.blocks < 1 or min(self.patch) < 1:
            raise InputError(f"blocks={self.blocks}, patch={self.patch}: choose 1 or more.")


class DiT(nn.Module):
    """(z_t [B, S, C, *spatial], label [B], condition [B, K]) -> a prediction of the same shape.

    `condition`: how many numbers K; 0 for none.
    """

    def __init__(self, config: DiTConfig, channels: int, condition: int):
        super().__init__()
        self.config, self.channels = config, channels
        width, voxels = config.hidden, math.prod(config.patch)
        self.patch = linear(channels * (2 if config.context else 1) * voxels, width)
        # called embed: kept in fp32 when the rest is not
        self.embed = nn.ModuleList([nn.Linear(TIMES, width), nn.Linear(width, width)])
        self.condition = linear(condition, width) if condition else None
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.blocks))
        self.norm = nn.Parameter(torch.ones(width))
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, channels * voxels))
        for name, parameter in self.embed.named_parameters():
            nn.init.normal_(parameter, std=0.02 if name.endswith("weight") else 0.0)

    def forward(
        self, z: Tensor, label: Tensor, condition: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """`context` like z, if the config has it."""
        c = self.config
        given = z if context is None else torch.cat([z, context.to(z)], dim=2)
        cells = [n // p for n, p in zip(z.shape[3:], c.patch)]
        h = self.patch(patches(given, c.patch).to(self.patch.weight.dtype))  # [B, S, T, D]
        h = h + positions(cells, z.shape[1], c.hidden, c.stacked, z.device).to(h.dtype)
        angles = rotations(cells, c.hidden // c.heads, z.device)
        with_time, with_both = self._conditions(label, condition)
        for i, block in enumerate(self.blocks):
            across = c.across and i % 2 == 1
            if across and i == 1:
                slots = torch.arange(z.shape[1], device=z.device)
                h = h + sinusoidal(slots, c.hidden, PERIOD).to(h.dtype)[:, None]
            told = c.inject in ("both", "across" if across else "within")
            given = (with_both if told else with_time)[:, None, None]  # [B, 1, 1, D]
            if c.everywhere:
                given = given.expand(-1, 1, h.shape[2], -1) if across else given.expand(-1, h.shape[1], 1, -1)
            h = block(h, given, None if across else angles)
        shift, scale = self.modulation(with_time.to(self.modulation.weight.dtype))[:, None, None].chunk(2, dim=-1)
        return unpatch(self.out(modulated(h, self.norm, shift, scale)), cells, c.patch)

    def _conditions(self, label: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """SiLU of the embedding of time, and of time plus condition: [B, D] each."""
        with full_precision(label.device):
            time = self.embed[1](F.silu(self.embed[0](sinusoidal(label, TIMES, PERIOD))))
        if self.condition is None or condition is None:
            return F.silu(time), F.silu(time)
        told = self.condition(F.silu(condition.to(self.condition.weight.dtype)))
        return F.silu(time), F.silu(time + told.to(time.dtype))


class Block(nn.Module):
    """Attention and SwiGLU, each after a modulated RMSNorm and behind a gate; begins as the identity."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        inner = int(2 / 3 * 4 * width)
        self.heads = heads
        self.norms = nn.Parameter(torch.ones(2, width))
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 2 * inner), linear(inner, width)

    def forward(self, h: Tensor, condition: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        """h [B, S, T, D], condition [B, S or 1, T or 1, D]; with `angles` attention within each slot (rotary), without
        across the slots."""
        parts = self.modulation(condition.to(self.modulation.weight.dtype)).chunk(6, dim=-1)
        shift, scale, gate, shift2, scale2, gate2 = (p.to(h.dtype) for p in parts)
        mixed = self._mix(self.qkv(modulated(h, self.norms[0], shift, scale)), angles)
        h = torch.addcmul(h, gate, self.out(mixed))
        a, b = self.up(modulated(h, self.norms[1], shift2, scale2)).chunk(2, dim=-1)
        return torch.addcmul(h, gate2, self.down(F.silu(a) * b))

    def _mix(self, qkv: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        """[B, S, T, 3 D] -> [B, S, T, D]."""
        b, s, t, _ = qkv.shape
        heads = qkv.reshape(b, s, t, 3, self.heads, -1)
        if angles is None:
            q, k, v = heads.permute(3, 0, 2, 4, 1, 5).reshape(3, b * t, self.heads, s, -1)
            mixed = F.scaled_dot_product_attention(q, k, v).reshape(b, t, self.heads, s, -1).permute(0, 3, 1, 2, 4)
        else:
            q, k, v = heads.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
            q, k = rotated(q, angles), rotated(k, angles)
            mixed = weighted(q, k, v).unflatten(0, (b, s)).transpose(2, 3)
        return mixed.reshape(b, s, t, -1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer, Xavier-uniform, without offset at first."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def modulated(x: Tensor, gain: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """RMSNorm(x) (1 + scale) + shift; the mean square is taken in float32."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32) ** 2 / x.shape[-1]
    rate = torch.rsqrt(square + EPS).to(x.dtype)
    return torch.addcmul(shift.to(x.dtype), x * rate, (gain * (1 + scale)).to(x.dtype))


def patches(z: Tensor, patch: Sequence[int]) -> Tensor:
    """[B, S, C, X, Y, Z] -> [B, S, T, C * patch voxels]; tokens in (x, y, z) order, z fastest."""
    b, s, c, *spatial = z.shape
    if any(n % p for n, p in zip(spatial, patch)):
        raise InputError(f"a latent of {'x'.join(map(str, spatial))} voxels does not divide into patches of {patch}.")
    split = [n for size, p in zip(spatial, patch) for n in (size // p, p)]
    cells = z.reshape(b, s, c, *split).permute(0, 1, 3, 5, 7, 4, 6, 8, 2)
    return cells.reshape(b, s, -1, c * math.prod(patch))


def unpatch(h: Tensor, cells: Sequence[int], patch: Sequence[int]) -> Tensor:
    """The inverse of `patches`: `cells` tokens along x, y, z."""
    b, s = h.shape[:2]
    split = h.reshape(b, s, *cells, *patch, -1).permute(0, 1, 8, 2, 5, 3, 6, 4, 7)
    return split.reshape(b, s, -1, *(n * p for n, p in zip(cells, patch)))


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must serve training, too, whoever asks first
def _grid(cells: tuple[int, ...], device: torch.device) -> Tensor:
    """The coordinates of the tokens, [T, 3], float32."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in cells]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def positions(cells: Sequence[int], slots: int, width: int, stacked: bool, device: torch.device) -> Tensor:
    """Fixed sinusoids of the places of the tokens, a third of the width an axis: [slots or 1, T, width]."""
    places = _grid(tuple(cells), device)[None]
    if stacked:
        steps = torch.arange(slots, dtype=torch.float32, device=device) * cells[2]
        places = places + F.pad(steps[:, None, None], (2, 0))
    return sinusoidal(places, width // 3, PERIOD).flatten(-2)


def rotations(cells: Sequence[int], head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles of every token, [T, head / 2]: each axis turns its share of the pairs."""
    places = _grid(tuple(cells), device)
    turns = []
    for axis, share in enumerate(ROTARY):
        pairs = round(share * head) // 2
        rate = PERIOD ** (-torch.arange(pairs, dtype=torch.float32, device=device) / pairs)
        turns.append(places[:, axis : axis + 1] * rate)
    angle = torch.cat(turns, dim=1)
    return angle.cos(), angle.sin()


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """x [..., T, head], its pairs (i, i + head / 2) turned: products q k' then depend on relative places alone."""
    cos, sin = (v.to(x.dtype) for v in angles)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)], dim=-1)

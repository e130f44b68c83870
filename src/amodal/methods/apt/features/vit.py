"""A plain vision transformer (Dosovitskiy et al. 2021): a single-channel image to one vector and a vector a patch.

Big enough to hold the image tower of BiomedCLIP (ViT-B/16 with a projection to 512), small enough to train on a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....core.errors import InputError
from ....nn.attention import attend


@dataclass(frozen=True)
class ViTConfig:
    """`size`: the square, in pixels, every image is resized to. `channels`: how often the image is repeated. `pool`:
    the image's vector is that of the class token, or the mean over patches. `outputs`: width of all vectors."""

    size: int = 64
    patch: int = 8
    channels: int = 1
    width: int = 96
    depth: int = 4
    heads: int = 4
    outputs: int = 96
    pool: Literal["cls", "mean"] = "mean"

    def __post_init__(self) -> None:
        if self.size % self.patch or self.width % self.heads:
            raise InputError(
                f"size={self.size}, patch={self.patch}, width={self.width}, heads={self.heads}: choose a size that is "
                "a multiple of the patch and a width that is a multiple of the heads."
            )

    @property
    def patches(self) -> int:
        return (self.size // self.patch) ** 2


class Block(nn.Module):
    """Attention and a two-layer network, each after a norm and added to its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(attend(q, k, v, self.heads))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Images [N, 1, X, Y] in [-1, 1] -> vectors [N, 1 + P, outputs]: the image's, then those of its patches."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        width, classes = config.width, int(config.pool == "cls")
        self.stem = nn.Conv2d(config.channels, width, config.patch, config.patch)
        self.cls = nn.Parameter(torch.zeros(1, classes, width)) if classes else None
        self.position = nn.Parameter(0.02 * torch.randn(1, config.patches + classes, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config.outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(self.hidden(self.prepare(x)))
        return out if self.cls is not None else torch.cat([out.mean(1, keepdim=True), out], dim=1)

    def prepare(self, x: Tensor) -> Tensor:
        """Padded with background to a square, resized (bilinear), the channel repeated."""
        short = [max(x.shape[2:]) - n for n in x.shape[2:]]
        x = F.pad(x, [n for s in reversed(short) for n in (s // 2, s - s // 2)], value=-1.0)
        x = F.interpolate(x, (self.config.size,) * 2, mode="bilinear", align_corners=False)
        return x.expand(-1, self.config.channels, -1, -1)

    def hidden(self, x: Tensor, covered: Tensor | None = None, cover: Tensor | None = None) -> Tensor:
        """Prepared images -> [N, (1 +) P, width] after the last norm; patches `covered` (bool [N, P]) are replaced by
        the vector `cover` before the first block."""
        x = self.stem(x.to(self.stem.weight.dtype)).flatten(2).transpose(1, 2)
        if covered is not None and cover is not None:
            x = torch.where(covered[..., None], cover.to(x.dtype), x)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

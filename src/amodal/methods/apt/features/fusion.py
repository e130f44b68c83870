"""Mutual information fusion: what all modalities together say of the anatomy, from any subset of them.

Section 3.1: self-attention among the modalities' tokens, a feed-forward network, the mean, a linear layer; trained so
that the subset's vector is near to the whole set's and far from other slices' (Eq. 1, in both directions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Fusion(nn.Module):
    """Tokens [B, P, M, W] and which modalities are there [B, M] -> unit vectors [B, P, W].

    With one token an image (P = 1) this is the paper's module. With patch tokens the same weights fuse every place by
    itself. Modalities are a set: no embedding tells one from another, and what is absent takes no part.
    """

    def __init__(self, width: int, heads: int = 8, expansion: int = 4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.project = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # 1 / tau of Eq. 1

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        return F.normalize(self.project(self.places(tokens, present)).float(), dim=-1)

    def whole(self, tokens: Tensor, present: Tensor) -> Tensor:
        """One unit vector a sample [B, W]; with P = 1 the same as `forward`."""
        return F.normalize(self.project(self.places(tokens, present)).mean(1).float(), dim=-1)

    def places(self, tokens: Tensor, present: Tensor) -> Tensor:
        """[B, P, M, W] -> [B, P, W]: attention among modalities, feed-forward, mean over those present."""
        b, p, m, w = tokens.shape
        weight = present.to(tokens.dtype)[:, None, :, None]
        x = (tokens * weight).to(self.qkv.weight.dtype).reshape(b * p, m, w)
        there = (present | ~present.any(1, keepdim=True)).repeat_interleave(p, 0)[:, None, None]  # (of nothing, all)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=there).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(mixed))
        x = self.norm2(x + self.down(F.gelu(self.up(x)))).reshape(b, p, m, w)
        return (x * weight.to(x.dtype)).sum(2) / weight.to(x.dtype).sum(2).clamp(min=1)


def contrast(whole: Tensor, part: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit vectors [B, W]: each slice's own pair against all other slices of the batch (Eq. 1)."""
    logits = log_scale.exp() * whole @ part.T
    own = torch.arange(len(whole), device=whole.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def subset(present: Tensor, u: Tensor, keep: Tensor) -> Tensor:
    """Of what is present [B, M] a random `keep` [B] modalities, at least one; `u` uniform [B, M]."""
    rank = torch.where(present, u, torch.full_like(u, 2.0)).argsort(1).argsort(1)
    return present & (rank < keep.clamp(min=1)[:, None])

"""Attention among the voxels of a feature map, and from the voxels to tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import zero
from .norm import group_norm, normalise, rows

MANY = 128  # tokens from which matrix products are worth it
SCORES = 1 << 22  # at a time


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """q [B, N, C], k and v [B, M, C] -> [B, N, C]: softmax(q k' / sqrt(C / heads)) v in each head, fused."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return weighted(q, k, v).transpose(1, 2).flatten(2)


def weighted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(D)) v of [B, H, N, D] and [B, H, M, D] -> [B, H, N, D], fused.

    In bf16 on a CPU without matrix units torch's fused kernel takes 1.6 times as long as plain matrix products, here of
    some queries at a time so that the scores stay in the cache.
    """
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.is_grad_enabled()
    if not plain or min(q.shape[2], k.shape[2]) < MANY or torch.cpu._is_amx_tile_supported():
        return F.scaled_dot_product_attention(q, k, v)
    q, keys = q * q.shape[-1] ** -0.5, k.transpose(-1, -2)
    size = max(1, SCORES // math.prod((*q.shape[:2], k.shape[2])))
    return torch.cat([torch.softmax(part @ keys, dim=-1) @ v for part in q.split(size, dim=2)], dim=2)


class Attention(nn.Module):
    """Self-attention of a feature map, then, if there are `tokens`, attention to them. Begins as the identity."""

    def __init__(self, channels: int, heads: int, groups: int, tokens: int = 0):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))
        self.cross = Cross(channels, heads, groups, tokens) if tokens else None

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """x [B, C, *spatial], tokens [B, N, tokens] -> [B, C, *spatial]."""
        q, k, v = self.qkv(rows(normalise(x, self.norm))).chunk(3, dim=-1)
        x = x + picture(self.out(attend(q, k, v, self.heads)), x)
        return x if self.cross is None or tokens is None else self.cross(x, tokens)


class Cross(nn.Module):
    """Attention from voxels to tokens [B, N, tokens]; begins as the identity."""

    def __init__(self, channels: int, heads: int, groups: int, tokens: int):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.token_norm = nn.LayerNorm(tokens)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(tokens, 2 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        k, v = self.kv(self.token_norm(tokens.to(self.kv.weight.dtype))).chunk(2, dim=-1)
        return x + picture(self.out(attend(self.q(rows(normalise(x, self.norm))), k, v, self.heads)), x)


def picture(x: Tensor, like: Tensor) -> Tensor:
    """[B, N, C] -> [B, C, *spatial of like], channels-last; no copy."""
    return torch.unflatten(x, 1, like.shape[2:]).movedim(-1, 1)

"""Times and vectors as one embedding, and what every residual block makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoidal(t: Tensor, width: int, period: float = 10000.0) -> Tensor:
    """[...] -> [..., width], float32: cosines, then sines, of t at geometric frequencies (Vaswani et al. 2017, 3.5)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(period) / half))
    angle = t.float().unsqueeze(-1) * frequency
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, width % 2))


def full_precision(device: torch.device) -> AbstractContextManager:
    """Where autocast does not reach (there is none on the meta device)."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Embedding(nn.Module):
    """Times in [0, 1000], and a vector if wanted, to one (scale, shift) pair per entry of `widths`.

    Two linear layers make the embedding [B, embed]; one more makes all modulations of the network at once.
    It computes in the type of its own parameters, autocast or not.
    """

    def __init__(self, width: int, embed: int, widths: Sequence[int], times: int = 1, vector: int = 0):
        super().__init__()
        self.width, self.times, self.widths = width, times, tuple(widths)
        self.first = nn.Linear(times * width, embed)
        self.second = nn.Linear(embed, embed)
        self.vector = nn.Linear(vector, embed) if vector else None
        self.modulation = nn.Linear(embed, 2 * sum(widths))

    def forward(self, t: Tensor, vector: Tensor | None = None) -> list[Tensor]:
        """t [B] or [B, times] -> for every width w a modulation [B, 2 w]."""
        with full_precision(t.device):
            t = t.reshape(len(t), -1).expand(-1, self.times)
            embedded = self.second(F.silu(self.first(sinusoidal(t, self.width).flatten(1))))
            if self.vector is not None and vector is not None:
                embedded = embedded + self.vector(vector.to(embedded.dtype))
            return list(self.modulation(F.silu(embedded)).split([2 * w for w in self.widths], dim=1))

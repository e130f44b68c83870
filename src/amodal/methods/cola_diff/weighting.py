"""Auto-weight adaptation: a condition channel is weighed by how strong it is among all (CoLa-Diff, Eqs. 7 to 10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-5  # the small constant of Eqs. 8 and 9


class AutoWeight(nn.Module):
    """y [B, C, *spatial] -> y_c (1 + S(nu_c G_c + o_c)), S the sigmoid; three numbers a channel, gain 1.5 at first.

    G_c = mu_c |y_c|_2, divided by the length of the vector of all G_c and multiplied by sqrt C (Eq. 9's "scale").
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mu = nn.Parameter(torch.ones(channels))
        self.nu = nn.Parameter(torch.zeros(channels))
        self.o = nn.Parameter(torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        return y * self.gain(y).to(y.dtype).reshape(*y.shape[:2], *[1] * (y.ndim - 2))

    def gain(self, y: Tensor) -> Tensor:
        """1 + S(nu_c G_c + o_c), [B, C], float32."""
        mu, nu, o = self.mu.float(), self.nu.float(), self.o.float()
        strength = mu * (y.float().square().flatten(2).sum(2) + EPS).sqrt()  # Eq. 8
        length = (strength.square().sum(1, keepdim=True) + EPS).sqrt()
        among = len(mu) ** 0.5 * strength / length  # Eq. 9
        return 1 + torch.sigmoid(nu * among + o)  # Eq. 10

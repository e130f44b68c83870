"""Vector quantisation: every latent vector becomes the nearest of a set of codes, which follow it by running means.

van den Oord et al. 2017 (VQ-VAE), appendix A.1; restart of dead codes as in Dhariwal et al. 2020 (Jukebox), 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .embed import full_precision
from .ranks import gathered, summed

SCORES = 1 << 23  # distances at a time, so that memory stays bounded whatever the volume


class Codebook(nn.Module):
    """`codes` vectors of `channels` numbers, float32. In training they are running means of what falls to them.

    A code that fewer than `dead` vectors a step fall to (running mean) becomes a random vector of the batch.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, channels: int, decay: float = 0.99, dead: float = 0.05):
        super().__init__()
        self.decay, self.dead = decay, dead
        begin = torch.randn(codes, channels) / codes**0.5  # small, as the latents of a new encoder are
        self.codes = nn.Parameter(begin, requires_grad=False)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codes.detach().clone())

    def forward(self, z: Tensor) -> Tensor:
        """z [N, C, *spatial] -> the nearest codes, the same shape, float32; gradients pass straight through."""
        with full_precision(z.device):
            rows = z.float().movedim(1, -1)
            nearest = self.codes[self.indices(rows.detach())]
            through = rows + (nearest - rows).detach() if rows.requires_grad else nearest
            return through.movedim(-1, 1)

    @torch.no_grad()
    def indices(self, rows: Tensor) -> Tensor:
        """[..., C] -> the number of the nearest code, [...]; float32 whatever the type of the network."""
        flat, codes = rows.float().flatten(0, -2), self.codes.float()
        half = 0.5 * (codes**2).sum(1)
        with full_precision(rows.device):
            parts = flat.split(max(1, SCORES // len(codes)))
            found = torch.cat([torch.addmm(half, part, codes.T, alpha=-1).argmin(1) for part in parts])
        return found.reshape(rows.shape[:-1])

    @torch.no_grad()
    def follow(self, z: Tensor, draw: Tensor) -> float:
        """Move the codes towards latents z [N, C, *spatial] of this step; the share of codes in use.

        `draw`: uniform numbers [codes], which vectors dead codes become.
        """
        rows = z.detach().float().movedim(1, -1).flatten(0, -2)
        index = self.indices(rows)
        counts = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(rows[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, index, rows)
        both = summed(torch.cat([counts[:, None], sums], dim=1))
        self.counts.lerp_(both[:, 0], 1 - self.decay)
        self.sums.lerp_(both[:, 1:], 1 - self.decay)
        pool = gathered(rows[(draw.to(rows.device) * len(rows)).long()])
        fresh = pool[torch.linspace(0, len(pool) - 1, len(self.codes), device=rows.device).round().long()]
        lost = self.counts < self.dead
        self.counts.copy_(torch.where(lost, torch.ones_like(self.counts), self.counts))
        self.sums.copy_(torch.where(lost[:, None], fresh, self.sums))
        self.codes.copy_(self.sums / self.counts[:, None].clamp(min=1e-5))
        return 1 - float(lost.float().mean())

    @torch.no_grad()
    def start(self, latents: Iterable[Tensor], draw: Tensor) -> None:
        """Codes that are random vectors of latents [N, C, *spatial]; `draw`: uniform numbers [codes]."""
        rows = torch.cat([z.detach().float().movedim(1, -1).flatten(0, -2) for z in latents])
        self.codes.copy_(rows[(draw.to(rows.device) * len(rows)).long()])
        self.sums.copy_(self.codes)
        self.counts.fill_(1)

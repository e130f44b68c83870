"""Vector quantisation: every latent vector becomes the nearest of a set of codes, which follow it by running means.

van den Oord et al. 2017 (VQ-VAE), appendix A.1; restart of dead codes as in Dhariwal et al. 2020 (Jukebox), 3.1; groups
of channels with codes of their own as in Jégou et al. 2011 (product quantisation).
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

    A code that fewer than `dead` vectors a step fall to (running mean) becomes a random vector of the batch. `groups`:
    the channels are cut into so many parts, each with `codes` of its own: all combinations of them can be made.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, channels: int, decay: float = 0.99, dead: float = 0.05, groups: int = 1):
        super().__init__()
        self.decay, self.dead, self.groups = decay, dead, groups
        begin = torch.randn(groups * codes, channels // groups) / codes**0.5  # small, as latents of a new encoder are
        self.codes = nn.Parameter(begin, requires_grad=False)  # those of the first group first
        self.register_buffer("counts", torch.ones(len(begin)))
        self.register_buffer("sums", self.codes.detach().clone())

    def forward(self, z: Tensor) -> Tensor:
        """z [N, C, *spatial] -> the nearest codes, the same shape, float32; gradients pass straight through."""
        with full_precision(z.device):
            rows = z.float().movedim(1, -1)
            nearest = self.codes[self.indices(rows.detach())].flatten(-2)
            through = rows + (nearest - rows).detach() if rows.requires_grad else nearest
            return through.movedim(-1, 1)

    @torch.no_grad()
    def indices(self, rows: Tensor) -> Tensor:
        """[..., C] -> the numbers of the nearest codes, [..., groups]; float32 whatever the type of the network."""
        parts = rows.float().flatten(0, -2).unflatten(-1, (self.groups, -1)).unbind(1)
        books = self.codes.float().chunk(self.groups)
        found = [_nearest(part, book) + i * len(book) for i, (part, book) in enumerate(zip(parts, books))]
        return torch.stack(found, dim=-1).reshape(*rows.shape[:-1], self.groups)

    @torch.no_grad()
    def follow(self, z: Tensor, draw: Tensor) -> float:
        """Move the codes towards latents z [N, C, *spatial] of this step; the share of codes in use.

        `draw`: uniform numbers [codes of all groups], which vectors dead codes become.
        """
        rows = z.detach().float().movedim(1, -1)
        index = self.indices(rows).flatten()
        parts = rows.reshape(len(index), -1)
        counts = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(parts[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, index, parts)
        both = summed(torch.cat([counts[:, None], sums], dim=1))
        self.counts.lerp_(both[:, 0], 1 - self.decay)
        self.sums.lerp_(both[:, 1:], 1 - self.decay)
        fresh = gathered(self._drawn(rows.flatten(0, -2), draw)[None])  # a share of them from every process
        every, lost = torch.arange(len(draw), device=rows.device), self.counts < self.dead
        self.counts.copy_(torch.where(lost, torch.ones_like(self.counts), self.counts))
        self.sums.copy_(torch.where(lost[:, None], fresh[every % len(fresh), every], self.sums))
        self.codes.copy_(self.sums / self.counts[:, None].clamp(min=1e-5))
        return 1 - float(lost.float().mean())

    def _drawn(self, rows: Tensor, draw: Tensor) -> Tensor:
        """Random vectors of rows [N, C], a candidate for every code: [codes of all groups, C / groups]."""
        rows = rows.unflatten(-1, (self.groups, -1))
        which = (draw.to(rows.device) * len(rows)).long()
        group = torch.arange(len(which), device=rows.device) * self.groups // len(which)
        return rows[which, group]

    @torch.no_grad()
    def start(self, latents: Iterable[Tensor], draw: Tensor) -> None:
        """Codes that are random vectors of latents [N, C, *spatial]; `draw`: uniform numbers [codes of all groups]."""
        rows = torch.cat([z.detach().float().movedim(1, -1).flatten(0, -2) for z in latents])
        self.codes.copy_(self._drawn(rows, draw))
        self.sums.copy_(self.codes)
        self.counts.fill_(1)


def _nearest(rows: Tensor, codes: Tensor) -> Tensor:
    """The number of the nearest of codes [K, C] for each of rows [N, C]."""
    half = 0.5 * (codes**2).sum(1)
    with full_precision(rows.device):
        parts = rows.split(max(1, SCORES // len(codes)))
        return torch.cat([torch.addmm(half, part, codes.T, alpha=-1).argmin(1) for part in parts])

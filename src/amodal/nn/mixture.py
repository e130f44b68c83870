"""The denoiser of a Gaussian mixture over the modalities of one voxel, in closed form, for every noise level at once.

x ~ sum_k w_k N(m_k, C_k) and y = A x + s eps, with A = diag(alpha) and a noise level s a modality. With
S_k = A C_k A + diag(s^2)

    p(k | y)    ~ w_k N(y; A m_k, S_k)
    E[x | y, k] = m_k + C_k A S_k^-1 (y - A m_k)
    E[x | y]    = sum_k p(k | y) E[x | y, k]

A clean modality has alpha = 1 and s = 0, an absent one alpha = 0 and s = 1, so that this is regression on any subset of
modalities, the voxelwise part of every denoiser, and the E-step that fits the mixture to subjects which lack some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.contract import Batch
from ..core.rng import Rng
from .embed import full_precision

AT_ONCE = 2**18  # voxels of a sample: whole volumes at their own size have millions, times components
VOXELS, BATCHES = 2**17, 64  # that a mixture is fitted to, and how many batches they come from
LEAST = 1e-3  # added to variances: intensities of [-1, 1] known to 0.03 at best
ENOUGH = 1e-2  # voxels below which a component keeps next to nothing
HEAD = -0.9  # of [-1, 1]: where any modality is brighter there is a head


class Posterior(NamedTuple):
    """Of x given y and k: `gain` [B, K, M, M] and `offset` [B, K, M], the mean is gain y + offset; `score` [B, K, F],
    its product with the monomials of y is log w_k N(y; A m_k, S_k) but for a constant; `spread` [B, K, M, M]."""

    gain: Tensor
    offset: Tensor
    score: Tensor
    spread: Tensor


class Mixture(nn.Module):
    """`count` components over `m` modalities; a standard normal until it is fitted. Nothing of it is trained."""

    def __init__(self, m: int, count: int):
        super().__init__()
        self.register_buffer("weights", torch.full((count,), 1 / count))
        self.register_buffer("means", torch.zeros(count, m))
        self.register_buffer("covariances", torch.eye(m).repeat(count, 1, 1))
        self.weights: Tensor
        self.means: Tensor
        self.covariances: Tensor

    def forward(self, y: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x | y] of every voxel: y [B, M, *spatial], alpha and sigma [B, M] -> [B, M, *spatial], float32."""
        with full_precision(y.device):
            flat, post = y.float().flatten(2), self.posterior(alpha.float(), sigma.float())
            share = self._share(post, flat)
            gain = torch.einsum("bkij,bkn->bijn", post.gain, share)
            mean = (gain * flat[:, None]).sum(2) + torch.einsum("bki,bkn->bin", post.offset, share)
        return mean.reshape(y.shape)

    def variance(self, y: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Var[x | y] of every voxel and modality, shaped as `forward`: within the components and between them."""
        with full_precision(y.device):
            flat, post = y.float().flatten(2), self.posterior(alpha.float(), sigma.float())
            share = self._share(post, flat)
            each = torch.einsum("bkij,bjn->bkin", post.gain, flat) + post.offset[..., None]
            mean = (each * share[:, :, None]).sum(1, keepdim=True)
            between = ((each - mean) ** 2 * share[:, :, None]).sum(1)
            within = torch.einsum("bki,bkn->bin", post.spread.diagonal(dim1=-2, dim2=-1), share)
        return (within + between).clamp(min=0).reshape(y.shape)

    def _share(self, post: Posterior, flat: Tensor) -> Tensor:
        """p(k | y), [B, K, N]."""
        return torch.einsum("bkf,bfn->bkn", post.score, monomials(flat)).softmax(1)

    def posterior(self, alpha: Tensor, sigma: Tensor) -> Posterior:
        """What depends on the noise levels [B, M] alone."""
        a = alpha[:, None]  # [B, 1, M]
        crossed = self.covariances * a[..., None, :]  # C A
        s = a[..., None] * crossed + torch.diag_embed(sigma**2)[:, None]
        factor = torch.linalg.cholesky(s)
        precision = torch.cholesky_inverse(factor)
        gain, centre = crossed @ precision, a * self.means
        pull = (precision @ centre[..., None])[..., 0]
        height = self.weights.log() - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - (pull * centre).sum(-1) / 2
        i, j = torch.triu_indices(len(alpha[0]), len(alpha[0]), device=alpha.device)
        square = torch.where(i == j, -0.5, -1.0) * precision[..., i, j]
        offset = self.means - (gain @ centre[..., None])[..., 0]
        score = torch.cat([height[..., None], pull, square], -1)
        return Posterior(gain, offset, score, self.covariances - gain @ crossed.mT)

    @torch.no_grad()
    def fit(self, voxels: Tensor, present: Tensor, rng: Rng, iterations: int = 60) -> float:
        """Fit to voxels [N, M] of which `present` [N, M] (bool) says what is there, by expectation-maximisation begun
        at voxels far from one another. Returns the mean log-likelihood, but for a constant."""
        count, m = self.means.shape
        place, voxels, present = self.means.device, voxels.cpu(), present.cpu()
        groups = [(voxels[(present == p).all(1)].double(), p) for p in present.unique(dim=0) if p.any()]
        whole = torch.cat([torch.where(p, v, v[:, p].mean(1, keepdim=True)) for v, p in groups])
        self.cpu().double()  # sums of hundreds of thousands of products; not every device has float64
        self.means.copy_(_far_apart(whole, count, rng))
        self.covariances.copy_(whole.T.cov().reshape(m, m) / 4 + LEAST * torch.eye(m).to(whole))
        self.weights.fill_(1 / count)
        fitted = 0.0
        for _ in range(iterations):
            fitted = self._step(groups)
        self.float().to(place)
        return fitted

    def _step(self, groups: Sequence[tuple[Tensor, Tensor]]) -> float:
        count, m = self.means.shape
        number, first = self.means.new_zeros(count), torch.zeros_like(self.means)
        second, likelihood, total = torch.zeros_like(self.covariances), 0.0, 0
        for y, there in groups:
            post = self.posterior(there[None].to(y), (~there)[None].to(y))
            seen = torch.where(there, y, torch.zeros_like(y)).T  # [M, N]
            logs = post.score[0] @ monomials(seen[None])[0]
            likelihood, total = likelihood + float(logs.logsumexp(0).sum()), total + len(y)
            share = logs.softmax(0)  # [K, N]
            mean = post.gain[0] @ seen + post.offset[0][..., None]  # [K, M, N]
            weighed = mean * share[:, None]
            number += share.sum(1)
            first += weighed.sum(2)
            second += weighed @ mean.mT + share.sum(1)[:, None, None] * post.spread[0]
        number = number + ENOUGH
        self.weights.copy_(number / number.sum())
        self.means.copy_(first / number[:, None])
        spread = second / number[:, None, None] - self.means[:, :, None] * self.means[:, None]
        self.covariances.copy_((spread + spread.mT) / 2 + LEAST * torch.eye(m).to(spread))
        return likelihood / max(total, 1)


def fit(mixture: Mixture, data: Callable[[int], Batch], above: float = -torch.inf) -> float:
    """Fit a mixture to voxels of the first training batches (batch number -> Batch), of those that are brighter than
    `above` in one of the modalities that are there."""
    rng = Rng.of(0, 1, "voxels")
    found: list[tuple[Tensor, Tensor]] = []
    for k in range(BATCHES):
        batch = data(k)
        stacks = batch.images, batch.present.expand_as(batch.images)
        images, present = (v.cpu().movedim(1, -1).flatten(0, -2) for v in stacks)
        bright = torch.where(present, images, -torch.inf).amax(1) > above
        images, present = images[bright], present[bright]
        at = (rng.uniform(VOXELS // BATCHES)[0] * len(images)).long()
        found += [(images[at], present[at])] if len(images) else []
    images, present = map(torch.cat, zip(*found))
    return mixture.fit(images, present, rng)


@torch.no_grad()
def estimate(mixture: Mixture, images: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """What the images that are `given` (bool [B, M]) of images [B, M, *spatial] say of all, voxel by voxel: mean, in
    [-1, 1], and variance, both like images. Where all that is given is background (-1), so is the rest, for sure."""
    there, alpha = given[..., None], given.float()

    def some(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.where(there, x, torch.zeros_like(x))
        outside = ((x <= -1) | ~there).all(1, keepdim=True) & there.any(1, keepdim=True)
        mean, variance = mixture(y, alpha, 1 - alpha).clamp(-1, 1), mixture.variance(y, alpha, 1 - alpha)
        return torch.where(outside, -1.0, mean), torch.where(outside, 0.0, variance)

    parts = zip(*map(some, images.float().flatten(2).split(AT_ONCE, 2)))
    mean, variance = (torch.cat(part, 2).reshape(images.shape) for part in parts)
    return mean, variance


@torch.no_grad()
def spread(found: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """How far latents lie from those of estimates, of differences [B, C, *spatial] and the estimates' variances
    [B, 1, *spatial]: the mean square of each channel [C], and the mean variance."""
    pairs = ((d.float().square().flatten(2).mean(2), v.float().flatten(1).mean(1)) for d, v in found)
    away, doubts = zip(*pairs)
    return torch.cat(away).mean(0), torch.cat(doubts).mean()


def monomials(y: Tensor) -> Tensor:
    """1, y_i and the products y_i y_j (i <= j): [B, M, N] -> [B, 1 + M + M (M + 1) / 2, N]."""
    i, j = torch.triu_indices(y.shape[1], y.shape[1], device=y.device)
    return torch.cat([torch.ones_like(y[:, :1]), y, y[:, i] * y[:, j]], dim=1)


def _far_apart(x: Tensor, count: int, rng: Rng) -> Tensor:
    """`count` of the rows x [N, M], each drawn by its squared distance from those before (Arthur & Vassilvitskii
    2007)."""
    u = rng.uniform(count)[0].to(x)
    chosen = x[int(u[0] * len(x))][None]
    near = ((x - chosen) ** 2).sum(1)
    for draw in u[1:]:
        at = int(torch.searchsorted(near.cumsum(0), draw * near.sum()).clamp(max=len(x) - 1))
        chosen = torch.cat([chosen, x[at][None]])
        near = torch.minimum(near, ((x - x[at]) ** 2).sum(1))
    return chosen

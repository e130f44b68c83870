"""What the codec cannot hold, taken over from what is given: beyond the paper, and nothing is learned for it.

Modalities: around every voxel the image made is regressed on the reconstructions of the given images, and the same
coefficients are applied to what those reconstructions lost (a guided filter, He et al. 2013, with several guides).
Slices: what the codec lost of the acquired slices beside a gap is carried into it, less and less with the distance.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1e-3  # of the guides' variance, in images of [-1, 1]
PLANES = 1 << 18  # voxels solved for at a time


def transfer(made: Tensor, given: Tensor, again: Tensor, radius: int) -> Tensor:
    """made [K, X, Y, Z], given images [S, X, Y, Z] and their reconstructions -> made with their detail, the same shape.

    Windows of 2 radius + 1 voxels per axis.
    """
    means = around(torch.cat([again, made]), radius)
    guide, mean = means[: len(again)], means[len(again) :]
    i, j = torch.triu_indices(len(again), len(again), device=made.device)
    spread = around(again[i] * again[j], radius) - guide[i] * guide[j]
    cross = torch.stack([around(again * m, radius) - guide * u for m, u in zip(made, mean)])  # [K, S, X, Y, Z]
    square = torch.empty(len(again), len(again), *made.shape[1:]).to(spread)
    square[i, j] = square[j, i] = spread
    loss = (given - again).flatten(1)
    out = made.flatten(1).clone()
    matrix, right = square.flatten(2).permute(2, 0, 1), cross.flatten(2).permute(2, 1, 0)  # [N, S, S], [N, S, K]
    ridge = RIDGE * torch.eye(len(again)).to(matrix)
    for part in torch.arange(len(matrix), device=made.device).split(PLANES):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        slopes = torch.linalg.solve(matrix[rows] + ridge, right[rows])
        out[:, rows] += torch.einsum("nsk,sn->kn", slopes, loss[:, rows])
    return out.reshape(made.shape)


def around(x: Tensor, radius: int) -> Tensor:
    """The mean over the window around every voxel of x [K, X, Y, Z], of those in the image."""
    for axis in (1, 2, 3):
        line = x.movedim(axis, -1)
        flat = line.reshape(1, -1, line.shape[-1])
        kept = F.avg_pool1d(flat, 2 * radius + 1, 1, radius, count_include_pad=False)
        x = kept.reshape(line.shape).movedim(-1, axis)
    return x


def carry(made: Tensor, loss: Tensor, there: Tensor, reach: float) -> Tensor:
    """made [..., Z], what the codec lost of the slices that are `there` [Z], its fading in slices -> made with that.

    Between two acquired slices the nearer one counts more; at `reach` slices from both, 37 % is left.
    """
    z, places = torch.arange(len(there), device=made.device), torch.nonzero(there)[:, 0]
    if not len(places):
        return made
    far = (z[:, None] - places).abs().float()
    below = torch.where(places <= z[:, None], far, torch.inf).min(1)
    above = torch.where(places >= z[:, None], far, torch.inf).min(1)
    low, high = below.values, above.values
    share = torch.where(high.isinf(), 1.0, torch.where(low.isinf(), 0.0, high / (low + high).clamp(min=1e-6)))
    faded = torch.exp(-torch.minimum(low, high) / reach)
    mixed = loss[..., places[below.indices]] * share + loss[..., places[above.indices]] * (1 - share)
    return made + faded * mixed

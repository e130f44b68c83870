"""Which k-space samples are taken: bool masks [X, Y] with a fully sampled calibration centre, zero frequency at N // 2.

equispaced          every R-th phase-encoding line (the last axis)          random        lines drawn at random
poisson_disc        a Poisson disc in two phase-encoding directions         radial        spokes, snapped to the grid
Lines are given as [1, Y], which broadcasts. `acceleration` counts the centre in: about 1 in R samples is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError

GOLDEN = np.pi * (np.sqrt(5) - 1) / 2  # radians between spokes: even for any number of them
Shape = tuple[int, int]


def equispaced(shape: Shape, acceleration: float, calibration: float = 0.08, seed: int = 0) -> Tensor:
    """Every R-th line from a random first one, and a centre of `calibration` of all lines; [1, Y].

    R is a whole number, which the centre comes on top of (the usual convention: R = 4 and 8 % sample 31 % of lines).
    """
    _possible(acceleration, calibration)
    lines = shape[1]
    step = max(1, round(acceleration))
    sampled = _centre(lines, calibration)
    sampled[np.random.default_rng(seed).integers(step) :: step] = True
    return torch.from_numpy(sampled)[None]


def random(shape: Shape, acceleration: float, calibration: float = 0.08, seed: int = 0) -> Tensor:
    """Lines drawn with equal chance, with the centre 1 in R of all of them; [1, Y]."""
    _possible(acceleration, calibration)
    lines = shape[1]
    sampled = _centre(lines, calibration)
    wanted = max(round(lines / acceleration) - int(sampled.sum()), 0)
    rest = np.flatnonzero(~sampled)
    sampled[np.random.default_rng(seed).permutation(rest)[:wanted]] = True
    return torch.from_numpy(sampled)[None]


def poisson_disc(shape: Shape, acceleration: float, calibration: float = 0.08, seed: int = 0) -> Tensor:
    """Samples no nearer to each other than a distance that grows from the centre outwards, and a square centre; [X, Y].

    Dart throwing in one random order; the distance is found by bisection. Inside the ellipse that touches the edges.
    """
    _possible(acceleration, calibration)
    centre = _block(shape, calibration)
    radius = _radius(shape)
    order = np.random.default_rng(seed).permutation(np.flatnonzero((radius <= 1) & ~centre))
    wanted, low, high = centre.size / acceleration, 0.0, 4.0 * acceleration**0.5
    sampled = centre
    for _ in range(9):
        scale = (low + high) / 2
        sampled = _darts(order, shape, np.maximum(scale * (0.3 + radius), 1e-6), centre)
        low, high = (scale, high) if sampled.sum() > wanted else (low, scale)
    return torch.from_numpy(sampled)


def radial(shape: Shape, acceleration: float, calibration: float = 0.08, seed: int = 0) -> Tensor:
    """Spokes through the centre, a golden angle apart, snapped to the Cartesian grid, and a square centre; [X, Y]."""
    _possible(acceleration, calibration)
    sampled = _block(shape, calibration)
    begin = np.random.default_rng(seed).uniform(0, np.pi)
    half = np.array([n // 2 for n in shape])
    along = np.linspace(-1, 1, 4 * max(shape))
    for k in range(8 * max(shape)):
        if sampled.sum() >= sampled.size / acceleration:
            break
        angle = begin + k * GOLDEN
        at = np.rint(half[:, None] * (1 + np.outer([np.cos(angle), np.sin(angle)], along))).astype(int)
        at = at[:, ((at >= 0) & (at < np.array(shape)[:, None])).all(0)]
        sampled[at[0], at[1]] = True
    return torch.from_numpy(sampled)


MASKS: dict[str, Callable[[Shape, float, float, int], Tensor]] = {
    "equispaced": equispaced, "random": random, "poisson": poisson_disc, "radial": radial,
}  # fmt: skip


def calibration(sampled: Tensor) -> tuple[int, int]:
    """How many samples around the centre are all there, along X and Y: the largest such box that is centred.

    `sampled` [X, Y]. Of boxes with equal area the most square one; (0, 0) where not even the centre was sampled.
    """
    kept = sampled.cpu().numpy()
    cx, cy = (n // 2 for n in kept.shape)
    best = (0, 0)
    reach = min(cy, kept.shape[1] - cy)
    for a in range(1, min(cx, kept.shape[0] - cx) + 1):
        rows = np.asarray(kept[cx - a : cx + a].all(0))
        while reach and not rows[cy - reach : cy + reach].all():
            reach -= 1
        if reach == 0:
            break
        best = max(best, (2 * a, 2 * reach), key=lambda s: (s[0] * s[1], min(s)))
    return best


def _possible(acceleration: float, calibration: float) -> None:
    if not acceleration >= 1:
        raise InputError(f"acceleration={acceleration}: choose 1 (all samples) or more.")
    if not 0 <= calibration < 1:
        raise InputError(f"calibration={calibration}: choose the share of lines in the centre, from 0 to below 1.")


def _centre(n: int, share: float) -> np.ndarray:
    out = np.zeros(n, bool)
    width = round(share * n)
    first = n // 2 - width // 2
    out[first : first + width] = True
    return out


def _block(shape: Shape, share: float) -> np.ndarray:
    return np.outer(_centre(shape[0], share), _centre(shape[1], share))


def _radius(shape: Shape) -> np.ndarray:
    """Distance from the centre, 1 at the middle of every edge, [X, Y]."""
    x, y = (np.abs(np.arange(n) - n // 2) / (n / 2) for n in shape)
    return np.hypot(x[:, None], y[None])


def _darts(order: np.ndarray, shape: Shape, distance: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Of the places in `order`, those that lie no nearer than their distance to one taken before."""
    taken, free = centre.copy(), ~centre
    for place in order:
        i, j = divmod(int(place), shape[1])
        if not free[i, j]:
            continue
        taken[i, j] = True
        d = distance[i, j]
        r = int(d)
        a, b = slice(max(i - r, 0), i + r + 1), slice(max(j - r, 0), j + r + 1)
        near = (np.arange(shape[0])[a, None] - i) ** 2 + (np.arange(shape[1])[None, b] - j) ** 2 < d * d
        free[a, b] &= ~near
    return taken

"""Smooth random fields and invertible warps: B-spline noise, stationary velocities, scaling and squaring."""

from __future__ import annotations

import numpy as np
import torch


def _along(coefficients: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Cubic B-spline interpolation of one axis: knot units `positions` [n], knots numbered from -1."""
    first = np.floor(positions).astype(int)
    t = (positions - first).astype(np.float32)
    weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    shape = [1] * coefficients.ndim
    shape[axis] = len(positions)
    out: np.ndarray | None = None
    for k, weight in enumerate(weights):
        term = np.take(coefficients, first + k, axis) * weight.reshape(shape)
        out = term if out is None else np.add(out, term, out=out)
    assert out is not None
    return out


def noise_field(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: float | tuple[float, ...], knots: float
) -> np.ndarray:
    """Smooth Gaussian noise [X, Y, Z], about unit variance: B-spline coefficients every `knots` mm (the voxels being
    `spacing` mm). Sums in a fixed order, so the same numbers on any machine."""
    steps = (spacing,) * 3 if isinstance(spacing, (int, float)) else spacing
    positions = [np.arange(n) * (s / knots) for n, s in zip(shape, steps)]
    field = rng.standard_normal([int(p[-1]) + 4 for p in positions], dtype=np.float32)
    for axis, position in enumerate(positions):
        field = _along(field, position, axis)
    return field * np.float32(1 / 0.479**1.5)  # mean over t of the sum of squared weights is 0.479


def sample(channels: np.ndarray, coordinates: np.ndarray, border: bool = False) -> np.ndarray:
    """Trilinear values [C, ...] of `channels` [C, X, Y, Z] at voxel `coordinates` [..., 3]; 0 (or the edge) outside."""
    size = torch.tensor(channels.shape[1:], dtype=torch.float32)
    points = torch.from_numpy(np.ascontiguousarray(coordinates, np.float32)) * (2 / (size - 1)) - 1
    grid = points.reshape(1, -1, 1, 1, 3).flip(-1)
    image = torch.from_numpy(np.ascontiguousarray(channels, np.float32))[None]
    padding = "border" if border else "zeros"
    out = torch.nn.functional.grid_sample(image, grid, "bilinear", padding, align_corners=True)
    return out.reshape(len(channels), *coordinates.shape[:-1]).numpy()


def voxel_grid(shape: tuple[int, ...]) -> np.ndarray:
    """Voxel coordinates [X, Y, Z, 3]."""
    return np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"), -1)


def exponentiate(velocity: np.ndarray, spacing: float, steps: int = 7) -> np.ndarray:
    """The displacement [3, X, Y, Z] (mm) after unit time along a stationary `velocity` (mm), by scaling and squaring.

    Arsigny et al., MICCAI 2006. Of -velocity it is the inverse warp.
    """
    displacement, grid = velocity / np.float32(2**steps), voxel_grid(velocity.shape[1:])
    for _ in range(steps):
        there = grid + np.moveaxis(displacement, 0, -1) / np.float32(spacing)
        displacement = displacement + sample(displacement, there, border=True)
    return displacement


def jacobian(displacement: np.ndarray, spacing: float) -> np.ndarray:
    """Determinant [X, Y, Z] of the derivative of x + displacement(x): local volume change, positive if invertible."""
    gradient = np.stack([np.stack(np.gradient(part, spacing)) for part in displacement])
    matrix = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3, dtype=np.float32)
    return np.linalg.det(matrix)


def random_velocity(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: float, strength: float = 1.0
) -> np.ndarray:
    """A stationary velocity [3, X, Y, Z] (mm) with detail at 60, 30 and 14 mm; `strength` 1 moves tissue a few mm."""
    scales = ((60.0, 4.0), (30.0, 2.4), (14.0, 0.8))
    fields = [sum(np.float32(a * strength) * noise_field(rng, shape, spacing, k) for k, a in scales) for _ in range(3)]
    return np.stack(fields).astype(np.float32)


def rigid(rng: np.random.Generator, degrees: float, millimetres: float) -> np.ndarray:
    """A small random rotation about the origin and translation, 4 x 4; normal with these standard deviations."""
    angles = np.radians(rng.normal(size=3).clip(-2.5, 2.5) * degrees)
    out = np.eye(4)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        turn, (i, j) = np.eye(4), [(1, 2), (2, 0), (0, 1)][axis]
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        out = turn @ out
    out[:3, 3] = rng.normal(size=3).clip(-2.5, 2.5) * millimetres
    return out

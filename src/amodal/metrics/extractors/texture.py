"""Statistics of a volume that can be named: intensities, edges, detail at each scale, co-occurrence, shape of a head.

Definitions follow the Image Biomarker Standardisation Initiative (Zwanenburg et al. 2020) where it has any. Intensities
are 0 for black and 1 for white, in 32 grey levels of equal width for co-occurrence (13 directions, distance 1, merged).
Each statistic has a unit of its own, so distances are taken of z-scores among the real volumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from scipy import ndimage, stats

from ..image import head_mask
from . import prepare

LEVELS, SCALES = 32, 4
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
PREPARATION = f"clipped to [0, 1], inside the head, {LEVELS} grey levels"
# half of the 26 neighbours: the other half sees the same pairs
DIRECTIONS = tuple(d for d in product((-1, 0, 1), repeat=3) if d > (0, 0, 0))


def load(device: torch.device) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The sha256 of what is measured (its names and version), and a function from a volume to [1, d]."""
    known = "\n".join(["texture 1", PREPARATION, *names()])
    return hashlib.sha256(known.encode()).hexdigest(), lambda x: np.array([list(statistics(x).values())])


def names() -> tuple[str, ...]:
    """The statistics, in their order."""
    grid = np.indices((16, 16, 16)).sum(0)
    return tuple(statistics((grid % 7 / 7).astype(np.float32)))


def statistics(volume: np.ndarray) -> dict[str, float]:
    """All statistics of a volume [X, Y, Z] in [0, 1], by name."""
    x = prepare.unit(volume).numpy()
    head = head_mask(x[None])
    box = ndimage.find_objects(head.astype(np.uint8))[0]
    x, head = x[box], head[box]
    return {**_intensities(x[head]), **_edges(x, head), **_detail(x, head), **_cooccurrence(x, head), **_shape(head)}


def _intensities(values: np.ndarray) -> dict[str, float]:
    counts = np.bincount(_grey(values), minlength=LEVELS) / values.size
    there = counts[counts > 0]
    spread = float(values.std(dtype=np.float64))
    high = {"skewness": float(stats.skew(values)), "kurtosis": float(stats.kurtosis(values))}
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "spread": spread,
        **(high if spread > 1e-6 else dict.fromkeys(high, 0.0)),
        "entropy": float(-(there * np.log2(there)).sum()),
        "uniformity": float((there**2).sum()),
        **{f"percentile {p}": float(v) for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES))},
    }


def _edges(x: np.ndarray, head: np.ndarray) -> dict[str, float]:
    """Mean absolute difference of neighbours along each axis, inside the head."""
    found = {}
    for axis, name in enumerate("xyz"):
        low, high = (np.take(v, range(start, v.shape[axis] - 1 + start), axis) for start in (0, 1) for v in (x,))
        both = np.take(head, range(x.shape[axis] - 1), axis) & np.take(head, range(1, x.shape[axis]), axis)
        found[f"edges {name}"] = float(np.abs(high - low)[both].mean(dtype=np.float64)) if both.any() else 0.0
    return found


def _detail(x: np.ndarray, head: np.ndarray) -> dict[str, float]:
    """The spread of what lies between Gaussians of 1/2, 1, 2, 4 and 8 voxels, inside the head."""
    sigmas = [0.5 * 2**k for k in range(SCALES + 1)]
    smooth = [ndimage.gaussian_filter(x, s) for s in sigmas]
    bands = {f"detail {sigmas[k]:g}-{sigmas[k + 1]:g}": smooth[k] - smooth[k + 1] for k in range(SCALES)}
    return {name: float(band[head].std(dtype=np.float64)) for name, band in bands.items()}


def _cooccurrence(x: np.ndarray, head: np.ndarray) -> dict[str, float]:
    """Of the matrix of grey levels of neighbouring voxels, both in the head, symmetric, over all directions."""
    grey = np.where(head, _grey(x), LEVELS)  # one level more: outside, counted and then left out
    total = np.zeros((LEVELS + 1, LEVELS + 1))
    for direction in DIRECTIONS:
        here = tuple(slice(max(-d, 0), n - max(d, 0)) for d, n in zip(direction, grey.shape))
        there = tuple(slice(max(d, 0), n + min(d, 0)) for d, n in zip(direction, grey.shape))
        pairs = grey[here].ravel() * (LEVELS + 1) + grey[there].ravel()
        total += np.bincount(pairs, minlength=total.size).reshape(total.shape)
    total = total[:LEVELS, :LEVELS]
    p = (total + total.T) / max(2 * total.sum(), 1)
    i, j = np.indices(p.shape)
    mean = float((i * p).sum())
    variance = float(((i - mean) ** 2 * p).sum())
    known = p[p > 0]
    return {
        "joint energy": float((p**2).sum()),
        "joint entropy": float(-(known * np.log2(known)).sum()),
        "contrast": float(((i - j) ** 2 * p).sum()),
        "dissimilarity": float((np.abs(i - j) * p).sum()),
        "homogeneity": float((p / (1 + np.abs(i - j))).sum()),
        "correlation": float(((i - mean) * (j - mean) * p).sum() / variance) if variance > 0 else 1.0,
        "cluster shade": float(((i + j - 2 * mean) ** 3 * p).sum()),
    }


def _shape(head: np.ndarray) -> dict[str, float]:
    """Volume in voxels, faces to the outside per voxel, extents of the head."""
    padded = np.pad(head, 1)
    faces = sum(int(np.diff(padded.astype(np.int8), axis=axis).astype(bool).sum()) for axis in range(3))
    extents = {f"extent {name}": float(n) for name, n in zip("xyz", head.shape)}
    return {"volume": float(head.sum()), "surface": faces / head.sum(), **extents}


def _grey(x: np.ndarray) -> np.ndarray:
    """Grey levels 0 to 31, int64."""
    return np.minimum((x * LEVELS).astype(np.int64), LEVELS - 1)

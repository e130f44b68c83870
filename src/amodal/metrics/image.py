"""How near one image is to another, with a stated data range and per region, and how striped a volume is.

Images are 2-D or 3-D numpy arrays or torch tensors of one shape; `mask` (bool, the same shape) says where to look. The
structural similarities are in `metrics.structure`, the perceptual distance in `metrics.perceptual`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy import ndimage

from ..core.errors import InputError
from .pair import Image, array, inside, mean, pair
from .structure import msssim, ssim

__all__ = [
    "METRICS",
    "STRIPES_WARN",
    "Image",
    "gradient_error",
    "head_mask",
    "high_frequency_error",
    "mae",
    "mse",
    "msssim",
    "nmse",
    "paired",
    "psnr",
    "ssim",
    "stripe_ratio",
    "stripes",
]

Metric = Callable[[Image, Image, float, Image | None], float]
STRIPES_WARN = 1.3  # a synthetic volume this much more striped than its truth is marked in reports
LAPLACE_SIGMA, LAPLACE_RADIUS = 1.5, 7  # Ravishankar & Bresler 2011: a filter of 15 voxels
MARGIN = 8  # voxels beyond a region that a metric may look at


def mse(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Mean squared error of images scaled to a data range of 1."""
    return mean(_difference(prediction, truth, data_range) ** 2, mask)


def psnr(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / MSE); inf for equal images."""
    error = mse(prediction, truth, data_range, mask)
    return math.inf if error == 0 else -10 * math.log10(error)


def mae(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Mean absolute error as a fraction of the data range."""
    return mean(np.abs(_difference(prediction, truth, data_range)), mask)


def nmse(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Normalised mean squared error, |prediction - truth|^2 / |truth|^2 (the data range cancels; inf if truth is 0)."""
    x, y = pair(prediction, truth, data_range)
    error, energy = mean((x - y) ** 2, mask), mean(y**2, mask)
    return error / energy if energy > 0 else math.inf


def gradient_error(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Mean length of the difference of the gradients, as a fraction of the data range a voxel (central differences).

    A constant added changes nothing; a blurred edge costs what its steepness lost.
    """
    x = _difference(prediction, truth, data_range)
    parts = [np.gradient(x, axis=axis) for axis, n in enumerate(x.shape) if n > 1]
    return mean(np.sqrt(sum((g**2 for g in parts), np.zeros_like(x))), mask)


def high_frequency_error(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """The norm of the Laplacian of Gaussian of the error over that of the truth (HFEN, Ravishankar & Bresler 2011).

    0 for equal images, 1 for an image without any edge, inf where the truth has none; the data range cancels.
    """
    x, y = pair(prediction, truth, data_range)
    error, energy = (mean(_laplace(v) ** 2, mask) for v in (x - y, y))
    return math.sqrt(error / energy) if energy > 0 else math.inf


METRICS: dict[str, Metric] = {
    "psnr": psnr,
    "ssim": ssim,
    "msssim": msssim,
    "mae": mae,
    "mse": mse,
    "nmse": nmse,
    "gradient": gradient_error,
    "high_frequency": high_frequency_error,
}


def paired(
    prediction: Image,
    truth: Image,
    data_range: float,
    regions: Mapping[str, Image],
    metrics: Sequence[str] = ("psnr", "ssim", "mae"),
) -> dict[str, dict[str, float]]:
    """Metrics (names of `METRICS`) inside each region, such as `{"brain": mask, "lesion": mask}`: region -> metric.

    A region without a voxel is left out (a healthy subject has no lesion). Each region is cut out with a margin wide
    enough for every window (but for `msssim`, which looks far), so that small regions cost little.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise InputError(f"{unknown[0]!r} is no metric; choose among {', '.join(METRICS)}.")
    x, y = pair(prediction, truth, data_range)
    scores = {}
    for name, mask in regions.items():
        where = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask)
        if where.shape == x.shape and not where.any():
            continue
        where = inside(where, x.shape)
        boxes = {metric: _box(where) if metric != "msssim" else (...,) for metric in metrics}
        scores[name] = {metric: METRICS[metric](x[box], y[box], 1.0, where[box]) for metric, box in boxes.items()}
    return scores


def stripes(volume: Image, mask: Image | None = None, axis: int = 2, smoothing: float = 2.0) -> float:
    """Through-plane over in-plane gradient energy of a volume [X, Y, Z]; `axis` is the through-plane one.

    The energy along an axis is the mean squared difference of neighbouring voxels, both in the mask, after a Gaussian
    of `smoothing` voxels across it (0: none): stripes are coherent within a slice, noise and anatomy much less. The
    number depends on anatomy, contrast and slice thickness, so read it beside that of a real volume: `stripe_ratio`.
    """
    x = array(volume)
    where = np.ones(x.shape, bool) if mask is None else inside(mask, x.shape)
    energy = [_gradient_energy(x, where, a, smoothing) for a in range(x.ndim)]
    in_plane = float(np.mean([e for a, e in enumerate(energy) if a != axis]))
    return energy[axis] / in_plane if in_plane > 0 else math.nan


def stripe_ratio(volume: Image, real: Sequence[Image], mask: Image | None = None, axis: int = 2) -> float:
    """`stripes` of a synthetic volume over the median of real ones on its grid: about 1 is good, 1.3 is striped."""
    reference = float(np.median([stripes(r, mask, axis) for r in real]))
    return stripes(volume, mask, axis) / reference if reference > 0 else math.nan


def head_mask(stack: Image, threshold: float = 0.05) -> np.ndarray:
    """The head (or the brain, where images are skull-stripped) from images [M, X, Y, Z] in [0, 1], bool [X, Y, Z].

    Where any image is above the threshold: the largest connected component, its holes filled.
    """
    bright = (array(stack) > threshold).any(axis=0)
    labels, count = ndimage.label(bright)
    if count == 0:
        raise InputError(
            f"no voxel of the images is brighter than {threshold:g} of their range; check that they show a head."
        )
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return ~_outside(~largest)


def _outside(background: np.ndarray) -> np.ndarray:
    """The part of a background that is connected with the border of the image."""
    labels, count = ndimage.label(background)
    touches = np.zeros(count + 1, bool)
    for axis in range(labels.ndim):
        for end in (0, -1):
            touches[np.unique(labels.take(end, axis))] = True
    touches[0] = False
    return touches[labels]


def _gradient_energy(x: np.ndarray, mask: np.ndarray, axis: int, smoothing: float) -> float:
    """Mean squared difference along an axis, after averaging across it within the mask (normalised convolution)."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    x, mask = x[box], mask[box]
    if smoothing > 0:
        sigma = [0.0 if a == axis else smoothing for a in range(x.ndim)]
        weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
        x = ndimage.gaussian_filter(np.where(mask, x, np.float32(0)), sigma) / np.maximum(weight, np.float32(1e-3))
    low, high = (tuple(s if a == axis else slice(None) for a in range(x.ndim)) for s in (slice(0, -1), slice(1, None)))
    square = (x[high] - x[low])[mask[high] & mask[low]] ** 2
    return float(square.mean(dtype=np.float64)) if square.size else 0.0


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The box of a mask and a margin around it."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(s.start - MARGIN, 0), min(s.stop + MARGIN, n)) for s, n in zip(found, mask.shape))


def _laplace(x: np.ndarray) -> np.ndarray:
    """The Laplacian of Gaussian, less what the finite filter would make of a constant image."""
    filtered, flat = (
        ndimage.gaussian_laplace(v, LAPLACE_SIGMA, mode="reflect", radius=LAPLACE_RADIUS)
        for v in (x, np.ones((1,) * x.ndim))
    )
    return filtered - flat * x


def _difference(prediction: Image, truth: Image, data_range: float) -> np.ndarray:
    x, y = pair(prediction, truth, data_range)
    return x - y

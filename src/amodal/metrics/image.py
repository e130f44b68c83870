"""How near one image is to another: PSNR, SSIM, MAE, NMSE with a stated data range, and how striped a volume is.

Images are 2-D or 3-D numpy arrays or torch tensors of one shape; `mask` (bool, the same shape) says where to look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from ..core.errors import InputError

Image = np.ndarray | torch.Tensor

SIGMA, RADIUS = 1.5, 5  # the 11-voxel Gaussian window of Wang et al. 2004
K1, K2 = 0.01, 0.03
STRIPES_WARN = 1.3  # a synthetic volume this much more striped than its truth is marked in reports


def psnr(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / MSE); inf for equal images."""
    error = _mean((_difference(prediction, truth, data_range)) ** 2, mask)
    return math.inf if error == 0 else -10 * math.log10(error)


def mae(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Mean absolute error as a fraction of the data range."""
    return _mean(np.abs(_difference(prediction, truth, data_range)), mask)


def nmse(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Normalised mean squared error, |prediction - truth|^2 / |truth|^2 (the data range cancels; inf if truth is 0)."""
    energy = _mean((_array(truth) / data_range) ** 2, mask)
    error = _mean(_difference(prediction, truth, data_range) ** 2, mask)
    return error / energy if energy > 0 else math.inf


def ssim(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Structural similarity with a Gaussian window (Wang et al. 2004: sigma 1.5, 11 voxels, population covariance).

    With a mask, the mean of the similarity map over the mask; without one, over the voxels whose window lies inside
    the image, which is scikit-image's `structural_similarity(gaussian_weights=True, use_sample_covariance=False)`.
    """
    x, y = _pair(prediction, truth, data_range)
    part, inner = _parts(x.shape, _mask(mask, x.shape))
    similarity = _ssim_map(x[part] / np.float32(data_range), y[part] / np.float32(data_range))
    return float(similarity[inner].mean(dtype=np.float64))


def stripes(volume: Image, mask: Image | None = None, axis: int = 2, smoothing: float = 2.0) -> float:
    """Through-plane over in-plane gradient energy of a volume [X, Y, Z]; `axis` is the through-plane one.

    The energy along an axis is the mean squared difference of neighbouring voxels, both in the mask, after a Gaussian
    of `smoothing` voxels across it (0: none): stripes are coherent within a slice, noise and anatomy much less. The
    number depends on anatomy, contrast and slice thickness, so read it beside that of a real volume: `stripe_ratio`.
    """
    x = _array(volume)
    given = _mask(mask, x.shape)
    inside = np.ones(x.shape, bool) if given is None else given
    energy = [_gradient_energy(x, inside, a, smoothing) for a in range(x.ndim)]
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
    bright = (_array(stack) > threshold).any(axis=0)
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


def _ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The similarity at every voxel of images of data range 1, float32; the border is mirrored."""
    mx, my = _blur(x), _blur(y)
    vx, vy, vxy = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    return (2 * mx * my + K1**2) * (2 * vxy + K2**2) / ((mx * mx + my * my + K1**2) * (vx + vy + K2**2))


def _blur(x: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(x, SIGMA, radius=RADIUS, mode="reflect")


def _parts(shape: tuple[int, ...], mask: np.ndarray | None) -> tuple[tuple[slice, ...], np.ndarray | tuple[slice, ...]]:
    """The box that must be filtered, and which of its voxels count (axes too short for a whole window count wholly)."""
    if mask is None:
        whole = tuple(slice(None) for _ in shape)
        return whole, tuple(slice(RADIUS, n - RADIUS) if n > 2 * RADIUS else slice(None) for n in shape)
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    part = tuple(slice(max(s.start - RADIUS, 0), min(s.stop + RADIUS, n)) for s, n in zip(box, shape))
    return part, mask[part]


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


def _mean(x: np.ndarray, mask: Image | None) -> float:
    inside = _mask(mask, x.shape)
    return float((x if inside is None else x[inside]).mean(dtype=np.float64))


def _difference(prediction: Image, truth: Image, data_range: float) -> np.ndarray:
    x, y = _pair(prediction, truth, data_range)
    return (x - y) / np.float32(data_range)


def _pair(prediction: Image, truth: Image, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"data_range={data_range!r}: give the width of the intensity range, a number above 0.")
    x, y = _array(prediction), _array(truth)
    if x.shape != y.shape or x.ndim not in (2, 3):
        raise InputError(
            f"images of shape {x.shape} and {y.shape} cannot be compared; give two 2-D or 3-D images of one shape."
        )
    return x, y


def _mask(mask: Image | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None:
        return None
    inside = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if inside.shape != shape or not inside.any():
        raise InputError(
            f"a mask of shape {inside.shape} with {int(inside.sum())} voxels does not fit an image of shape {shape}."
        )
    return inside.astype(bool)


def _array(x: Image) -> np.ndarray:
    """As float32 numpy, wherever it lives."""
    return x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float32)

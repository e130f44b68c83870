"""Structural similarity of images, in 2-D and 3-D, at one scale and at several.

Sources: Wang et al. 2004 (SSIM: Gaussian window of 11 voxels, sigma 1.5, K = 0.01, 0.03, population covariance); Wang
et al. 2003 (MS-SSIM: five scales, halved by averaging, their exponents).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..core.errors import InputError
from .pair import Image, inside, pair

SIGMA, RADIUS = 1.5, 5
WINDOW = 2 * RADIUS + 1
C1, C2 = 0.01**2, 0.03**2  # for images of data range 1
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2, the finest scale first


def ssim(prediction: Image, truth: Image, data_range: float, mask: Image | None = None) -> float:
    """Structural similarity, 1 for equal images.

    With a mask, the mean of the similarity map over the mask; without one, over the voxels whose window lies inside
    the image, which is scikit-image's `structural_similarity(gaussian_weights=True, use_sample_covariance=False)`.
    """
    x, y = pair(prediction, truth, data_range)
    part, inner = _parts(x.shape, None if mask is None else inside(mask, x.shape))
    luminance, contrast = _maps(x[part], y[part])
    return float((luminance * contrast)[inner].mean())


def msssim(
    prediction: Image, truth: Image, data_range: float, mask: Image | None = None, scales: int | None = None
) -> float:
    """Multi-scale structural similarity; negative contrast terms count as 0.

    `scales`: None takes as many of the five as the shortest axis has room for (`scales_for`), the exponents of fewer
    made to sum to 1; a number that does not fit is refused. Means are over the voxels whose window lies inside the
    image. A mask is halved with the images; a scale at which nothing of it is left ends the series.
    """
    x, y = pair(prediction, truth, data_range)
    where, most = None if mask is None else inside(mask, x.shape), scales_for(x.shape)
    if scales is not None and not 1 <= scales <= most:
        raise InputError(f"scales={scales}: an image of shape {x.shape} has room for 1 to {most}, choose among these.")
    terms: list[tuple[float, float]] = []  # of each scale: the mean of the contrast term, and of the whole
    for level in range(scales or most):
        if level:
            x, y = _halve(x), _halve(y)
            where = None if where is None else _halve(where.astype(float)) >= 0.5
            if where is not None and not where.any():
                break
        terms.append(_terms(x, y, where))
    exponents = np.array(EXPONENTS[: len(terms)])
    exponents = exponents if len(terms) == len(EXPONENTS) else exponents / exponents.sum()
    values = np.array([contrast for contrast, _ in terms[:-1]] + [terms[-1][1]])
    return float(np.prod(np.maximum(values, 0) ** exponents))


def scales_for(shape: tuple[int, ...]) -> int:
    """How many of the five scales leave room for a whole window along the shortest axis, at least 1."""
    return max(1, sum(min(shape) >> level >= WINDOW for level in range(len(EXPONENTS))))


def _terms(x: np.ndarray, y: np.ndarray, where: np.ndarray | None) -> tuple[float, float]:
    part, inner = _parts(x.shape, where)
    luminance, contrast = _maps(x[part], y[part])
    return float(contrast[inner].mean()), float((luminance * contrast)[inner].mean())


def _maps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luminance and contrast-structure terms at every voxel of images of data range 1; the border is mirrored."""
    mx, my = _blur(x), _blur(y)
    vx, vy, vxy = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    return (2 * mx * my + C1) / (mx * mx + my * my + C1), (2 * vxy + C2) / (vx + vy + C2)


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


def _halve(x: np.ndarray) -> np.ndarray:
    """Means of blocks of two voxels along each axis; an odd last voxel is left out."""
    for axis in range(x.ndim):
        n = x.shape[axis] // 2 * 2
        x = (np.take(x, range(0, n, 2), axis) + np.take(x, range(1, n, 2), axis)) / 2
    return x

"""Two images to be compared and where: checked once, as numpy arrays in double precision, wherever they live."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..core.errors import InputError

Image = np.ndarray | torch.Tensor


def array(x: Image) -> np.ndarray:
    """As float32 numpy."""
    return x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float32)


def pair(prediction: Image, truth: Image, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    """Both images as fractions of the data range, float64; InputError unless they are finite and of one shape."""
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"data_range={data_range!r}: give the width of the intensity range, a number above 0.")
    x, y = _double(prediction), _double(truth)
    if x.shape != y.shape or x.ndim not in (2, 3) or 0 in x.shape:
        raise InputError(
            f"images of shape {x.shape} and {y.shape} cannot be compared; give two 2-D or 3-D images of one shape."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("an image holds values that are not finite; replace them before images are compared.")
    return x / data_range, y / data_range


def inside(mask: Image, shape: tuple[int, ...]) -> np.ndarray:
    """A mask as bool numpy; InputError if it is empty or of another shape."""
    where = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if where.shape != shape or not where.any():
        raise InputError(
            f"a mask of shape {where.shape} with {int(where.sum())} voxels does not fit an image of shape {shape}."
        )
    return where.astype(bool)


def mean(x: np.ndarray, mask: Image | None) -> float:
    """The mean over a mask, over everything without one."""
    return float((x if mask is None else x[inside(mask, x.shape)]).mean(dtype=np.float64))


def _double(x: Image) -> np.ndarray:
    return x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float64)

"""Intensities: a `Window` takes a modality's own scale to [-1, 1] and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from ..core.errors import InputError

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class Window:
    """The intensities that become -1 (`lo`) and 1 (`hi`). As JSON: `core.config.to_dict` and `from_dict`."""

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lo) and math.isfinite(self.hi) and self.hi > self.lo):
            raise InputError(
                f"window ({self.lo:g}, {self.hi:g}): choose two finite numbers, the second above the first."
            )

    @classmethod
    def of(cls, data: np.ndarray, percentiles: tuple[float, float] = (0.5, 99.5)) -> Window:
        """The window of an image: the lower percentile over all finite voxels, the upper over those above the mean.

        The bright ones are the head, so `hi` hardly depends on how much empty field of view surrounds it. The mean is
        that of the image clipped at both percentiles, so that no bright speck moves it. Where lo and hi coincide
        (nearly all voxels equal) the whole range is taken. InputError if the image is constant.
        """
        low, high = percentiles
        if not 0 <= low < high <= 100:
            raise InputError(f"percentiles ({low:g}, {high:g}): choose two from 0 to 100, the second above the first.")
        values = np.asarray(data, dtype=np.float32).ravel()
        finite = np.isfinite(values)
        if not finite.all():
            values = values[finite]
        smallest, largest = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not smallest < largest:
            raise InputError("the image is constant; an intensity window needs at least two different values.")
        lo, top = map(float, np.percentile(values, percentiles))
        head = values[values > values.clip(lo, top).mean(dtype=np.float64)]
        if not head.size:  # the mean of nearly equal numbers can round up to the largest
            head = values[values == largest]
        hi = float(np.percentile(head, high))
        return cls(lo, hi) if lo < hi else cls(smallest, largest)

    def enter(self, x: Array) -> Array:
        """Intensities to [-1, 1]; what lies outside the window is clipped."""
        return ((x - self.lo) * (2.0 / (self.hi - self.lo)) - 1.0).clip(-1.0, 1.0)

    def leave(self, x: Array) -> Array:
        """[-1, 1] to intensities."""
        return (x + 1.0) * (0.5 * (self.hi - self.lo)) + self.lo

"""Intensities: a `Window` takes a modality's own scale to [-1, 1] and back.

MR has no unit, so each image has a window of its own. CT and PET are quantitative: one window for all, kept with the
model, so that Hounsfield units and SUV come back (`QUANTITIES`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class Window:
    """The intensities that become -1 (`lo`) and 1 (`hi`), straight between, or bent at `knots` (intensity, value), both
    rising. As JSON: `core.config.to_dict` and `from_dict`."""

    lo: float
    hi: float
    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lo) and math.isfinite(self.hi) and self.hi > self.lo):
            raise InputError(
                f"window ({self.lo:g}, {self.hi:g}): choose two finite numbers, the second above the first."
            )
        x, y = self._line
        if not (np.diff(x) > 0).all() or not (np.diff(y) > 0).all():
            raise InputError(
                f"window knots {self.knots}: choose intensities and values that rise from lo, -1 to hi, 1."
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
        if self.knots:
            return _bend(x, *self._line)
        return ((x - self.lo) / (self.hi - self.lo) * 2.0 - 1.0).clip(-1.0, 1.0)

    def leave(self, x: Array) -> Array:
        """[-1, 1] to intensities."""
        if self.knots:
            return _bend(x, *self._line[::-1])
        return (x + 1.0) * (0.5 * (self.hi - self.lo)) + self.lo

    def spread(self, x: Array, sd: Array) -> Array:
        """A standard deviation around x, both in units of [-1, 1], in intensities."""
        return (self.leave(x + sd) - self.leave(x - sd)) * 0.5

    @property
    def _line(self) -> tuple[np.ndarray, np.ndarray]:
        points = np.array([(self.lo, -1.0), *self.knots, (self.hi, 1.0)], np.float64)
        return points[:, 0], points[:, 1]


class Quantity(NamedTuple):
    """A modality whose numbers mean something. `window`: its window; None: a group constant, see `group_window`."""

    unit: str
    window: Window | None


# Of the 3000 HU from air to bone the brain takes up 80; a straight window would leave it 3 % of the scale, below what a
# network can resolve. Air to fat get 1/8, fluid to blood 3/10, calcium and bone the upper 45 %.
QUANTITIES: Mapping[str, Quantity] = {
    "CT": Quantity("HU", Window(-1000.0, 2000.0, ((-150.0, -0.75), (0.0, -0.5), (80.0, 0.1), (300.0, 0.3)))),
    "PET": Quantity("SUV", None),
}


def group_window(tops: Sequence[float]) -> Window:
    """The window from 0 of a quantity over a group: up to the highest of the subjects' own upper ends."""
    return Window(0.0, float(max(tops)))


def _bend(x: Array, at: np.ndarray, to: np.ndarray) -> Array:
    """Piecewise linear, held at both ends; float32 stays float32."""
    if isinstance(x, Tensor):
        knots, values = (torch.as_tensor(a, dtype=x.dtype, device=x.device) for a in (at, to))
        piece = torch.bucketize(x.detach(), knots[1:-1])
        slope = (values[1:] - values[:-1]) / (knots[1:] - knots[:-1])
        return (values[piece] + slope[piece] * (x.clip(knots[0], knots[-1]) - knots[piece])).clip(values[0], values[-1])
    return np.interp(x, at, to).astype(np.result_type(x, np.float32))

"""How a made image is measured against the one that was hidden: on which scale, where, by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import nibabel as nib
import numpy as np

from ..core.errors import InputError
from ..data.intensity import QUANTITIES, Window
from ..metrics import image

Metric = Callable[[np.ndarray, np.ndarray, float, np.ndarray | None], float]
METRICS: Mapping[str, Metric] = {  # of an image in 2-D or 3-D; `stripes` is one of volumes alone
    "psnr": image.psnr,
    "ssim": image.ssim,
    "mae": image.mae,
    "nmse": image.nmse,
}
STRIPES = "stripes"
HEAD_AREA = 0.05  # a voxel is head where an image is brighter than this part of its range


@dataclass(frozen=True)
class Slices:
    """Which axial slices a 2-D measure takes: those with at least `area` of the largest slice's head, `count` of them
    evenly through these (0: all)."""

    area: float = 0.1
    count: int = 0

    def of(self, mask: np.ndarray) -> list[int]:
        """The slice numbers of a head mask [X, Y, Z]."""
        areas = mask.sum((0, 1))
        usable = np.flatnonzero(areas >= self.area * areas.max())
        if not self.count or len(usable) <= self.count:
            return usable.tolist()
        middles = (np.arange(self.count) + 0.5) / self.count  # in the middle of equal parts
        return usable[(middles * len(usable)).astype(int)].tolist()


@dataclass(frozen=True)
class Ruler:
    """How images are measured. `scale`: "window", the model's own way of scaling; or percentiles of all voxels of the
    truth, which become 0 and 1 (what lies outside is clipped). `mask`: the head, or the whole image. `dims`: 3, the
    volume; 2, the mean over axial slices. The data range is 1."""

    metrics: tuple[str, ...] = ("psnr", "ssim", "mae", STRIPES)
    scale: Literal["window"] | tuple[float, float] = "window"
    mask: Literal["head", "none"] = "head"
    dims: Literal[2, 3] = 3
    slices: Slices = Slices()

    def bounds(self, name: str, data: np.ndarray) -> tuple[float, float]:
        """The intensities of a truth that become 0 and 1; of a quantity (CT) those of its fixed window."""
        quantity = QUANTITIES.get(name)
        if self.scale == "window":
            window = quantity.window if quantity and quantity.window else Window.of(data)
            return window.lo, window.hi
        low, high = map(float, np.percentile(data, self.scale))
        if not low < high:
            raise InputError(f"{name} is nearly constant; it cannot be scaled by its percentiles {self.scale}.")
        return low, high


@dataclass(frozen=True, eq=False)
class Target:
    """A truth to be met: `image` [X, Y, Z] in [0, 1], `head` bool, `axis` the one along which slices are stacked."""

    image: np.ndarray
    head: np.ndarray
    axis: int
    ruler: Ruler

    def scores(self, guess: np.ndarray) -> dict[str, float]:
        """Every metric of the ruler for an image [X, Y, Z] in [0, 1]."""
        found = {name: self._mean(METRICS[name], guess) for name in self.ruler.metrics if name != STRIPES}
        if STRIPES in self.ruler.metrics:
            found[STRIPES] = image.stripes(guess, self.head, self.axis) / self._stripes if self._stripes else np.nan
        return found

    def _mean(self, metric: Metric, guess: np.ndarray) -> float:
        head = self.head if self.ruler.mask == "head" else None
        if self.ruler.dims == 3:
            return metric(guess, self.image, 1.0, head)
        planes = [np.moveaxis(x, self.axis, 0) for x in (guess, self.image, self.head)]
        values = [metric(planes[0][k], planes[1][k], 1.0, None if head is None else planes[2][k]) for k in self._slices]
        return float(np.mean(values))

    @cached_property
    def _stripes(self) -> float:
        return image.stripes(self.image, self.head, self.axis)

    @cached_property
    def _slices(self) -> list[int]:
        return self.ruler.slices.of(np.moveaxis(self.head, self.axis, -1))


def measure(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray, axis: int = 2) -> dict[str, float]:
    """PSNR (dB), SSIM and MAE of an image in [0, 1] within a mask, data range 1, and its stripes beside the truth's."""
    return Target(truth, mask, axis, Ruler()).scores(prediction)


def slice_axis(affine: np.ndarray) -> int:
    """The voxel axis along which axial slices are stacked: the one nearest to foot-head."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])


def head_of(images: Sequence[np.ndarray]) -> np.ndarray:
    """The head from all that was acquired, images [X, Y, Z] in [0, 1]."""
    return image.head_mask(np.stack(images), HEAD_AREA)

"""A `Frame` takes volumes from their own voxel grid to the network's (RAS+) and back, so that what leaves lies exactly
where what came in lay. Each voxel axis goes its own way (flip, resample, crop, pad): a `Line`, inverted in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np

from ..core.contract import Grid
from ..core.errors import InputError
from .intensity import Window
from .volume import ALIGNED, Volume, distance

_TIGHT = 0.01  # spacings this close (relative) to the allowed range count as inside: 0.7 mm is stored as 0.69999999


@dataclass(frozen=True)
class Line:
    """One axis: voxel j of `size` new ones lies at `start + step * j` among the `count` old ones; step -1 is a flip."""

    count: int
    size: int
    start: float
    step: float

    @property
    def copies(self) -> bool:
        """Whether voxels are only moved, not interpolated."""
        return abs(self.step) == 1

    @property
    def inverse(self) -> Line:
        return Line(self.size, self.count, -self.start / self.step, 1 / self.step)

    @property
    def inside(self) -> slice:
        """The new voxels whose centres lie in the old field of view (voxel edges included)."""
        ends = sorted((edge - self.start) / self.step for edge in (-0.5, self.count - 0.5))
        first = int(np.clip(np.ceil(ends[0] - 1e-6), 0, self.size))
        return slice(first, int(np.clip(np.floor(ends[1] + 1e-6) + 1, first, self.size)))

    def take(self, x: np.ndarray, axis: int, nearest: bool = False) -> np.ndarray:
        """The new voxels inside the old field of view, from the old ones: [..., count, ...] -> [..., inside, ...]."""
        at = self.start + self.step * np.arange(self.inside.start, self.inside.stop)
        if self.copies:
            low, high = int(at.min()), int(at.max())
            part = x[(slice(None),) * axis + (slice(low, high + 1),)]
            return np.flip(part, axis) if self.step < 0 else part
        if nearest:
            return np.take(x, np.clip(np.rint(at), 0, self.count - 1).astype(int), axis=axis)
        return np.moveaxis(np.tensordot(_weights(self), x, axes=(1, axis)), 0, axis)


@dataclass(frozen=True)
class Frame:
    """The way from a reference's voxel grid to the network's and back; made by `Frame.of`, changed by nothing.

    `order[k]` is the reference axis that becomes RAS axis k, `lines[k]` what happens along it; `affine` rows take the
    network's voxel indices to RAS+ millimetres, `home` those of the reference.
    """

    order: tuple[int, int, int]
    lines: tuple[Line, Line, Line]
    home: tuple[tuple[float, ...], ...]
    path: Path | None = None

    @classmethod
    def of(cls, reference: Volume, grid: Grid) -> Frame:
        """The frame of a reference volume: to RAS+ by flips and permutations (oblique: nearest axes), resampled where
        the spacing leaves the network's range, cropped or padded symmetrically to its size or multiple."""
        ornt = nib.orientations.io_orientation(reference.affine)
        x, y, z = (int(np.flatnonzero(ornt[:, 0] == k)[0]) for k in range(3))
        right, front, up = (
            _line(reference.shape[axis], reference.spacing[axis], ornt[axis, 1] < 0, grid, k)
            for k, axis in enumerate((x, y, z))
        )
        home = tuple(tuple(map(float, row)) for row in reference.affine)
        return cls((x, y, z), (right, front, up), home, reference.path)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the network's grid."""
        x, y, z = (line.size for line in self.lines)
        return x, y, z

    @property
    def home_shape(self) -> tuple[int, int, int]:
        """Voxels of the reference's grid."""
        counts = [0, 0, 0]
        for axis, line in zip(self.order, self.lines):
            counts[axis] = line.count
        return counts[0], counts[1], counts[2]

    @property
    def affine(self) -> np.ndarray:
        """Network voxel indices to RAS+ millimetres, 4x4."""
        to_home = np.zeros((4, 4))
        to_home[3, 3] = 1
        for k, (axis, line) in enumerate(zip(self.order, self.lines)):
            to_home[axis, k], to_home[axis, 3] = line.step, line.start
        return np.array(self.home) @ to_home

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between the network's voxels."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def resampled(self) -> bool:
        """Whether any axis was interpolated; if not, `leave(enter(v))` is bit for bit v on the voxels covered."""
        return not all(line.copies for line in self.lines)

    @property
    def cropped(self) -> bool:
        """Whether some voxels of the reference lie outside the network's grid."""
        return any(line.inverse.inside != slice(0, line.count) for line in self.lines)

    def enter(self, volume: Volume, fill: float | None = None) -> np.ndarray:
        """A volume on the reference's grid as float32 [X, Y, Z] on the network's, intensities untouched.

        Padding takes `fill`, by default the volume's smallest value (-1 once windowed). InputError if the volume does
        not lie on the reference's grid.
        """
        self._check(volume)
        return self._enter(volume.data, float(volume.data.min()) if fill is None else fill)

    def enter_mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask or label map [X, Y, Z] on the reference's grid, on the network's: nearest voxel, padded by 0."""
        if np.shape(mask) != self.home_shape:
            raise ValueError(f"the mask is {np.shape(mask)}, the reference's grid {self.home_shape}")
        return self._enter(np.asarray(mask), 0, nearest=True)

    def leave(self, array: np.ndarray, fill: float = 0.0, nearest: bool = False) -> np.ndarray:
        """[X, Y, Z] on the network's grid back on the reference's: the exact inverse where nothing was interpolated.

        Voxels of the reference that the network's grid does not cover become `fill`. The type is kept.
        """
        array = np.asarray(array)
        if array.shape != self.shape:
            raise ValueError(f"the array is {array.shape}, the network's grid {self.shape}")
        out = _move(array, tuple(line.inverse for line in self.lines), fill, nearest)
        return np.ascontiguousarray(out.transpose(np.argsort(self.order)))

    def _enter(self, data: np.ndarray, fill: float, nearest: bool = False) -> np.ndarray:
        return _move(data.transpose(self.order), self.lines, fill, nearest)

    def _check(self, volume: Volume) -> None:
        what = self.path.name if self.path is not None else "the reference"
        if volume.shape != self.home_shape:
            raise InputError(
                f"{volume.name} has {_times(volume.shape)} voxels and {what} {_times(self.home_shape)}; "
                "they must lie on one grid: resample it first."
            )
        apart = distance(volume.affine, np.array(self.home), self.home_shape)
        if apart > ALIGNED * min(volume.spacing):
            raise InputError(
                f"{volume.name} and {what} lie {apart:.2f} mm apart; they must lie on one grid: resample it first."
            )


def window_of(volume: Volume, grid: Grid) -> Window:
    """The window of an image as a network of this grid sees it: where the grid is coarser than the image, that of the
    coarser image. Vessels and fluid are brighter in fine voxels, and would leave all else darker than in training."""
    frame = Frame.of(volume, grid)
    if all(abs(line.step) <= 1 for line in frame.lines):
        return Window.of(volume.data, grid.percentiles)
    return Window.of(frame.enter(volume)[tuple(line.inside for line in frame.lines)], grid.percentiles)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _line(count: int, spacing: float, flip: bool, grid: Grid, k: int) -> Line:
    """RAS axis k of the network's grid over `count` voxels of `spacing` mm, centred on the same field of view."""
    low, high = grid.spacing[k]
    inside = low * (1 - _TIGHT) <= spacing <= high * (1 + _TIGHT)
    step = 1.0 if inside else min(max(spacing, low), high) / spacing
    here = int(np.ceil(count / step - 1e-3))  # new voxels that cover the field of view
    size = grid.size[k] or -(-here // grid.multiple[k]) * grid.multiple[k]
    start = (count - 1) / 2 - step * (here - 1) / 2 - step * ((size - here) // 2)
    start = float(round(start)) if inside else start
    return Line(count, size, count - 1 - start, -step) if flip else Line(count, size, start, step)


def _move(x: np.ndarray, lines: tuple[Line, ...], fill: float, nearest: bool) -> np.ndarray:
    """Take x along its axes and set it into a field of `fill`; interpolation does not leave the range of x."""
    copied = nearest or all(line.copies for line in lines)
    out = np.full([line.size for line in lines], fill, dtype=x.dtype if copied else np.result_type(x, np.float32))
    low, high = (None, None) if copied else (x.min(), x.max())
    for axis in sorted(range(3), key=lambda k: (not lines[k].copies, lines[k].size / lines[k].count)):  # cheapest first
        x = lines[axis].take(x, axis, nearest)
    if not copied:
        x = np.clip(x, low, high)
    out[tuple(line.inside for line in lines)] = x
    return out


@lru_cache(maxsize=16)
def _weights(line: Line) -> np.ndarray:
    """Interpolation along a line as a matrix [inside, count] float32, edges held: cubic convolution (Keys, 1981),
    after a Gaussian that widens one old voxel to one new one where the new ones are wider (against aliasing)."""
    at = line.start + line.step * np.arange(line.inside.start, line.inside.stop)
    first = np.floor(at).astype(int)
    weights = np.zeros((len(at), line.count))
    for tap in range(-1, 3):
        d = np.abs(at - (first + tap))
        near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        w = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
        np.add.at(weights, (np.arange(len(at)), np.clip(first + tap, 0, line.count - 1)), w)
    if (wider := abs(line.step)) > 1:
        weights = weights @ _gaussian(line.count, np.sqrt((wider**2 - 1) / (8 * np.log(2))))
    return weights.astype(np.float32)


def _gaussian(count: int, sigma: float) -> np.ndarray:
    """Smoothing by a Gaussian of `sigma` voxels, cut at 4 sigma, edges held: a matrix [count, count]."""
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    out = np.zeros((count, count))
    for offset, w in zip(range(-reach, reach + 1), kernel):
        np.add.at(out, (np.arange(count), np.clip(np.arange(count) + offset, 0, count - 1)), w)
    return out

"""Missing slices of one stack: those named, those that hold nothing, or those between acquired ones (a denser stack).

The network knows stacks of so many slices at one spacing. A stack of thick slices is laid into such a grid with each
acquired slice in its place and the places between them missing; a long one is worked through in windows that overlap.
What was acquired comes back bit for bit. Beyond the network's field of view neighbours are interpolated.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.interpolate import CubicSpline

from ..core.contract import Batch, Grid, Progress, share
from ..core.errors import InputError
from ..core.rng import Rng
from ..data.frame import Frame
from ..data.intensity import Window
from ..data.volume import Study, Volume
from .system import Model

_APEX_TO_BASE = (1.0, -1.0, 1.0)  # in RAS+ the base of the heart lies to the right, behind and above the apex


@dataclass(frozen=True, eq=False)
class Stack:
    """A completed stack. `volume`: on the grid that came in, or a denser one; `made`: the slices of it that are
    synthetic; `spread`: their SD over samples (0 elsewhere), None for one sample; `axis`: along which slices lie."""

    volume: Volume
    made: tuple[int, ...]
    axis: int
    spread: Volume | None
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]
    seconds: float


def knows_stacks(config: Any) -> bool:
    """Whether a method's config is of one that makes slices."""
    return vars(config).get("layout") == "slices"


def upright(study: Study) -> Study:
    """A study whose stacks have their slices last and stand upright, as a network of stacks is to see them."""
    volumes = {}
    for name, volume in study.volumes.items():
        axis = slice_axis(volume)
        data = np.moveaxis(volume.data, axis, -1)
        volumes[name] = Volume(data, straightened(volume.affine, axis), path=volume.path)
    return dataclasses.replace(study, volumes=volumes)


def parse_slices(text: str, count: int) -> tuple[int, ...]:
    """`8:16` or `3,5,8:16` (from 0, ends excluded) as slice numbers; InputError if they are not in the stack."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?::(\d+))?\s*", part)
        if match is None:
            raise InputError(f"--missing-slices {text}: write it as 8:16 or 3,5,8:16, counted from 0, ends excluded.")
        first = int(match[1])
        found |= set(range(first, int(match[2]) if match[2] else first + 1))
    if not found or max(found) >= count:
        raise InputError(f"--missing-slices {text}: the stack has slices 0 to {count - 1}; choose among them.")
    return tuple(sorted(found))


def slice_axis(volume: Volume) -> int:
    """The voxel axis along which slices lie: that of the largest spacing, the last of equals."""
    return int(2 - np.argmax(np.round(volume.spacing, 3)[::-1]))


def empty_slices(volume: Volume) -> tuple[int, ...]:
    """The slices that hold nothing: all zero, or a NaN somewhere. InputError if that is all of them."""
    data = np.moveaxis(volume.data, slice_axis(volume), -1)
    hollow = (data == 0).all((0, 1)) | np.isnan(data).any((0, 1))
    if hollow.all():
        raise InputError(f"{volume.name}: every slice is empty; give a stack in which some were acquired.")
    return tuple(int(k) for k in np.flatnonzero(hollow))


def complete_slices(
    model: Model, volume: Volume, missing: Sequence[int] = (), *, spacing_z: float | None = None, samples: int = 1,
    seed: int = 0, steps: int | None = None, progress: Progress | None = None,
) -> Stack:  # fmt: skip
    """Make the slices `missing` (in addition to those that hold nothing), or with `spacing_z` (mm) a denser stack.

    InputError: the model knows no stacks, nothing is missing, or nothing is there.
    """
    start = time.perf_counter()
    config = model.method.config
    if not knows_stacks(config):
        raise InputError(
            f"the model makes {', '.join(model.modalities)}, not slices of a stack; give one trained for slices "
            "(amodal train copedit DATASET --preset small:heart)."
        )
    if samples < 1:
        raise InputError(f"samples={samples}: choose at least 1.")
    axis = slice_axis(volume)
    gone = sorted({*missing, *empty_slices(volume)})
    there = np.setdiff1d(np.arange(volume.shape[axis]), gone)
    if not len(there):
        raise InputError(f"{volume.name}: every slice is missing; give a stack in which some were acquired.")
    factor = _factor(volume, axis, spacing_z)
    if not gone and factor == 1:
        raise InputError(
            f"{volume.name}: no slice is empty; name slices with --missing-slices, or a spacing with --spacing-z."
        )
    dense = dense_stack(model, volume, there, factor)
    method = model._with()
    method.config = dataclasses.replace(config, steps=method.steps_for(samples) if steps is None else steps)
    draws = [_draw(method, dense, seed, k, share(progress, k, samples)) for k in range(samples)]
    places = slice(None, None, dense.inner // factor)
    mean = dense.home(np.mean(draws, axis=0))[..., places]
    spread = dense.home(np.std(draws, axis=0, ddof=1), width=True)[..., places] if samples > 1 else None
    done = _stack(volume, axis, factor, there, mean, spread)
    notes = _notes(model, volume, axis, dense, done)
    seconds = time.perf_counter() - start
    return dataclasses.replace(done, notes=notes, provenance=model.provenance(method, samples, seed), seconds=seconds)


@dataclass(frozen=True, eq=False)
class Dense:
    """A stack on the network's spacing, slices last: `values` [X, Y, Z], missing ones interpolated; `there` bool [Z];
    `inner` places from one acquired slice to the next; the frame to the network's plane; what becomes -1 and 1."""

    values: np.ndarray
    there: np.ndarray
    inner: int
    frame: Frame
    window: Window
    entered: np.ndarray  # [X, Y, Z] of the frame, in [-1, 1]

    @property
    def shown(self) -> np.ndarray:
        """`there`, in the order of the frame's slices."""
        return self.there[::-1] if self.frame.lines[2].step < 0 else self.there

    def placed(self, length: int, start: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """A window of `length` slices from `start` on (None: around the middle): images [X, Y, length] in [-1, 1], and
        which of its slices were acquired."""
        depth = len(self.there)
        start = (depth - length) // 2 if start is None else start
        part = slice(max(start, 0), min(start + length, depth))
        place = slice(part.start - start, part.stop - start)
        images, shown = np.full((*self.entered.shape[:2], length), -1, np.float32), np.zeros(length, bool)
        images[..., place], shown[place] = self.entered[..., part], self.shown[part]
        return images, shown

    def home(self, x: np.ndarray, width: bool = False) -> np.ndarray:
        """[X, Y, Z] of the frame in [-1, 1] as intensities on the stack's own plane, interpolated beyond the frame;
        `width`: a spread rather than a level, 0 beyond it."""
        inside = self.frame.leave(np.ones(self.frame.shape, np.float32), fill=0.0) > 0.999
        made = self.frame.leave(x.astype(np.float32))
        if width:
            return np.where(inside, made * 0.5 * (self.window.hi - self.window.lo), np.float32(0))
        return np.where(inside, self.window.leave(made), self.values)


def _factor(volume: Volume, axis: int, spacing_z: float | None) -> int:
    """How many times denser the output is."""
    if spacing_z is None:
        return 1
    here = volume.spacing[axis]
    if not 0 < spacing_z < here * 0.999:
        near = f"the slices lie {here:.3g} mm apart; choose less, such as {here / 2:.3g}"
        raise InputError(f"--spacing-z {spacing_z:g}: {near}.")
    return max(2, round(here / spacing_z))


def _inner(volume: Volume, axis: int, factor: int, config: Any) -> int:
    """How many places of the network's grid from one acquired slice to the next, a multiple of `factor`: as near to its
    spacing as fits its length, where that can be."""
    wanted, count = volume.spacing[axis] / config.spacing[2], volume.shape[axis]
    most = max(1, (config.size[2] - 1) // max(1, count - 1))
    near = max(1, round(wanted / factor))
    while near > 1 and near * factor > most:
        near -= 1
    return near * factor


def dense_stack(model: Model, volume: Volume, there: np.ndarray, factor: int = 1) -> Dense:
    """A stack laid into the network's grid from its slices `there`, to be made `factor` times denser."""
    axis = slice_axis(volume)
    there = there[there < volume.shape[axis]]
    inner = _inner(volume, axis, factor, model.method.config)
    data = np.moveaxis(volume.data, axis, -1)[..., there]
    depth = (volume.shape[axis] - 1) * inner + 1
    values = interpolated(data, there * inner, np.arange(depth))
    shown = np.zeros(depth, bool)
    shown[there * inner] = True
    grid, window = model.grid, Window.of(data, model.grid.percentiles)
    plane = Grid((*grid.size[:2], 0), (*grid.spacing[:2], (1e-6, 1e6)), grid.percentiles, (1, 1, 1))
    straight = Volume(values, straightened(volume.affine, axis, inner), path=volume.path)
    frame = Frame.of(straight, plane)
    return Dense(values, shown, inner, frame, window, window.enter(frame.enter(straight)))


def straightened(affine: np.ndarray, axis: int, inner: int = 1) -> np.ndarray:
    """The affine of a stack with its slices last, as if it stood upright: slices along z from apex to base, whatever
    way it lies in the body; in the plane the nearest axes."""
    columns = affine[:3, [k for k in range(3) if k != axis] + [axis]]
    sizes = np.linalg.norm(columns, axis=0)
    a, b, through = (columns / sizes).T
    swapped = abs(a[0]) + abs(b[1]) < abs(a[1]) + abs(b[0])
    rows = (1, 0) if swapped else (0, 1)
    out = np.eye(4)
    out[:3, :3] = 0
    for k, (row, column) in enumerate(zip(rows, (a, b))):
        out[row, k] = sizes[k] * (1 if column[row] >= 0 else -1)
    out[2, 2] = sizes[2] / inner * (1 if through @ np.array(_APEX_TO_BASE) >= 0 else -1)
    return out


def interpolated(data: np.ndarray, places: np.ndarray, wanted: np.ndarray, cubic: bool = False) -> np.ndarray:
    """Slices [X, Y, N] at `places` -> at `wanted`, linearly or by a cubic spline, held beyond the ends."""
    inside = np.clip(wanted, places[0], places[-1])
    if len(places) == 1:
        return np.repeat(data, len(wanted), axis=2)
    if cubic:
        return CubicSpline(places, data, axis=2)(inside).astype(np.float32)
    high = np.clip(np.searchsorted(places, inside), 1, len(places) - 1)
    low = high - 1
    weight = ((inside - places[low]) / (places[high] - places[low])).astype(np.float32)
    return data[..., low] * (1 - weight) + data[..., high] * weight


def _draw(method: Any, dense: Dense, seed: int, sample: int, progress: Progress | None) -> np.ndarray:
    """One sample [X, Y, Z] of the frame in [-1, 1]; every slice from the window in whose middle it lies most."""
    depth, length = len(dense.there), method.config.size[2]
    starts = windows(depth, length)
    out, best = np.array(dense.entered), np.full(depth, -np.inf)
    device = next(method.parameters()).device
    for number, start in enumerate(starts):
        images, shown = dense.placed(length, start)
        tick = share(progress, number, len(starts))
        if shown.any():
            batch = Batch(torch.from_numpy(images)[None, None], torch.from_numpy(shown).reshape(1, 1, 1, 1, -1))
            made = method.complete(batch.to(device), Rng.of(seed, 1, "slices", sample, number), tick)
            images = made[0, 0].float().cpu().numpy()
        middle = np.minimum(np.arange(depth) - start, start + length - 1 - np.arange(depth)).astype(float)
        better = np.flatnonzero((middle >= 0) & (middle > best))
        out[..., better], best[better] = images[..., better - start], middle[better]
    return out


def windows(depth: int, length: int) -> list[int]:
    """Where windows of `length` slices begin that cover `depth`: one around a short stack, else half overlapping."""
    if depth <= length:
        return [(depth - length) // 2]
    return sorted({*range(0, depth - length, length // 2), depth - length})


def _stack(
    volume: Volume, axis: int, factor: int, there: np.ndarray, mean: np.ndarray, spread: np.ndarray | None
) -> Stack:
    """Acquired slices as they came, the others as they were made (slices last), on the way back to the stack's axes."""
    data = np.moveaxis(np.nan_to_num(volume.data), axis, -1)
    out = np.array(mean, np.float32)
    out[..., there * factor] = data[..., there]
    made = tuple(int(k) for k in np.setdiff1d(np.arange(out.shape[-1]), there * factor))
    affine = volume.affine.copy()
    affine[:3, axis] /= factor
    header = _header(volume) if factor == 1 else None
    full = Volume(np.moveaxis(out, -1, axis), affine, header)
    if spread is not None:
        spread[..., there * factor] = 0
    wide = None if spread is None else Volume(np.moveaxis(spread, -1, axis), affine, header)
    return Stack(full, made, axis, wide, (), {}, 0.0)


def _header(volume: Volume) -> nib.Nifti1Header | None:
    return None if volume.header is None else volume.header.copy()


def _notes(model: Model, volume: Volume, axis: int, dense: Dense, done: Stack) -> tuple[str, ...]:
    here, known = volume.spacing[axis] / dense.inner, model.grid.spacing[2][0]
    acquired = int(dense.there.sum())
    found = [f"{len(done.made)} of {done.volume.shape[axis]} slices were made, from {acquired} acquired ones."]
    if abs(np.log(here / known)) > np.log(1.35):
        found.append(f"The network saw slices {here:.2g} mm apart and was trained on {known:.2g} mm.")
    if dense.inner > 1 and volume.spacing[axis] > 1.5 * known:
        found.append("The acquired slices are thicker than those between them, which the network makes thin.")
    if dense.frame.cropped:
        found.append("Beyond the network's field of view slices are interpolated.")
    return tuple(found)

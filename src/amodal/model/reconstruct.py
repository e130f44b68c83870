"""A model makes images from k-space: alone, or with clean images of the subject, or with what is missing beside it.

The prior knows magnitudes windowed to [-1, 1]; k-space has the scanner's own scale. The scale is told from the CG-SENSE
image, whose window is taken as an image's own would be: 0 to the upper percentile of its bright voxels. What leaves is
the magnitude in the units of the k-space (the root of the sum of squares of the coils' images).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..core.contract import Batch, Grid, Measurement, Progress, share
from ..core.errors import InputError
from ..core.rng import Rng
from ..data.frame import Frame
from ..data.intensity import Window
from ..data.kspace import KSpace
from ..data.volume import Study, Volume, same_grid
from ..methods import METHODS
from ..physics import classic, stacking
from ..physics.prepare import misfit, oriented, settle
from .system import Completion, Model, _moments

TASK = "reconstruction"
ANY = (0.05, 100.0)  # mm: voxels of k-space stay as they are, whatever their size


class Kept(NamedTuple):
    """The relative error of samples kept back by the weight of the model's image, and the weight it was given."""

    errors: Mapping[float, float]
    weight: float


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """`full`: the completed study. By measured modality: `scans`, as they were used; `beside`, reconstructions without
    the model, magnitudes [X, Y, Z] on the reference's grid; `misfits`, ||A x - y|| over the noise by method, best 1;
    `kept`, where it was validated, what the samples kept back say."""

    full: Completion
    scans: Mapping[str, Measurement]
    beside: Mapping[str, Mapping[str, np.ndarray]]
    misfits: Mapping[str, Mapping[str, float]]
    kept: Mapping[str, Kept] = field(default_factory=dict)


def check(model: Model, measured: Sequence[str], made: Sequence[str] = ()) -> None:
    """InputError if this model cannot reconstruct, or does not know a modality that was measured or is to be made."""
    if TASK not in METHODS[model.name].TASKS:
        able = ", ".join(name for name, module in METHODS.items() if TASK in module.TASKS)
        raise InputError(f"a model of method {model.name} makes nothing from k-space; use one of {able}.")
    if foreign := [name for name in (*measured, *made) if name not in model.modalities]:
        known = ", ".join(model.modalities)
        raise InputError(f"the model does not know {foreign[0]}; it was trained on {known}, name one of them.")


def home(kspace: KSpace, study: Study | None, spacing: Sequence[float] | None, orientation: str | None) -> Volume:
    """An empty volume where the image will lie: by the file's own geometry; else the study's grid, slice by slice; else
    voxels of `spacing` mm with axes that point to `orientation` (RAS: to the right, front, top)."""
    shape = (*kspace.matrix, len(kspace.data))
    empty = np.zeros(shape, np.float32)
    if kspace.affine is not None:
        return Volume(empty, kspace.affine)
    if study is not None and len(study):
        reference = study[study.reference]
        if reference.shape != shape:
            raise InputError(
                f"{kspace.path.name} has {_x(shape)} voxels (X, Y, slices) and {reference.name} {_x(reference.shape)}; "
                "without geometry in the k-space file they must be one grid."
            )
        return Volume(empty, reference.affine, reference.header, reference.path)
    return Volume(empty, _affine(shape, spacing or kspace.spacing or (1.0, 1.0, 1.0), orientation or "RAS"))


def reconstruct(
    model: Model, measured: Mapping[str, KSpace], reference: Volume, study: Study | None = None,
    missing: Sequence[str] = (), samples: int = 1, seed: int = 0, *, steps: int | None = None,
    sampler: str | None = None, validate: bool = False, progress: Progress | None = None,
) -> Reconstruction:  # fmt: skip
    """Images of the measured modalities, and of `missing` ones, from k-space and the clean images of a study.

    All lie on the grid of `reference` (see `home`). With `samples` K > 1 the images are the mean of K draws, `spread`
    their SD. The same seed gives the same image. With `validate` samples that are kept back from a second run decide
    how far the model's image is trusted beside L1-wavelet's (see `physics.stacking`).
    """
    began = time.perf_counter()
    check(model, tuple(measured), tuple(missing))
    if samples < 1:
        raise InputError(f"samples={samples}: choose at least 1.")
    made = tuple(m for m in model.modalities if m in measured or m in missing)
    given = (study or Study("subject", {})).only(*[m for m in model.modalities if m not in made])
    frame = _frame(reference, model.grid, given)
    notes = list(_oddities(reference, model.grid))
    scans: dict[str, Measurement] = {}
    for name, kspace in measured.items():
        scans[name], said = _scan(model, kspace, frame, name)
        notes += [f"{name}: {note}" for note in (*kspace.notes, *said)]
    method = model._with(posterior=sampler)
    method.config = method.measuring(steps, samples)
    parts = {name: stacking.keep_back(scan, seed) for name, scan in scans.items()} if validate else {}
    runs = samples * (1 + validate)

    def draw(scans: Mapping[str, Measurement], first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        ticks = [share(progress, first + k, runs) for k in range(samples)]
        return _moments([_draw(model, method, given, frame, scans, seed, k, tick) for k, tick in enumerate(ticks)])

    mean, spread = draw(scans)
    windows = {name: Window(*scan.window) for name, scan in scans.items()}
    finals = {name: _magnitudes(model, mean, scan, name) for name, scan in scans.items()}
    plain = {name: {key: _slices(make, scan) for key, make in classic.ALL.items()} for name, scan in scans.items()}
    kept: dict[str, Kept] = {}
    again = draw({name: rest for name, (rest, _) in parts.items()}, samples)[0] if parts else mean
    for name, (rest, held) in parts.items():
        tried = stacking.blends(rest, _magnitudes(model, again, rest, name))
        kept[name] = Kept(*stacking.errors(scans[name], held, tried))
        if stacking.lines(held):
            notes.append(f"{name}: whole lines were kept back, which widens the gaps: the weight errs to caution.")
        finals[name] = stacking.blends(scans[name], finals[name], plain[name]["L1-wavelet"])[kept[name].weight]
        _replace(mean[model.modalities.index(name)], finals[name].abs(), scans[name])
    full = _completion(
        model, given, made, reference, frame, windows, (mean, spread), samples,
        model.provenance(method, samples, seed), tuple(notes), began,
    )  # fmt: skip
    beside, misfits = {}, {}
    for name, scan in scans.items():
        beside[name] = {key: _leave(image.abs(), scan, frame) for key, image in plain[name].items()}
        images = {**plain[name], "model": finals[name]}
        misfits[name] = {key: float(misfit(scan, image).square().mean().sqrt()) for key, image in images.items()}
    return Reconstruction(full, scans, beside, misfits, kept)


def _frame(reference: Volume, grid: Grid, given: Study) -> Frame:
    """From the k-space's grid to the network's: flips, swaps and padding, never interpolation."""
    for name, volume in given.volumes.items():
        if not same_grid(volume, reference):
            raise InputError(f"{name} does not lie on the grid of the k-space; resample it first.")
    frame = Frame.of(reference, dataclasses.replace(grid, spacing=(ANY, ANY, ANY)))
    if frame.order[2] != 2:
        raise InputError(
            f"the slices of the k-space are not axial ({reference.orientation}); the network sees axial slices, "
            "give an axial scan."
        )
    if any(line.size < line.count for line in frame.lines):
        raise InputError(
            f"the k-space has {_x(reference.shape)} voxels and the network {_x(frame.shape)}; crop the field of view."
        )
    return frame


def _oddities(reference: Volume, grid: Grid) -> list[str]:
    size = np.linalg.norm(reference.affine[:3, :3], axis=0)
    low, high = grid.spacing[0]
    if low * 0.99 <= size[:2].min() and size[:2].max() <= high * 1.01:
        return []
    return [f"Voxels of {size[0]:.2f} x {size[1]:.2f} mm; the network was trained on {low:g} to {high:g} mm."]


def _scan(model: Model, kspace: KSpace, frame: Frame, name: str) -> tuple[Measurement, tuple[str, ...]]:
    """The measurement on the network's axes, with its window."""
    device = next(model.method.parameters()).device
    slices = frame.lines[2].count
    if len(kspace.data) != slices:
        raise InputError(f"{name} has {len(kspace.data)} slices and the image {slices}; give k-space of all.")
    maps, scan = (None if v is None else torch.from_numpy(v) for v in (kspace.maps, kspace.scan))
    data, sampled = (torch.from_numpy(np.require(v, requirements="W")) for v in (kspace.data, kspace.sampled))
    measured, notes = settle(data, sampled, maps, scan, kspace.noise)
    swap = frame.order[0] == 1
    (x, y, z) = frame.lines
    measured = oriented(measured.to(device), swap, (x.step < 0, y.step < 0), z.step < 0)
    corner = (_corner(x), _corner(y))
    window = scale(measured, model.grid.percentiles)
    return dataclasses.replace(measured, corner=corner, window=(window.lo, window.hi)), notes


def scale(measured: Measurement, percentiles: tuple[float, float]) -> Window:
    """The window of what was measured, before the image is known: from 0 to the window's end of the CG-SENSE image."""
    sense = _slices(classic.cg_sense, measured).abs().cpu().numpy()
    return Window(0.0, Window.of(sense, percentiles).hi)


def _corner(line: Any) -> int:
    """The network's voxel where the reference's field of view begins."""
    return round(-line.start) if line.step > 0 else round(line.start - (line.count - 1))


def _slices(make: Any, measured: Measurement) -> Tensor:
    """A reconstruction [Z, X, Y], slice by slice: the coils of one slice fit a processor's cache."""
    return torch.cat([make(measured[z : z + 1]) for z in range(len(measured))])


def _native(images: Tensor, scan: Measurement) -> Tensor:
    """The part of the network's images [Z, X, Y] that was measured."""
    (i, j), (a, b) = scan.corner, scan.kspace.shape[-2:]
    return images[..., i : i + a, j : j + b].to(scan.kspace.device)


def _magnitudes(model: Model, made: np.ndarray, scan: Measurement, name: str) -> Tensor:
    """The model's image of a modality on the measurement's grid, in the units of the k-space: [Z, X, Y]."""
    own = torch.from_numpy(made[model.modalities.index(name)]).movedim(-1, 0)
    return Window(*scan.window).leave(2 * _native(own, scan) - 1)


def _replace(made: np.ndarray, images: Tensor, scan: Measurement) -> None:
    """Puts magnitudes [Z, X, Y] in place of what the network made, [X, Y, Z] in [0, 1]."""
    (i, j), (a, b) = scan.corner, images.shape[-2:]
    low, high = scan.window
    made[i : i + a, j : j + b] = ((images - low) / (high - low)).float().cpu().movedim(0, -1).numpy()


def _leave(images: Tensor, scan: Measurement, frame: Frame) -> np.ndarray:
    """Images [Z, X, Y] of the measurement's grid as [X, Y, Z] on the reference's."""
    whole = np.zeros(frame.shape, np.float32)
    (i, j), (a, b) = scan.corner, images.shape[-2:]
    whole[i : i + a, j : j + b] = images.float().cpu().movedim(0, -1).numpy()
    return frame.leave(whole)


def _draw(
    model: Model, method: Any, given: Study, frame: Frame, scans: Mapping[str, Measurement], seed: int, sample: int,
    progress: Progress | None,
) -> np.ndarray:  # fmt: skip
    """One sample [M, X, Y, Z] in [-1, 1]."""
    stack, there = model.enter(given, frame)
    images = torch.from_numpy(stack).movedim(-1, 0).contiguous()
    present = torch.from_numpy(there).reshape(1, -1, 1, 1).expand(len(images), -1, 1, 1)
    rng = Rng.of(seed, len(images), "reconstruct", sample)
    device = next(model.method.parameters()).device
    batch = Batch(images, present, method.encode_metadata([given.metadata] * len(images)), scans)
    out = method.complete(batch.to(device), rng, progress).float().cpu()
    return out.movedim(0, -1).numpy()


def _completion(
    model: Model, given: Study, made: tuple[str, ...], reference: Volume, frame: Frame, windows: Mapping[str, Window],
    moments: tuple[np.ndarray, np.ndarray], samples: int, provenance: dict[str, Any], notes: tuple[str, ...],
    began: float,
) -> Completion:  # fmt: skip
    volumes, spread, scaled, wide = dict(given.volumes), {}, {}, {}
    for name in made:
        unit, sd = (frame.leave(x[model.modalities.index(name)], fill=0.0) for x in moments)
        scale = windows.get(name) or model.scale(name)
        text = "RECONSTRUCTED from k-space" if name in windows else f"SYNTHETIC {name}, not acquired"
        volumes[name] = reference.like(scale.leave(2 * unit - 1).astype(np.float32), f"{text}, amodal {__version__}")
        scaled[name] = unit
        if samples > 1:
            wide[name] = sd
            sd = scale.spread(2 * unit - 1, 2 * sd).astype(np.float32)
            spread[name] = reference.like(sd, f"{text}: SD over {samples} samples")
    study = dataclasses.replace(given, volumes=volumes, notes=given.notes + notes)
    return Completion(
        study=study, inputs=given.modalities, made=made, scaled=scaled, spread=spread, scaled_spread=wide,
        provenance=provenance, notes=study.notes, seconds=time.perf_counter() - began,
    )  # fmt: skip


def _affine(shape: Sequence[int], spacing: Sequence[float], orientation: str) -> np.ndarray:
    """Voxels to RAS+ mm, centred on the field of view."""
    axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    letters = orientation.upper()
    if len(letters) != 3 or len({axes.get(c, (None,))[0] for c in letters} - {None}) != 3:
        raise InputError(f"orientation {orientation!r}: say where X, Y and the slices point, such as RAS, LPS or PLS.")
    affine = np.eye(4)
    affine[:3, :3] = 0
    for k, letter in enumerate(letters):
        row, sign = axes[letter]
        affine[row, k] = sign * spacing[k]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _x(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

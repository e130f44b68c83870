"""Where the tissues lie: from the MNI152 tissue maps that ship with nilearn, or from a label map of one brain."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from ...core.errors import InputError

PARTS: tuple[str, ...] = (
    "white",
    "cortex",
    "thalamus",
    "striatum",
    "pallidum",
    "ventricle",
    "csf",
    "choroid",
    "vessel",
    "dura",
)

# FreeSurfer label -> tissue; what is listed twice is a mixture with these weights
_LABELS: dict[str, dict[str, float]] = {
    "2 41 7 46 77 78 79 85 251 252 253 254 255": {"white": 1.0},
    "16 28 60": {"white": 0.75, "thalamus": 0.25},
    "3 42 8 47 17 53 18 54": {"cortex": 1.0},
    "10 49 9 48": {"thalamus": 1.0},
    "11 50 12 51 26 58": {"striatum": 1.0},
    "13 52": {"pallidum": 1.0},
    "4 43 5 44 14 15 72": {"ventricle": 1.0},
    "24 122 257": {"csf": 1.0},
    "31 63": {"choroid": 0.6, "ventricle": 0.4},
    "30 62 29 61": {"vessel": 0.3, "white": 0.7},
}
_CEREBELLUM_AND_STEM = (7, 46, 8, 47, 16, 15)


@dataclass(frozen=True)
class Anatomy:
    """A brain that subjects are made from.

    `fractions` [P, X, Y, Z] float16: how much of each voxel is each of `PARTS` (sum at most 1, 0 outside the brain).
    `affine`: voxel to millimetres, RAS+, with the middle of the brain at 0. `ventricles`: signed distance to them in
    mm, negative inside. `cerebrum`: 1 where lesions may lie, 0 in cerebellum and brain stem. `size`: usual head scale.
    `folds`: strength of the random folding, for maps that are an average of many brains.
    """

    name: str
    fractions: np.ndarray
    affine: np.ndarray
    ventricles: np.ndarray
    cerebrum: np.ndarray
    size: float = 1.0
    folds: float = 0.0

    @property
    def spacing(self) -> float:
        return float(self.affine[0, 0])

    @property
    def extent(self) -> np.ndarray:
        """Width of the brain (mm) along x, y, z."""
        inside = self.fractions.sum(0, dtype=np.float32) > 0.5
        spans = [np.flatnonzero(inside.any(tuple({0, 1, 2} - {k}))) for k in range(3)]
        return np.array([(s[-1] - s[0] + 1) * self.spacing for s in spans])


@lru_cache(maxsize=8)
def load(path: str | None = None, index: int = 0) -> Anatomy:
    """The template, or the label map at `path` (the index-th of a folder, counted round)."""
    if path is None:
        return template()
    files = label_files(path)
    return from_labels(files[index % len(files)])


def label_files(path: str) -> list[Path]:
    """The label maps that a file or a folder stands for."""
    where = Path(path)
    files = sorted(where.glob("*.nii*")) if where.is_dir() else [where]
    if not files or not files[0].is_file():
        raise InputError(
            f"{where}: no label map there; give a NIfTI file of FreeSurfer-like labels, or a folder of them."
        )
    return files


def template() -> Anatomy:
    """The symmetric MNI152 2009a tissue maps of nilearn; its average brain is sharpened and given sulci."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise InputError(
            'the brain template comes with nilearn, which is not installed: run pip install "amodal[phantom]".'
        )
    folder = Path(spec.origin).parent / "datasets" / "data"
    names = [folder / f"mni_icbm152_{k}_tal_nlin_sym_09a_converted.nii.gz" for k in ("t1", "gm", "wm")]
    if not all(name.is_file() for name in names):
        raise InputError(f'{names[0]}: not in this nilearn; install another version: pip install "nilearn>=0.11".')
    images = [nib.load(name) for name in names]
    t1, grey, white = (np.asarray(image.dataobj, np.float32) / 255 for image in images)  # type: ignore[attr-defined]
    box = tuple(slice(max(s.start - 4, 0), s.stop + 4) for s in ndimage.find_objects((t1 > 0).astype(np.int8))[0])
    origin = np.array([s.start for s in box])
    affine = np.array(images[0].affine, np.float64)  # type: ignore[attr-defined]
    affine[:3, 3] += affine[:3, :3] @ origin
    t1, grey, white = t1[box], grey[box], white[box]
    mask = ndimage.binary_fill_holes(t1 > 0)
    # the average has shallow sulci; dark valleys of its T1 show where they run
    valley = np.clip((ndimage.gaussian_filter(t1, 2.5) - t1) * 6 - 0.05, 0, 1) * (white < 0.3) * mask
    fluid = np.clip(1 - grey - white, 0, 1) * mask + valley * grey
    grey = grey * (1 - valley)
    mm = _millimetres(t1.shape, affine)
    return _assemble("MNI152", white, grey, fluid, mask, affine, mm)


def _assemble(
    name: str,
    white: np.ndarray,
    grey: np.ndarray,
    fluid: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    mm: list[np.ndarray],
) -> Anatomy:
    x, y, z = abs(mm[0]), mm[1], mm[2]
    inner = _soft((x / 26) ** 2 + ((y + 14) / 56) ** 2 + ((z - 8) / 30) ** 2)  # ventricles lie in here
    third = _soft((x / 5) ** 2 + ((y + 14) / 20) ** 2 + ((z - 2) / 12) ** 2)
    fourth = _soft((x / 12) ** 2 + ((y + 45) / 12) ** 2 + ((z + 33) / 14) ** 2)
    horns = _soft(((x - 32) / 12) ** 2 + ((y + 22) / 26) ** 2 + ((z + 12) / 10) ** 2)
    atrium = _soft(((x - 29) / 10) ** 2 + ((y + 46) / 28) ** 2 + ((z - 5) / 15) ** 2)
    cistern = (z < -4) & (y > -30) & (x < 12) | (y < -26) & (x < 12) & (z > -16) & (z < 16)
    ventricle = fluid * np.clip(np.where(cistern, 0, inner) + third + fourth + horns + atrium, 0, 1)
    sulcal = fluid - ventricle
    thalamus = _soft(((x - 11) / 10) ** 2 + ((y + 18 + 0.25 * (x - 10)) / 14.5) ** 2 + ((z - 7) / 10) ** 2)
    pallidum = _soft(((x - 19.5 + 0.35 * (y + 5)) / 5) ** 2 + ((y + 5) / 10) ** 2 + (z / 7.5) ** 2)
    putamen = _soft(((x - 26.5 + 0.25 * (y - 2)) / 6) ** 2 + ((y - 2) / 17) ** 2 + ((z - 1) / 11) ** 2)
    caudate = _soft(((x - 12) / 7) ** 2 + ((y - 12) / 11) ** 2 + ((z - 8) / 12) ** 2)
    tail = _soft(((x - 16) / 5) ** 2 + ((y + 4) / 22) ** 2 + ((z - 20 + 0.1 * abs(y)) / 6) ** 2)
    solid = np.clip(white + grey, 0, 1)
    parts = dict.fromkeys(PARTS, np.zeros_like(white))
    parts["pallidum"] = pallidum * solid
    parts["thalamus"] = thalamus * solid * np.clip(1.6 * grey + 0.5, 0, 1)
    parts["striatum"] = np.clip(putamen + caudate + tail, 0, 1) * grey * (1 - pallidum) * (1 - thalamus)
    deep = parts["pallidum"] + parts["thalamus"] + parts["striatum"]
    left = np.clip(1 - deep / np.maximum(solid, 1e-3), 0, 1)
    # what is left of grey matter between these nuclei is the internal capsule, blurred
    capsule = _soft((x / 34) ** 2 + ((y + 6) / 34) ** 2 + ((z - 8) / 18) ** 2) * 0.85
    parts["white"] = (white + grey * capsule) * left
    parts["cortex"] = grey * (1 - capsule) * left
    parts["ventricle"], parts["csf"] = ventricle, sulcal
    cerebrum = 1.0 - _soft((x / 60) ** 2 + ((y + 60) / 42) ** 2 + ((z + 44) / 30) ** 2) - (z < -16) * (x < 22) * (y < 0)
    return _finish(name, parts, mask, affine, np.clip(cerebrum, 0, 1).astype(np.float32), 0.95, 1.0, sharpen=1.6)


def from_labels(path: Path) -> Anatomy:
    """A label map of one brain, about 1 mm: smoothed to fractions; CSF is laid between brain and its closed hull."""
    try:
        image = nib.as_closest_canonical(nib.load(path))
        labels = np.asarray(image.dataobj).round().astype(np.int32)  # type: ignore[attr-defined]
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path}: cannot be read as a NIfTI label map ({error}); give another file.") from error
    zooms = np.sqrt((np.asarray(image.affine)[:3, :3] ** 2).sum(0))  # type: ignore[attr-defined]
    if labels.ndim != 3 or not np.isin(labels, (2, 41)).any():
        raise InputError(f"{path}: no white matter (label 2 or 41) in it; give a map with FreeSurfer labels, 3-D.")
    if abs(zooms - 1).max() > 0.05:
        labels = ndimage.zoom(labels, zooms, order=0)
    labels = np.pad(labels[tuple(ndimage.find_objects((labels > 0).astype(np.int8))[0])], 8)
    brain = labels > 0
    hull = _close(brain, 9)
    parts = dict.fromkeys(PARTS, np.zeros(labels.shape, np.float32))
    for numbers, mixture in _LABELS.items():
        member = np.isin(labels, [int(n) for n in numbers.split()]).astype(np.float32)
        for tissue, weight in mixture.items():
            parts[tissue] = parts[tissue] + weight * member
    known = sum(parts.values())
    parts["white"] = parts["white"] + (brain & (known == 0))
    parts["csf"] = parts["csf"] + (hull & ~brain)
    parts = {name: ndimage.gaussian_filter(part, 0.65) for name, part in parts.items()}
    low = ndimage.binary_dilation(np.isin(labels, _CEREBELLUM_AND_STEM), iterations=3)
    return _finish(Path(path).name.split(".")[0], parts, hull, np.eye(4), 1.0 - low.astype(np.float32), 1.0, 0.0)


def _finish(
    name: str,
    parts: dict[str, np.ndarray],
    mask: np.ndarray,
    affine: np.ndarray,
    cerebrum: np.ndarray,
    size: float,
    folds: float,
    sharpen: float = 1.0,
) -> Anatomy:
    """Sharpen, add vessels, dura and choroid plexus, centre, and measure the distance to the ventricles."""
    stack = np.stack([parts[p] for p in PARTS]).astype(np.float32)
    inside = np.clip(ndimage.gaussian_filter(mask.astype(np.float32), 0.6), 0, 1)
    stack = stack**sharpen
    stack *= inside / np.maximum(stack.sum(0), 1e-3)
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    centre = affine[:3, :3] @ [(s.start + s.stop - 1) / 2 for s in box] + affine[:3, 3]
    affine = affine.copy()
    affine[:3, 3] -= centre
    is_ventricle = _largest(stack[PARTS.index("ventricle")] + stack[PARTS.index("choroid")] > 0.5, 8)
    distance = ndimage.distance_transform_edt(~is_ventricle) - ndimage.distance_transform_edt(is_ventricle)
    _add_enhancing(stack, mask, affine)
    cerebrum = cerebrum * np.clip(abs(_millimetres(mask.shape, affine)[0]) / 3 - 1, 0, 1)  # not in the commissures
    return Anatomy(name, stack.astype(np.float16), affine, distance.astype(np.float32), cerebrum, size, folds)


def _add_enhancing(stack: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> None:
    """Turn some CSF into sagittal sinus, falx and choroid plexus, in place."""
    part = {name: stack[i] for i, name in enumerate(PARTS)}
    mm = _millimetres(mask.shape, affine)
    middle = round(-affine[0, 3] / affine[0, 0])
    path = np.ones(mask.shape, bool)
    for y in np.flatnonzero(mask[middle].any(1)):
        top = int(np.flatnonzero(mask[middle, y])[-1])
        path[middle, y, max(top - 2, 0)] = mm[2][0, 0, top] < 0
    sinus = np.clip(4.0 - ndimage.distance_transform_edt(path), 0, 1) * mask
    _replace(stack, part["vessel"], sinus.astype(np.float32), ("csf", "cortex", "white"))
    falx = np.clip(1.4 - abs(mm[0]), 0, 1) * (mm[2] > 0) * (part["csf"] > 0.2)
    _replace(stack, part["dura"], 0.8 * falx.astype(np.float32), ("csf",))
    if part["choroid"].max() < 0.1:
        near = ndimage.gaussian_filter(part["thalamus"], 2.5) > 0.12
        glomus = _soft(((abs(mm[0]) - 22) / 5) ** 2 + ((mm[1] + 24) / 6) ** 2 + ((mm[2]) / 6) ** 2)
        plexus = ndimage.gaussian_filter(np.maximum(near, glomus).astype(np.float32), 0.7)
        _replace(stack, part["choroid"], 0.7 * plexus, ("ventricle",))


def _replace(stack: np.ndarray, into: np.ndarray, share: np.ndarray, of: tuple[str, ...]) -> None:
    for name in of:
        taken = stack[PARTS.index(name)] * share
        stack[PARTS.index(name)] -= taken
        into += taken


def _soft(squared: np.ndarray) -> np.ndarray:
    """1 inside an ellipsoid given by its squared radius, falling to 0 across a thin border."""
    return np.clip((1.12 - np.sqrt(squared)) / 0.24, 0, 1).astype(np.float32)


def _close(mask: np.ndarray, radius: int) -> np.ndarray:
    """Morphological closing by a ball, by two distance maps (the array has to have room around the mask)."""
    padded = np.pad(mask, radius + 1)
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    inner = (slice(radius + 1, -radius - 1),) * 3
    return ndimage.binary_fill_holes(closed[inner] | mask)


def _largest(mask: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` largest connected pieces."""
    pieces, count = ndimage.label(mask)
    if count <= keep:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    return np.isin(pieces, np.argsort(sizes)[::-1][:keep] + 1)


def _millimetres(shape: tuple[int, ...], affine: np.ndarray) -> list[np.ndarray]:
    """Broadcastable x, y, z coordinates in mm of a grid without rotation."""
    axes: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a[:, None, None],
        lambda a: a[None, :, None],
        lambda a: a[None, None],
    ]
    return [axes[k]((np.arange(shape[k]) * affine[k, k] + affine[k, 3]).astype(np.float32)) for k in range(3)]

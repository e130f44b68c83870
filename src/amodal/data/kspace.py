"""K-space files: ISMRMRD `.h5`, fastMRI `.h5`, `.npz` and `.npy`, read as slices of coil data on a centred grid.

ISMRMRD   a group with `data` (acquisitions) and `xml`: Cartesian lines in their places, geometry from the headers
fastMRI   `kspace` [slices, coils, X, Y] or [slices, X, Y], `mask` over Y, `ismrmrd_header`
.npz      `kspace`, and where known `sampled` (or `mask`), `maps`, `noise`, `affine` (4x4, RAS+ mm) or `spacing` (mm)
.npy      [X, Y], [coils, X, Y] or [slices, coils, X, Y]; what is exactly 0 in all coils was not sampled

X is the readout, Y phase encoding, frequency 0 at N // 2, and the transform to the image is e^{+2 pi i k n / N}.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError

SUFFIXES = (".h5", ".hdf5", ".npy", ".npz")
_COPIES = 5  # of the k-space that a reconstruction holds at once: data, coil images, maps, and what is in work


@dataclass(frozen=True, eq=False)
class KSpace:
    """K-space of one contrast of one subject.

    `data` [Z, C, X, Y] complex64, 0 where not sampled; `sampled` bool [Z or 1, 1, X, Y]; `affine` takes voxels (x, y,
    slice) of the image to RAS+ mm, None if the file does not say; `spacing` mm, None likewise; `maps` [Z or 1, C, X,
    Y]; `scan` samples of noise alone [C, N]; `noise` its SD in each part, where the file states it.
    """

    data: np.ndarray
    sampled: np.ndarray
    path: Path
    affine: np.ndarray | None = None
    spacing: tuple[float, float, float] | None = None
    maps: np.ndarray | None = None
    scan: np.ndarray | None = None
    noise: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def matrix(self) -> tuple[int, int]:
        return self.data.shape[2], self.data.shape[3]


def read(path: str | Path, slices: tuple[int, int] | None = None) -> KSpace:
    """Read k-space, all of it or slices `first` to before `last`; InputError in one sentence if it is no good."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give k-space as {', '.join(SUFFIXES)}.")
    readers = {".npy": _npy, ".npz": _npz, ".h5": _h5, ".hdf5": _h5}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: k-space is read from {', '.join(SUFFIXES)}; convert it, for example to ISMRMRD.")
    return checked(readers[path.suffix.lower()](path, slices))


def checked(found: KSpace) -> KSpace:
    """The k-space itself; InputError where data, mask and maps are not numbers or do not fit each other."""
    name, data, sampled, maps = found.path.name, found.data, found.sampled, found.maps
    if not np.isfinite(data.view(np.float32)).all():
        raise InputError(f"{name}: k-space holds NaN or infinite numbers; export it again.")
    if maps is not None and (maps.shape[1:] != data.shape[1:] or len(maps) not in (1, len(data))):
        raise InputError(
            f"{name}: k-space of {_x(data.shape)} and coil maps of {_x(maps.shape)} (slices x coils x X x Y) differ; "
            "give the maps of this scan, or none and they are estimated."
        )
    if maps is not None and not np.isfinite(maps.view(np.float32)).all():
        raise InputError(f"{name}: the coil maps hold NaN or infinite numbers; export them again.")
    if not sampled.any():
        raise InputError(
            f"{name}: its mask samples nothing; give one with at least one line, and k-space that is not 0."
        )
    if not np.any(data):
        raise InputError(f"{name}: k-space is 0 wherever it was sampled; export it again.")
    return found


# ------------------------------------------------------------------------------------------------------ numpy files


def _npy(path: Path, slices: tuple[int, int] | None) -> KSpace:
    try:
        raw = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: not a readable .npy file of numbers ({_first(error)}); save it again.") from None
    data = _stack(raw, path, slices)
    return KSpace(data, _nonzero(data), path)


def _npz(path: Path, slices: tuple[int, int] | None) -> KSpace:
    try:
        with np.load(path, allow_pickle=False) as file:
            raw = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable .npz file of numbers ({_first(error)}); save it again.") from None
    if "kspace" not in raw:
        raise InputError(f"{path}: holds {', '.join(raw) or 'nothing'}; name the array of k-space `kspace`.")
    data = _stack(raw["kspace"], path, slices)
    maps = raw.get("maps")
    if maps is not None:
        maps = np.ascontiguousarray(maps[None] if maps.ndim == 3 else maps, np.complex64)
        maps = maps if slices is None or len(maps) == 1 else maps[slice(*slices)]
    kept = raw.get("sampled", raw.get("mask"))
    sampled = _nonzero(data) if kept is None else _mask(kept, data, path, slices)
    return KSpace(
        np.where(sampled, data, np.complex64(0)), sampled, path, maps=maps, affine=_affine(raw.get("affine"), path),
        spacing=_spacing(raw.get("spacing"), path), noise=float(raw["noise"]) if "noise" in raw else None,
    )  # fmt: skip


def _stack(raw: Any, path: Path, slices: tuple[int, int] | None) -> np.ndarray:
    """[Z, C, X, Y] complex64 from any of the layouts; the size is looked at before anything is read."""
    if np.dtype(raw.dtype).kind != "c":
        raise InputError(f"{path}: k-space is {raw.dtype}; it must be complex, save it as complex64.")
    if raw.ndim not in (2, 3, 4):
        raise InputError(
            f"{path}: an array of {_x(raw.shape)} is no k-space; give [X, Y], [coils, X, Y] or [slices, coils, X, Y]."
        )
    whole = raw if raw.ndim == 4 else raw[None] if raw.ndim == 3 else raw[None, None]
    part = _part(whole.shape[0], slices, path)
    fits((part.stop - part.start, *whole.shape[1:]), path)
    if min(whole.shape) < 1:
        raise InputError(f"{path}: an array of {_x(raw.shape)} holds no k-space; export it again.")
    return np.ascontiguousarray(whole[part], np.complex64)


# ---------------------------------------------------------------------------------------------------------- HDF5


def _h5(path: Path, slices: tuple[int, int] | None) -> KSpace:
    h5py = _h5py()
    from . import ismrmrd

    try:
        with h5py.File(path, "r") as file:
            if "kspace" in file:
                return _fastmri(file, path, slices)
            groups = [g for g in file.values() if isinstance(g, h5py.Group) and "data" in g and "xml" in g]
            if groups:
                return ismrmrd.gather(groups[0], path, slices)
            found = ", ".join(file) or "nothing"
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({_first(error)}); export it again.") from None
    raise InputError(f"{path}: holds {found}, neither fastMRI's `kspace` nor ISMRMRD's `data` and `xml`; convert it.")


def _fastmri(file: Any, path: Path, slices: tuple[int, int] | None) -> KSpace:
    """Readout is the third axis; where it was oversampled, it is cropped to the reconstruction's field of view."""
    from . import ismrmrd

    raw = file["kspace"]
    if raw.ndim == 3:  # single coil: [slices, X, Y]
        raw = _Unsqueezed(raw)
    data = _stack(raw, path, slices)
    if "mask" in file:
        sampled = _mask(np.asarray(file["mask"]).astype(bool), data, path, slices)
    else:
        sampled = _nonzero(data)
    data = np.where(sampled, data, np.complex64(0))
    spacing: tuple[float, float, float] | None = None
    notes: tuple[str, ...] = ()
    if "ismrmrd_header" in file:
        geometry = ismrmrd.geometry(_text(file["ismrmrd_header"][()]), path)
        data, sampled, spacing, notes = ismrmrd.crop_readout(data, sampled, geometry)
    return KSpace(data, sampled, path, spacing=spacing, notes=notes)


@dataclass(frozen=True)
class _Unsqueezed:
    """An HDF5 data set [Z, X, Y] seen as [Z, 1, X, Y], unread."""

    raw: Any

    @property
    def shape(self) -> tuple[int, ...]:
        z, x, y = self.raw.shape
        return z, 1, x, y

    @property
    def ndim(self) -> int:
        return 4

    @property
    def dtype(self) -> Any:
        return self.raw.dtype

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.raw[part][:, None]


# -------------------------------------------------------------------------------------------------------- helpers


def fits(shape: tuple[int, ...], path: Path) -> None:
    """InputError if a reconstruction from k-space of this shape would not fit into the free memory."""
    needed = _COPIES * 8 * int(np.prod(np.array(shape, dtype=object)))
    free = _free()
    if free is not None and needed > free:
        z, c, x, y = shape
        raise InputError(
            f"{path.name}: {c} coils of {z} slices of {x} x {y} need about {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} are free; export fewer slices a file, or compress the coils to fewer."
        )


def _free() -> int | None:
    """Bytes of memory that can still be had; None where the platform does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _part(count: int, slices: tuple[int, int] | None, path: Path) -> slice:
    first, last = slices or (0, count)
    if not 0 <= first < last <= count:
        raise InputError(f"{path.name}: slices {first}:{last} of {count}; choose first:last from 0:{count}.")
    return slice(first, last)


def _mask(raw: np.ndarray, data: np.ndarray, path: Path, slices: tuple[int, int] | None) -> np.ndarray:
    """A mask over lines [Y], the plane [X, Y] or each slice [Z, X, Y], as [Z or 1, 1, X, Y]."""
    x, y = data.shape[2:]
    kept = np.asarray(raw) != 0
    if kept.ndim == 3 and slices is not None and len(kept) > 1:
        kept = kept[slice(*slices)]
    shapes: Mapping[int, tuple[tuple[int, ...], ...]] = {1: ((y,),), 2: ((x, y),), 3: ((len(data), x, y), (1, x, y))}
    if kept.shape not in shapes.get(kept.ndim, ()):
        raise InputError(
            f"{path.name}: k-space of {x} x {y} in {len(data)} slices and a mask of {_x(kept.shape)} differ; give the "
            "mask of this scan, over Y, [X, Y] or [slices, X, Y]."
        )
    kept = kept.reshape(kept.shape[0] if kept.ndim == 3 else 1, 1, -1 if kept.ndim > 1 else 1, y)
    return np.ascontiguousarray(np.broadcast_to(kept, (len(kept), 1, x, y)))


def _nonzero(data: np.ndarray) -> np.ndarray:
    """What was sampled, judged by what is not exactly 0; one mask where all slices have the same."""
    kept = (data != 0).any(1, keepdims=True)
    return kept[:1] if (kept == kept[:1]).all() else kept


def _affine(raw: np.ndarray | None, path: Path) -> np.ndarray | None:
    if raw is None:
        return None
    affine = np.asarray(raw, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(
            f"{path.name}: its affine is no invertible 4x4 matrix; leave it out or give voxels to RAS+ mm."
        )
    return affine


def _spacing(raw: np.ndarray | None, path: Path) -> tuple[float, float, float] | None:
    if raw is None:
        return None
    values = [float(v) for v in np.ravel(raw)]
    if len(values) != 3 or not all(np.isfinite(v) and v > 0 for v in values):
        raise InputError(f"{path.name}: spacing {values}; give three sizes of a voxel in mm, all above 0.")
    return values[0], values[1], values[2]


def _text(value: Any) -> str:
    value = value[0] if isinstance(value, np.ndarray) and value.size else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _x(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError('.h5 files need h5py, which is not installed; run pip install "amodal[kspace]".') from error
    return h5py

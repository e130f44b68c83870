"""NIfTI files: read whole and with care, written so that geometry comes back bit for bit."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import logging
import math
import os
import uuid
import zlib
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from ..core.errors import AmodalError, InputError
from .volume import Volume, distance

DType = str | np.dtype | type | None
SUFFIXES = (".nii.gz", ".nii")
_GZIP = b"\x1f\x8b"
_KINDS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by size of the header
# everything that says where the voxels lie, and nothing else: no timings, names or scales travel to a new image
_GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "dim_info", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
_QUIET = logging.Logger("amodal.quiet", level=logging.CRITICAL + 1)  # for what nibabel would say on a header's flaws


def read(path: str | Path, gaps: bool = False) -> Volume:
    """Read a 3-D NIfTI file (.nii or .nii.gz; a 4-D one with a single volume counts) as float32, scaled as it says.

    `gaps`: voxels that are NaN are taken to be missing and left so.

    The header is kept as it is on disk. Where sform and qform are both set the sform counts, as is usual.
    InputError, one sentence, for whatever cannot be used: see the checks below.
    """
    path = Path(path)
    raw = _bytes(path)
    header = _header(path, raw)
    shape = _shape(path, header)
    affine = _affine(path, header)
    data = _voxels(path, raw, header).reshape(shape, order="F")
    _check_values(path, data[~np.isnan(data)] if gaps and not np.isnan(data).all() else data)
    return Volume(data, affine, header, path)


def remarks(volume: Volume) -> tuple[str, ...]:
    """What is odd about a file but no error, a sentence each: sform and qform that place it over a voxel apart."""
    header = volume.header
    if header is None or not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return ()
    try:
        with np.errstate(invalid="ignore"):
            apart = distance(volume.affine, _tolerant(header).get_qform(), volume.shape)
    except (HeaderDataError, ValueError):
        apart = math.nan
    if not math.isfinite(apart):
        return (f"{volume.name}: its qform is not a rotation; the sform was used.",)
    if apart <= min(volume.spacing):
        return ()
    return (f"{volume.name}: sform and qform place it up to {apart:.1f} mm apart; the sform was used.",)


def write(
    path: str | Path,
    data: np.ndarray,
    like: Volume,
    descrip: str | None = None,
    dtype: DType = None,
    overwrite: bool = False,
) -> None:
    """Write data [X, Y, Z] on the grid of `like`: sform and qform with codes, zooms and units, bit for bit
    as in its header, and the shape on disk; if it has none, both forms with code 1 (sheared: sform only).

    `dtype`: float32 unless given; "source" is the type of `like`'s file: integers are rounded and clipped, with the
    file's own slope. `descrip` (79 bytes, default as in `like`) replaces the description; display range is reset.
    Atomic, and the same data give the same bytes. InputError if the file exists (without `overwrite`) or cannot be
    made, AmodalError if the data are not finite or the disk is full.
    """
    path, data = Path(path), np.asarray(data)
    if data.shape != like.shape:
        raise ValueError(f"the data are {data.shape}, the volume to write them like {like.shape}")
    if bad := data.size - int(np.isfinite(data).sum()):
        raise AmodalError(f"{path}: the image to write has {bad} voxels that are not finite; nothing was written.")
    header = _new_header(like, descrip)
    stored = _stored(data, header, like, dtype)
    header["vox_offset"] = header.single_vox_offset
    content = header.binaryblock + b"\0\0\0\0" + stored.tobytes(order="F")
    _write_bytes(path, content, overwrite)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# reading ------------------------------------------------------------------------------------------------------------


def _bytes(path: Path) -> bytes:
    """All bytes of the file, decompressed if it is gzip (by content: names lie); a checksum that fails is an error."""
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: expected a NIfTI file, .nii or .nii.gz; convert it first (DICOM: dcm2niix).")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a folder, expected a NIfTI file; name the file inside it.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from None
    if not raw.startswith(_GZIP):
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path}: the gzip data are truncated or damaged; copy the file again.") from None


def _header(path: Path, raw: bytes) -> nib.Nifti1Header:
    """The header as it is on disk, checked but not repaired; the voxel data must be complete behind it."""
    size = next((n for n in _KINDS if raw[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), 0)
    if not size or len(raw) < size:
        raise InputError(f"{path}: not a NIfTI file (no NIfTI header found); export it again as .nii or .nii.gz.")
    try:
        header = _KINDS[size](raw[:size], check=False)
        header.copy().check_fix(logger=_QUIET, error_level=40)
        kind = header.get_data_dtype()
        needed = int(header["vox_offset"]) + _count(header) * kind.itemsize
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: damaged NIfTI header ({error}); export it again.") from None
    if header["magic"].item() not in (b"n+1", b"n+2", b"n+2\0\r\n\x1a\n"):
        raise InputError(f"{path}: header of a .hdr/.img pair, expected a single file; convert it to .nii.gz.")
    if kind.kind not in "iuf":
        name = nib.nifti1.data_type_codes.label[int(header["datatype"])]
        raise InputError(f"{path}: voxels of type {name}, expected real numbers; save its magnitude as a plain image.")
    if len(raw) < needed:
        raise InputError(f"{path}: truncated, {len(raw)} of {needed} bytes are there; copy the file again.")
    return header


def _count(header: nib.Nifti1Header) -> int:
    return math.prod(int(n) for n in header.get_data_shape())


def _shape(path: Path, header: nib.Nifti1Header) -> tuple[int, ...]:
    shape = tuple(int(n) for n in header.get_data_shape())
    text = "x".join(map(str, shape))
    if len(shape) < 3:
        raise InputError(f"{path}: a {len(shape)}-D image ({text}), expected a 3-D volume; stack its slices first.")
    if any(n != 1 for n in shape[3:]):
        raise InputError(f"{path}: a {len(shape)}-D series ({text}), expected one 3-D volume; split it and choose one.")
    if min(shape) < 1:
        raise InputError(f"{path}: an empty image ({text}), expected a 3-D volume; export it again.")
    return shape[:3]


def _tolerant(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A copy in which qfac 0 (often written, means 1) can be worked with."""
    header = header.copy()
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1
    return header


def _affine(path: Path, header: nib.Nifti1Header) -> np.ndarray:
    try:
        with np.errstate(invalid="ignore"):
            affine = np.array(_tolerant(header).get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise InputError(f"{path}: damaged qform ({error}); set a valid sform or qform first.") from None
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    # the determinant of the directions alone: 0 where axes coincide, whatever the voxel size
    if not np.isfinite(affine).all() or norms.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / norms)) < 1e-4:
        text = np.array2string(affine[:3, :3], precision=3, separator=", ").replace("\n", "")
        raise InputError(f"{path}: its affine cannot be inverted ({text}); set a valid sform or qform first.")
    return affine


def _voxels(path: Path, raw: bytes, header: nib.Nifti1Header) -> np.ndarray:
    stored = np.frombuffer(raw, header.get_data_dtype(), _count(header), int(header["vox_offset"]))
    slope, inter = _scaling(header)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows float32 is reported as not finite
        return (stored if (slope, inter) == (1, 0) else stored * np.float64(slope) + inter).astype(np.float32)


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; slope 0 (or not finite) means that there is none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    return slope, inter if np.isfinite(inter) else 0.0


def _check_values(path: Path, data: np.ndarray) -> None:
    if bad := data.size - int(np.isfinite(data).sum()):
        raise InputError(f"{path}: {bad} of {data.size} voxels are NaN or infinite; set them to 0 or export it again.")
    if (value := float(data.min())) == float(data.max()):
        raise InputError(f"{path}: all voxels are {value:g}, expected an image; leave the file out or export it again.")


# writing ------------------------------------------------------------------------------------------------------------


def _new_header(like: Volume, descrip: str | None) -> nib.Nifti1Header:
    """A fresh little-endian header with the geometry of `like`: from its header, if that speaks of its grid."""
    old = like.header
    header = (nib.Nifti1Header if old is None else type(old))(endianness="<")
    if old is not None and _describes(old, like):
        for name in _GEOMETRY:
            header[name] = old[name]
    else:
        header.set_data_shape(like.shape)
        header.set_xyzt_units("mm")
        header.set_qform(like.affine, code=1)
        header.set_sform(like.affine, code=1)
        if distance(header.get_qform(), like.affine, like.shape) > 1e-3 * min(like.spacing):
            header["qform_code"] = 0  # sheared: no quaternion says so
    if descrip is not None:
        header["descrip"] = descrip.encode("ascii", "replace")[:79]
    elif old is not None:
        header["descrip"] = old["descrip"]
    return header


def _describes(header: nib.Nifti1Header, volume: Volume) -> bool:
    shape = tuple(int(n) for n in header.get_data_shape())
    if shape[:3] != volume.shape or any(n != 1 for n in shape[3:]):
        return False
    try:
        return distance(_tolerant(header).get_best_affine(), volume.affine, volume.shape) <= 1e-3 * min(volume.spacing)
    except (HeaderDataError, ValueError):
        return False


def _stored(data: np.ndarray, header: nib.Nifti1Header, like: Volume, dtype: DType) -> np.ndarray:
    """The voxels as they go to disk; their type and scaling are set in the header."""
    slope, inter = 1.0, 0.0
    kind: np.dtype = np.dtype(np.float32)
    if dtype == "source":
        if like.header is not None:
            kind = like.header.get_data_dtype()
            slope, inter = _scaling(like.header) if kind.kind in "iu" else (1.0, 0.0)
    elif dtype is not None:
        kind = np.dtype(dtype)
    kind = kind.newbyteorder("<")
    header.set_data_dtype(kind)
    header["scl_slope"], header["scl_inter"] = slope, inter
    if kind.kind not in "iu":
        return data.astype(kind)
    limits = np.iinfo(kind)
    return np.clip(np.rint((data.astype(np.float64) - inter) / slope), limits.min, limits.max).astype(kind)


def _write_bytes(path: Path, content: bytes, overwrite: bool) -> None:
    """Write under a temporary name in the same folder, then rename: the file is there whole or not at all."""
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: cannot write this kind of file; choose a name that ends in .nii.gz or .nii.")
    if path.is_dir() or (os.path.lexists(path) and not overwrite):
        raise InputError(f"{path}: already exists; choose another name or allow to overwrite it (--overwrite).")
    if path.name.lower().endswith(".gz"):
        buffer = BytesIO()  # no name and no date inside: equal content, equal bytes
        with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=buffer, mtime=0) as file:
            file.write(content)
        content = buffer.getvalue()
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to.") from None
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise AmodalError(f"{path}: writing failed ({error.strerror}); nothing was left behind.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)

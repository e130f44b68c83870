"""ISMRMRD raw data (Inati et al. 2017): acquisitions, each a line of all coils with its header, put in their places.

Cartesian scans only. Of several contrasts, repetitions, phases or sets the first is taken; averages are averaged; lines
of navigators, phase correction and dummy scans are left out. A second phase-encoding direction must be fully sampled,
for it is taken to image space first: reconstruction is slice by slice.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import InputError

if TYPE_CHECKING:
    from .kspace import KSpace

_NOISE, _REVERSE = 19, 22  # numbers of flags, counted from 1
_IMAGING_TOO = 21  # calibration and imaging
_LEFT_OUT = (20, 23, 24, 26, 27, 28, 29)  # calibration alone, navigator, phase, feedback, dummy, surface coil
_FIRST_ONLY = ("contrast", "repetition", "phase", "set")


@dataclass(frozen=True)
class Geometry:
    """Of the first encoding: matrix and field of view (mm) that were encoded and that are reconstructed."""

    matrix: tuple[int, int, int]
    fov: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    recon_fov: tuple[float, float, float]
    centre: tuple[int, int] = (0, 0)  # the line of frequency 0, in both phase-encoding directions
    trajectory: str = "cartesian"

    @property
    def readout(self) -> int:
        """Samples that the readout has once its oversampling is cropped away."""
        kept = round(self.matrix[0] * self.recon_fov[0] / self.fov[0])
        return kept if 0 < kept < self.matrix[0] else self.matrix[0]


def geometry(text: str, path: Path) -> Geometry:
    """What the XML header says; InputError where it is none, or not Cartesian."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # neither belongs there, and entities can blow up
        raise InputError(
            f"{path.name}: its header declares XML entities, which ISMRMRD has no use for; export it again."
        )
    try:
        root = ElementTree.fromstring(text)  # noqa: S314
        encoding = next(e for e in root if _tag(e) == "encoding")
        spaces = {_tag(e): e for e in encoding}
        encoded, recon = (_space(spaces[name]) for name in ("encodedSpace", "reconSpace"))
    except (ElementTree.ParseError, StopIteration, KeyError, ValueError) as error:
        raise InputError(f"{path.name}: its ISMRMRD header cannot be read ({error}); export it again.") from None
    limits = {_tag(e): e for e in spaces.get("encodingLimits", ())}
    centre = tuple(_centre(limits.get(f"kspace_encoding_step_{i}"), encoded[0][i] // 2) for i in (1, 2))
    trajectory = (spaces["trajectory"].text or "").strip().lower() if "trajectory" in spaces else "cartesian"
    if trajectory != "cartesian":
        raise InputError(
            f"{path.name}: its trajectory is {trajectory}; only Cartesian k-space can be reconstructed here."
        )
    return Geometry(*encoded, *recon, (centre[0], centre[1]), trajectory)


def crop_readout(
    data: np.ndarray, sampled: np.ndarray, found: Geometry
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float], tuple[str, ...]]:
    """K-space without the oversampling of the readout, which is fully sampled: through image space, slice by slice."""
    wide, x = data.shape[2], found.readout
    # a file may hold another readout than its header says; the field of view belongs to the header's
    mm = (found.fov[0] / wide, found.fov[1] / found.matrix[1], found.fov[2] / max(found.matrix[2], 1))
    if x >= wide or not np.asarray(sampled.all(axis=2))[sampled.any(axis=2)].all():
        return data, sampled, mm, ()
    first = wide // 2 - x // 2
    out = np.empty((*data.shape[:2], x, data.shape[3]), np.complex64)
    for z, part in enumerate(data):
        line = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(part, 1), axis=1, norm="ortho"), 1)
        line = line[:, first : first + x]
        out[z] = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(line, 1), axis=1, norm="ortho"), 1)
    return out, sampled[:, :, :x], mm, (f"Oversampled readout cropped from {wide} to {x} samples.",)


def gather(group: Any, path: Path, slices: tuple[int, int] | None) -> KSpace:
    """K-space from the acquisitions of a data set."""
    from .kspace import KSpace, fits

    text = group["xml"][0]
    about = geometry(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text), path)
    head = group["data"].fields("head")[:]
    flags = head["flags"].astype(np.uint64)
    noise = np.flatnonzero(_has(flags, _NOISE))
    image = np.flatnonzero(_imaging(head, flags))
    if not len(image):
        raise InputError(f"{path.name}: none of its {len(head)} acquisitions is a line of an image; export it again.")
    coils = int(head["active_channels"][image].max())
    nx, ny, nz = about.matrix
    idx = head["idx"][image]
    planes = int(idx["slice"].max()) + 1
    fits((planes * nz, coils, nx, ny), path)
    full = np.zeros((planes, nz, coils, nx, ny), np.complex64)
    count = np.zeros((planes, nz, nx, ny), np.uint16)
    for at, place in zip(image, idx):
        _put(full, count, _line(group["data"][int(at)]), head[at], place, about, path)
    full /= np.maximum(count, 1)[:, :, None]
    data, sampled, affine = _as_slices(full, count > 0, head[image], about, path)
    data, sampled, spacing, notes = crop_readout(data, sampled, about)
    affine = _cropped(affine, about.matrix[0], data.shape[2])
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    scan = np.concatenate([_line(group["data"][int(at)]) for at in noise], 1) if len(noise) else None
    if scan is not None and len(scan) != coils:
        scan, notes = None, (*notes, "The noise scan has other coils than the image, so the noise is estimated.")
    part = slice(*slices) if slices else slice(None)
    notes += _several(head, flags)
    affine = affine @ _shift(part.start or 0)
    kept = sampled[part] if len(sampled) > 1 else sampled
    return KSpace(data[part], kept, path, affine=affine, spacing=spacing, scan=scan, notes=notes)


def _put(
    full: np.ndarray, count: np.ndarray, line: np.ndarray, head: Any, place: Any, about: Geometry, path: Path
) -> None:
    """One line into its place; frequency 0 of each direction goes to N // 2."""
    nx, ny, nz = about.matrix
    y = int(place["kspace_encode_step_1"]) - about.centre[0] + ny // 2
    z = int(place["kspace_encode_step_2"]) - about.centre[1] + nz // 2
    line = line[:, int(head["discard_pre"]) : line.shape[1] - int(head["discard_post"])]
    middle = int(head["center_sample"]) - int(head["discard_pre"])
    if _has(np.uint64(head["flags"]), _REVERSE):
        line, middle = line[:, ::-1], line.shape[1] - 1 - middle
    x = nx // 2 - middle
    if not (0 <= y < ny and 0 <= z < nz and x >= 0 and x + line.shape[1] <= nx):
        raise InputError(
            f"{path.name}: a line lies outside its matrix of {nx} x {ny} x {nz}; check the encoding limits."
        )
    plane = int(place["slice"])
    full[plane, z, : len(line), x : x + line.shape[1], y] += line
    count[plane, z, x : x + line.shape[1], y] += 1


def _as_slices(
    full: np.ndarray, kept: np.ndarray, heads: np.ndarray, about: Geometry, path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[Z, C, X, Y], its mask and affine, from [planes, KZ, C, X, Y]."""
    planes, nz = kept.shape[:2]
    order = np.arange(planes)
    positions = np.array([heads["position"][heads["idx"]["slice"] == p][:1].reshape(-1, 3).mean(0) for p in order])
    through = heads["slice_dir"][0].astype(np.float64)
    if planes > 1:  # in the order in which they lie
        order = np.argsort(positions @ through)
        full, kept, positions = full[order], kept[order], positions[order]
    if nz > 1:
        if planes > 1 or not (kept == kept[:, :1]).all():
            raise InputError(
                f"{path.name}: it is undersampled in both phase-encoding directions; reconstruction is slice by slice, "
                "give a scan that is fully sampled in one of them."
            )
        space = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(full, 1), axis=1, norm="ortho"), 1)
        full, kept = space[0].astype(np.complex64), kept[:, 0]
        thick = about.fov[2] / nz
        origin = positions[0] - through * thick * (nz // 2)
    else:
        full, kept = full[:, 0], kept[:, 0]
        gap = float(np.abs(np.diff(positions @ through)).mean()) if planes > 1 else 0.0
        thick, origin = gap or about.fov[2], positions[0]
    sampled = kept[:1, None] if (kept == kept[:1]).all() else kept[:, None]
    return full, sampled, _affine(heads[0], origin, through, thick, about)


def _affine(head: Any, origin: np.ndarray, through: np.ndarray, thick: float, about: Geometry) -> np.ndarray:
    """Voxels to RAS+ mm. The header's directions are in patient coordinates, LPS; its position is the centre's."""
    nx, ny, _ = about.matrix
    read, phase = (head[name].astype(np.float64) for name in ("read_dir", "phase_dir"))
    columns = [read * about.fov[0] / nx, phase * about.fov[1] / ny, through * thick]
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, 1)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:  # headers without directions
        affine[:3, :3] = np.diag([about.fov[0] / nx, about.fov[1] / ny, thick])
    affine[:3, 3] = origin - affine[:3, 0] * (nx // 2) - affine[:3, 1] * (ny // 2)
    return np.diag([-1.0, -1, 1, 1]) @ affine


def _cropped(affine: np.ndarray, wide: int, x: int) -> np.ndarray:
    out = affine.copy()
    out[:3, 3] += affine[:3, 0] * (wide // 2 - x // 2)
    return out


def _shift(first: int) -> np.ndarray:
    out = np.eye(4)
    out[2, 3] = first
    return out


def _imaging(head: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Which acquisitions are lines of the first image."""
    left_out = np.zeros(len(head), bool)
    for number in _LEFT_OUT:
        left_out |= _has(flags, number)
    keep = ~left_out & ~_has(flags, _NOISE) | _has(flags, _IMAGING_TOO)
    for name in _FIRST_ONLY:
        keep &= head["idx"][name] == 0
    return keep & (head["encoding_space_ref"] == 0)


def _several(head: np.ndarray, flags: np.ndarray) -> tuple[str, ...]:
    lines = ~_has(flags, _NOISE)
    many = [f"{int(head['idx'][n][lines].max()) + 1} {n}s" for n in _FIRST_ONLY if head["idx"][n][lines].max() > 0]
    return (f"The file holds {', '.join(many)}; the first was taken.",) if many else ()


def _has(flags: Any, number: int) -> Any:
    return (flags & np.uint64(1 << (number - 1))) != 0


def _line(acquisition: Any) -> np.ndarray:
    """[C, N] complex64 of an acquisition, whose numbers are stored flat."""
    coils = int(acquisition["head"]["active_channels"])
    values = np.ascontiguousarray(acquisition["data"], np.float32)
    return values.view(np.complex64).reshape(coils, -1)


def _space(element: Any) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    parts = {_tag(e): {_tag(v): float(v.text) for v in e} for e in element}
    matrix, fov = parts["matrixSize"], parts["fieldOfView_mm"]
    size = tuple(int(matrix[axis]) for axis in "xyz")
    mm = tuple(fov[axis] for axis in "xyz")
    if min(size) < 1 or min(mm) <= 0:
        raise ValueError(f"matrix {size}, field of view {mm}")
    return size, mm  # type: ignore[return-value]


def _centre(limits: Any, otherwise: int) -> int:
    found = {_tag(e): int(e.text) for e in limits} if limits is not None else {}
    return found.get("center", otherwise)


def _tag(element: Any) -> str:
    return element.tag.rsplit("}", 1)[-1]

"""What is scanned, as values: a `Volume` knows where it lies, a `Study` holds a subject's, a `Source` its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..core.errors import InputError
from ..core.modality import ALIASES, MODALITIES, canonical

ALIGNED = 0.05  # voxels by which the corners of two grids may differ and still be one grid


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3-D image and where it lies.

    `data` [X, Y, Z] float32 in the file's voxel order; `affine` 4x4 takes voxel indices to RAS+ millimetres; `header`
    is the NIfTI header as it was read (None if made here). Treated as immutable: nothing writes into `data`.
    """

    data: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", np.asarray(self.data, dtype=np.float32))
        object.__setattr__(self, "affine", np.array(self.affine, dtype=np.float64))
        if self.data.ndim != 3 or self.affine.shape != (4, 4):
            raise ValueError(f"a volume is [X, Y, Z] with a 4x4 affine, not {self.data.shape} and {self.affine.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data.shape  # type: ignore[return-value]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxel centres along each voxel axis (column norms, for oblique and sheared grids too)."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """Where the voxel axes point, to the nearest anatomical axis: `LAS`, `RAS`, `PSR`."""
        return "".join(nib.orientations.aff2axcodes(self.affine))

    @property
    def name(self) -> str:
        """What to call it in a message: the file's name."""
        return self.path.name if self.path is not None else "the volume"

    def like(self, data: np.ndarray, descrip: str | None = None) -> Volume:
        """New intensities [X, Y, Z] on the same grid, with the same header; `descrip` replaces its description."""
        if np.shape(data) != self.shape:
            raise ValueError(f"{self.name} is {self.shape}, the new data are {np.shape(data)}")
        header = self.header
        if descrip is not None:
            header = nib.Nifti1Header() if header is None else header.copy()
            header["descrip"] = descrip.encode("ascii", "replace")[:79]
        return Volume(data, self.affine, header)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write it on its own grid (`nifti.write`): shape, affine, forms with codes, zooms and units as they were."""
        from . import nifti

        nifti.write(path, self.data, like=self, overwrite=overwrite)


def same_grid(a: Volume, b: Volume, tolerance: float = ALIGNED) -> bool:
    """Whether two volumes share their voxels: equal shape, corners apart by at most `tolerance` voxels."""
    return a.shape == b.shape and distance(a.affine, b.affine, a.shape) <= tolerance * min(*a.spacing, *b.spacing)


def distance(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far apart two affines put the voxels of a grid, in millimetres: the largest distance over its corners."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], [1])).reshape(4, -1)
    return float(np.linalg.norm(((np.asarray(a) - np.asarray(b)) @ corners)[:3], axis=0).max())


@dataclass(frozen=True, eq=False)
class Study:
    """The volumes of one subject (and session) by modality.

    Names may be aliases (`t1ce`); they are kept under canonical names, in canonical order. `metadata` is what is known
    of the subject (`age`, `sex`), `source` the files it was read from, `notes` sentences on what was done to it,
    `tissue` the tissue of each voxel, uint8 [X, Y, Z], by the modality it was seen in (`preprocess.tissue`).
    """

    subject: str
    volumes: Mapping[str, Volume]
    session: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None
    notes: tuple[str, ...] = ()
    tissue: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "volumes", _canonical_order(self.volumes, self.subject))

    @property
    def label(self) -> str:
        """`sub-01_ses-1`, or `sub-01` without a session."""
        return _label(self.subject, self.session)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.volumes)

    @property
    def reference(self) -> str:
        """The modality whose grid the study is brought to: the first present in canonical order."""
        if not self.volumes:
            raise InputError(f"{self.label} holds no volume; give it at least one of {', '.join(MODALITIES)}.")
        return self.modalities[0]

    def __getitem__(self, name: str) -> Volume:
        found = self.volumes.get(canonical(name))
        if found is None:
            raise InputError(f"{self.label} has no {name}; choose one of {', '.join(self.modalities) or 'none'}.")
        return found

    def __contains__(self, name: str) -> bool:
        return ALIASES.get(name.lower()) in self.volumes

    def __iter__(self) -> Iterator[str]:
        return iter(self.volumes)

    def __len__(self) -> int:
        return len(self.volumes)

    def without(self, *names: str) -> Study:
        """The study without some modalities (those it lacks anyway do not matter)."""
        drop = set(map(canonical, names))
        return self._with({k: v for k, v in self.volumes.items() if k not in drop})

    def only(self, *names: str) -> Study:
        """The study with these modalities only, as far as it has them."""
        keep = set(map(canonical, names))
        return self._with({k: v for k, v in self.volumes.items() if k in keep})

    def _with(self, volumes: Mapping[str, Volume]) -> Study:
        """The study with some of its volumes only, and the tissue seen in those."""
        return replace(self, volumes=volumes, tissue={k: v for k, v in self.tissue.items() if k in volumes})


@dataclass(frozen=True, eq=False)
class Source:
    """A study found on disk and not yet read: which file is which modality, and how the folder is laid out.

    `metadata` is what is known of the subject; its `notes` are sentences on what was found. `problem` is a fault seen
    while looking (two files for one modality), raised on reading, so that one bad subject does not stop a dataset.
    """

    subject: str
    session: str | None
    files: Mapping[str, Path]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    root: Path | None = None
    layout: str = "files"
    problem: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", _canonical_order(self.files, self.subject))

    @property
    def label(self) -> str:
        """`sub-01_ses-1`, or `sub-01` without a session."""
        return _label(self.subject, self.session)

    def read(self) -> Study:
        """Read every file; InputError names the first that is no good. Oddities that are no errors become notes."""
        from . import nifti

        if self.problem is not None:
            raise InputError(self.problem)
        volumes = {name: nifti.read(path) for name, path in self.files.items()}
        seen = tuple(note for volume in volumes.values() for note in nifti.remarks(volume))
        notes = (*self.metadata.get("notes", ()), *seen)
        return Study(self.subject, volumes, self.session, self.metadata, self, notes)


def _label(subject: str, session: str | None) -> str:
    return subject if session is None else f"{subject}_ses-{session.removeprefix('ses-')}"


def _canonical_order(items: Mapping[str, Any], subject: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for alias, item in items.items():
        if (name := canonical(alias)) in named:
            raise InputError(f"{subject} has two images for {name}; keep one of them.")
        named[name] = item
    return {name: named[name] for name in MODALITIES if name in named}

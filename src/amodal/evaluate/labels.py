"""Label maps of subjects: where they lie, and which of their numbers make a region."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..data import nifti
from ..data.volume import Source, Study, same_grid

# whole tumour, tumour core, enhancing tumour: 1 core, 2 oedema, 4 (BraTS to 2021) or 3 (since 2023) enhancing
BRATS: Mapping[str, tuple[int, ...]] = {"WT": (1, 2, 3, 4), "TC": (1, 3, 4), "ET": (3, 4)}
_NAMES = re.compile(r"(^|[_.-])(seg|dseg|mask|lesions?|labels?)\.nii(\.gz)?$", re.IGNORECASE)
_WHICH = "say which by --labels 'derivatives/NAME/{subject}/anat/*dseg.nii.gz'"
_KIND = re.compile(r"(?:label|desc)-[^_.]+_|[A-Za-z]+\.nii(?:\.gz)?$")  # what a map's name says beside whose it is
_REGION = re.compile(r"([A-Za-z]\w*)=(\d+(?:\+\d+)*)")


def parse_regions(text: str) -> dict[str, tuple[int, ...]]:
    """`WT,TC,ET` or `lesion=1,core=1+3`: region -> label numbers. InputError for anything else."""
    out: dict[str, tuple[int, ...]] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        found = _REGION.fullmatch(part)
        if found is None and part.upper() not in BRATS:
            raise InputError(f"region {part!r}: choose among {', '.join(BRATS)}, or write NAME=1+2 with label numbers.")
        name = found[1] if found else part.upper()
        out[name] = tuple(map(int, found[2].split("+"))) if found else BRATS[name]
    if not out:
        raise InputError("no region to segment; name some, for example WT,TC,ET or lesion=1.")
    return out


def find_labels(source: Source, root: Path, pattern: str | None = None) -> Path:
    """The label map of a subject: by a pattern below `root` (`{subject}`, `{session}` and `*`), or where such maps
    usually lie: beside the images, or in the derivatives. InputError if there is none, or more than one."""
    found = _candidates(source, root, pattern)
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} label maps, {found[0].name} and {found[1].name} among them" if found else "no label map"
    raise InputError(f"{source.label} has {what}; {_WHICH}.")


def same_kind(sources: Sequence[Source], root: Path, pattern: str | None = None) -> None:
    """InputError if a subject has several label maps, or two subjects' maps are named differently: the numbers of
    one kind of map (tissues) mean nothing to another (tumours)."""
    kinds: dict[str, Path] = {}
    for source in sources:
        there = _candidates(source, source.root or root, pattern)
        if len(there) > 1:
            find_labels(source, source.root or root, pattern)
        for path in there:
            kinds.setdefault("".join(_KIND.findall(path.name)).lower(), path)
    if len(kinds) > 1:
        first, second = list(kinds.values())[:2]
        raise InputError(f"label maps are of different kinds, {first.name} and {second.name} among them; {_WHICH}.")


def _candidates(source: Source, root: Path, pattern: str | None) -> list[Path]:
    names = {"subject": source.subject, "session": f"ses-{source.session}" if source.session else ""}
    if pattern is not None:
        try:
            return sorted(root.glob(pattern.format(**names)))
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"--labels {pattern}: use {{subject}}, {{session}} and *, below the dataset.") from error
    beside = {path.parent for path in source.files.values()}
    places = [p for folder in beside for p in folder.iterdir()]
    places += list(root.glob(f"derivatives/**/{source.subject}/**/{source.subject}*"))
    return sorted(p for p in set(places) - set(source.files.values()) if _NAMES.search(p.name))


def read_labels(path: Path, study: Study, regions: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Regions as bool [R, X, Y, Z] on the grid of a study. InputError where the map lies on another."""
    volume, reference = nifti.read(path), study[study.reference]
    if not same_grid(volume, reference):
        raise InputError(
            f"{path.name} does not lie on the voxels of {reference.name} of {study.label}; resample it there first."
        )
    numbers = np.rint(volume.data).astype(int)
    return np.stack([np.isin(numbers, labels) for labels in regions.values()])

"""What lies in a folder: BIDS, BraTS of any year, IXI, a table, clearly named files. Names are read, voxels are not.

`find` walks the table `LAYOUTS`; the first row that recognises the folder gathers its studies. What cannot be used is
left out (masks, segmentations, derivatives, hidden files); a study with a fault keeps it in `problem`, which is raised
when that study is read, so that one bad subject does not stop a dataset.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import InputError
from ..core.modality import ALIASES, MODALITIES, canonical
from . import bids, table
from .volume import Source

NIFTI = (".nii.gz", ".nii")
_DEPTH = 5  # folders below the one given; BraTS 2018 has three
_NOT_IMAGES = {
    *(
        "seg",
        "segm",
        "segmentation",
        "dseg",
        "probseg",
        "mask",
        "brainmask",
        "defacemask",
        "lesion",
        "lesions",
        "label",
    ),
    *(
        "labels",
        "roi",
        "wmh",
        "gt",
        "truth",
        "desc",
        "synth",
        "synthetic",
        "prob",
        "xfm",
        "warp",
        "jacobian",
        "biasfield",
    ),
}
_ALIASES = {re.sub(r"[^0-9a-z]", "", alias): name for alias, name in ALIASES.items()}
_DATATYPES = sorted({bids.datatype(modality) for modality in MODALITIES})
_PASSED_BY = ("derivatives", "sourcedata", "code", "stimuli", "phenotype")


class Layout(NamedTuple):
    """A row of the table: `gather(folder)` returns the studies of this layout, none where the folder is not of it."""

    name: str
    gather: Callable[[Path], list[Source]]


def find(path: Path | str) -> list[Source]:
    """The studies below a folder, sorted; nothing but names and small tables is read. InputError if there is none."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path.")
    if path.suffix.lower() in table.SUFFIXES and path.is_file():
        return sorted(_distinct(table.read(path), path), key=lambda source: (source.subject, source.session or ""))
    if not path.is_dir():
        raise InputError(
            f"{path}: is a file; give the folder that holds the study, a table of files (.csv), or name files by "
            "--t1w, --flair ..."
        )
    for layout in LAYOUTS:
        if sources := layout.gather(path):
            return sorted(_unique(sources), key=lambda source: (source.subject, source.session or ""))
    raise InputError(
        f"{path}: no modality found in this folder; name the NIfTI files after what they show (such as t1.nii.gz, "
        f"sub_flair.nii.gz), or give a BIDS dataset, a BraTS or an IXI folder."
    )


def _distinct(sources: list[Source], path: Path) -> list[Source]:
    """The sources of a table, if each study has one row."""
    labels = [source.label for source in sources]
    if twice := next((name for name in labels if labels.count(name) > 1), None):
        raise InputError(f"{path}: {twice} has more than one row; give each study one, or a session column.")
    return sources


def plain(files: Mapping[str, Path | str], subject: str = "study") -> Source:
    """A study from files named one by one, modality -> file; aliases are understood (`t1ce`)."""
    if not files:
        raise InputError("no file was given; name at least one, for example --t1w scan.nii.gz.")
    found: dict[str, Path] = {}
    for name, file in files.items():
        path, modality = Path(file), canonical(name)
        if modality in found:
            raise InputError(f"{modality} was given twice ({found[modality]} and {path}); keep one of them.")
        if not path.is_file():
            raise InputError(f"{path}: no such file, given as {modality}; check the path.")
        if path in found.values():
            raise InputError(f"{path}: was given for two modalities; name each modality's own file.")
        found[modality] = path
    root = Path(os.path.commonpath([path.absolute().parent for path in found.values()]))
    return Source(f"sub-{bids.label(subject)}", None, found, {}, root, "files")


def modality_in(stem: str) -> tuple[str, str] | None:
    """The modality that a file's stem names, and the stem without it: `pat3_t1_ce` -> (`T1Gd`, `pat3`).

    None where the name has no modality, more than one, or says that the file is no image (seg, mask ...).
    """
    name = bids.parse(stem + ".nii")
    if name is not None and name.modality is not None and "sub" in name.entities and "desc" not in name.entities:
        return name.modality, "_".join(f"{key}-{name.entities[key]}" for key in ("sub", "ses") if key in name.entities)
    words = [word for word in re.split(r"[_\-. ]+", stem) if word]
    low = [word.lower() for word in words]
    if _NOT_IMAGES.intersection(low):
        return None
    hits: list[tuple[int, int, str]] = []
    start = 0
    while start < len(words):
        for size in (3, 2, 1):  # the longest name wins: t2_flair is FLAIR
            alias = _ALIASES.get("".join(low[start : start + size]))
            if alias is not None and start + size <= len(words):
                hits.append((start, size, alias))
                start += size - 1
                break
        start += 1
    if len(hits) > 1 and hits[-1][0] + hits[-1][1] == len(words):
        hits = hits[-1:]  # "t1_space_flair": what stands last names the file
    if len(hits) != 1:
        return None
    first, size, modality = hits[0]
    return modality, "_".join(words[:first] + words[first + size :])


# -------------------------------------------------------------------------------------------------------- gathering


def _walk(folder: Path, depth: int = _DEPTH) -> list[Path]:
    """The NIfTI files below a folder, sorted; hidden ones, and those in derivatives, are passed by."""
    found: list[Path] = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions.") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth > 0 and entry.name not in _PASSED_BY:
                found += _walk(Path(entry.path), depth - 1)
        elif entry.name.endswith(NIFTI):
            found.append(Path(entry.path))
    return found


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def _study(
    subject: str,
    session: str | None,
    found: Iterable[tuple[str, Path]],
    metadata: Mapping[str, Any],
    root: Path,
    layout: str,
) -> Source:
    """One study, its name made of letters and digits; two files for one modality are kept as its `problem`."""
    files: dict[str, Path] = {}
    problem = None
    for modality, path in found:
        if modality in files:
            one, other = (p.relative_to(root) if root in p.parents else p for p in (files[modality], path))
            problem = problem or (
                f"{root}: two files for {modality} of one study, {one} and {other}; "
                f"keep one of them, or name the files to use by flags such as --{modality.lower()}."
            )
        files.setdefault(modality, path)
    label = f"sub-{bids.label(subject)}"
    return Source(label, session and bids.label(session), files, metadata, root, layout, problem)


def _unique(sources: list[Source]) -> list[Source]:
    """Studies whose names fall together once only letters and digits are left get an `x` between the parts."""
    by_label: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        by_label[source.label].append(source)
    out: list[Source] = []
    for same in by_label.values():
        if len(same) > 1:
            same = [replace(s, subject="sub-" + re.sub(r"[^0-9A-Za-z]+", "x", str(s.metadata.get("id")))) for s in same]
        if len({s.subject for s in same}) < len(same):
            same = [replace(s, subject=f"{s.subject}x{n}") for n, s in enumerate(same, 1)]
        out += same
    return out


# ------------------------------------------------------------------------------------------------------------- BIDS


def _bids(path: Path) -> list[Source]:
    """A dataset, or a subject, session or data folder in one."""
    path = Path(os.path.abspath(path))
    place = path.parent if path.name in _DATATYPES else path
    subject = place.parent if place.name.startswith("ses-") else place
    one = subject.name.startswith("sub-")
    root = subject.parent if one else path
    subjects = [subject] if one else sorted(p for p in path.glob("sub-*") if p.is_dir())
    people = _rows(root / "participants.tsv", "participant_id", "sub-") if subjects else {}
    found = [source for folder in subjects for source in _bids_subject(folder, root, people)]
    return [s for s in found if subject is place or f"ses-{s.session}" == place.name]


def _bids_subject(folder: Path, root: Path, people: Mapping[str, Mapping[str, Any]]) -> list[Source]:
    subject = folder.name.removeprefix("sub-")
    visits = _rows(folder / f"{folder.name}_sessions.tsv", "session_id", "ses-")
    out = []
    for place in [folder, *sorted(p for p in folder.glob("ses-*") if p.is_dir())]:
        session = None if place is folder else place.name.removeprefix("ses-")
        found, notes = _bids_files(place, subject)
        if found:
            metadata = {**people.get(subject, {}), **visits.get(session or "", {})} | (
                {"notes": notes} if notes else {}
            )
            out.append(_study(subject, session, found, metadata, root, "bids"))
    return out


def _bids_files(place: Path, subject: str) -> tuple[list[tuple[str, Path]], tuple[str, ...]]:
    """(modality, file) of one session, the first of several runs, and a note on each run left out."""
    runs: dict[tuple[Any, ...], list[tuple[int, Path]]] = defaultdict(list)
    for kind in _DATATYPES:
        for path in sorted((place / kind).glob("sub-*")):
            name = bids.parse(path.name)
            if name is None or name.modality is None or name.extension not in NIFTI:
                continue
            if name.entities["sub"] != subject or set(name.entities) & {"desc", "space", "mod", "label"}:
                continue
            if name.entities.get("part", "mag") != "mag":
                continue
            run = name.entities.get("run", "0")
            same = tuple(sorted((k, v) for k, v in name.entities.items() if k != "run"))
            runs[name.modality, same, name.extension].append((int(run) if run.isdecimal() else 0, path))
    found, notes = [], []
    for (modality, _, _), several in sorted(runs.items(), key=lambda item: str(item[1])):
        several.sort()
        found.append((modality, several[0][1]))
        if len(several) > 1:
            notes.append(f"{modality}: {len(several)} runs, {several[0][1].name} is used.")
    return found, tuple(notes)


def _rows(path: Path, key: str, prefix: str) -> dict[str, dict[str, Any]]:
    """The rows of a table by the label in their `key` column; empty where there is no such table."""
    if not path.is_file():
        return {}
    rows = {str(row.pop(key, "")).removeprefix(prefix): row for row in bids.read_table(path, text=(key,))}
    return {name: row for name, row in rows.items() if name}


# -------------------------------------------------------------------------------------------- challenges, by file name


def _by_name(layout: str, pattern: str) -> Layout:
    """A layout whose file names say everything: groups `subject`, `modality` and, if there is one, `session`."""

    def gather(folder: Path) -> list[Source]:
        studies: dict[tuple[str, str | None], list[tuple[str, Path]]] = defaultdict(list)
        for path in _walk(folder):
            found = re.fullmatch(pattern, _stem(path), re.IGNORECASE)
            modality = found and ALIASES.get(found["modality"].lower())
            if found and modality:
                studies[found["subject"], found.groupdict().get("session")].append((modality, path))
        return [
            _study(subject, session, files, {"id": subject}, folder.absolute(), layout)
            for (subject, session), files in studies.items()
        ]

    return Layout(layout, gather)


# ------------------------------------------------------------------------------------------------ clearly named files


def _named(folder: Path) -> list[Source]:
    """A folder of files named after their modality, a folder of such folders, or several subjects told by a prefix."""
    root = folder.absolute()
    places: dict[Path, dict[str, list[tuple[str, Path]]]] = defaultdict(lambda: defaultdict(list))
    for path in _walk(root):
        if found := modality_in(_stem(path)):
            places[path.parent][found[1]].append((found[0], path))
    places = {place: groups for place, groups in places.items() if not any(p in places for p in place.parents)}
    out = []
    for place, groups in places.items():
        for prefix, files in _split(groups).items():
            subject, session = _who(place, root, prefix, alone=len(places) == 1)
            metadata = {"id": " ".join(filter(None, (*place.relative_to(root).parts, prefix)))}
            out.append(_study(subject, session, files, metadata, root, "named files"))
    return out


def _split(groups: Mapping[str, list[tuple[str, Path]]]) -> dict[str, list[tuple[str, Path]]]:
    """Files of one folder by study: one study, unless every file has a prefix and some modality comes twice."""
    files = [file for group in groups.values() for file in group]
    twice = len({modality for modality, _ in files}) < len(files)
    several = twice and "" not in groups and any(len({m for m, _ in group}) > 1 for group in groups.values())
    return dict(groups) if several else {next(iter(groups)) if len(groups) == 1 else "": files}


def _who(place: Path, root: Path, prefix: str, alone: bool) -> tuple[str, str | None]:
    """Subject and session of a study: from a BIDS-like prefix, from the prefix itself, or from its folder."""
    if found := re.fullmatch(r"sub[_-]([0-9A-Za-z]+)(?:_ses[_-]([0-9A-Za-z]+))?", prefix):
        return found[1], found[2]
    parts = [re.sub(r"[^0-9A-Za-z]", "", part) for part in place.relative_to(root).parts]
    if alone:
        return re.sub(r"[^0-9A-Za-z]", "", prefix or place.name) or "study", None
    extra = re.sub(r"[^0-9A-Za-z]", "", prefix) if not parts else ""
    if len(parts) == 2 and all(parts):
        return parts[0], parts[1]
    return "".join(parts) + extra or "study", None


LAYOUTS = (
    Layout("bids", _bids),
    _by_name("brats-2023", r"(?P<subject>brats(?:-[a-z]+)+-\d+)-(?P<session>\d+)-(?P<modality>[a-z0-9]+)"),
    _by_name("brats-2021", r"(?P<subject>brats20\d\d_\d+)_(?P<modality>[a-z0-9]+)"),
    _by_name("brats-2018", r"(?P<subject>brats\d\d_\w+)_(?P<modality>[a-z0-9]+)"),
    _by_name("ixi", r"(?P<subject>ixi\d+)-[a-z]+-\d+-(?P<modality>[a-z0-9]+)"),
    Layout("named files", _named),
)

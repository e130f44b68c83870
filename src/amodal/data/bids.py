"""BIDS: file names, dataset descriptions, and the derivative dataset that what is made goes into (BIDS 1.10)."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from .. import __version__
from ..core import modality as names
from ..core.errors import InputError
from . import nifti
from .volume import Source, Volume

BIDS_VERSION = "1.10.0"
# The order in which entities stand in a file name (BIDS 1.10, appendix "Entity table").
ENTITIES = (
    *("sub", "tpl", "ses", "cohort", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec"),
    *("dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk"),
    *("atlas", "seg", "scale", "res", "den", "label", "desc"),
)
_DATATYPES = {"CT": "ct", "PET": "pet"}  # every other modality is anatomical
DESCRIPTIONS = {
    "synth": "SYNTHETIC image made by a diffusion model from the acquired modalities, not acquired; "
    "the sidecar says from which and how",
    "synthstd": "voxelwise standard deviation over the samples whose mean is the desc-synth image of the same name",
}
_DESCRIP = {"synth": "", "synthstd": " SD over samples"}  # in the NIfTI header, after the modality
_README = """# {name}

**These images are SYNTHETIC.** They were made by amodal {version} with a diffusion model from what was acquired; they
were not acquired, and they are not for diagnosis.

- `*_desc-synth_*.nii.gz`: the image that was made, on the voxel grid of the study's reference modality.
- `*_desc-synthstd_*.nii.gz`: where several samples were drawn, their voxelwise standard deviation.
- `*.json`: where each image comes from: sources, model, sampler, seed, checks.
- `sub-*.html`: one report for each subject and session; it opens from disk.

What was acquired stays in the source dataset (see `DatasetLinks` in `dataset_description.json`) and was not changed.
"""
_IGNORE = "*.html\nlogs/\nfigures/\nct/\n**/ct/\n*.toml\nrun.json\nresults.*\n"


# ---------------------------------------------------------------------------------------------------- file names


@dataclass(frozen=True)
class Name:
    """A BIDS file name taken apart: entities (key -> label), suffix (`T1w`), extension (`.nii.gz`)."""

    entities: Mapping[str, str]
    suffix: str
    extension: str = ".nii.gz"

    def __str__(self) -> str:
        if unknown := sorted(set(self.entities) - set(ENTITIES)):
            raise InputError(f"BIDS entity {unknown[0]!r} is unknown; choose among {', '.join(ENTITIES)}.")
        parts = [f"{key}-{label(self.entities[key])}" for key in ENTITIES if key in self.entities]
        return "_".join([*parts, self.suffix]) + self.extension

    @property
    def modality(self) -> str | None:
        """The canonical modality (`ce-gadolinium` + `T1w` -> `T1Gd`), None where the name is of something else."""
        return _BY_NAME.get((self.suffix, "ce" in self.entities))


_BY_NAME = {(names.suffix(name), "ce" in names.entities(name)): name for name in names.MODALITIES}


def parse(filename: str) -> Name | None:
    """Take a BIDS file name apart; None where it is not one."""
    found = re.fullmatch(r"((?:[a-z]+-[0-9A-Za-z+]+_)+)([0-9A-Za-z]+)((?:\.[A-Za-z0-9]+)+)", filename)
    if found is None:
        return None
    parts = found[1].rstrip("_").split("_")
    return Name({part.split("-")[0]: part.split("-")[1] for part in parts}, found[2], found[3])


def entities(filename: str) -> dict[str, str]:
    """The entities in a BIDS file name, in its order; empty where it is not one."""
    name = parse(filename)
    return {} if name is None else dict(name.entities)


def label(text: str) -> str:
    """A BIDS label: letters and digits only (`BraTS-GLI-00005` -> `BraTSGLI00005`)."""
    found = re.sub(r"[^0-9A-Za-z]", "", text)
    if not found:
        raise InputError(f"{text!r} holds no letter or digit; give the subject a name such as 01.")
    return found


def datatype(modality: str) -> str:
    """The BIDS folder of a canonical modality (`FLAIR` -> `anat`)."""
    return _DATATYPES.get(modality, "anat")


# ------------------------------------------------------------------------------------------ tables and descriptions


def read_table(path: Path, text: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a BIDS `.tsv`: numbers are read as numbers except in the columns `text`; `n/a` and empty cells are
    left out."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: not a readable table ({error}); save it as UTF-8, columns parted by tabs.") from None
    return [
        {k: v.strip() if k in text else _value(v) for k, v in row.items() if k and v and v.strip() not in ("", "n/a")}
        for row in rows
    ]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def read_description(folder: Path) -> dict[str, Any]:
    """`dataset_description.json` of a dataset, empty where there is none or it cannot be read."""
    try:
        found = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_dataset_description(
    folder: Path,
    name: str,
    kind: Literal["raw", "derivative"] = "raw",
    *,
    raw: Path | None = None,
    licence: str | None = None,
) -> Path:
    """Write `dataset_description.json`. `raw`: the dataset that a derivative was made from, linked as `bids:raw:`."""
    about: dict[str, Any] = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": kind}
    if licence:
        about["License"] = licence
    about["GeneratedBy"] = [{"Name": "amodal", "Version": __version__} | _code_url()]
    if raw is not None:
        link = quote(Path(os.path.relpath(raw.resolve(), folder.resolve())).as_posix())
        about |= {"SourceDatasets": [{"URL": link}], "DatasetLinks": {"raw": link}}
    return write_text(folder / "dataset_description.json", _json(about))


def _code_url() -> dict[str, str]:
    """Where the code lives, as the installed package declares it."""
    try:
        urls = metadata.metadata("amodal").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return {}
    found = dict(url.split(", ", 1) for url in urls)
    return {"CodeURL": found["Repository"]} if "Repository" in found else {}


def write_text(path: Path, text: str) -> Path:
    """Write a text file at once: under a temporary name in the same folder, then renamed."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to.") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------------------------------------------- derivatives


@dataclass(frozen=True)
class Derivatives:
    """A derivative dataset at `root`, made from the dataset (or the folder of files) at `raw`.

    `beside`: `raw` is only where single files happen to lie, so that `root` may be a folder in it.
    """

    root: Path
    raw: Path | None = None
    beside: bool = False

    @classmethod
    def of(cls, root: Path, source: Source) -> Derivatives:
        """Where what is made of a source, and of all others found with it, goes."""
        return cls(root, source.root, beside=source.layout == "files")

    def prepare(self, overwrite: bool = False) -> None:
        """Write the files every derivative dataset has; those that are there stay, unless `overwrite`.

        InputError where `root` would lie in the raw tree, holds another dataset, or cannot be written.
        """
        self.refuse_raw()
        if (about := read_description(self.root)) and not overwrite:
            link = about.get("DatasetLinks", {}).get("raw")
            expected = self.raw and quote(Path(os.path.relpath(self.raw.resolve(), self.root.resolve())).as_posix())
            if expected and link and link != expected:
                raise InputError(
                    f"{self.root}: holds what was made from another dataset ({link}, not {expected}); "
                    "choose another output folder or pass --overwrite."
                )
        name = f"amodal: synthetic images from {self.raw.resolve().name if self.raw else 'single files'}"
        table = "".join(f"desc-{key}\t{text}\n" for key, text in DESCRIPTIONS.items())
        texts = {
            "README.md": _README.format(name=name, version=__version__),
            ".bidsignore": _IGNORE,
            "descriptions.tsv": f"desc_id\tdescription\n{table}",
        }
        for file, text in texts.items():
            if overwrite or not (self.root / file).exists():
                write_text(self.root / file, text)
        if overwrite or not (self.root / "dataset_description.json").exists():
            write_dataset_description(self.root, name, "derivative", raw=self.raw)
        try:
            (self.root / "logs").mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.root}: cannot be written ({error.strerror}); choose another folder.") from None

    def refuse_raw(self) -> None:
        """InputError where `root` is no place for derivatives: in the raw tree, or another dataset."""
        root = self.root.resolve()
        raws = [place for place in (root, *root.parents) if _is_raw(place)]
        if self.raw is not None and not self.beside:
            raws.append(self.raw.resolve())
        for raw in raws:
            inside = root == raw or raw in root.parents
            if inside and root.relative_to(raw).parts[:1] != ("derivatives",):
                raise InputError(
                    f"{self.root}: lies in the source dataset {raw}, which is never written to; "
                    f"choose {raw / 'derivatives' / 'amodal'} or a folder outside."
                )
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root}: is a file; choose a folder to write to.")
        makers = json.dumps(read_description(self.root).get("GeneratedBy", "nobody"))
        if (self.root / "dataset_description.json").exists() and "amodal" not in makers:
            raise InputError(f"{self.root}: holds a dataset that amodal did not make; choose another output folder.")

    def image_path(self, source: Source, modality: str, desc: str = "synth") -> Path:
        """Where an image of a modality goes: `sub-01/ses-1/anat/sub-01_ses-1_desc-synth_FLAIR.nii.gz`."""
        keys = {**_who(source), **names.entities(modality), "desc": desc}
        folder = self.root.joinpath(*_folders(source), datatype(modality))
        return folder / str(Name(keys, names.suffix(modality)))

    def report_path(self, source: Source) -> Path:
        """Where the report of a study goes: `sub-01_ses-1.html`."""
        return self.root / ("_".join(_folders(source)) + ".html")

    def refuse_existing(self, source: Source, modalities: Sequence[str]) -> None:
        """InputError naming the first output of a study that is already there (ask before hours of work)."""
        for modality in modalities:
            for desc in DESCRIPTIONS:
                if (path := self.image_path(source, modality, desc)).exists():
                    raise InputError(f"{path}: exists; pass --overwrite to replace it, or choose another output.")

    def uri(self, path: Path) -> str:
        """A BIDS URI: `bids:raw:sub-01/anat/sub-01_T1w.nii.gz`, or `bids::...` for a file of this dataset."""
        for prefix, root in (("bids::", self.root), ("bids:raw:", self.raw)):
            if root is None:
                continue
            for where, base in ((path.absolute(), root.absolute()), (path.resolve(), root.resolve())):
                if base in where.parents:  # as named first: a file may be a link into a store
                    return prefix + quote(where.relative_to(base).as_posix())
        return path.resolve().as_uri()

    def write_image(
        self,
        source: Source,
        modality: str,
        data: np.ndarray,
        like: Volume,
        sidecar: Mapping[str, Any],
        desc: str = "synth",
        overwrite: bool = False,
    ) -> Path:
        """Write an image [X, Y, Z] on the grid of `like` and its JSON sidecar; either both are there or none."""
        if desc not in DESCRIPTIONS:
            raise InputError(f"desc-{desc}: unknown here; choose one of {', '.join(DESCRIPTIONS)}.")
        path = self.image_path(source, modality, desc)
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists; pass --overwrite to replace it, or choose another output.")
        beside = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
        descrip = f"SYNTHETIC {modality}{_DESCRIP[desc]} amodal {__version__}"
        before = beside.read_text(encoding="utf-8") if beside.exists() else None
        write_text(beside, _json(sidecar))
        try:
            nifti.write(path, data, like, descrip=descrip, overwrite=overwrite)
        except BaseException:
            if before is None:
                beside.unlink(missing_ok=True)
            else:
                write_text(beside, before)
            raise
        return path


def _is_raw(folder: Path) -> bool:
    about = read_description(folder)
    return bool(about) and about.get("DatasetType", "raw") == "raw"


def _who(source: Source) -> dict[str, str]:
    """The entities that name a study."""
    session = source.session and source.session.removeprefix("ses-")
    return {"sub": source.subject.removeprefix("sub-")} | ({"ses": session} if session else {})


def _folders(source: Source) -> list[str]:
    return [f"{key}-{label(value)}" for key, value in _who(source).items()]

"""A virtual cohort on disk: a BIDS dataset, with the truth as its derivative."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core import modality
from ...core.errors import InputError
from .. import bids, nifti
from ..volume import Volume
from . import pet
from .anatomy import label_files, load
from .config import PhantomConfig, settings
from .tissue import TISSUES, TUMOUR
from .virtual import VirtualSubject, subject

NOTE = "SIMULATED by amodal's virtual cohort from signal equations; no person was scanned."
GROUPS = {"GM": "GM", "WM": "WM", "CSF": "CSF", "L": "L"}  # tissue group -> BIDS label of its probability map

_README = """# A virtual cohort

{note}

- `sub-*/anat` (and `ct`, in Hounsfield units, and `pet`, in SUV): what the virtual scanner made of each virtual
  subject; sequence parameters are in the sidecars.
- `participants.tsv`: age and sex that were drawn for it.
- `derivatives/truth`: what lies underneath: `desc-tissue_dseg` (tissue labels; the sidecar holds every parameter that
  was drawn), `label-GM|WM|CSF|L_probseg` (share of each voxel that is grey or white matter, fluid, lesion) and, where
  there is a tumour, `desc-brats_dseg` (1 core without enhancement, 2 oedema, 3 enhancing rim).

Made with seed {seed} and these settings, which make the same files again:

```json
{settings}
```
"""
PERSON = {
    "age": {"Description": "Age of the virtual subject (drawn, not measured)", "Units": "year"},
    "sex": {"Description": "Sex of the virtual subject (drawn)", "Levels": {"M": "male", "F": "female"}},
}
_PARTICIPANTS = PERSON | {
    "tumour": {"Description": "Whether a tumour was put in", "Levels": {"yes": "tumour", "no": "no tumour"}},
    "ms": {"Description": "Whether MS-like lesions were put in", "Levels": {"yes": "lesions", "no": "no lesions"}},
}


def make_cohort(
    out: str | Path,
    n: int,
    seed: int = 0,
    config: PhantomConfig | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write n virtual subjects as a BIDS dataset with its truth; the paths of the subject folders.

    Subject i is the same whatever n and `workers` (processes; None: as many as there are cores). More than one needs a
    script with the usual `if __name__ == "__main__"`. The dataset is made beside `out` and moved there when whole.
    InputError if `out` is there already, without `overwrite`.
    """
    config = config or PhantomConfig()
    refuse(out, n, overwrite)
    anatomies = len(label_files(str(config.labelmap))) if config.labelmap else 1
    load(config.labelmap and str(config.labelmap), 0)  # a fault in the anatomy is told before anything is written
    write = partial(_write, seed=seed, config=config)
    describe = partial(_describe, seed=seed, config=config, anatomies=anatomies)
    return publish(out, n, write, describe, workers, progress)


def publish(
    out: str | Path,
    n: int,
    write: Callable[[Path, int], dict[str, Any]],
    describe: Callable[[Path, list[dict[str, Any]]], None],
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[Path]:
    """Make a dataset of n subjects beside `out`, and move it there when whole; the paths of the subject folders.

    `write(root, index)` makes a subject and returns its row of participants.tsv; it is called in `workers` processes,
    and so must be picklable. `describe(root, rows)` writes what lies at the top.
    """
    out = Path(out)
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        rows = []
        for done, row in enumerate(_map(partial(write, part), n, min(workers or _cores(), n)), 1):
            rows.append(row)
            if progress is not None:
                progress(done, n)
        describe(part, rows)
        if out.exists():
            shutil.rmtree(out)
        os.replace(part, out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); choose a folder you may write to."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [out / str(row["participant_id"]) for row in rows]


def refuse(out: str | Path, n: int, overwrite: bool) -> None:
    """`out` may be new or empty; with `overwrite` it may also be a cohort made before, and nothing else."""
    out = Path(out)
    if n < 1:
        raise InputError(f"n={n}: choose 1 subject or more.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{out}: already exists; choose another folder or allow to overwrite it (--overwrite).")
    readme = out / "README"
    if not (readme.is_file() and NOTE in readme.read_text(encoding="utf-8", errors="replace")):
        raise InputError(f"{out}: is not a virtual cohort, so it is not overwritten; choose another folder.")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1


def _map(write: Callable[[int], dict[str, Any]], n: int, workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        yield from map(write, range(n))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        yield from pool.map(write, range(n))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _write(root: Path, index: int, seed: int, config: PhantomConfig) -> dict[str, Any]:
    """Make and write one subject; its row of participants.tsv."""
    virtual = subject(index, seed, config)
    _write_images(root, virtual, config)
    _write_truth(root / "derivatives" / "truth", virtual)
    p = virtual.parameters
    words = {True: "yes", False: "no"}
    return {
        "participant_id": virtual.label, "age": p["age"], "sex": p["sex"],
        "tumour": words[p["has_tumour"]], "ms": words[p["has_ms"]],
    }  # fmt: skip


def _write_images(root: Path, virtual: VirtualSubject, config: PhantomConfig) -> None:
    for name, image in virtual.images.items():
        folder = root / virtual.label / bids.datatype(name)
        folder.mkdir(parents=True, exist_ok=True)
        entities = "".join(f"_{key}-{value}" for key, value in modality.entities(name).items())
        path = folder / f"{virtual.label}{entities}_{modality.suffix(name)}.nii.gz"
        kind = np.float32 if name == "PET" else np.int16
        nifti.write(path, image, Volume(image, virtual.affine), descrip="SIMULATED by amodal phantom", dtype=kind)
        write_json(
            path.with_name(path.name.replace(".nii.gz", ".json")),
            _SIDECARS.get(name, _sidecar)(virtual.parameters["sequences"][name], config),
        )


def _sidecar(sequence: dict[str, Any], config: PhantomConfig) -> dict[str, Any]:
    """BIDS metadata of one MR image: times in seconds, as BIDS wants them."""
    sidecar = _scanner(config) | {
        "MagneticFieldStrength": 3.0,
        "PulseSequenceType": sequence["sequence"],
        "RepetitionTime": round(sequence["tr"] / 1000, 6),
        "EchoTime": round(sequence["te"] / 1000, 6),
        "FlipAngle": round(sequence["flip"], 4),
    }
    if sequence["ti"]:
        sidecar["InversionTime"] = round(sequence["ti"] / 1000, 6)
    if sequence["gadolinium"]:
        sidecar["ContrastBolusIngredient"] = "GADOLINIUM"
    return sidecar


def _scanner(config: PhantomConfig) -> dict[str, Any]:
    """What every sidecar holds."""
    return {
        "Description": NOTE,
        "Manufacturer": "amodal",
        "ManufacturersModelName": "virtual scanner",
        "SliceThickness": config.slice_thickness or config.spacing,
        "SkullStripped": config.stripped,
        "Simulated": True,
    }


def _ct_sidecar(sequence: dict[str, Any], config: PhantomConfig) -> dict[str, Any]:
    """BIDS knows no CT yet: names as DICOM and dcm2niix have them."""
    return _scanner(config) | {"Modality": "CT", "Units": "HU", "KVP": sequence["kilovolts"]}


def _pet_sidecar(sequence: dict[str, Any], config: PhantomConfig) -> dict[str, Any]:
    """BIDS metadata of a static FDG image; what BIDS requires and the simulation does not need is a usual value."""
    return _scanner(config) | {
        "Units": "g/ml",
        "SUVType": "body weight",
        "BodyPart": "brain",
        "TracerName": "FDG",
        "TracerRadionuclide": "F18",
        "InjectedRadioactivity": 200.0,
        "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "ModeOfAdministration": "bolus",
        "TimeZero": "10:00:00",
        "ScanStart": 2700,
        "InjectionStart": 0,
        "FrameTimesStart": [2700],
        "FrameDuration": [900],
        "AcquisitionMode": "list mode",
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
        "ReconMethodName": "simulated",
        "ReconMethodParameterLabels": ["resolution FWHM"],
        "ReconMethodParameterUnits": ["mm"],
        "ReconMethodParameterValues": [sequence["fwhm_mm"]],
        "ReconFilterType": "Gaussian",
        "ReconFilterSize": pet.FILTER,
        "AttenuationCorrection": "exact (simulated)",
    }


_SIDECARS = {"CT": _ct_sidecar, "PET": _pet_sidecar}


def _write_truth(root: Path, virtual: VirtualSubject) -> None:
    folder = root / virtual.label / "anat"
    folder.mkdir(parents=True)
    like = Volume(virtual.labels, virtual.affine)
    start, about = f"{virtual.label}_", {"Description": NOTE, "Manual": False}
    tumour = np.zeros_like(virtual.labels)
    for name, number in TUMOUR.items():
        tumour[virtual.labels == TISSUES[name].label] = number
    maps = {"desc-tissue": virtual.labels} | ({"desc-brats": tumour} if tumour.any() else {})
    for name, labels in maps.items():
        nifti.write(folder / f"{start}{name}_dseg.nii.gz", labels, like, dtype=np.uint8)
        extra = {"Simulation": virtual.parameters} if name == "desc-tissue" else {}
        write_json(folder / f"{start}{name}_dseg.json", about | extra)
    for group, label in GROUPS.items():
        share = sum(part for name, part in virtual.fractions.items() if TISSUES[name].group == group)
        share = np.rint(np.clip(share, 0, 1) * 1000) / 1000  # three digits are enough and make small files
        nifti.write(folder / f"{start}label-{label}_probseg.nii.gz", share, like)
        write_json(folder / f"{start}label-{label}_probseg.json", about)


def _describe(root: Path, rows: list[dict[str, Any]], seed: int, config: PhantomConfig, anatomies: int) -> None:
    """The files at the top of the dataset and of its truth."""
    made = json.dumps(settings(config) | {"anatomies": anatomies}, indent=2)
    describe_top(root, rows, _README.format(note=NOTE, seed=seed, settings=made), _PARTICIPANTS)
    if "CT" in config.modalities:
        bids.write_text(root / ".bidsignore", "**/ct\n*_ct.*\n")  # BIDS has no place for CT yet
    truth = root / "derivatives" / "truth"
    names = [(t.label, name, t.group) for name, t in TISSUES.items()]
    write_labels(truth / "desc-tissue_dseg.tsv", [(0, "background", "BG"), *names])
    write_labels(
        truth / "desc-brats_dseg.tsv", [(0, "background", "BG"), (1, "core", "L"), (2, "oedema", "L"), (3, "rim", "L")]
    )


def describe_top(root: Path, rows: list[dict[str, Any]], readme: str, columns: dict[str, Any]) -> None:
    """What every virtual cohort has: descriptions of the dataset and its truth, README, participants."""
    bids.write_dataset_description(root, "Virtual cohort (simulated)", "raw", licence="CC0")
    bids.write_text(root / "README", readme)
    table = ["\t".join(rows[0])] + ["\t".join(str(value) for value in row.values()) for row in rows]
    bids.write_text(root / "participants.tsv", "\n".join(table) + "\n")
    write_json(root / "participants.json", columns)
    truth = root / "derivatives" / "truth"
    bids.write_dataset_description(truth, "Truth of the virtual cohort (simulated)", "derivative", raw=root)
    bids.write_text(truth / "README", f"# Truth of the virtual cohort\n\n{NOTE}\nSee the README of the dataset.\n")


def write_labels(path: Path, rows: list[tuple[int, str, str]]) -> None:
    lines = ["index\tname\tabbreviation"] + [f"{index}\t{name}\t{group}" for index, name, group in rows]
    bids.write_text(path, "\n".join(lines) + "\n")


def write_json(path: Path, values: dict[str, Any]) -> None:
    bids.write_text(path, json.dumps(values, indent=2) + "\n")

"""A cohort of virtual hearts on disk: a BIDS dataset with a session for each phase, and the truth as its derivative."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import bids, nifti
from ..volume import Volume
from .cine import VirtualHeart, heart_subject
from .cohort import NOTE, PERSON, describe_top, publish, refuse, write_json, write_labels
from .heart import GROUPS, PARTS, HeartConfig

ACDC = {"right": 1, "myocardium": 2, "left": 3, "papillary": 3}  # as in that data set, papillary muscles are cavity
_README = """# A virtual cohort of hearts

{note}

- `sub-*/ses-ED` and `ses-ES`: short-axis cine stacks at end-diastole and end-systole, slices from apex to base.
- `participants.tsv`: age, sex and group that were drawn, and the volumes of the ventricles.
- `derivatives/truth`: `desc-heart_dseg` (all tissues; the sidecar holds every parameter that was drawn) and
  `desc-acdc_dseg` (1 right ventricle, 2 myocardium, 3 left ventricle with its papillary muscles).

Made with seed {seed} and these settings, which make the same files again:

```json
{settings}
```
"""
_PARTICIPANTS = PERSON | {
    "group": {"Description": "Kind of heart that was drawn", "Levels": {name: f"{name} heart" for name in GROUPS}},
    "lv_edv": {"Description": "Volume of the left ventricle at end-diastole, truth", "Units": "ml"},
    "lv_esv": {"Description": "Volume of the left ventricle at end-systole, truth", "Units": "ml"},
    "rv_edv": {"Description": "Volume of the right ventricle at end-diastole, truth", "Units": "ml"},
    "rv_esv": {"Description": "Volume of the right ventricle at end-systole, truth", "Units": "ml"},
}


def make_hearts(
    out: str | Path,
    n: int,
    seed: int = 0,
    config: HeartConfig | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write n virtual hearts as a BIDS dataset with its truth; the paths of the subject folders. As `make_cohort`."""
    config = config or HeartConfig()
    refuse(out, n, overwrite)
    settings: dict[str, Any] = {"seed": seed, "config": config}
    return publish(out, n, partial(_write, **settings), partial(_describe, **settings), workers, progress)


def _write(root: Path, index: int, seed: int, config: HeartConfig) -> dict[str, Any]:
    """Make and write one subject; its row of participants.tsv."""
    virtual = heart_subject(index, seed, config)
    for phase in virtual.images:
        _write_phase(root, virtual, phase, config)
    bids.write_text(
        root / virtual.label / f"{virtual.label}_sessions.tsv",
        "session_id\tphase\n" + "".join(f"ses-{phase}\t{phase}\n" for phase in virtual.images),
    )
    p = virtual.parameters
    left, right = (
        {k: round(sum(v[name] for name in names), 2) for k, v in p["volumes_ml"].items()}
        for names in (("left", "papillary"), ("right",))
    )
    return {
        "participant_id": virtual.label, "age": p["age"], "sex": p["sex"], "group": p["group"],
        "lv_edv": left["ED"], "lv_esv": left["ES"], "rv_edv": right["ED"], "rv_esv": right["ES"],
    }  # fmt: skip


def _write_phase(root: Path, virtual: VirtualHeart, phase: str, config: HeartConfig) -> None:
    name = f"{virtual.label}_ses-{phase}"
    folder, below = (top / virtual.label / f"ses-{phase}" / "anat" for top in (root, root / "derivatives" / "truth"))
    sequence = virtual.parameters["sequence"]
    image, labels = virtual.images[phase], virtual.labels[phase]
    like = Volume(image, virtual.affine)
    nifti.write(folder / f"{name}_cine.nii.gz", image, like, descrip="SIMULATED by amodal phantom", dtype=np.int16)
    sidecar = {
        "Description": NOTE, "Manufacturer": "amodal", "ManufacturersModelName": "virtual scanner",
        "MagneticFieldStrength": 1.5, "PulseSequenceType": sequence["sequence"], "CardiacPhase": phase,
        "RepetitionTime": round(sequence["tr"] / 1000, 6), "EchoTime": round(sequence["te"] / 1000, 6),
        "FlipAngle": round(sequence["flip"], 4), "SliceThickness": config.thickness,
        "SpacingBetweenSlices": config.thickness + config.gap, "Simulated": True,
    }  # fmt: skip
    write_json(folder / f"{name}_cine.json", sidecar)
    few = np.zeros_like(labels)
    for part, number in ACDC.items():
        few[labels == PARTS[part].label] = number
    about = {"Description": NOTE, "Manual": False}
    for kind, numbers, extra in (("heart", labels, {"Simulation": virtual.parameters}), ("acdc", few, {})):
        nifti.write(below / f"{name}_desc-{kind}_dseg.nii.gz", numbers, like, dtype=np.uint8)
        write_json(below / f"{name}_desc-{kind}_dseg.json", about | extra)


def _describe(root: Path, rows: list[dict[str, Any]], seed: int, config: HeartConfig) -> None:
    """The files at the top of the dataset and of its truth."""
    made = json.dumps(asdict(config), indent=2)
    describe_top(root, rows, _README.format(note=NOTE, seed=seed, settings=made), _PARTICIPANTS)
    bids.write_text(root / ".bidsignore", "*_cine.*\n")  # BIDS has no suffix for it
    truth = root / "derivatives" / "truth"
    write_labels(truth / "desc-heart_dseg.tsv", [(0, "air", "BG"), *((p.label, n, "H") for n, p in PARTS.items())])
    names = ((1, "right ventricle", "RV"), (2, "myocardium", "MYO"), (3, "left ventricle", "LV"))
    write_labels(truth / "desc-acdc_dseg.tsv", [(0, "background", "BG"), *names])

"""The virtual subjects of WFDM's measurements: simulated on voxels of half the size, then averaged over 2 x 2 x 2.

    python benchmarks/wfdm_data.py OUT -n 240 [--first 0] [--seed 0] [--size 48 56 40] [--spacing 4] [--finer 2]
        [--tumour 0.4] [--tumour-radius 9 21]

A voxel of 4 mm then holds the mean of what lies in it, as a scanner's does, where a simulation on 4 mm voxels would
show the tissue at its centre; `--finer 1` simulates on the voxels as they are, like `amodal phantom`. Intensities above
the 99.5th percentile of the fine image are cut off. Writes a BIDS data set, images and participants.tsv, that
`amodal train wfdm` takes. Subjects of one seed are the same whatever n.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from amodal.data import bids, nifti
from amodal.data.intensity import Window
from amodal.data.phantom import PhantomConfig, subject
from amodal.data.phantom.cohort import PERSON
from amodal.data.phantom.tissue import TISSUES
from amodal.data.volume import Volume

SEED = 7000  # subjects of this seed are never trained on
MODALITIES = ("T1w", "T1Gd", "T2w", "FLAIR")
GROUPS = {"fluid": "CSF", "lesion": "L"}
TOP = 1000  # intensity that white becomes
RADIUS = PhantomConfig.tumour_radius


@dataclass(frozen=True)
class Person:
    """A virtual subject: images [0, TOP], the share of each voxel that is fluid or lesion, what was drawn for it."""

    images: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    row: dict[str, Any]


def person(
    index: int, seed: int, shape: Sequence[int], spacing: float, modalities: Sequence[str] = MODALITIES,
    tumour: float = 0.4, lesions: float = 0.4, age: float | None = None, finer: int = 2,
    radius: Sequence[float] = RADIUS,
) -> Person:  # fmt: skip
    """Virtual subject `index` of a seed. `age`: in place of its own; all else about it stays. `finer`: times smaller
    are the voxels of the simulation. `radius`: range of the tumours' (mm)."""
    fine = tuple(finer * n for n in shape)
    grid = (fine, spacing / finer, tuple(modalities))
    config = PhantomConfig(*grid, tumour=tumour, lesions=lesions, tumour_radius=tuple(radius))  # type: ignore[arg-type]
    config = config if age is None else replace(config, age=(age, age))
    made = subject(index, seed, config)
    images = {m: coarse((Window.of(x).enter(x) + 1) * (TOP / 2), finer) for m, x in made.images.items()}
    shares = {
        name: coarse(sum(v for n, v in made.fractions.items() if TISSUES[n].group == group), finer)
        for name, group in GROUPS.items()
    }
    drawn, words = made.parameters, {True: "yes", False: "no"}
    flags = {"tumour": words[drawn["has_tumour"]], "ms": words[drawn["has_ms"]]}
    return Person(images, shares, {"age": drawn["age"], "sex": drawn["sex"], **flags})


def coarse(x: np.ndarray, by: int) -> np.ndarray:
    """The mean of every `by` x `by` x `by` voxels."""
    a, b, c = (n // by for n in x.shape)
    return np.asarray(x, np.float32).reshape(a, by, b, by, c, by).mean((1, 3, 5))


def write(out: Path, label: str, images: dict[str, np.ndarray], spacing: float) -> None:
    """The images of a subject, with the field of view centred on 0."""
    for name, image in images.items():
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = [-(n - 1) / 2 * spacing for n in image.shape]
        folder = out / label / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        contrast, suffix = ("_ce-gadolinium", "T1w") if name == "T1Gd" else ("", name)
        nifti.write(folder / f"{label}{contrast}_{suffix}.nii.gz", image, Volume(image, affine), dtype=np.float32)


def describe(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """participants.tsv and what else BIDS asks for."""
    bids.write_dataset_description(out, "Virtual cohort (simulated), voxels averaged", "raw", licence="CC0")
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    bids.write_text(out / "participants.tsv", "\n".join(lines) + "\n")
    flags = {
        name: {"Description": f"{name} (drawn)", "Levels": {"yes": "yes", "no": "no"}} for name in ("tumour", "ms")
    }
    bids.write_text(out / "participants.json", json.dumps(PERSON | flags, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("-n", type=int, default=240)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=3, default=(48, 56, 40))
    parser.add_argument("--spacing", type=float, default=4.0)
    parser.add_argument("--finer", type=int, default=2)
    parser.add_argument("--tumour", type=float, default=0.4)
    parser.add_argument("--tumour-radius", type=float, nargs=2, default=RADIUS)
    choice = parser.parse_args()
    rows = []
    for index in range(choice.first, choice.first + choice.n):
        label = f"sub-{index + 1:03d}"
        made = person(
            index, choice.seed, choice.size, choice.spacing, tumour=choice.tumour, finer=choice.finer,
            radius=choice.tumour_radius,
        )  # fmt: skip
        write(choice.out, label, made.images, choice.spacing)
        rows.append({"participant_id": label, **made.row})
        print(label, made.row, flush=True)
    describe(choice.out, rows)


if __name__ == "__main__":
    main()

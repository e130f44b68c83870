"""One virtual subject: an individual brain, scanned. Everything follows from (index, seed, config)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..volume import Study, Volume
from . import scanner
from .anatomy import Anatomy, load
from .body import draw_person, image_grid, make_body, streams
from .config import PhantomConfig
from .tissue import TISSUES


@dataclass(frozen=True, eq=False)
class VirtualSubject:
    """A scanned virtual subject with its truth, all on one grid [X, Y, Z] (voxels to RAS+ mm by `affine`).

    `images`: by modality, float32, whole numbers as a scanner stores (CT: HU; PET: SUV, not whole). `labels` uint8: 0
    or `TISSUES[name].label`. `fractions`: tissue -> share of each voxel, float32; they sum to at most 1, the rest is
    background. `parameters`: age, sex, sequence and tissue parameters, volumes in ml: plain JSON values.
    """

    label: str
    images: Mapping[str, np.ndarray]
    affine: np.ndarray
    labels: np.ndarray
    fractions: Mapping[str, np.ndarray]
    parameters: Mapping[str, Any]


def subject(
    index: int, seed: int = 0, config: PhantomConfig | None = None, anatomy: Anatomy | None = None
) -> VirtualSubject:
    """The index-th subject (from 0) of the cohort `seed`; the same bytes whatever the cohort's size or workers."""
    config = config or PhantomConfig()
    person = draw_person(index, seed, config)
    anatomy = anatomy or load(config.labelmap and str(config.labelmap), person["anatomy_index"])
    affine = image_grid(config)
    fractions, found = make_body(index, seed, config, anatomy, affine, person)
    images, scan = scanner.acquire(streams(index, seed, "scan"), fractions, config, affine, person["age"])
    if config.slice_thickness > 0:
        slabs, affine = scanner.slabs(config.shape[2], config.spacing, config.slice_thickness, affine)
        fractions = {name: scanner.through_plane(part, slabs) for name, part in fractions.items()}
    stack = np.stack(list(fractions.values()))
    numbers = np.array([0] + [TISSUES[name].label for name in fractions], np.uint8)
    labels = numbers[np.concatenate([1 - stack.sum(0, keepdims=True), stack]).argmax(0)]
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    volumes = {name: round(float(part.sum(dtype=np.float64) * voxel), 4) for name, part in fractions.items()}
    parameters = {**person, "anatomy": anatomy.name, **found, "volumes_ml": volumes, **scan}
    return VirtualSubject(f"sub-{index + 1:03d}", images, affine, labels, fractions, parameters)


def to_study(virtual: VirtualSubject) -> Study:
    """The images of a virtual subject as a study, as if it had been scanned."""
    volumes = {name: Volume(image, virtual.affine) for name, image in virtual.images.items()}
    metadata = {"age": virtual.parameters["age"], "sex": virtual.parameters["sex"]}
    return Study(virtual.label, volumes, metadata=metadata, notes=("Simulated by the virtual cohort, not acquired.",))

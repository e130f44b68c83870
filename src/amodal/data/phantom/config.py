"""The settings of a virtual cohort."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...core.errors import InputError
from .sequences import MODALITIES


@dataclass(frozen=True)
class PhantomConfig:
    """A virtual cohort. Probabilities are per subject; `bias`, `noise`, `protocol_jitter` are relative (0.1 = 10 %).

    `shape`, `spacing` (mm): the voxel grid. `head`: skull and scalp around the brain. `noise`: Rician, relative to the
    signal of white matter. `misregistration`: standard deviation of each modality's shift (mm) and turn (degrees).
    `slice_thickness` (mm): thick axial slices, 0 = as `spacing`. `stripped`: background exactly 0. `labelmap`: a
    FreeSurfer-like label map, or a folder of them, in place of the MNI152 template. `age`: range in years.
    `warp`: how much shapes differ, 1 = as people do. `tumour_radius`: range in mm, of the core without oedema.
    """

    shape: tuple[int, int, int] = (128, 128, 128)
    spacing: float = 1.5
    modalities: tuple[str, ...] = ("T1w", "T1Gd", "T2w", "FLAIR")
    head: bool = False
    tumour: float = 0.2
    lesions: float = 0.4
    bias: float = 0.15
    noise: float = 0.02
    misregistration: float = 0.0
    slice_thickness: float = 0.0
    protocol_jitter: float = 0.1
    stripped: bool = True
    labelmap: str | Path | None = None
    age: tuple[float, float] = (20.0, 85.0)
    warp: float = 1.0
    tumour_radius: tuple[float, float] = (9.0, 21.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labelmap", None if self.labelmap is None else str(self.labelmap))
        for name in ("tumour", "lesions"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: a probability lies between 0 and 1.")
        for name in ("bias", "noise", "misregistration", "slice_thickness", "protocol_jitter", "warp"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name}={getattr(self, name)}: choose 0 or more.")
        if len(self.shape) != 3 or min(self.shape) < 8 or not self.spacing > 0:
            raise InputError(
                f"shape={self.shape}, spacing={self.spacing}: choose three sizes of 8 or more and a spacing above 0."
            )
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise InputError(f"modalities={self.modalities}: name each wanted modality once.")
        if unknown := [m for m in self.modalities if m not in MODALITIES]:
            raise InputError(f"modality {unknown[0]!r}: the phantom can make {', '.join(MODALITIES)}.")
        if self.head and self.stripped:
            raise InputError("head=True shows skull and scalp, so nothing can be stripped: set stripped=False.")
        if not 0 < self.age[0] <= self.age[1]:
            raise InputError(f"age={self.age}: give the youngest and the oldest age in years.")
        if not 0 < self.tumour_radius[0] <= self.tumour_radius[1] < math.inf:
            raise InputError(f"tumour_radius={self.tumour_radius}: give the smallest and the largest in mm, above 0.")


def settings(config: PhantomConfig) -> dict[str, Any]:
    """The config as plain JSON values."""
    return asdict(replace(config, labelmap=None)) | {"labelmap": config.labelmap and Path(str(config.labelmap)).name}

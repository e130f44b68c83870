"""The JSON beside every image that was made: that it is synthetic, from what, by which model, and how."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np

from .. import __version__
from .volume import Volume

HEAD_LITRES = 2.3  # a skull-stripped brain with its fluid holds 1 to 2 litres, a whole head 3 to 5


@dataclass(frozen=True)
class Weights:
    """Which weights were used: `id` as the user names the model, the digest of the file, its licence."""

    id: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Sampling:
    """How the samples were drawn."""

    name: str
    steps: int
    seed: int
    samples: int = 1
    precision: str = "fp32"


def sidecar(
    modality: str,
    *,
    method: str,
    weights: Weights,
    sampling: Sampling,
    sources: Sequence[str],
    reference: str,
    skull_stripped: bool,
    input_sha256: Mapping[str, str],
    preprocessing: Sequence[str] = (),
    units: str = "arbitrary",
    device: str = "cpu",
    checks: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    statistic: Literal["mean", "sd"] = "mean",
) -> dict[str, Any]:
    """The sidecar of one image. `sources`, `reference`: BIDS URIs; `input_sha256`: modality -> digest of its file.

    No acquisition parameter is taken over: echo and repetition times of a source say nothing of what was made from it.
    """
    block: dict[str, Any] = {
        "Tool": f"amodal {__version__}",
        "Method": method,
        "Weights": {"Id": weights.id, "SHA256": weights.sha256, "Licence": weights.licence},
        "Sampler": {
            "Name": sampling.name,
            "Steps": sampling.steps,
            "Seed": sampling.seed,
            "Samples": sampling.samples,
            "Precision": sampling.precision,
        },
        "InputSHA256": dict(input_sha256),
        "Preprocessing": list(preprocessing),
        "IntensityUnits": units,
        "Environment": environment(device),
        "Checks": dict(checks or {}),
    }
    if seconds is not None:
        block["RuntimeSeconds"] = round(seconds, 1)
    return {
        "Description": _description(modality, sampling.samples, statistic),
        "Sources": list(sources),
        "SpatialReference": reference,
        "SkullStripped": bool(skull_stripped),
        "Synthetic": block,
    }


def _description(modality: str, samples: int, statistic: str) -> str:
    count = "one posterior sample" if samples == 1 else f"{samples} posterior samples"
    if statistic == "sd":
        return f"SYNTHETIC {modality}, not acquired: voxelwise standard deviation over {count}."
    return f"SYNTHETIC {modality}, not acquired: " + (f"mean of {count}." if samples > 1 else f"{count}.")


def environment(device: str = "cpu") -> dict[str, str]:
    """What it ran on: versions that can change a result, and the device."""
    found = {"python": platform.python_version(), "device": device}
    for package in ("torch", "numpy", "SimpleITK"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def skull_stripped(volume: Volume) -> bool:
    """Whether only the brain is left: zeros at the border of the field of view, and a brain's worth of voxels."""
    image = volume.data != 0
    inner = image[1:-1, 1:-1, 1:-1]
    at_border = (image.sum() - inner.sum()) / max(1, image.size - inner.size)  # a tight crop may touch it
    litres = image.sum() * abs(np.linalg.det(volume.affine[:3, :3])) / 1e6
    return bool(at_border < 0.02 and litres < HEAD_LITRES)

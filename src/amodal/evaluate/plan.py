"""How an evaluation is run, and what it found, as values."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..metrics.statistics import Score, Verdict
from ..model.intervals import Calibration
from ..report.evaluation import Beside, Coverage
from .paired import Paired
from .protocols import TRUST, Protocol


@dataclass(frozen=True)
class Table:
    """What an evaluation found. `failed` and `skipped` say why by subject; `comparisons` are the tested model against
    each other one; `beside` the paper's numbers with ours; `coverage` what the intervals of the SD maps cover;
    `calibration` the factors fitted here; `files` what was written."""

    scores: tuple[Score, ...]
    verdicts: tuple[Verdict, ...]
    failed: Mapping[str, str]
    skipped: Mapping[str, str]
    protocol: Mapping[str, Any]
    files: Mapping[str, Path]
    comparisons: tuple[Paired, ...] = ()
    beside: tuple[Beside, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Plan:
    """How it is run. `samples` above 1 draws SD maps, whose intervals are then measured; `calibrate` also finds the
    factors that make them hold. `beside`: other models, measured on the same and compared with the tested one."""

    protocol: Protocol = TRUST
    steps: int | None = None
    samples: int = 1
    seed: int = 0
    workers: int = 1
    overwrite: bool = False
    calibrate: bool = False
    beside: Mapping[str, Any] = field(default_factory=dict)  # name -> Model
    data: str = ""  # the name of the data set


def environment() -> dict[str, str]:
    """What the numbers may depend on beside all that is asked for."""
    return {
        "amodal": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }

"""Do the SD maps say how wrong an image is? Coverage of their intervals, and the factor that makes these hold.

An interval is value +- factor * (SD + floor), in fractions of the intensity window, over the voxels of the head.
`floor` is what the model is wrong by where all its samples agree (the noise of the truth, mostly); it maximises the
likelihood of the errors as Laplace-distributed with a scale in proportion to SD + floor. `factor` is the quantile of
error / (SD + floor) over the calibration subjects, each weighing the same: locally scaled split-conformal prediction
(Lei et al. 2018, JASA 113:1094) with the subject, not the voxel, as what is exchangeable. The part of a new subject's
voxels that an interval covers is then the level on average. `safe` is the factor of conformal risk control
(Angelopoulos et al. 2024, ICLR): but for the choice of the floor its expected coverage is guaranteed not to fall below
the level, at the price of 1 / (n + 1) for n subjects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from ..core.errors import InputError
from ..model.intervals import Intervals, key_of

FILE = "calibration.npz"
LEVELS = (0.5, 0.9)
FEWEST = 5  # subjects without which no factor is stored
_ERRORS = np.linspace(0, 1, 513) ** 2  # edges: fine where errors are small
_SPREADS = 0.5 * np.linspace(0, 1, 129) ** 2  # no SD of numbers in [0, 1] is above 0.5 (n large)
_E, _S = np.meshgrid(
    (_ERRORS[1:] + _ERRORS[:-1]) / 2, (_SPREADS[1:] + _SPREADS[:-1]) / 2, indexing="ij"
)  # middles of the cells
_FLOORS = np.geomspace(1e-3, 0.1, 21)

Counts = Mapping[str, Mapping[str, np.ndarray]]  # subject -> "pattern|modality" -> voxels by error and SD


def count(guess: np.ndarray, sd: np.ndarray, truth: np.ndarray, head: np.ndarray) -> np.ndarray:
    """The voxels of the head by error and SD, [512, 128]; images in [0, 1]."""
    error, spread = np.abs(guess - truth)[head], sd[head].clip(0, _SPREADS[-1])
    found, _, _ = np.histogram2d(error.clip(0, 1), spread, (_ERRORS, _SPREADS))
    return found.astype(np.uint32)


def keep(path: Path, counts: Mapping[str, np.ndarray]) -> None:
    """Write a subject's counts, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez_compressed(temporary, **counts)  # type: ignore[arg-type]
    os.replace(temporary, path)


def kept(path: Path) -> dict[str, np.ndarray]:
    """A subject's counts; empty where there are none."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def coverage(counts: np.ndarray, factor: float, floor: float = 0.0) -> float:
    """The part of the voxels whose error is at most factor * (SD + floor)."""
    # within a cell errors are taken as evenly spread
    low, high = _ERRORS[:-1, None], _ERRORS[1:, None]
    part = ((factor * (_S + floor) - low) / (high - low)).clip(0, 1)
    return float((counts * part).sum() / max(counts.sum(), 1))


def before(counts: np.ndarray, level: float) -> float:
    """What mean +- z SD covers, z the normal quantile: the SD map taken at its word."""
    return coverage(counts, float(stats.norm.ppf((1 + level) / 2)))


def fit(counts: Counts, levels: Sequence[float] = LEVELS) -> dict[str, Intervals]:
    """Floor and factors of every modality from the counts of at least `FEWEST` subjects."""
    if len(counts) < FEWEST:
        raise InputError(
            f"{len(counts)} subjects are too few to calibrate with; give at least {FEWEST} complete ones, better 20."
        )
    names = sorted({key.split("|")[1] for images in counts.values() for key in images})
    return {name: _modality(*_of(counts, name), levels) for name in names}


def _of(counts: Counts, name: str) -> tuple[list[np.ndarray], int]:
    """The share of voxels in each cell, a subject's images averaged; and how many images there are."""
    subjects, images = [], 0
    for kept_ in counts.values():
        mine = [c / max(c.sum(), 1) for key, c in kept_.items() if key.split("|")[1] == name]
        images += len(mine)
        if mine:
            subjects.append(np.mean(mine, axis=0))
    return subjects, images


def _modality(subjects: list[np.ndarray], images: int, levels: Sequence[float]) -> Intervals:
    n, mean = len(subjects), np.mean(subjects, axis=0)
    floor, left = _floor(mean), left_out(subjects, levels)
    return Intervals(
        floor=floor,
        factors={key_of(p): _factor(mean, floor, p) for p in levels},
        # conformal risk control: (n R + 1) / (n + 1) <= 1 - p
        safe={key_of(p): _factor(mean, floor, q) for p in levels if (q := p + p / n) < 1},
        before={key_of(p): float(np.mean([before(s, p) for s in subjects])) for p in levels},
        left_out={key: float(np.mean(values)) for key, values in left.items()},
        worst={key: float(np.min(values)) for key, values in left.items()},
        spread={key: float(np.std(values, ddof=1)) for key, values in left.items()},
        subjects=n,
        images=images,
    )


def left_out(subjects: Sequence[np.ndarray], levels: Sequence[float] = LEVELS) -> dict[str, list[float]]:
    """What is covered of each subject by the floor and the factor found on the others; nothing of a single one."""
    found: dict[str, list[float]] = {key_of(p): [] for p in levels} if len(subjects) > 1 else {}
    total = np.sum(subjects, axis=0)
    for own in subjects if found else ():
        rest = (total - own).clip(0)
        floor = _floor(rest)
        for level in levels:
            found[key_of(level)].append(coverage(own, _factor(rest, floor, level), floor))
    return found


def _floor(share: np.ndarray) -> float:
    """The floor under which the errors are likeliest as Laplace with the scale b (SD + floor), b its best value."""
    used = share > 0
    w, e, s = share[used] / share.sum(), _E[used], _S[used]
    loss = [float(w @ np.log(s + c) + np.log(w @ (e / (s + c)))) for c in _FLOORS]
    return float(_FLOORS[int(np.argmin(loss))])


def _factor(share: np.ndarray, floor: float, level: float) -> float:
    """The factor that covers `level` of the voxels, to a thousandth of itself."""
    low, high = 1e-3, 1e4
    while high / low > 1.0005:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if coverage(share, middle, floor) >= level else (middle, high)
    return round(high, 6)

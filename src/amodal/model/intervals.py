"""What a model's SD maps are worth: the intervals that `amodal evaluate --calibrate` found to hold, kept in the card.

An interval is value +- factor * (SD + floor), in fractions of the intensity window. How factor and floor are found
stands in `evaluate.calibrate`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ..core.config import from_dict, to_dict
from ..core.errors import InputError
from .files import ABOUT


@dataclass(frozen=True)
class Intervals:
    """Of one modality, by level ("0.5", "0.9"): `factors`; `safe`, larger ones of guaranteed expected coverage; and
    what was covered of the calibration subjects: `before`, by plain multiples of the SD; `left_out`, of each by the
    factors found on the others, mean; `worst` the least of these, `spread` their SD."""

    floor: float
    factors: dict[str, float]
    safe: dict[str, float]
    before: dict[str, float]
    left_out: dict[str, float]
    worst: dict[str, float]
    subjects: int
    images: int
    spread: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """What a model's card holds under `calibration`: intervals by modality, and what they were found with."""

    samples: int
    steps: int
    weights: str
    data: str
    patterns: str
    protocol: str
    modalities: dict[str, Intervals] = field(default_factory=dict)

    def half(self, name: str, level: float, sd: np.ndarray, samples: int) -> np.ndarray:
        """Half the width of a modality's interval, in fractions of its window, from the SD over `samples`."""
        return self.factor(name, level, samples) * (sd + self.modalities[name].floor)

    def factor(self, name: str, level: float, samples: int) -> float:
        """The factor. For another number of samples than it was found with it is widened, as for normal draws: by the
        ratio of Student's quantiles or of the SDs of a draw's distance to the mean, the larger (the first is right
        where the floor is small, the second where it is large)."""
        found = self.modalities[name].factors
        if key_of(level) not in found:
            raise InputError(f"level={level:g}: the model was calibrated for {', '.join(found)}; choose one of them.")
        there, here = _widths(level, self.samples), _widths(level, samples)
        return found[key_of(level)] * max(a / b for a, b in zip(here, there))

    def levels(self, name: str) -> tuple[float, ...]:
        """The levels a modality has intervals for; none if it was not calibrated."""
        return tuple(map(float, self.modalities[name].factors)) if name in self.modalities else ()


def of_card(card: Mapping[str, Any], weights: str) -> Calibration | None:
    """The calibration in a model's card; None where there is none, or it is that of other weights (a sha256)."""
    values = card.get("calibration")
    found = from_dict(Calibration, values, "calibration: ") if values else None
    return found if found is not None and found.weights == weights else None


def stated(known: Calibration | None, made: Sequence[str], samples: int) -> dict[str, Any]:
    """The intervals of images as their sidecar states them; empty where there is nothing to state."""
    if known is None or samples < 2:
        return {}
    by_name = {
        name: {
            f"{100 * level:g} %": {
                "Factor": round(known.factor(name, level, samples), 4),
                "Floor": known.modalities[name].floor,
            }
            for level in known.levels(name)
        }
        for name in made
        if known.levels(name)
    }
    about = f"value +- Factor * (SD + Floor), in fractions of the intensity window; calibrated on {known.data}"
    return {"Intervals": {"Description": about, **by_name}} if by_name else {}


def into_card(folder: Path, calibration: Calibration) -> Path:
    """Write a calibration into the card of a model's folder; nothing else in it changes, nothing is half-written."""
    page = folder / ABOUT
    about = json.loads(page.read_text(encoding="utf-8"))
    about["card"] = {**about["card"], "calibration": to_dict(calibration)}
    temporary = page.with_name(f".{page.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, page)
    except OSError as error:
        raise InputError(
            f"{page}: cannot be written ({error.strerror}); copy the model to a folder of yours."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return page


def key_of(level: float) -> str:
    """A level as a key of the tables."""
    return f"{level:g}"


def _widths(level: float, samples: int) -> tuple[float, float]:
    """How far a new normal draw lies from the mean of K with this probability, in SDs of the K; the same per unit z."""
    if samples < 2:
        raise InputError(f"samples={samples}: an interval needs the SD over 2 samples or more.")
    apart = float(np.sqrt(1 + 1 / samples))
    return float(stats.t.ppf((1 + level) / 2, samples - 1)) * apart, apart

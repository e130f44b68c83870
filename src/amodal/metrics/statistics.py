"""From scores of single images to what can be said of a cohort: means with bootstrap intervals, paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError

DRAWS = 2000
BASELINES = {"regression": "voxelwise regression", "single": "the best single modality"}
FEW = 5  # subjects below which no verdict is given
ALL = "all"  # the pattern of a summary pooled over all patterns


@dataclass(frozen=True)
class Score:
    """One number: `modality` of `subject`, hidden with the others of `pattern` (`T2w+FLAIR`), made by `method`."""

    subject: str
    pattern: str
    modality: str
    metric: str
    method: str
    value: float


@dataclass(frozen=True)
class Summary:
    """A metric over n subjects (a subject's patterns averaged first); [low, high] is the 95 % interval of the mean."""

    pattern: str
    modality: str
    metric: str
    method: str
    n: int
    mean: float
    sd: float
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Paired differences of two methods over n subjects: mean, its 95 % interval, and how often the first is higher."""

    modality: str
    metric: str
    method: str
    other: str
    n: int
    mean: float
    low: float
    high: float
    higher: int


def interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean (Efron 1979); (nan, nan) for fewer than two values."""
    x = np.asarray(values, float)
    if not 0 < level < 1:
        raise InputError(f"level={level!r}: choose a confidence between 0 and 1, usually 0.95.")
    if len(x) < 2:
        return math.nan, math.nan
    means = x[np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(scores: Iterable[Score]) -> list[Summary]:
    """One summary a pattern, modality, metric and method; one pooled (`ALL`) where a modality has several patterns."""
    groups: dict[tuple[str, str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    patterns: dict[str, set[str]] = defaultdict(set)
    for s in scores:
        patterns[s.modality].add(s.pattern)
        for pattern in (s.pattern, ALL):
            groups[pattern, s.modality, s.metric, s.method][s.subject].append(s.value)
    return [
        _summary(*key, [float(np.mean(v)) for v in subjects.values()])
        for key, subjects in groups.items()
        if key[0] != ALL or len(patterns[key[1]]) > 1
    ]


def compare(scores: Iterable[Score], modality: str, metric: str, method: str, other: str) -> Difference | None:
    """`method` minus `other`, paired by subject and pattern; None where they share no image."""
    values: dict[str, dict[tuple[str, str], float]] = {method: {}, other: {}}
    for s in scores:
        if (s.modality, s.metric) == (modality, metric) and s.method in values:
            values[s.method][s.subject, s.pattern] = s.value
    paired: dict[str, list[float]] = defaultdict(list)
    for key in values[method].keys() & values[other].keys():
        paired[key[0]].append(values[method][key] - values[other][key])
    if not paired:
        return None
    d = np.array([np.mean(paired[subject]) for subject in sorted(paired)])
    return Difference(modality, metric, method, other, len(d), float(d.mean()), *interval(d), int((d > 0).sum()))


@dataclass(frozen=True)
class Verdict:
    """What the scores say of one modality: `good` is True, False, or None where nothing can be said; and in words."""

    modality: str
    good: bool | None
    text: str


def verdict(scores: Sequence[Score], modality: str, method: str, others: Sequence[str]) -> Verdict:
    """Whether a method is nearer to the truth than every baseline: the paired interval of PSNR, and SSIM agreeing."""
    found = [d for other in others if (d := compare(scores, modality, "psnr", method, other)) is not None]
    if not found:
        return Verdict(modality, None, "no baseline to compare with, so the scores stand alone.")
    hardest = min(found, key=lambda d: d.mean)
    like = compare(scores, modality, "ssim", method, hardest.other)
    side = "nearer to" if hardest.mean > 0 else "farther from"
    gap = f"{abs(hardest.mean):.2f} dB {side} the truth than {BASELINES.get(hardest.other, hardest.other)}"
    wins = f"nearer in {hardest.higher} of {hardest.n} subject{'s' if hardest.n > 1 else ''}"
    also = f", SSIM {like.mean:+.3f}" if like is not None else ""
    if hardest.n < FEW:
        return Verdict(modality, None, f"{gap} ({wins}{also}); {FEW} subjects are needed before more can be said.")
    span = f"95 % interval {hardest.low:+.2f} to {hardest.high:+.2f} dB, {wins}{also}"
    good = hardest.low > 0 and (like is None or like.mean > 0)
    if good:
        return Verdict(modality, True, f"{gap}, the hardest baseline ({span}): the model adds something here.")
    worse = (
        "do not use the model for it here" if hardest.high < 0 else "no clear gain, the model earns no trust here yet"
    )
    return Verdict(modality, False, f"{gap} ({span}): {worse}.")


def _summary(pattern: str, modality: str, metric: str, method: str, values: list[float]) -> Summary:
    x = np.array(values)
    with np.errstate(invalid="ignore"):  # equal images have an infinite PSNR
        sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
        low, high = interval(x)
    return Summary(pattern, modality, metric, method, len(x), float(x.mean()), sd, float(np.median(x)), low, high)

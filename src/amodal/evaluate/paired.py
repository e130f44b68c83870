"""Whether one method is nearer to the truth than another: differences paired by subject, a test that assumes little.

The test flips the signs of the subjects' differences: exact for few subjects, by draws for many. p-values of one family
(the modalities of one metric) are adjusted by Holm 1979, so that the chance of any false claim among them stays 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..metrics.statistics import FEW, Difference, Score, compare

EXACT = 13  # subjects up to which all 2^n sign patterns are counted
DRAWS = 20_000
BETTER = {"psnr": 1, "ssim": 1, "msssim": 1, "dice": 1, "mae": -1, "mse": -1, "nmse": -1}  # the sign of a gain
ALPHA = 0.05


@dataclass(frozen=True)
class Paired:
    """`difference` of one metric of one modality; `p` two-sided, `adjusted` by Holm; `words` for readers."""

    difference: Difference
    p: float
    adjusted: float
    words: str


def sign_flip(differences: Sequence[float] | np.ndarray, draws: int = DRAWS, seed: int = 0) -> float:
    """The two-sided p-value that the mean difference is 0, were each subject's sign as likely as its opposite."""
    d = np.asarray(differences, float)
    if len(d) == 0 or not np.isfinite(d).all():
        return float("nan")
    found = abs(d.sum()) * (1 - 1e-12)  # sums that are equal but for rounding count as reached
    if len(d) <= EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
        return float((abs(signs @ d) >= found).mean())
    rng, reached, size = np.random.default_rng(seed), 1, 2000
    for _ in range(draws // size):
        reached += int((abs(rng.choice((-1.0, 1.0), (size, len(d))) @ d) >= found).sum())
    return reached / (draws // size * size + 1)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given."""
    order = np.argsort(p)
    out, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        out[index] = highest
    return out


def compare_all(
    scores: Sequence[Score], method: str, other: str, names: Mapping[str, str] | None = None
) -> list[Paired]:
    """`method` against `other` in every metric with a direction and every modality they share."""
    found: list[Paired] = []
    shown = {method: method, other: other, **(names or {})}
    for metric in [m for m in BETTER if any(s.metric == m for s in scores)]:
        family = [
            _one(scores, d)
            for modality in dict.fromkeys(s.modality for s in scores)
            if (d := compare(scores, modality, metric, method, other)) is not None
        ]
        for one, p in zip(family, holm([f.p for f in family])):
            found.append(replace(one, adjusted=p, words=_words(one.difference, p, shown[method], shown[other])))
    return found


def _one(scores: Sequence[Score], d: Difference) -> Paired:
    p = sign_flip(by_subject(scores, d.modality, d.metric, d.method, d.other))
    return Paired(d, p, p, "")


def by_subject(scores: Sequence[Score], modality: str, metric: str, method: str, other: str) -> list[float]:
    """`method` minus `other`, the patterns of a subject averaged, in the order of the subjects' names."""
    values: dict[str, dict[tuple[str, str], float]] = {method: {}, other: {}}
    for s in scores:
        if (s.modality, s.metric) == (modality, metric) and s.method in values:
            values[s.method][s.subject, s.pattern] = s.value
    pairs: dict[str, list[float]] = {}
    for key in sorted(values[method].keys() & values[other].keys()):
        pairs.setdefault(key[0], []).append(values[method][key] - values[other][key])
    return [float(np.mean(v)) for v in pairs.values()]


def _words(d: Difference, p: float, method: str, other: str) -> str:
    if d.n < FEW:
        many = "1 subject is" if d.n == 1 else f"{d.n} subjects are"
        return f"{many} too few to tell {method} from {other}; {FEW} are needed."
    if not p < ALPHA:
        return f"no difference between {method} and {other} can be claimed (p = {p:.2g}, {d.n} subjects)."
    ahead, behind = (method, other) if d.mean * BETTER[d.metric] > 0 else (other, method)
    return f"{ahead} is nearer to the truth than {behind} (p = {p:.2g}, {d.n} subjects)."

"""Can one tell whom a model was trained on? Attacks whose success is a number: 0.5 is a coin, 1 is certainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from ..core.contract import Batch, Stage
from ..core.errors import InputError
from ..core.rng import Rng

DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Membership:
    """How well a score tells members of the training set from others.

    `auc`: the chance that a random member scores lower than a random other, with its bootstrap interval.
    `advantage`: the best true minus false positive rate (Yeom et al. 2018). `caught_at_1`, `caught_at_10`: the part of
    the members caught where 1 % (10 %) of the others are falsely accused, nan with fewer than 100 (10) others (Carlini
    et al. 2022: what matters is the few who are caught for certain). `p`: one-sided Mann-Whitney.
    """

    auc: float
    low: float
    high: float
    advantage: float
    caught_at_1: float
    caught_at_10: float
    p: float
    members: int
    others: int


def membership(members: Sequence[float], others: Sequence[float], seed: int = 0) -> Membership:
    """The attack that calls members those with a low score, such as the model's loss on them (Yeom et al. 2018).

    InputError for fewer than two of either, or scores that are not finite.
    """
    a, b = np.asarray(members, float), np.asarray(others, float)
    if min(a.size, b.size) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError(f"{a.size} members and {b.size} others: give two finite scores of each at least.")
    cuts, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    first, second = places[: a.size], places[a.size :]
    rng = np.random.default_rng(seed)
    drawn = [_auc(rng.choice(first, first.size), rng.choice(second, second.size), len(cuts)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    caught, accused = (np.cumsum(np.bincount(v, minlength=len(cuts))) / v.size for v in (first, second))
    return Membership(
        _auc(first, second, len(cuts)),
        float(low),
        float(high),
        float(max((caught - accused).max(), 0.0)),
        _caught(caught, accused, 0.01, b.size),
        _caught(caught, accused, 0.1, b.size),
        float(stats.mannwhitneyu(a, b, alternative="less").pvalue),
        a.size,
        b.size,
    )


@torch.no_grad()
def losses(stage: Stage, samples: Iterable[Batch], draws: int = 8, seed: int = 0) -> list[float]:
    """The mean loss of a stage's first player on each sample (a batch of one), over `draws` random draws.

    All samples meet the same draws (times, noise), so that they differ by themselves alone.
    """
    loss, out = stage.players[0].loss, []
    for batch in samples:
        rngs = [Rng.of(seed, len(batch), "membership", draw) for draw in range(draws)]
        out.append(float(np.mean([float(loss(stage.forward(batch, rng))[0]) for rng in rngs])))
    return out


def _auc(first: np.ndarray, second: np.ndarray, count: int) -> float:
    """The chance that one of the first ranks below one of the second, ties half; ranks are 0 to count - 1."""
    a, b = (np.bincount(v, minlength=count) for v in (first, second))
    above = second.size - np.cumsum(b) + 0.5 * b
    return float(a @ above) / (first.size * second.size)


def _caught(caught: np.ndarray, accused: np.ndarray, rate: float, others: int) -> float:
    if others * rate < 1:
        return math.nan
    return float(caught[accused <= rate].max(initial=0.0))

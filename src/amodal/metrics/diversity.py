"""How varied generated volumes are: the mean MS-SSIM of random pairs; lower is more varied (WFDM, section 2.5.7).

The number has no meaning alone (noise is varied too, and heads in one space are alike): the real cohort's stands by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..core.errors import InputError
from ..core.rng import seed_of
from .features import DRAWS, LEVEL, Measure
from .pair import Image
from .structure import msssim, scales_for

POOLED = "pooled"
Bins = Mapping[str, Sequence[Image]]  # modality -> its volumes; a sequence may read them when they are asked for


def diversity(
    generated: Bins, data_range: float, real: Bins | None = None, *, pairs: int = 100, draws: int = DRAWS, seed: int = 0
) -> dict[str, Measure]:
    """Mean MS-SSIM over `pairs` random pairs of each modality (all, where there are fewer), and pooled over all pairs.

    Pairs are of one modality and of two different volumes. The interval comes from a bootstrap over volumes (pairs
    share them). `floor` is the same number of the real cohort. InputError for fewer than two volumes.
    """
    if not generated or any(len(v) < 2 for v in generated.values()):
        raise InputError("diversity needs two generated volumes of each modality at least; generate more.")
    made = {name: _similarities(v, data_range, pairs, seed_of(seed, name)) for name, v in generated.items()}
    there = {name: v for name, v in (real or {}).items() if name in generated and len(v) > 1}
    truth = {name: _similarities(v, data_range, pairs, seed_of(seed, name)) for name, v in there.items()}
    shape = tuple(np.shape(next(iter(generated.values()))[0]))
    settings = {"pairs": pairs, "draws": draws, "seed": seed, "data_range": data_range, "scales": scales_for(shape)}
    names = [*generated, POOLED] if len(generated) > 1 else list(generated)
    return {name: _measure(name, made, truth, {**settings, "level": LEVEL}) for name in names}


Similarities = tuple[np.ndarray, np.ndarray, int]  # pairs [k, 2], their MS-SSIM [k], number of volumes


def _similarities(volumes: Sequence[Image], data_range: float, pairs: int, seed: int) -> Similarities:
    every = np.stack(np.triu_indices(len(volumes), 1), axis=1)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(every))[:pairs])
    found = [msssim(volumes[int(a)], volumes[int(b)], data_range) for a, b in every[chosen]]
    return every[chosen], np.array(found), len(volumes)


def _measure(name: str, made: Mapping[str, Similarities], truth: Mapping[str, Similarities], settings: dict) -> Measure:
    mine = list(made.values()) if name == POOLED else [made[name]]
    theirs = list(truth.values()) if name == POOLED else [truth[name]] if name in truth else []
    rng = np.random.default_rng(seed_of(settings["seed"], "diversity", name))
    value, low, high = _mean(mine, settings["draws"], rng)
    floor, floor_low, floor_high = _mean(theirs, settings["draws"], rng) if theirs else (math.nan,) * 3
    sizes = [sum(size for *_, size in part) for part in (mine, theirs)]
    words = "none: compared in image space"
    return Measure(
        "msssim_diversity", value, low, high, sizes[0], sizes[1], floor, floor_low, floor_high, sizes[1], value,
        words, "", "as generated", settings,
    )  # fmt: skip


def _mean(bins: Sequence[Similarities], draws: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """The mean over pairs, and its interval when volumes are drawn anew (a pair counts as both its volumes do)."""
    value, means = float(np.concatenate([v for _, v, _ in bins]).mean()), []
    for _ in range(draws):
        weights = []
        for pairs, _, size in bins:
            counts = np.bincount(rng.integers(size, size=size), minlength=size)
            weights.append(counts[pairs[:, 0]] * counts[pairs[:, 1]])
        total = np.concatenate(weights)
        if total.sum():
            means.append(float(np.average(np.concatenate([v for _, v, _ in bins]), weights=total)))
    if len(means) < 20:
        return value, math.nan, math.nan
    low, high = np.quantile(np.array(means) - np.mean(means) + value, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high)

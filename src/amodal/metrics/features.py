"""How near a generated cohort is to a real one, as numbers that can be repeated.

Each number comes with what it needs to mean anything: the sizes of both samples, a bootstrap interval, what two halves
of the real cohort give (the floor below which nothing can be told), and the extractor with the sha256 of its weights.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..core.rng import seed_of
from . import distances

DRAWS, SPLITS, LEVEL = 200, 10, 0.95
FILE = ("values", "labels", "groups", "extractor", "sha256", "preparation", "standardise")


@dataclass(frozen=True)
class Features:
    """Feature vectors [n, d] of n samples and where they come from.

    `groups`: the subject of each sample (its own if empty); samples of one subject are drawn together in a bootstrap.
    `standardise`: each feature has a scale of its own and is z-scored, by the mean and spread among the real samples.
    """

    values: np.ndarray
    labels: tuple[str, ...]
    extractor: str
    sha256: str
    preparation: str
    groups: tuple[str, ...] = ()
    standardise: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def save(self, path: str | Path) -> Path:
        """Write a .npz file, whole or not at all; it holds no pickle."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial.npz")
        try:
            arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in FILE}
            np.savez_compressed(partial, **arrays)
            os.replace(partial, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place.") from error
        finally:
            partial.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read what `save` wrote; InputError if it is anything else."""
        try:
            with np.load(path, allow_pickle=False) as found:
                words = {name: str(found[name]) for name in ("extractor", "sha256", "preparation")}
                labels, groups = (tuple(map(str, found[name])) for name in ("labels", "groups"))
                return cls(found["values"], labels, **words, groups=groups, standardise=bool(found["standardise"]))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: no features can be read here ({error}); extract them anew.") from error


@dataclass(frozen=True)
class Measure:
    """One number about a generated cohort, and what belongs beside it.

    [low, high]: the bootstrap interval of the estimate with samples of these sizes, centred at the estimate (a
    bootstrap of a Frechet distance is biased upwards, and only its spread is used).
    `floor`: the same metric between two disjoint parts of the real cohort of `floor_size` samples each, mean over
    random splits, [floor_low, floor_high] the range of them. `same_size`: generated against real with such few
    samples, which is the number to hold against the floor (small samples alone raise a Frechet distance).
    """

    metric: str
    value: float
    low: float
    high: float
    generated: int
    real: int
    floor: float
    floor_low: float
    floor_high: float
    floor_size: int
    same_size: float
    extractor: str
    sha256: str
    preparation: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; what is not finite is None."""
        plain = {**asdict(self), "settings": dict(self.settings)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}

    def __str__(self) -> str:
        known = math.isfinite(self.floor)
        beside = f"real against real {self.floor:.4g}, generated {self.same_size:.4g}, both with n = {self.floor_size}"
        by = f"{self.extractor}, sha256 {self.sha256[:12]}" if self.sha256 else self.extractor
        return (
            f"{self.metric} {self.value:.4g} [{self.low:.4g}, {self.high:.4g}] "
            f"(n = {self.generated} generated, {self.real} real; {beside if known else 'no floor'}; {by})"
        )


@dataclass(frozen=True)
class Kernel:
    """What the metrics need besides samples: the bandwidths of the MMD and the neighbours of the manifolds."""

    bandwidths: tuple[float, ...]
    neighbours: int


Estimate = Callable[[np.ndarray, np.ndarray, Kernel], float]
Draws = Sequence[tuple[np.ndarray, np.ndarray]]  # how often each generated and each real sample counts

METRICS: dict[str, Estimate] = {
    "frechet": lambda g, r, k: distances.frechet(g, r),
    "kid": lambda g, r, k: distances.kid(g, r),
    "mmd": lambda g, r, k: distances.mmd(g, r, k.bandwidths),
    "precision": lambda g, r, k: distances.precision(g, r, k.neighbours),
    "recall": lambda g, r, k: distances.recall(g, r, k.neighbours),
}
NEEDS = {"frechet": 2, "kid": 2, "mmd": 2}  # samples; the manifolds need one more than neighbours
POSITIVE = ("frechet", "mmd", "precision", "recall")  # an interval does not go below 0


def compare(
    generated: Features,
    real: Features,
    metrics: Sequence[str] = tuple(METRICS),
    *,
    bandwidths: Sequence[float] | None = None,
    neighbours: int = distances.NEIGHBOURS,
    draws: int = DRAWS,
    splits: int = SPLITS,
    seed: int = 0,
) -> tuple[Measure, ...]:
    """Every metric between a generated and a real cohort, with intervals and floors.

    `bandwidths` of the MMD: from the real features unless given (`distances.bandwidths_of`).
    InputError if the features come from different extractors or preparations, or are too few.
    """
    _alike(generated, real)
    if unknown := [name for name in metrics if name not in METRICS]:
        raise InputError(f"{unknown[0]!r} is no distance of cohorts; choose among {', '.join(METRICS)}.")
    g, r = _scaled(generated, real)
    kernel = Kernel(tuple(bandwidths or (distances.bandwidths_of(r) if "mmd" in metrics else ())), neighbours)
    rng = np.random.default_rng(seed_of(seed, "bootstrap"))
    drawn = [(_counts(generated, rng), _counts(real, rng)) for _ in range(draws)]
    parts = _parts(generated, real, splits, np.random.default_rng(seed_of(seed, "floor")))
    size = min((min(len(i), len(j), len(k)) for i, j, k in parts), default=0)
    out = []
    for name in metrics:
        estimate, value = METRICS[name], METRICS[name](g, r, kernel)
        low, high = _interval(name, value, _bootstrap(name, g, r, kernel, drawn))
        enough = size >= NEEDS.get(name, neighbours + 1)
        floors = [estimate(r[j], r[k], kernel) for _, j, k in parts] if enough else [math.nan]
        same = [estimate(g[i], r[k], kernel) for i, _, k in parts] if enough else [math.nan]
        settings = {"draws": draws, "splits": splits, "seed": seed, "level": LEVEL, **_settings(name, kernel, real)}
        out.append(
            Measure(
                name, value, low, high, len(g), len(r),
                float(np.mean(floors)), min(floors), max(floors), size, float(np.mean(same)),
                real.extractor, real.sha256, real.preparation, settings,
            )
        )  # fmt: skip
    return tuple(out)


def _alike(generated: Features, real: Features) -> None:
    for name in ("extractor", "sha256", "preparation"):
        mine, theirs = getattr(generated, name), getattr(real, name)
        if mine != theirs:
            raise InputError(f"features of {name} {mine!r} and {theirs!r} do not compare; extract both in one way.")


def _scaled(generated: Features, real: Features) -> tuple[np.ndarray, np.ndarray]:
    """In double precision; z-scored by the real ones where features have scales of their own."""
    g, r = np.asarray(generated.values, float), np.asarray(real.values, float)
    if not real.standardise:
        return g, r
    spread = r.std(0)
    scale = np.where(spread > 1e-9 * np.abs(r).max(0), spread, 1.0)
    return (g - r.mean(0)) / scale, (r - r.mean(0)) / scale


def _settings(name: str, kernel: Kernel, real: Features) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {
        "mmd": {"bandwidths": list(kernel.bandwidths), "convention": "sqrt(max(unbiased MMD^2, 0))"},
        "kid": {"kernel": "(x.y / d + 1)^3, unbiased, all pairs"},
        "frechet": {"convention": "squared, covariances with n - 1"},
    }
    manifold = {"neighbours": kernel.neighbours}
    return {"dimensions": int(real.values.shape[1]), "standardised": real.standardise, **own.get(name, manifold)}


def _counts(features: Features, rng: np.random.Generator) -> np.ndarray:
    """A bootstrap draw: how often each sample counts; samples of one group together."""
    names = features.groups or features.labels or tuple(map(str, range(len(features))))
    groups, member = np.unique(np.arange(len(names)) if not features.groups else names, return_inverse=True)
    return np.bincount(rng.integers(len(groups), size=len(groups)), minlength=len(groups))[member]


def _bootstrap(name: str, g: np.ndarray, r: np.ndarray, kernel: Kernel, drawn: Draws) -> np.ndarray:
    """The metric of every draw. Kernels and manifolds are computed once, and only counted anew."""
    if name == "frechet":
        enough = [(a, b) for a, b in drawn if min((a > 0).sum(), (b > 0).sum()) > 1]
        return np.array([distances.frechet(np.repeat(g, a, 0), np.repeat(r, b, 0)) for a, b in enough])
    if name in ("precision", "recall"):
        queries, reference, side = (g, r, 0) if name == "precision" else (r, g, 1)
        hit = distances.within(queries, reference, kernel.neighbours)
        return np.array([float(np.average(hit, weights=pair[side])) for pair in drawn])
    pairs = ((g, g), (r, r), (g, r))
    if name == "kid":
        kernels = [distances.polynomial(x, y) for x, y in pairs]
    else:
        kernels = [distances.gaussians(x, y, kernel.bandwidths) for x, y in pairs]
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw of one sample only
        values = np.array([distances.unbiased(kernels[0], kernels[1], kernels[2], a, b) for a, b in drawn])
    return np.sqrt(np.maximum(values, 0)) if name == "mmd" else values


def _interval(name: str, value: float, values: np.ndarray) -> tuple[float, float]:
    """Quantiles of the draws, moved so that their mean is the estimate."""
    known = values[np.isfinite(values)]
    if len(known) < 20:
        return math.nan, math.nan
    low, high = np.quantile(known - known.mean() + value, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if name in ("precision", "recall"):
        high = min(high, 1.0)
    return (max(float(low), 0.0) if name in POSITIVE else float(low)), float(high)


def _parts(
    generated: Features, real: Features, splits: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Random disjoint halves of the real cohort and as many generated samples; no group is in both halves."""
    names = np.array(real.groups or [str(i) for i in range(len(real))])
    out = []
    for _ in range(splits):
        order = rng.permutation(np.unique(names))
        first = np.isin(names, order[: len(order) // 2])
        a, b = (rng.permutation(np.flatnonzero(part)) for part in (first, ~first))
        size = min(len(a), len(b), len(generated))
        out.append((rng.permutation(len(generated))[:size], a[:size], b[:size]))
    return out if splits and len(np.unique(names)) > 3 else []

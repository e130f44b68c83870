"""What a diffusion model must beat: the best single modality, and voxelwise regression, fitted on the training set.

Both are least squares on features of a voxel's own intensities, [1, x_i] and [1, x_i, x_i x_j (i <= j)]. One matrix of
the features' products, summed over the training voxels, holds the normal equations of every target and every set of
inputs at once, so fitting needs one pass and no memory to speak of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from ..core import config
from ..core.errors import InputError
from ..core.rng import seed_of

Kind = Literal["single", "regression"]
KINDS: tuple[Kind, ...] = ("single", "regression")
HEAD = -0.9  # voxels are learned from where any modality is brighter than this, of [-1, 1]
RIDGE = 1e-6  # of the mean diagonal: only against exact collinearity
ENOUGH = 20  # training voxels per coefficient, below which a fit is not kept


@dataclass(frozen=True)
class Fit:
    """Coefficients for [1, x_i] or [1, x_i, x_i x_j], and the root mean square error on the training voxels."""

    coefficients: tuple[float, ...]
    error: float


@dataclass(frozen=True)
class Baselines:
    """Fits by target and by inputs: `single["FLAIR"]["T2w"]` (offset, gain), `regression["FLAIR"]["T1w+T2w"]`."""

    modalities: tuple[str, ...]
    single: dict[str, dict[str, Fit]]
    regression: dict[str, dict[str, Fit]]

    @staticmethod
    def fit(
        stacks: Iterable[tuple[np.ndarray, np.ndarray]], modalities: Sequence[str], sample: int = 200_000, seed: int = 0
    ) -> Baselines:
        """Fit on a training set of (stack [M, X, Y, Z] in [-1, 1], present bool [M]), `sample` head voxels of each."""
        products: dict[tuple[int, ...], np.ndarray] = {}  # modalities of a study -> summed products of its features
        for index, (stack, present) in enumerate(stacks):
            there = tuple(int(m) for m in np.flatnonzero(np.asarray(present).ravel()))
            voxels = _sample(stack, there, sample, np.random.default_rng(seed_of(seed, "baselines", index)))
            features = _features(voxels)
            products[there] = products.get(there, 0.0) + features.T @ features
        if not products:
            raise InputError("the baselines found no training study; give at least one.")
        names = tuple(modalities)
        return Baselines(names, _table(products, names, "single"), _table(products, names, "regression"))

    def available(self, kind: Kind, target: str, inputs: Iterable[str]) -> str | None:
        """The inputs (`T1w+T2w`), of those there, with the least error on the training set; None if none was fitted."""
        fits, there = self._fits(kind).get(target, {}), set(inputs) - {target}
        usable = [key for key in fits if set(key.split("+")) <= there]
        return min(usable, key=lambda key: fits[key].error, default=None)

    def predict(self, stack: np.ndarray, present: np.ndarray, target: str, kind: Kind = "regression") -> np.ndarray:
        """The target [X, Y, Z] in [-1, 1] from a stack [M, X, Y, Z] in [-1, 1]; -1 where all inputs are -1."""
        flags = np.asarray(present).ravel().astype(bool)
        if target not in self.modalities or len(stack) != len(self.modalities) or len(flags) != len(self.modalities):
            raise InputError(
                f"target {target!r} of {len(stack)} images: these baselines know {', '.join(self.modalities)}."
            )
        there = [name for name, flag in zip(self.modalities, flags) if flag and name != target]
        key = self.available(kind, target, there)
        if key is None:
            raise InputError(
                f"no {kind} baseline was fitted for {target} from {', '.join(there) or 'nothing'}; fit on such studies."
            )
        inputs = [np.asarray(stack[self.modalities.index(name)], np.float32) for name in key.split("+")]
        out = _apply(inputs, self._fits(kind)[target][key].coefficients)
        np.clip(out, -1, 1, out=out)
        out[np.all([np.asarray(stack[self.modalities.index(n)]) <= -1 for n in there], axis=0)] = -1
        return out

    def _fits(self, kind: Kind) -> dict[str, dict[str, Fit]]:
        return {"single": self.single, "regression": self.regression}[kind]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return config.to_dict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Baselines:
        """From `to_dict`; InputError if it is anything else."""
        return config.from_dict(Baselines, values, "baselines: ")


def _sample(stack: np.ndarray, there: Sequence[int], sample: int, rng: np.random.Generator) -> np.ndarray:
    """At most `sample` voxels of the head, [N, M], float64, zero where a modality is absent."""
    head = np.any([np.asarray(stack[m]) > HEAD for m in there], axis=0) if there else np.zeros(stack.shape[1:], bool)
    where = np.flatnonzero(head)
    if len(where) > sample:
        where = np.sort(rng.choice(where, sample, replace=False))
    voxels = np.zeros((len(where), len(stack)))
    for m in there:
        voxels[:, m] = np.asarray(stack[m]).reshape(-1)[where]
    return voxels


def _features(voxels: np.ndarray) -> np.ndarray:
    """[N, M] -> [N, 1 + M + M (M + 1) / 2]: one, the intensities, their products (i <= j)."""
    i, j = np.triu_indices(voxels.shape[1])
    return np.concatenate([np.ones((len(voxels), 1)), voxels, voxels[:, i] * voxels[:, j]], axis=1)


def _columns(inputs: Sequence[int], count: int, kind: Kind) -> list[int]:
    """Where the features of some inputs stand among those of all `count` modalities."""
    linear = [0, *(1 + i for i in inputs)]
    if kind == "single":
        return linear
    chosen = set(inputs)
    pairs = enumerate(zip(*np.triu_indices(count)))
    return linear + [1 + count + k for k, (i, j) in pairs if i in chosen and j in chosen]


def _table(
    products: Mapping[tuple[int, ...], np.ndarray], names: tuple[str, ...], kind: Kind
) -> dict[str, dict[str, Fit]]:
    """Solve for every target and every set of inputs (of one, for the single modality) that training studies have."""
    count, largest = len(names), 1 if kind == "single" else len(names) - 1
    table: dict[str, dict[str, Fit]] = {name: {} for name in names}
    for target in range(count):
        others = [m for m in range(count) if m != target]
        for inputs in (c for size in range(1, largest + 1) for c in combinations(others, size)):
            seen = [p for there, p in products.items() if {target, *inputs} <= set(there)]
            fit = _solve(sum(seen), _columns(inputs, count, kind), 1 + target) if seen else None
            if fit is not None:
                table[names[target]]["+".join(names[i] for i in inputs)] = fit
    return table


def _solve(products: Any, columns: list[int], target: int) -> Fit | None:
    voxels = products[0, 0]  # the product of the constant feature with itself counts them
    if voxels < ENOUGH * len(columns):
        return None
    normal, right = products[np.ix_(columns, columns)] / voxels, products[columns, target] / voxels
    w = np.linalg.solve(normal + RIDGE * np.trace(normal) / len(columns) * np.eye(len(columns)), right)
    square = products[target, target] / voxels - 2 * w @ right + w @ normal @ w
    return Fit(tuple(float(v) for v in w), float(np.sqrt(max(square, 0.0))))


def _apply(inputs: list[np.ndarray], coefficients: Sequence[float]) -> np.ndarray:
    """The regression over whole images, one feature at a time so that memory stays that of a few images."""
    w = np.asarray(coefficients, np.float32)
    out = np.full(inputs[0].shape, w[0], np.float32)
    for weight, x in zip(w[1 : 1 + len(inputs)], inputs):
        out += weight * x
    if len(w) > 1 + len(inputs):
        i, j = np.triu_indices(len(inputs))
        for weight, a, b in zip(w[1 + len(inputs) :], i, j):
            out += weight * inputs[a] * inputs[b]
    return out

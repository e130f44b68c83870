"""Where heads lie: blurred means of groups of training subjects, from which a method of slices begins to generate.

Voxels of four and the mean of five subjects or more, they show no one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..core.rng import seed_of
from ..data.dataset import Cache

FACTOR, FEWEST = 4, 5  # voxels averaged along each axis; subjects in a group
_PREFIX = "outlines."


@dataclass(frozen=True, eq=False)
class Outlines:
    """`stacks` [K, M, x, y, z] in [-1, 1], each voxel the mean of FACTOR^3 of the training grid; `share` [K] of the
    subjects; `spacing` (mm) of the training grid [3]."""

    stacks: Tensor
    share: Tensor
    spacing: Tensor

    @classmethod
    def of(cls, cache: Cache, groups: int = 3, seed: int = 0) -> Outlines | None:
        """Means of groups of alike subjects (Lloyd's algorithm), of those that have every modality and the most usual
        spacing; None if they are too few."""
        whole = [e for e in cache.entries if len(e.windows) == len(cache.modalities)]
        common = Counter(_rounded(e.spacing) for e in whole if all(e.spacing)).most_common(1)
        spacing = common[0][0] if common else (0.0, 0.0, 0.0)
        whole = [e for e in whole if _rounded(e.spacing) == spacing]
        if not common or len(whole) < FEWEST:
            return None
        size = tuple(-(-max(e.shape[k] for e in whole) // FACTOR) * FACTOR for k in range(3))
        rows = torch.stack([_coarse(torch.from_numpy(cache.stack(e.label)[0]), size) for e in whole])
        member = _group(rows.flatten(1), groups, np.random.default_rng(seed_of(seed, "outlines")))
        kept = [k for k in range(groups) if int((member == k).sum()) >= FEWEST] or [-1]
        stacks = [rows[member == k].mean(0) if k >= 0 else rows.mean(0) for k in kept]
        share = torch.tensor([float((member == k).sum()) if k >= 0 else 1.0 for k in kept])
        return cls(torch.stack(stacks), share / share.sum(), torch.tensor(spacing))

    def draw(self, seed: int, multiple: tuple[int, int, int] = (16, 16, 1)) -> Tensor:
        """One of them on the training grid [M, X, Y, Z], cut to its content."""
        rng = np.random.default_rng(seed_of(seed, "outline"))
        share = self.share.double().numpy()
        stack = self.stacks[int(rng.choice(len(share), p=share / share.sum()))]
        content = torch.nonzero((stack > -0.97).any(0))
        low, high = content.min(0).values, content.max(0).values + 1
        stack = stack[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        full = functional.interpolate(stack[None], scale_factor=FACTOR, mode="trilinear")[0]
        pads = [-n % m for n, m in zip(full.shape[1:], multiple)]
        ends = [(p // 2, p - p // 2) for p in pads]
        return functional.pad(full, [n for pair in reversed(ends) for n in pair], value=-1.0)

    def tensors(self) -> dict[str, Tensor]:
        """As they lie beside the weights."""
        return {
            f"{_PREFIX}{name}": value.float().contiguous()
            for name, value in (("stacks", self.stacks), ("share", self.share), ("spacing", self.spacing))
        }

    @classmethod
    def take(cls, state: dict[str, Tensor]) -> Outlines | None:
        """Take them out of what a file of weights holds; None if it holds none."""
        found = {name: state.pop(f"{_PREFIX}{name}", None) for name in ("stacks", "share", "spacing")}
        stacks, share, spacing = found["stacks"], found["share"], found["spacing"]
        return None if stacks is None or share is None or spacing is None else cls(stacks, share, spacing)


def _rounded(spacing: tuple[float, float, float]) -> tuple[float, float, float]:
    x, y, z = (round(s, 2) for s in spacing)
    return x, y, z


def _coarse(stack: Tensor, size: tuple[int, ...]) -> Tensor:
    """[M, X, Y, Z] set in the middle of `size` and averaged."""
    ends = [((n - s) // 2, n - s - (n - s) // 2) for n, s in zip(size, stack.shape[1:])]
    whole = functional.pad(stack, [n for pair in reversed(ends) for n in pair], value=-1.0)
    return functional.avg_pool3d(whole[None], FACTOR)[0]


def _group(rows: Tensor, groups: int, rng: np.random.Generator) -> Tensor:
    """The group of each row: far-apart first centres, then means and nearest centres in turn."""
    centres = rows[int(rng.integers(len(rows)))][None]
    while len(centres) < min(groups, len(rows)):
        centres = torch.cat([centres, rows[torch.cdist(rows, centres).min(1).values.argmax()][None]])
    for _ in range(20):
        member = torch.cdist(rows, centres).argmin(1)
        centres = torch.stack([
            rows[member == k].mean(0) if bool((member == k).any()) else centres[k] for k in range(len(centres))
        ])  # fmt: skip
    return member

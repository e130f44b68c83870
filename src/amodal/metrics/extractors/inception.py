"""Inception v3 with the weights of the Frechet inception distance (Heusel et al. 2017), from their published files.

`pt_inception-2015-12-05-6726825d.pth` (pytorch-fid) and `weights-inception-2015-12-05-6726825d.pth` (torch-fidelity):
the network of TensorFlow's graph of 2015-12-05, which differs from the later one in its pooling branches and its 1008
classes. Pictures are resized as that graph does. Features: 2048, before the classes. A volume is seen slice by slice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import prepare
from .weights import fill, hollow, read

SIZE, SLICES, CHUNK = 299, 24, 8
RIM = 0.1  # of the volume at either end, where there are no slices taken
PREPARATION = f"clipped to [0, 1], 8 bits, {SLICES} axial slices, resized to {SIZE} x {SIZE} as in the graph of 2015"

Step = tuple[str, int, int | tuple[int, int], int, int | tuple[int, int]]  # name, channels, side, stride, padding
Pool = str  # "mean" or "max", which keep the size, or "halve"
Branch = tuple[Step | Pool | tuple[Step, ...], ...]  # a tuple of steps is a fork: all see the same, and are joined
POOLS: dict[Pool, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),  # the border counts no zeros
    "max": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "halve": lambda x: F.max_pool2d(x, 3, stride=2),
}


def _a(pooled: int) -> tuple[Branch, ...]:
    return (
        (("branch1x1", 64, 1, 1, 0),),
        (("branch5x5_1", 48, 1, 1, 0), ("branch5x5_2", 64, 5, 1, 2)),
        (("branch3x3dbl_1", 64, 1, 1, 0), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 1, 1)),
        ("mean", ("branch_pool", pooled, 1, 1, 0)),
    )


def _c(inner: int) -> tuple[Branch, ...]:
    across, down = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    return (
        (("branch1x1", 192, 1, 1, 0),),
        (("branch7x7_1", inner, 1, 1, 0), ("branch7x7_2", inner, *across), ("branch7x7_3", 192, *down)),
        (
            ("branch7x7dbl_1", inner, 1, 1, 0),
            ("branch7x7dbl_2", inner, *down),
            ("branch7x7dbl_3", inner, *across),
            ("branch7x7dbl_4", inner, *down),
            ("branch7x7dbl_5", 192, *across),
        ),
        ("mean", ("branch_pool", 192, 1, 1, 0)),
    )


def _e(pool: Pool) -> tuple[Branch, ...]:
    across, down = (384, (1, 3), 1, (0, 1)), (384, (3, 1), 1, (1, 0))
    return (
        (("branch1x1", 320, 1, 1, 0),),
        (("branch3x3_1", 384, 1, 1, 0), (("branch3x3_2a", *across), ("branch3x3_2b", *down))),
        (
            ("branch3x3dbl_1", 448, 1, 1, 0),
            ("branch3x3dbl_2", 384, 3, 1, 1),
            (("branch3x3dbl_3a", *across), ("branch3x3dbl_3b", *down)),
        ),
        (pool, ("branch_pool", 192, 1, 1, 0)),
    )


_B: tuple[Branch, ...] = (
    (("branch3x3", 384, 3, 2, 0),),
    (("branch3x3dbl_1", 64, 1, 1, 0), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 2, 0)),
    ("halve",),
)
_D: tuple[Branch, ...] = (
    (("branch3x3_1", 192, 1, 1, 0), ("branch3x3_2", 320, 3, 2, 0)),
    (
        ("branch7x7x3_1", 192, 1, 1, 0),
        ("branch7x7x3_2", 192, (1, 7), 1, (0, 3)),
        ("branch7x7x3_3", 192, (7, 1), 1, (3, 0)),
        ("branch7x7x3_4", 192, 3, 2, 0),
    ),
    ("halve",),
)
STEM: tuple[Step | Pool, ...] = (
    ("Conv2d_1a_3x3", 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 64, 3, 1, 1),
    "halve",
    ("Conv2d_3b_1x1", 80, 1, 1, 0),
    ("Conv2d_4a_3x3", 192, 3, 1, 0),
    "halve",
)
MIXED: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _B,
    "Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192),
    "Mixed_7a": _D, "Mixed_7b": _e("mean"), "Mixed_7c": _e("max"),
}  # fmt: skip


def load(path: str | Path, device: torch.device) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The file's sha256, and a function from a volume to [slices, 2048]."""
    tensors, sha256 = read(path)
    net = fill(hollow(Inception), tensors, path).to(device)

    @torch.no_grad()
    def forward(volume: np.ndarray) -> np.ndarray:
        pictures = slices(prepare.unit(volume)).to(device)
        return torch.cat([net(part) for part in pictures.split(CHUNK)]).float().cpu().numpy()

    return sha256, forward


def slices(volume: Tensor) -> Tensor:
    """[X, Y, Z] in [0, 1] -> grey pictures [k, 3, 299, 299] as the network wants them."""
    depth = volume.shape[2]
    chosen = torch.linspace(RIM * (depth - 1), (1 - RIM) * (depth - 1), SLICES).round().long().unique()
    grey = (volume[..., chosen].permute(2, 1, 0) * 255).round()
    rows, columns = (_resizing(n, SIZE) for n in grey.shape[1:])
    return ((rows @ grey @ columns.T - 128) / 128)[:, None].expand(-1, 3, -1, -1)


def _resizing(n: int, size: int) -> Tensor:
    """[size, n]: bilinear as TensorFlow 1 does it, pixel i of the result at i n / size (corners, not centres)."""
    at = torch.arange(size, dtype=torch.float64) * n / size
    low = at.floor().long()
    matrix = torch.zeros(size, n, dtype=torch.float64)
    matrix[torch.arange(size), low] += 1 - (at - low)
    matrix[torch.arange(size), (low + 1).clamp(max=n - 1)] += at - low
    return matrix.float()


class Inception(nn.Module):
    """[N, 3, 299, 299] in [-1, 1] -> [N, 2048]; the names are those of the published files."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for step in STEM:
            if not isinstance(step, str):
                self.add_module(step[0], Unit(channels, step))
                channels = step[1]
        for name, branches in MIXED.items():
            mixed = Mixed(channels, branches)
            self.add_module(name, mixed)
            channels = mixed.channels
        self.fc = nn.Linear(channels, 1008)

    def forward(self, x: Tensor) -> Tensor:
        for step in STEM:
            x = POOLS[step](x) if isinstance(step, str) else self.get_submodule(step[0])(x)
        for name in MIXED:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


class Mixed(nn.Module):
    """Branches that see the same, joined by channel."""

    def __init__(self, before: int, branches: tuple[Branch, ...]):
        super().__init__()
        self.branches, self.channels = branches, 0
        for branch in branches:
            channels = before
            for part in branch:
                forks = () if isinstance(part, str) else part if isinstance(part[0], tuple) else (part,)
                for step in forks:
                    self.add_module(step[0], Unit(channels, step))
                channels = sum(step[1] for step in forks) or channels
            self.channels += channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, branch) for branch in self.branches], 1)

    def _branch(self, x: Tensor, branch: Branch) -> Tensor:
        for part in branch:
            if isinstance(part, str):
                x = POOLS[part](x)
            elif isinstance(part[0], tuple):
                x = torch.cat([self.get_submodule(step[0])(x) for step in part], 1)
            else:
                x = self.get_submodule(part[0])(x)
        return x


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, before: int, step: Step):
        super().__init__()
        _, channels, side, stride, padding = step
        self.conv = nn.Conv2d(before, channels, side, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))

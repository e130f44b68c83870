"""I3D (Carreira & Zisserman 2017) for the Frechet video distance (Unterthiner et al. 2018), from published weights.

`rgb_imagenet.pt` (pytorch-i3d) and `i3d_pretrained_400.pt`, which name their tensors alike: Inception v1 inflated to
video, 400 classes. The distance is taken on the logits, averaged over time. A volume is a video whose frames are its
axial slices.
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

SIZE, FRAMES = 224, 64
PREPARATION = f"clipped to [0, 1], axial slices as {FRAMES} frames at most, resized to {SIZE} x {SIZE}; logits"
CLASSES = 400

Triple = tuple[int, int, int]
# name -> channels of the branches 1 | 1, 3 | 1, 3 | pool, 1, and the max-pooling before it (kernel, stride)
MIXED: dict[str, tuple[tuple[int, int, int, int, int, int], tuple[Triple, Triple] | None]] = {
    "Mixed_3b": ((64, 96, 128, 16, 32, 32), ((1, 3, 3), (1, 2, 2))),
    "Mixed_3c": ((128, 128, 192, 32, 96, 64), None),
    "Mixed_4b": ((192, 96, 208, 16, 48, 64), ((3, 3, 3), (2, 2, 2))),
    "Mixed_4c": ((160, 112, 224, 24, 64, 64), None),
    "Mixed_4d": ((128, 128, 256, 24, 64, 64), None),
    "Mixed_4e": ((112, 144, 288, 32, 64, 64), None),
    "Mixed_4f": ((256, 160, 320, 32, 128, 128), None),
    "Mixed_5b": ((256, 160, 320, 32, 128, 128), ((2, 2, 2), (2, 2, 2))),
    "Mixed_5c": ((384, 192, 384, 48, 128, 128), None),
}


def load(path: str | Path, device: torch.device) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The file's sha256, and a function from a volume to [1, 400]."""
    tensors, sha256 = read(path)
    net = fill(hollow(I3D), tensors, path).to(device)

    @torch.no_grad()
    def forward(volume: np.ndarray) -> np.ndarray:
        return net(video(prepare.unit(volume)).to(device)).float().cpu().numpy()

    return sha256, forward


def video(volume: Tensor) -> Tensor:
    """[X, Y, Z] in [0, 1] -> [1, 3, frames, 224, 224] in [-1, 1]; thin stacks are repeated to the 16 frames needed."""
    depth = volume.shape[2]
    chosen = torch.linspace(0, depth - 1, min(max(depth, 16), FRAMES)).round().long()
    frames = volume[..., chosen].permute(2, 1, 0)[:, None]
    sized = F.interpolate(frames, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return (2 * sized - 1).expand(-1, 3, -1, -1).transpose(0, 1)[None]


class I3D(nn.Module):
    """[N, 3, T, 224, 224] in [-1, 1] -> [N, 400]; the names are those of the published files."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        channels = 192
        for name, (row, _) in MIXED.items():
            self.add_module(name, Mixed(channels, row))
            channels = row[0] + row[2] + row[4] + row[5]
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(channels, CLASSES, 1)})

    def forward(self, x: Tensor) -> Tensor:
        x = pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        for name, (_, pooling) in MIXED.items():
            x = self.get_submodule(name)(pool(x, *pooling) if pooling else x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.logits["conv3d"](x).mean((2, 3, 4))


class Mixed(nn.Module):
    """Four branches of an inception block."""

    def __init__(self, before: int, channels: tuple[int, int, int, int, int, int]):
        super().__init__()
        one, two_in, two, three_in, three, four = channels
        self.b0 = Unit(before, one, 1)
        self.b1a, self.b1b = Unit(before, two_in, 1), Unit(two_in, two, 3)
        self.b2a, self.b2b = Unit(before, three_in, 1), Unit(three_in, three, 3)
        self.b3b = Unit(before, four, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pool(x, (3, 3, 3), (1, 1, 1)))]
        return torch.cat(branches, 1)


class Unit(nn.Module):
    """Convolution padded as TensorFlow's SAME, batch norm, ReLU."""

    def __init__(self, before: int, channels: int, side: int, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(before, channels, side, stride=stride, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        (side, _, _), (stride, _, _) = self.conv3d.kernel_size, self.conv3d.stride
        return F.relu(self.bn(self.conv3d(same(x, (side,) * 3, (stride,) * 3))))


def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Max-pooling of non-negative features, padded with zeros as TensorFlow's SAME."""
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


def same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around the last three axes, the odd one at the end, so that an axis of n gives ceil(n / stride)."""
    pads = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape[2:], kernel, stride)]
    return F.pad(x, [p for total in reversed(pads) for p in (total // 2, total - total // 2)])

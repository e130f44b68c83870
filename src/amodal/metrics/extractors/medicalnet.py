"""MedicalNet's 3-D ResNets as feature extractors (Chen et al. 2019, arXiv:1904.00625), from their published weights.

Files `resnet_10.pth`, `resnet_10_23dataset.pth`, `resnet_50.pth`, `resnet_50_23dataset.pth`: a ResNet with 3-D filters
and one input channel, whose third and fourth stage dilate (2, 4) instead of halving. Features: the mean over space of
the last stage, 512 for ResNet-10 and 2048 for ResNet-50.
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

PREPARATION = "z-scored over the whole volume"
BLOCKS = {10: (1, 1, 1, 1), 50: (3, 4, 6, 3)}
BOTTLENECK = {10: False, 50: True}
STAGES = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))  # channels, stride, dilation
WIDEN = 4  # of a bottleneck
SPARE = ("conv_seg.", "fc.")  # heads that some of the files carry


def load(path: str | Path, device: torch.device, *, depth: int) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The file's sha256, and a function from a volume to [1, d]."""
    tensors, sha256 = read(path)
    net = fill(hollow(ResNet, depth), tensors, path, SPARE).to(device)

    @torch.no_grad()
    def forward(volume: np.ndarray) -> np.ndarray:
        return net(prepare.zscore(volume).to(device)).float().cpu().numpy()

    return sha256, forward


class ResNet(nn.Module):
    """[N, 1, X, Y, Z] -> [N, 512 or 2048]; the names are those of the published files."""

    def __init__(self, depth: int):
        super().__init__()
        self.conv1 = nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        before = 64
        for number, ((channels, stride, dilation), count) in enumerate(zip(STAGES, BLOCKS[depth]), 1):
            out = channels * (WIDEN if BOTTLENECK[depth] else 1)
            shape = [(before, stride)] + [(out, 1)] * (count - 1)
            blocks = [Block(inner, channels, s, dilation, BOTTLENECK[depth]) for inner, s in shape]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            before = out

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x.mean((2, 3, 4))


class Block(nn.Module):
    """Two 3^3 convolutions, or 1, 3^3, 1 (a bottleneck), around a shortcut; stride and dilation are the first 3^3's."""

    def __init__(self, before: int, channels: int, stride: int, dilation: int, bottleneck: bool):
        super().__init__()
        out = channels * WIDEN if bottleneck else channels
        plan = (  # channels before and after, side, stride, dilation
            [(before, channels, 1, 1, 1), (channels, channels, 3, stride, dilation), (channels, out, 1, 1, 1)]
            if bottleneck
            else [(before, channels, 3, stride, dilation), (channels, channels, 3, 1, dilation)]
        )
        self.count = len(plan)
        for number, (a, b, side, step, spread) in enumerate(plan, 1):
            padding = spread * (side // 2)
            conv = nn.Conv3d(a, b, side, stride=step, padding=padding, dilation=spread, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm3d(b))
        changes = stride != 1 or before != out
        shortcut = [nn.Conv3d(before, out, 1, stride=stride, bias=False), nn.BatchNorm3d(out)]
        self.downsample = nn.Sequential(*shortcut) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.count + 1):
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
            y = F.relu(y) if number < self.count else y
        return F.relu(y + self.downsample(x))

"""The extractor that needs no download: a fixed 3-D network whose weights are made from a seed.

Random convolutions followed by rectification and pooling tell textures, sharpness, contrast and the amount of each
tissue apart, if less sharply than trained ones. The weights are -1, 0 or 1 times a constant (Achlioptas 2003), drawn as
integers, so that they are the same bits on every machine; the first layer's filters have mean 0 but for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.rng import Rng
from . import prepare

SEED = 20260801  # part of the extractor's name: another seed is another extractor
WIDTHS = (16, 32, 64, 64)
SIDE = 3
PREPARATION = "z-scored over the whole volume"


def load(device: torch.device) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The sha256 of the weights, and a function from a volume to [1, d]: mean and spread of every channel."""
    layers = weights()
    digest = hashlib.sha256(b"".join(w.numpy().astype("<f4").tobytes() for w in layers)).hexdigest()
    there = [w.to(device) for w in layers]

    @torch.no_grad()
    def forward(volume: np.ndarray) -> np.ndarray:
        return features(prepare.zscore(volume).to(device), there).cpu().numpy()[None]

    return digest, forward


def weights(seed: int = SEED) -> list[Tensor]:
    """The filters of each layer, [out, in, 3, 3, 3]."""
    layers, before = [], 1
    for index, width in enumerate(WIDTHS):
        (drawn,) = Rng.of(seed, 1, "seeded extractor", index).integers(3, width, before, SIDE, SIDE, SIDE)
        filters = (drawn - 1).double()
        if index == 0:
            filters[1:] -= filters[1:].mean((1, 2, 3, 4), keepdim=True)
            filters[0] = 1 / SIDE**3
        gain = (2 / (before * SIDE**3 * 2 / 3)) ** 0.5  # two thirds of the weights are not 0
        layers.append((filters if index == 0 else filters * gain).float())
        before = width
    return layers


def features(x: Tensor, layers: list[Tensor]) -> Tensor:
    """A volume [1, 1, X, Y, Z] -> [d]: the mean and the standard deviation of every channel of every layer."""
    found = []
    for filters in layers:
        side = max(3 - min(x.shape[2:]), 0)  # a volume of few slices is padded to a filter's size
        x = F.relu(F.conv3d(F.pad(x, (0, side) * 3) if side else x, filters, stride=2, padding=1))
        found += [x.mean((0, 2, 3, 4)), x.std((0, 2, 3, 4), correction=0)]
    return torch.cat(found)

"""LPIPS with given features: known values, channel weights, masks, and slices against volumes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from amodal.core.errors import InputError
from amodal.metrics.perceptual import lpips

RNG = np.random.default_rng(0)
IMAGE, OTHER = RNG.random((16, 12)), RNG.random((16, 12))
VOLUME = RNG.random((10, 12, 6))


def two_channels(x):
    """Two levels: (x, 1) and, at half size, (mean of x, 1)."""
    half = F.avg_pool2d(x, 2)
    return [torch.cat([v, torch.ones_like(v)], 1) for v in (x, half)]


def by_hand(a, b):
    a, b = (torch.from_numpy(2 * v - 1).float()[None, None] for v in (a, b))
    total = 0.0
    for x, y in zip(two_channels(a), two_channels(b)):
        x, y = (v / v.norm(dim=1, keepdim=True) for v in (x, y))
        total += float(((x - y) ** 2).mean(1).mean())
    return total


def test_known_value():
    assert lpips(IMAGE, OTHER, 1.0, two_channels, dims=2) == pytest.approx(by_hand(IMAGE, OTHER), rel=1e-5)
    assert lpips(IMAGE, IMAGE, 1.0, two_channels, dims=2) == 0
    assert lpips(7 * IMAGE + 3, 7 * OTHER + 3, 7.0, two_channels, dims=2, low=3.0) == pytest.approx(
        by_hand(IMAGE, OTHER), rel=1e-4
    )


def test_channel_weights():
    first = [torch.tensor([1.0, 0.0]), torch.zeros(2)]
    second = [torch.tensor([0.0, 1.0]), torch.zeros(2)]
    third = [torch.zeros(2), torch.ones(2)]
    parts = [lpips(IMAGE, OTHER, 1.0, two_channels, w, dims=2) for w in (first, second, third)]
    assert sum(parts) == pytest.approx(2 * by_hand(IMAGE, OTHER), rel=1e-5)
    with pytest.raises(InputError, match="1 weight vectors for 2 levels"):
        lpips(IMAGE, OTHER, 1.0, two_channels, first[:1], dims=2)


def test_a_volume_is_the_mean_of_its_slices_in_any_chunk():
    other = VOLUME[::-1].copy()
    single = [lpips(VOLUME[..., k], other[..., k], 1.0, two_channels, dims=2) for k in range(6)]
    for chunk in (1, 4, 99):
        assert lpips(VOLUME, other, 1.0, two_channels, dims=2, chunk=chunk) == pytest.approx(np.mean(single), rel=1e-5)


def test_only_the_mask_counts():
    mask = np.zeros(VOLUME.shape, bool)
    mask[2:8, 2:8, 1:4] = True
    spoilt = np.where(mask, VOLUME * 0.8, 5.0)
    inside = lpips(spoilt, VOLUME, 1.0, lambda x: [torch.cat([x, torch.ones_like(x)], 1)], mask=mask, dims=2)
    clean = lpips(VOLUME * 0.8, VOLUME, 1.0, lambda x: [torch.cat([x, torch.ones_like(x)], 1)], mask=mask, dims=2)
    assert inside == pytest.approx(clean, rel=1e-6)
    assert inside > 0


def test_networks_of_volumes():
    def features(x):
        assert x.ndim == 5
        return [torch.cat([x, torch.ones_like(x)], 1)]

    assert lpips(0.9 * VOLUME, VOLUME, 1.0, features, dims=3) > 0
    with pytest.raises(InputError, match="dims=3"):
        lpips(IMAGE, OTHER, 1.0, features, dims=3)

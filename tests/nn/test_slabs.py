"""Layers in slabs: the result of the whole, whatever the slabs."""

from __future__ import annotations

import pytest
import torch

from amodal.nn import slabs
from amodal.nn.blocks import Down, Residual, Up, conv
from amodal.nn.layout import CHANNELS_LAST, channels_last
from amodal.nn.norm import group_norm, normalise

BUDGETS = (1, 700, 3000, 1 << 30)
DIMS = pytest.mark.parametrize("dims", [2, 3])


def picture(dims, channels=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return channels_last(3 + torch.randn(1, channels, *(10, 6, 8)[:dims], generator=g, dtype=torch.float64))


def ready(layer):
    """Double precision, and no zeros to hide behind."""
    for p in layer.double().parameters():
        torch.nn.init.normal_(p, std=0.3)
    return layer.eval()


@DIMS
@pytest.mark.parametrize("norm", [False, True])
def test_convolutions(dims, norm):
    norm = ready(group_norm(8, 4)) if norm else None
    for layer in (conv(dims, 8, 12), conv(dims, 8, 4, kernel=1), Down(dims, 8).conv):
        layer = ready(layer)
        with torch.no_grad():
            whole = slabs.convolve(layer, picture(dims), 0, norm)
            for budget in BUDGETS:
                part = slabs.convolve(layer, picture(dims), budget, norm)
                assert torch.allclose(part, whole, atol=1e-12)
                assert part.is_contiguous(memory_format=CHANNELS_LAST[dims])


@DIMS
@pytest.mark.parametrize("outputs", [8, 12])
def test_residual_blocks(dims, outputs):
    block = ready(Residual(dims, 8, outputs, 4))
    with torch.no_grad():
        whole = block(picture(dims))
        for budget in BUDGETS:
            assert torch.allclose(slabs.residual(block, picture(dims), budget), whole, atol=1e-12)


@DIMS
def test_upsampling(dims):
    block = ready(Up(dims, 8))
    with torch.no_grad():
        whole = block(picture(dims))
        for budget in BUDGETS:
            assert torch.allclose(slabs.upsample(block, picture(dims), budget), whole, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slabs_do_not_show_in_the_last_bit(dtype):
    """A group norm's statistics are summed in pieces of their own, so that they are the same for all slabs."""
    x = picture(3, 16).to(dtype)
    norm = group_norm(16, 4)
    found = [slabs.activate(x[:, :, a:b], slabs.statistics(x, norm)) for a, b in ((0, 10), (0, 3), (3, 10))]
    assert torch.equal(found[0], torch.cat(found[1:], dim=2))


def test_statistics_are_those_of_the_groups():
    x, norm = picture(3), ready(group_norm(8, 4))
    with torch.no_grad():
        expected = torch.nn.functional.silu(normalise(x, norm))
        assert torch.allclose(slabs.activate(x, slabs.statistics(x, norm)), expected, atol=1e-12)
    mean, variance = slabs.statistics(x, norm)[1:]
    grouped = x.reshape(4, -1)
    assert torch.allclose(mean[::2], grouped.mean(1)) and torch.allclose(variance[1::2], grouped.var(1, correction=0))


def test_memory_is_bounded_by_the_budget():
    """No slab holds more planes than the budget allows, and every plane comes once."""
    x = torch.zeros(1, 4, 9, 10, 10)
    parts = list(slabs.spans(9, x, 4 * 800, 8))
    assert parts == [(0, 4), (4, 8), (8, 9)]
    assert list(slabs.spans(3, x, 1, 8)) == [(0, 1), (1, 2), (2, 3)]

"""The Haar transform: orthonormal, exactly invertible, bands in the order of WFDM's Eq. 4."""

from __future__ import annotations

import pytest
import torch

from amodal.nn.layout import CHANNELS_LAST
from amodal.nn.wavelet import bands, haar, low, unhaar, with_low

SHAPES = pytest.mark.parametrize("shape", [(2, 1, 8, 6), (1, 3, 4, 10), (2, 1, 8, 6, 4), (1, 4, 2, 4, 6)], ids=str)


@SHAPES
def test_inverse_pair(shape):
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(unhaar(haar(x)), x, atol=1e-13)
    c = haar(x)
    assert torch.allclose(haar(unhaar(c)), c, atol=1e-13)


@SHAPES
def test_orthonormal(shape):
    """Inner products survive, so the inverse is the adjoint."""
    x, y = torch.randn(2, *shape, dtype=torch.float64)
    assert torch.allclose((haar(x) * haar(y)).sum(), (x * y).sum())
    c = torch.randn_like(haar(x))
    assert torch.allclose((haar(x) * c).sum(), (x * unhaar(c)).sum())


@pytest.mark.parametrize("dims", [2, 3])
def test_every_band_is_the_product_of_its_filters(dims):
    """Against the definition: l = [1, 1] / sqrt 2, h = [-1, 1] / sqrt 2, the first letter for the first axis."""
    x = torch.randn(1, 1, *(2,) * dims, dtype=torch.float64)
    filters = {"L": torch.tensor([1.0, 1.0]).double() / 2**0.5, "H": torch.tensor([-1.0, 1.0]).double() / 2**0.5}
    found = haar(x).flatten()
    assert len(bands(dims)) == len(found) == 2**dims
    for name, value in zip(bands(dims), found):
        expected = x[0, 0]
        for letter in name:
            expected = torch.tensordot(filters[letter], expected, dims=1)
        assert torch.allclose(value, expected)
    assert bands(3)[:4] == ("LLL", "LLH", "LHL", "LHH")


def test_pinned_values():
    """A constant 1 gives 2 in LL (2-D), 2 sqrt 2 in LLL (3-D) and 0 elsewhere; a rising edge is positive in H."""
    assert haar(torch.ones(1, 1, 2, 2)).flatten().tolist() == [2, 0, 0, 0]
    assert haar(torch.ones(1, 1, 2, 2, 2)).flatten()[0].item() == pytest.approx(2.8284271)
    assert haar(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])).flatten().tolist() == [1, 1, 0, 0]


def test_channels_stay_together_by_band():
    x = torch.randn(1, 3, 4, 4, 4)
    whole = haar(x)
    for c in range(3):
        assert torch.equal(whole[:, c::3], haar(x[:, c : c + 1]))
    assert torch.equal(haar(x[:, :1]), whole[:, 0::3])


def test_gradients_flow_both_ways():
    x = torch.randn(1, 2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(haar, x)
    assert torch.autograd.gradcheck(unhaar, torch.randn(1, 8, 2, 2, 2, dtype=torch.float64, requires_grad=True))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="size 5"):
        haar(torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match="6 channels"):
        unhaar(torch.zeros(1, 6, 4, 4))


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (2, 3, 4, 6, 8)], ids=str)
def test_the_inverse_keeps_the_layout_of_what_it_is_given(shape):
    layout = CHANNELS_LAST[len(shape) - 2]
    x = haar(torch.randn(shape))
    plain, last = unhaar(x.contiguous()), unhaar(x.contiguous(memory_format=layout))
    assert plain.is_contiguous() and last.is_contiguous(memory_format=layout) and torch.equal(plain, last)


@SHAPES
def test_the_low_band_can_be_exchanged(shape):
    x = torch.randn(shape, dtype=torch.float64)
    whole, channels = haar(x), shape[1]
    band = torch.randn_like(low(x))
    assert torch.equal(low(x), whole[:, :channels])
    assert torch.allclose(haar(with_low(x, band)), torch.cat([band, whole[:, channels:]], dim=1), atol=1e-13)
    assert torch.allclose(with_low(x, low(x)), x, atol=1e-13)

"""The short ways to a convolution give what the long ones give."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amodal.nn import winograd
from amodal.nn.blocks import CONV, Up
from amodal.nn.layout import CHANNELS_LAST, channels_last
from amodal.nn.winograd import FOUR, TWICE, TWO, Scheme, boxes, convolve, derived, run, shortest

SIZES = [(4, 6, 8), (5, 7, 3), (1, 2, 1), (9, 10, 11), (8, 4), (13, 6)]
LONG = {
    "two": lambda layer, x: layer(x),
    "four": lambda layer, x: layer(x),
    "twice": lambda layer, x: layer(F.interpolate(x, scale_factor=2, mode="nearest")),
}
SCHEMES: dict[str, Scheme] = {"two": TWO, "four": FOUR, "twice": TWICE}


def layer(inputs: int = 5, outputs: int = 4, dims: int = 3) -> nn.Conv2d | nn.Conv3d:
    torch.manual_seed(1)
    return CONV[dims](inputs, outputs, 3, padding=1).requires_grad_(False)


def image(channels: int, size: tuple[int, ...], count: int = 2) -> torch.Tensor:
    x = torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(2))
    return channels_last(x)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("budget", [1, 9000, 1 << 20])
def test_exact(name: str, size: tuple[int, ...], budget: int) -> None:
    net, x = layer(dims=len(size)).double(), image(5, size).double()
    scheme = SCHEMES[name]
    found = run(scheme, x, scheme.transformed(net.weight), net.bias, budget=budget)
    assert torch.allclose(found, LONG[name](net, x), atol=1e-12)
    assert found.is_contiguous(memory_format=CHANNELS_LAST[len(size)])


@pytest.mark.parametrize("name", SCHEMES)
def test_of_a_part_with_its_neighbours_it_is_the_part_of_the_whole(name: str) -> None:
    net, x, scheme = layer(), image(5, (8, 4, 5)), SCHEMES[name]
    tiles = scheme.transformed(net.weight)
    whole, part = run(scheme, x, tiles, net.bias), run(scheme, x[:, :, 1:7], tiles, net.bias, halo=True)
    twice = len(scheme.fold) // scheme.step
    assert torch.allclose(part, whole[:, :, 2 * twice : 6 * twice], atol=1e-5)


@pytest.mark.parametrize("scheme, count", [(TWO, 4), (FOUR, 6), (TWICE, 3)])
@pytest.mark.parametrize("dims", [2, 3])
def test_products_a_tile(scheme: Scheme, count: int, dims: int) -> None:
    """Lavin & Gray 2016, section 4: m + r - 1 products for m outputs and r taps, along every axis."""
    assert scheme.transformed(layer(dims=dims).weight).shape == (count**dims, 5, 4)
    assert scheme.count([scheme.step * 3] * dims) == count**dims * (3**dims + winograd.FETCH)


@pytest.mark.parametrize("scheme", SCHEMES.values())
def test_every_output_takes_in_the_bias_once(scheme: Scheme) -> None:
    net = layer()
    found = run(scheme, torch.zeros(1, 5, 4, 4, 4), scheme.transformed(net.weight), net.bias)
    assert net.bias is not None
    assert torch.allclose(found, net.bias.reshape(1, -1, 1, 1, 1).expand_as(found))


@pytest.mark.parametrize(
    "grid, count", [((3, 4, 5), 7), ((3, 4, 5), 20), ((3, 4, 5), 45), ((6, 2), 0), ((2, 3, 1), 99)]
)
def test_boxes_hold_every_tile_once_and_not_too_many(grid: tuple[int, ...], count: int) -> None:
    tiles = []
    for box in boxes(grid, count):
        inside = list(itertools.product(*(range(a, b) for a, b in box)))
        assert len(inside) <= max(1, count)
        tiles += inside
    assert sorted(tiles) == list(itertools.product(*map(range, grid)))


def test_in_float32_it_is_as_near_as_it_says() -> None:
    net, x = layer(128, 128), image(128, (12, 12, 12), count=1)
    exact = net.double()(x.double())
    net.float()
    for scheme, most in ((TWO, 3e-6), (FOUR, 2e-5)):
        found = run(scheme, x, scheme.transformed(net.weight), net.bias)
        assert 1e-8 < float((found - exact).std() / exact.std()) < most


@pytest.mark.parametrize("dims", [2, 3])
def test_a_wide_layer_takes_the_short_way_in_float32(dims: int) -> None:
    net, x = layer(128, 128, dims), image(128, (24,) * dims, count=2)
    with torch.inference_mode():
        found = convolve(net, x)
        assert not torch.equal(found, net(x))  # the short way was taken
        assert torch.allclose(found, net(x), atol=5e-4)
        # what an image is does not depend on the batch it is in
        assert torch.equal(found[1:], convolve(net, x[1:]))


def wide(monkeypatch: pytest.MonkeyPatch) -> nn.Conv2d | nn.Conv3d:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(winograd, "WIDE", dict.fromkeys(winograd.WIDE, 32))
    monkeypatch.setattr(winograd, "GAIN", 0)
    return layer(32, 48).to(torch.bfloat16)


def test_in_bf16_it_is_as_near_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = wide(monkeypatch), image(32, (6, 8, 10)).to(torch.bfloat16)
    with torch.inference_mode():
        found = convolve(net, x).float()
        exact = (
            F.conv3d(x.float(), net.weight.float(), padding=1) + net.get_parameter("bias").float()[:, None, None, None]
        )
        assert not torch.equal(found, net(x).float())  # the short way was taken
        assert 0.002 < float((found - exact).std() / exact.std()) < 0.012


def test_where_it_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = wide(monkeypatch), image(32, (4, 4, 4)).to(torch.bfloat16)
    strided = nn.Conv3d(32, 32, 3, stride=2, padding=1).to(torch.bfloat16)
    with torch.no_grad():
        assert shortest(net, x, (TWO, FOUR)) is TWO  # the other's sums are too far apart for bf16
        assert shortest(net, x.float(), (TWO, FOUR)) is None
        assert shortest(strided, x, (TWO, FOUR)) is None
        assert shortest(nn.Conv3d(32, 16, 3, padding=1).to(torch.bfloat16), x, (TWO, FOUR)) is None
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert shortest(net, x, (TWO, FOUR)) is None
        assert shortest(net.float(), x.float(), (TWO, FOUR)) is not None  # matrix units are for bf16
        with torch.autocast("cpu", torch.bfloat16):
            assert shortest(net, x.float(), (TWO, FOUR)) is None
    assert shortest(net, x.float(), (TWO, FOUR)) is None  # gradients are asked for


def test_the_way_is_chosen_by_the_products_it_needs() -> None:
    """WFDM's prior on 48 x 56 x 40: its deepest level, of 6 x 7 x 5, has too few tiles of four."""
    with torch.no_grad():
        for channels, size, chosen in ((64, (48, 56, 40), FOUR), (512, (6, 7, 5), TWO), (512, (3, 3, 2), None)):
            x = torch.empty(1, channels, *size)
            assert shortest(nn.Conv3d(channels, channels, 3, padding=1), x, (TWO, FOUR)) is chosen


def test_upsampling_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    wide(monkeypatch)
    up, x = Up(3, 32).to(torch.bfloat16).requires_grad_(False), image(32, (3, 4, 5)).to(torch.bfloat16)
    with torch.no_grad():
        short, exact = up(x).float(), Up.forward(up.float(), x.float())
    assert short.shape == (2, 32, 6, 8, 10)
    assert 0.002 < float((short - exact).std() / exact.std()) < 0.012


def test_what_is_kept_of_a_weight_follows_the_weight() -> None:
    net = layer()
    with torch.no_grad():
        before = derived(net, TWO.transformed)
        assert derived(net, TWO.transformed) is before
        assert derived(net, TWICE.transformed).shape[0] == 27
        net.weight.mul_(2)
        assert torch.equal(derived(net, TWO.transformed), 2 * before)


def test_with_gradients_nothing_is_kept() -> None:
    net = layer().requires_grad_(True)
    derived(net, TWO.transformed).sum().backward()
    assert net.weight.grad is not None
    # every tap goes into the places by the products of the rows' sums
    columns = [sum(row[k] for row in TWO.taps) for k in range(3)]
    expected = torch.tensor([a * b * c for a, b, c in itertools.product(columns, repeat=3)]).reshape(3, 3, 3)
    assert torch.allclose(net.weight.grad[0, 0], expected)

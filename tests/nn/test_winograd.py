"""The short ways to a 3-D convolution give what the long ones give."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amodal.nn import winograd
from amodal.nn.blocks import Up
from amodal.nn.winograd import PLAIN, TWICE, Scheme, convolve, derived, run

SIZES = [(4, 6, 8), (5, 7, 3), (1, 2, 1)]
LONG = {
    "plain": lambda layer, x: layer(x),
    "twice": lambda layer, x: layer(F.interpolate(x, scale_factor=2, mode="nearest")),
}
SCHEMES: dict[str, Scheme] = {"plain": PLAIN, "twice": TWICE}


def layer(inputs: int = 5, outputs: int = 4) -> nn.Conv3d:
    torch.manual_seed(1)
    return nn.Conv3d(inputs, outputs, 3, padding=1).requires_grad_(False)


def image(channels: int, size: tuple[int, ...], count: int = 2) -> torch.Tensor:
    x = torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(2))
    return x.contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_exact(name: str, size: tuple[int, ...], budget: int) -> None:
    net, x = layer(), image(5, size)
    scheme = SCHEMES[name]
    found = run(scheme, x.double(), scheme.transformed(net.weight.double()), net.bias.double(), budget=budget)
    assert torch.allclose(found, LONG[name](net.double(), x.double()), atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("name", SCHEMES)
def test_of_a_part_with_its_neighbours_it_is_the_part_of_the_whole(name: str) -> None:
    net, x, scheme = layer(), image(5, (8, 4, 5)), SCHEMES[name]
    tiles = scheme.transformed(net.weight)
    whole, part = run(scheme, x, tiles, net.bias), run(scheme, x[:, :, 1:7], tiles, net.bias, halo=True)
    twice = 2 // scheme.step
    assert torch.allclose(part, whole[:, :, 2 * twice : 6 * twice], atol=1e-5)


@pytest.mark.parametrize("scheme, count", [(PLAIN, 64), (TWICE, 27)])
def test_products_a_tile(scheme: Scheme, count: int) -> None:
    """Lavin & Gray 2016: 4 products for 2 outputs and 3 taps."""
    assert scheme.transformed(layer().weight).shape == (count, 5, 4)


@pytest.mark.parametrize("scheme", [PLAIN, TWICE])
def test_every_output_takes_in_the_bias_once(scheme: Scheme) -> None:
    net = layer()
    found = run(scheme, torch.zeros(1, 5, 4, 4, 4), scheme.transformed(net.weight), net.bias)
    assert torch.allclose(found, net.bias.reshape(1, -1, 1, 1, 1).expand_as(found))


def wide(monkeypatch: pytest.MonkeyPatch) -> nn.Conv3d:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(winograd, "WIDE", 32)
    return layer(32, 48).to(torch.bfloat16)


def test_in_bf16_it_is_as_near_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = wide(monkeypatch), image(32, (6, 8, 10)).to(torch.bfloat16)
    with torch.inference_mode():
        found = convolve(net, x).float()
        exact = F.conv3d(x.float(), net.weight.float(), net.bias.float(), padding=1)
        assert not torch.equal(found, net(x).float())  # the short way was taken
        assert 0.002 < float((found - exact).std() / exact.std()) < 0.012


def test_where_it_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = wide(monkeypatch), image(32, (4, 4, 4)).to(torch.bfloat16)
    strided = nn.Conv3d(32, 32, 3, stride=2, padding=1).to(torch.bfloat16)
    with torch.no_grad():
        assert winograd.pays(net, x)
        assert not winograd.pays(net, x.float())
        assert not winograd.pays(strided, x)
        assert not winograd.pays(nn.Conv3d(32, 16, 3, padding=1).to(torch.bfloat16), x)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert not winograd.pays(net, x)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not winograd.pays(net, x)  # gradients are asked for


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
        before = derived(net, PLAIN.transformed)
        assert derived(net, PLAIN.transformed) is before
        assert derived(net, TWICE.transformed).shape[0] == 27
        net.weight.mul_(2)
        assert torch.equal(derived(net, PLAIN.transformed), 2 * before)


def test_with_gradients_nothing_is_kept() -> None:
    net = layer().requires_grad_(True)
    derived(net, PLAIN.transformed).sum().backward()
    assert net.weight.grad is not None
    # every tap goes into the places by the products of the rows' sums
    columns = [sum(row[k] for row in PLAIN.taps) for k in range(3)]
    expected = torch.tensor([a * b * c for a, b, c in itertools.product(columns, repeat=3)]).reshape(3, 3, 3)
    assert torch.allclose(net.weight.grad[0, 0], expected)

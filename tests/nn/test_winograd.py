"""The short ways to a convolution give what the long ones give."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amodal.nn import native, onepass, winograd
from amodal.nn.blocks import CONV, Down, Up
from amodal.nn.layout import CHANNELS_LAST, channels_last
from amodal.nn.winograd import (
    CONVOLVE,
    FETCH,
    FOUR,
    HALF,
    ONE,
    TWICE,
    TWO,
    Scheme,
    Way,
    boxes,
    convolve,
    count,
    derived,
    packing,
    run,
    short,
    shortest,
    three,
    transformed,
    transforming,
)  # fmt: skip

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C compiler, or AMODAL_NATIVE=0")
SIZES = [(4, 6, 8), (5, 7, 3), (1, 2, 1), (9, 10, 11), (8, 4), (13, 6)]
LONG = {
    "two": lambda layer, x: layer(x),
    "four": lambda layer, x: layer(x),
    "twice": lambda layer, x: layer(F.interpolate(x, scale_factor=2, mode="nearest")),
    "half": lambda layer, x: CONVOLVE[x.ndim - 2](x, layer.weight, layer.bias, stride=2, padding=1),
}
SCHEMES: dict[str, Scheme] = {"two": TWO, "four": FOUR, "twice": TWICE, "half": HALF}


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
    way = (SCHEMES[name],) * len(size)
    found = run(way, x, transformed(way, net.weight), net.bias, budget=budget)
    assert torch.allclose(found, LONG[name](net, x), atol=1e-12)
    assert found.is_contiguous(memory_format=CHANNELS_LAST[len(size)])


@pytest.mark.parametrize("name", SCHEMES)
def test_of_a_part_with_its_neighbours_it_is_the_part_of_the_whole(name: str) -> None:
    net, x, scheme = layer(), image(5, (8, 4, 5)), SCHEMES[name]
    way = (scheme,) * 3
    tiles = transformed(way, net.weight)
    whole, part = run(way, x, tiles, net.bias), run(way, x[:, :, 1:7], tiles, net.bias, halo=True)
    assert torch.allclose(part, whole[:, :, scheme.total(2) : scheme.total(6)], atol=1e-5)


@pytest.mark.parametrize("scheme, places", [(TWO, 4), (FOUR, 6), (TWICE, 3), (HALF, 5)])
@pytest.mark.parametrize("dims", [2, 3])
def test_products_a_tile(scheme: Scheme, places: int, dims: int) -> None:
    """Lavin & Gray 2016, section 4: m + r - 1 products for m outputs and r taps, along every axis."""
    way = (scheme,) * dims
    assert transformed(way, layer(dims=dims).weight).shape == (places**dims, 5, 4)
    assert count(way, [scheme.step * 3] * dims, 20) == 20 * places**dims * (3**dims + FETCH[True])
    assert count(way, [scheme.step * 3] * dims, 1 << 22) == (1 << 22) * places**dims * (3**dims + FETCH[False])


def test_every_axis_may_have_its_own_scheme() -> None:
    net, x, way = layer().double(), image(5, (9, 7, 5)).double(), (FOUR, TWO, TWO)
    assert torch.allclose(run(way, x, transformed(way, net.weight), net.bias), net(x), atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES.values())
def test_every_output_takes_in_the_bias_once(scheme: Scheme) -> None:
    net = layer()
    way = (scheme,) * 3
    found = run(way, torch.zeros(1, 5, 4, 4, 4), transformed(way, net.weight), net.bias)
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
        found = run((scheme,) * 3, x, transformed((scheme,) * 3, net.weight), net.bias)
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


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no compiler."""
    monkeypatch.setattr(winograd, "compiled", lambda way, kind: None)


def wide(monkeypatch: pytest.MonkeyPatch) -> nn.Conv2d | nn.Conv3d:
    by_torch(monkeypatch)
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
        assert shortest(net, x, (TWO, FOUR)) == (TWO,) * 3  # the other's sums are too far apart for bf16
        assert shortest(net, x.float(), (TWO, FOUR)) is None
        assert shortest(strided, x, (TWO, FOUR)) is None
        assert shortest(nn.Conv3d(32, 16, 3, padding=1).to(torch.bfloat16), x, (TWO, FOUR)) is None
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert shortest(net, x, (TWO, FOUR)) is None
        assert shortest(net.float(), x.float(), (TWO, FOUR)) is not None  # matrix units are for bf16
        with torch.autocast("cpu", torch.bfloat16):
            assert shortest(net, x.float(), (TWO, FOUR)) is None
    assert shortest(net, x.float(), (TWO, FOUR)) is None  # gradients are asked for


LEVELS: list[tuple[int, tuple[int, ...], Way | None]] = [
    (64, (48, 56, 40), (FOUR,) * 3),
    (256, (12, 14, 10), (FOUR,) * 3),
    (512, (6, 7, 5), (TWO, FOUR, TWO)),
    (512, (3, 3, 2), None),
]


def test_the_way_is_chosen_by_the_products_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """WFDM's prior on 48 x 56 x 40: its deeper levels have too few tiles of four."""
    monkeypatch.setattr(winograd, "WIDE", dict.fromkeys(winograd.WIDE, 48))
    by_torch(monkeypatch)
    with torch.no_grad():
        for channels, size, chosen in LEVELS:
            x = torch.empty(1, channels, *size)
            assert shortest(nn.Conv3d(channels, channels, 3, padding=1), x, (TWO, FOUR)) == chosen


def test_upsampling_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    wide(monkeypatch)
    up, x = Up(3, 32).to(torch.bfloat16).requires_grad_(False), image(32, (3, 4, 5)).to(torch.bfloat16)
    with torch.no_grad():
        short, exact = up(x).float(), Up.forward(up.float(), x.float())
    assert short.shape == (2, 32, 6, 8, 10)
    assert 0.002 < float((short - exact).std() / exact.std()) < 0.012


@needs_compiler
def test_downsampling_takes_the_short_way() -> None:
    down, x = Down(3, 64).requires_grad_(False), image(64, (25, 24, 16))
    with torch.no_grad():
        found, exact = down(x), down.double().conv(x.double())
    assert found.shape == (2, 64, 13, 12, 8)
    assert 1e-8 < float((found - exact).std() / exact.std()) < 3e-6
    with torch.no_grad():
        assert not torch.equal(found, down.float().conv(x))  # the short way was taken


def test_what_is_kept_of_a_weight_follows_the_weight() -> None:
    net = layer()
    with torch.no_grad():
        before = derived(net, transforming((TWO,) * 3))
        assert derived(net, transforming((TWO,) * 3)) is before
        assert derived(net, transforming((TWICE,) * 3)).shape[0] == 27
        net.weight.mul_(2)
        assert torch.equal(derived(net, transforming((TWO,) * 3)), 2 * before)


def test_with_gradients_nothing_is_kept() -> None:
    net = layer().requires_grad_(True)
    derived(net, transforming((TWO,) * 3)).sum().backward()
    assert net.weight.grad is not None
    # every tap goes into the places by the products of the rows' sums
    columns = [sum(row[k] for row in TWO.taps) for k in range(3)]
    expected = torch.tensor([a * b * c for a, b, c in itertools.product(columns, repeat=3)]).reshape(3, 3, 3)
    assert torch.allclose(net.weight.grad[0, 0], expected)


WAYS = {
    **{f"{dims}-D {name}": (scheme,) * dims for dims in (2, 3) for name, scheme in SCHEMES.items()},
    "mixed two": (FOUR, TWO, TWO),
}


@needs_compiler
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("inputs, outputs", [(32, 48), (5, 32), (64, 4)])
def test_in_one_pass_it_is_what_it_is_in_many(name: str, inputs: int, outputs: int) -> None:
    """Odd sizes, zeros around, a batch, channels that fill no vector, bias and what is added."""
    way = WAYS[name]
    net, x = layer(inputs, outputs, len(way)), image(inputs, (9, 7, 10)[: len(way)])
    exact = LONG[name.split()[-1]](net.double(), x.double())
    net.float()
    add = channels_last(torch.randn(exact.shape, generator=torch.Generator().manual_seed(3)))
    with torch.no_grad():
        assert winograd.compiled(way, x.dtype)
        found = short(way, net, x, add=add.clone())
        assert float((found - add - exact).std() / exact.std()) < 1e-5
        assert found.is_contiguous(memory_format=CHANNELS_LAST[len(way)])
        # what an image is does not depend on the batch it is in, nor on the number of threads
        assert torch.equal(short(way, net, x[1:]), short(way, net, x)[1:])
        threads = torch.get_num_threads()
        torch.set_num_threads(3)
        many = short(way, net, x)
        torch.set_num_threads(threads)
        assert torch.equal(many, short(way, net, x))


@needs_compiler
@pytest.mark.parametrize("name", SCHEMES)
def test_in_one_pass_a_part_with_its_neighbours_is_the_part_of_the_whole(name: str) -> None:
    net, x, scheme = layer(32, 32), image(32, (8, 4, 5)), SCHEMES[name]
    with torch.no_grad():
        whole, part = (short((scheme,) * 3, net, v, halo) for v, halo in ((x, False), (x[:, :, 1:7], True)))
    assert torch.allclose(part, whole[:, :, scheme.total(2) : scheme.total(6)], atol=3e-5)


@needs_compiler
@pytest.mark.parametrize("name", SCHEMES)
def test_in_one_pass_bf16_is_only_rounded_at_the_end(name: str) -> None:
    """Where products in bf16 are 1 % off (above), these are as near as the long way."""
    net, x = layer(32, 48).to(torch.bfloat16), image(32, (6, 8, 10)).to(torch.bfloat16)
    with torch.no_grad():
        found = short((SCHEMES[name],) * 3, net, x)
        wide = net.double()
        exact = LONG[name](wide, x.double())
    assert found.dtype == torch.bfloat16
    assert float((found - exact).std() / exact.std()) < 0.0019  # 2^-9 at most, 0.0017 on average


@needs_compiler
def test_nothing_is_lost_of_what_is_no_number() -> None:
    net, x = layer(32, 32).to(torch.bfloat16), image(32, (4, 4, 4), count=1).to(torch.bfloat16)
    x[0, 3, 2, 2, 2] = torch.nan
    with torch.no_grad():
        assert short((TWO,) * 3, net, x).isnan().any()


def test_shares_of_work_cover_everything_and_fit() -> None:
    for inputs, outputs, tiles in ((64, 64, 1680), (512, 512, 36), (16, 16, 1), (384, 128, 210)):
        for threads in (1, 2, 64):
            way, weights = (FOUR,) * 3, 216 * inputs * outputs
            together, block = onepass.share(way, inputs, outputs, 16, weights, tiles, threads)
            assert 1 <= together <= max(1, min(tiles, onepass.MANY_TILES)) and block % 16 == 0
            assert 16 <= block <= onepass.BLOCK
            if weights <= onepass.CACHE[1] and together > onepass.ROWS:
                assert onepass.needed(way, inputs, block, together) <= 1.1 * onepass.CACHE[0]


def test_packed_weights_are_all_there() -> None:
    net = layer(5, 20)
    way = (TWO,) * 3
    packed, tiles = packing(way, 16)(net.weight), transformed(way, net.weight)
    assert packed.shape == (64, 2, 16, 16)
    back = packed.transpose(1, 2).flatten(2)
    assert torch.equal(back[:, :5, :20], tiles)
    assert not back[:, 5:].any() and not back[..., 20:].any()


def test_two_axes_are_three_of_which_one_has_one_voxel() -> None:
    assert three((FOUR, TWO)) == (ONE, FOUR, TWO)
    assert three((FOUR, TWO, TWO)) == (FOUR, TWO, TWO)

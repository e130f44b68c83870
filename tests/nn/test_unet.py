"""The U-Net as a whole: what it is at first, what each input does, sizes, layout, precision, batches, counts."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amodal.core import config as configs
from amodal.core.device import bf16
from amodal.core.errors import InputError
from amodal.nn import count, layout
from amodal.nn.unet import UNet, UNetConfig

TINY = UNetConfig(2, 3, channels=(8, 16), blocks=1, attention=(False, True), head_size=8, groups=4)
DOORS = UNetConfig(
    2, 2, (8, 16), 1, (False, True), head_size=8, groups=4, times=2, tokens=5, vector=3, concat=1, patch=2
)
CUBE = UNetConfig(1, 1, channels=(8, 16), blocks=1, attention=(False, True), head_size=8, groups=4, dims=3)
RESAMPLED = UNetConfig(2, 2, (8, 16), 1, (False, True), head_size=8, groups=4, resample="residual")


def _net(config: UNetConfig, seed: int = 0) -> UNet:
    """A network in eval mode whose zero layers were stirred."""
    torch.manual_seed(seed)
    net = UNet(config).eval()
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def _inputs(config: UNetConfig, batch: int, size: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    spatial = (size,) * config.dims
    out = {
        "x": torch.randn(batch, config.in_channels, *spatial, generator=draw),
        "t": 1000 * torch.rand(batch, config.times, generator=draw),
    }
    if config.concat:
        out["concat"] = torch.randn(batch, config.concat, *spatial, generator=draw)
    if config.tokens:
        out["tokens"] = torch.randn(batch, 4, config.tokens, generator=draw)
    if config.vector:
        out["vector"] = torch.randn(batch, config.vector, generator=draw)
    return out


ALL = pytest.mark.parametrize("config", [TINY, DOORS, CUBE, RESAMPLED], ids=["tiny", "doors", "cube", "resampled"])


@ALL
def test_gives_exactly_zero_at_first(config: UNetConfig) -> None:
    out = UNet(config)(**_inputs(config, 2))
    assert out.shape == (2, config.out_channels, *(16,) * config.dims)
    assert torch.equal(out, torch.zeros_like(out))


@ALL
def test_gradient_reaches_every_parameter(config: UNetConfig) -> None:
    net = _net(config).train()
    net(**_inputs(config, 2)).square().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@ALL
def test_every_input_changes_the_output(config: UNetConfig) -> None:
    net, given = _net(config), _inputs(config, 1)
    other = _inputs(config, 1, seed=1)
    with torch.inference_mode():
        reference = net(**given)
        for name in given:
            changed = net(**{**given, name: other[name]})
            assert (changed - reference).abs().max() > 1e-4, name


def test_one_time_stands_for_all() -> None:
    net, given = _net(DOORS), _inputs(DOORS, 2)
    one = {**given, "t": given["t"][:, 0]}
    both = {**given, "t": given["t"][:, :1].repeat(1, 2)}
    with torch.inference_mode():
        assert torch.equal(net(**one), net(**both))
        assert not torch.equal(net(**both), net(**given))


@pytest.mark.parametrize("config", [TINY, DOORS, CUBE, RESAMPLED], ids=["tiny", "doors", "cube", "resampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_does_not_depend_on_its_batch(config: UNetConfig, dtype: torch.dtype) -> None:
    """To the bit: one by one, in fives, in chunks, beside other neighbours."""
    net, given = layout.convert(_net(config), dtype), _inputs(config, 5, 20)
    with torch.inference_mode():
        whole = net(**given)
        for part in (slice(0, 1), slice(1, 3), slice(3, 5), slice(4, 5)):
            assert torch.equal(net(**{k: v[part] for k, v in given.items()}), whole[part])
        mirrored = net(**{k: v.flip(0) for k, v in given.items()})
    assert torch.equal(mirrored.flip(0), whole)


@ALL
def test_training_and_evaluation_agree(config: UNetConfig) -> None:
    """All samples at once (training) and one by one (evaluation), with gradients and without: the same function."""
    net, given = layout.convert(_net(config)), _inputs(config, 3)
    alone = net(**given)
    with torch.inference_mode():
        assert torch.allclose(net(**given), alone, atol=1e-5)
    assert torch.allclose(net.train()(**given), alone, atol=1e-5)


def test_gradient_with_respect_to_the_image_does_not_depend_on_the_batch() -> None:
    net = _net(TINY).requires_grad_(False)
    x, t = torch.randn(3, 2, 16, 16), torch.tensor([5.0, 500.0, 900.0])
    whole = torch.autograd.grad(net(given := x.clone().requires_grad_(), t).square().sum(), given)[0]
    single = torch.autograd.grad(net(given := x[1:2].clone().requires_grad_(), t[1:2]).square().sum(), given)[0]
    assert torch.equal(whole[1:2], single)


@ALL
@pytest.mark.parametrize("size", [13, 17])
def test_any_size(config: UNetConfig, size: int) -> None:
    """A size that does not fit is padded with the edge and cropped: the same as padding by hand."""
    net, given = _net(config), _inputs(config, 1, size)
    multiple = config.multiple
    short = -size % multiple
    pads = {
        k: F.pad(v, (0, short) * config.dims, mode="replicate") if k in ("x", "concat") else v for k, v in given.items()
    }
    with torch.inference_mode():
        out, padded = net(**given), net(**pads)
    assert out.shape[2:] == (size,) * config.dims
    assert torch.equal(out, layout.crop_to(padded, out.shape[2:]))


def test_patch_is_a_network_on_the_unshuffled_image() -> None:
    patched = UNetConfig(2, 3, (8, 16), 1, (False, True), head_size=8, groups=4, patch=2)
    plain = UNetConfig(8, 12, (8, 16), 1, (False, True), head_size=8, groups=4)
    net, inner = _net(patched), UNet(plain).eval()
    inner.load_state_dict(net.state_dict())
    x, t = torch.randn(2, 2, 16, 24), torch.tensor([3.0, 700.0])
    with torch.inference_mode():
        expected = F.pixel_shuffle(inner(F.pixel_unshuffle(x, 2), t), 2)
        assert torch.allclose(net(x, t), expected, atol=1e-6)


def test_3d_on_a_uniform_third_axis_is_the_2d_network() -> None:
    """Weights of the 2-D network in the middle of the 3-D kernels: every slice as in 2-D."""
    flat_config = UNetConfig(1, 1, (8,), 1, (False,), head_size=8, groups=4)
    deep_config = UNetConfig(1, 1, (8,), 1, (False,), head_size=8, groups=4, dims=3)
    flat, deep = _net(flat_config), UNet(deep_config).eval()
    state = flat.state_dict()
    for name, value in deep.state_dict().items():
        given = state[name]
        if value.ndim == 5:
            middle = F.pad(given.unsqueeze(-1), (value.shape[-1] // 2,) * 2)
            state[name] = middle
    deep.load_state_dict(state)
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([400.0])
    with torch.inference_mode():
        expected = flat(x, t)
        out = deep(x.unsqueeze(-1).expand(-1, -1, -1, -1, 4), t)
    assert torch.allclose(out, expected.unsqueeze(-1).expand_as(out), atol=1e-4)


@ALL
@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_after_every_block(config: UNetConfig, batch: int) -> None:
    # a CPU without bf16 convolves volumes of it in a layout of its own, and amodal computes in float32 there
    half = config.dims == 2 or bf16("auto", torch.device("cpu"))
    kind = torch.bfloat16 if half else torch.float32
    if not half and batch == 1:
        pytest.skip("in float32 torch convolves one small volume in a layout of its own, too")
    net = layout.convert(_net(config).train(), kind)
    strayed: list[str] = []

    def check(name: str):
        def hook(module: nn.Module, inputs: tuple, out: torch.Tensor) -> None:
            if torch.is_tensor(out) and out.ndim == 2 + config.dims and name not in ("", "stem"):
                dense = out.is_contiguous(memory_format=layout.CHANNELS_LAST[config.dims])
                strayed.extend([] if dense and out.dtype == kind else [name])

        return hook

    for name, module in net.named_modules():
        module.register_forward_hook(check(name))
    with torch.no_grad():
        out = net(**_inputs(config, batch))
    assert not strayed
    assert out.dtype == torch.float32


@ALL
def test_bf16_is_close_to_fp32(config: UNetConfig) -> None:
    net, given = _net(config), _inputs(config, 2)
    half = layout.convert(copy.deepcopy(net), torch.bfloat16)
    assert half.head.weight.dtype == torch.bfloat16
    assert half.embed.first.weight.dtype == torch.float32
    with torch.inference_mode():
        exact, rough = net(**given), half(**given)
        with torch.autocast("cpu", torch.bfloat16):
            cast = net(**given)
    for found in (rough, cast):
        assert ((found - exact).norm() / exact.norm()).item() < 0.03
        assert found.dtype == torch.float32


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _residual(inputs: int, outputs: int, taps: int, embed: int) -> int:
    skip = 0 if inputs == outputs else _linear(inputs, outputs)
    convs = taps * inputs * outputs + outputs + taps * outputs**2 + outputs
    return 2 * inputs + 2 * outputs + convs + skip + _linear(embed, 2 * outputs)


def _attention(channels: int) -> int:
    return 2 * channels + _linear(channels, 3 * channels) + _linear(channels, channels)


@pytest.mark.parametrize("dims, pinned", [(2, 48619), (3, 116155)])
def test_parameters_by_hand(dims: int, pinned: int) -> None:
    """channels (8, 16), one block a level, attention below, 2 channels in, 3 out."""
    config = UNetConfig(2, 3, (8, 16), 1, (False, True), head_size=8, groups=4, dims=dims)
    taps, embed = 3**dims, 32
    times = _linear(8, embed) + _linear(embed, embed)
    encoder = _residual(8, 8, taps, embed) + (taps * 64 + 8) + _residual(8, 16, taps, embed) + _attention(16)
    middle = 2 * _residual(16, 16, taps, embed) + _attention(16)
    below = _residual(32, 16, taps, embed) + _residual(24, 16, taps, embed) + 2 * _attention(16) + (taps * 256 + 16)
    above = _residual(24, 8, taps, embed) + _residual(16, 8, taps, embed)
    ends = (taps * 2 * 8 + 8) + 2 * 8 + (taps * 8 * 3 + 3)
    net = UNet(config)
    assert count.parameters(net) == (times + encoder + middle + below + above + ends,) * 2
    assert count.parameters(net)[0] == pinned
    net.embed.requires_grad_(False)
    assert count.parameters(net)[1] == pinned - sum(p.numel() for p in net.embed.parameters())


def test_flops_by_hand() -> None:
    assert count.flops(nn.Conv2d(3, 5, 3, padding=1), torch.empty(1, 3, 8, 10)) == (2 * 8 * 10 * 9 * 15,) * 2
    net = UNet(TINY)
    layers, every = count.flops(net, torch.empty(1, 2, 16, 16), torch.empty(1))
    assert every - layers == 4 * (2 * 2 * 64**2 * 16)  # 4 attentions of 64 voxels, 2 products, 16 channels
    assert count.flops(net, torch.empty(1, 2, 32, 32, device="meta"), torch.empty(1))[0] == pytest.approx(
        4 * layers, rel=0.01
    )


def test_flops_of_a_large_network_come_at_once() -> None:
    with torch.device("meta"):
        net = UNet(UNetConfig(5, 5, (128, 128, 256, 256, 512, 512), 2, (False, False, False, True, True, True)))
    layers, every = count.flops(net, torch.empty(1, 5, 256, 256), torch.empty(1))
    assert 3e11 < layers < every < 1e12


def test_config_goes_through_json_and_refuses_what_cannot_be_built() -> None:
    assert configs.from_dict(UNetConfig, json.loads(json.dumps(configs.to_dict(DOORS)))) == DOORS
    with pytest.raises(InputError, match="one value per level"):
        UNetConfig(1, 1, (8, 16), attention=(True,))
    with pytest.raises(InputError, match="head_size=64"):
        UNetConfig(1, 1, (64, 96), attention=(False, True))
    with pytest.raises(InputError, match="no such setting"):
        configs.override(TINY, ["width=3"])


def test_inputs_that_do_not_fit_are_named() -> None:
    net, given = UNet(DOORS), _inputs(DOORS, 2)
    for name in ("tokens", "vector", "concat"):
        with pytest.raises(ValueError, match=f"{name} is missing"):
            net(**{k: v for k, v in given.items() if k != name})
    with pytest.raises(ValueError, match="tokens is given"):
        UNet(TINY)(torch.zeros(1, 2, 8, 8), torch.zeros(1), tokens=torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="expected 4 axes, 1 samples and width 2"):
        UNet(TINY)(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match=r"t \[3\]"):
        UNet(TINY)(torch.zeros(1, 2, 8, 8), torch.zeros(3))


def test_training_learns_a_pair() -> None:
    """Adam on one pair of images: the loss falls to a fraction."""
    torch.manual_seed(0)
    net = layout.convert(UNet(TINY))
    x, t, target = torch.randn(2, 2, 16, 16), torch.tensor([10.0, 800.0]), torch.randn(2, 3, 16, 16)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(net(x, t), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]

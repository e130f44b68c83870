"""Blocks against their definitions: group norm with modulation, resampling, residual block, attention, layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amodal.nn import attention, blocks, embed, layout
from amodal.nn import norm as norms


def _random(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("spatial", [(6, 5), (40, 36), (4, 3, 5), (12, 10, 11)])
def test_normalise_is_group_norm_then_scale_and_shift(batch: int, spatial: tuple[int, ...]) -> None:
    """Eq. of adaptive group norm, in float64, over the small and the large way, one sample and many."""
    norm = _random(norms.group_norm(8, 4))
    x, modulation = 3 + 2 * _normal(batch, 8, *spatial), _normal(batch, 16, seed=1)
    groups = x.double().reshape(batch, 4, -1)
    normal = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + norm.eps).sqrt()
    per_channel = (-1, 8, *(1,) * len(spatial))
    y = normal.reshape(x.shape) * norm.weight.reshape(per_channel) + norm.bias.reshape(per_channel)
    scale, shift = (m.reshape(per_channel) for m in modulation.chunk(2, dim=1))
    for given in (x, layout.channels_last(x)):
        assert torch.allclose(norms.normalise(given, norm).double(), y, atol=1e-5)
        assert torch.allclose(norms.normalise(given, norm, modulation).double(), y * (1 + scale) + shift, atol=1e-5)


@pytest.mark.parametrize("spatial", [(6, 5), (40, 36)])
def test_normalise_passes_the_gradient_of_its_definition(spatial: tuple[int, ...]) -> None:
    norm = _random(norms.group_norm(8, 4)).double()
    x = _normal(2, 8, *spatial).double().requires_grad_()
    modulation = _normal(2, 16, seed=1).double().requires_grad_()
    towards = _normal(2, 8, *spatial, seed=2).double()
    scale, shift = (m[..., None, None] for m in modulation.chunk(2, dim=1))
    wanted = torch.autograd.grad((towards * (norm(x) * (1 + scale) + shift)).sum(), (x, modulation, *norm.parameters()))
    found = torch.autograd.grad(
        (towards * norms.normalise(x, norm, modulation)).sum(), (x, modulation, *norm.parameters())
    )
    for a, b in zip(found, wanted):
        assert torch.allclose(a, b, atol=1e-9)


def test_normalise_is_steady_where_the_mean_dwarfs_the_deviation() -> None:
    norm = norms.group_norm(4, 2)
    x = 1000 + _normal(1, 4, 8, 8)
    assert torch.allclose(norms.normalise(x, norm), norm(x.double().float()), atol=2e-3)
    assert norms.normalise(x, norm).std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "channels, groups, expected", [(64, 32, 32), (96, 32, 32), (16, 32, 16), (24, 32, 8), (6, 4, 2)]
)
def test_group_norm_takes_a_number_of_groups_that_divides(channels: int, groups: int, expected: int) -> None:
    assert norms.group_norm(channels, groups).num_groups == expected


@pytest.mark.parametrize("dims", [2, 3])
def test_up_is_nearest_upsampling_and_a_convolution(dims: int) -> None:
    up = _random(blocks.Up(dims, 5))
    x = _normal(2, 5, *(7, 4, 3)[:dims])
    assert torch.allclose(up(x), up.conv(F.interpolate(x, scale_factor=2, mode="nearest")), atol=1e-5)


def test_up_trains_after_it_inferred() -> None:
    up = blocks.Up(2, 4)
    with torch.inference_mode():
        up(_normal(1, 4, 3, 3))
    up(_normal(1, 4, 3, 3)).sum().backward()
    assert up.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("spatial", [(6, 5), (40, 36)])
def test_normalise_keeps_type_and_layout(spatial: tuple[int, ...]) -> None:
    """In bf16, under autocast, with its gradient, whatever the layout of the gradient that arrives."""
    norm = _random(norms.group_norm(8, 4))
    x = layout.channels_last(_normal(3, 8, *spatial).bfloat16()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norms.normalise(x, norm, _normal(3, 16))
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y).contiguous())
    for found in (y, grad):
        assert found.dtype == torch.bfloat16
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dims", [2, 3])
def test_half_is_the_mean_of_cells_and_undoes_twice(dims: int) -> None:
    x = _normal(2, 3, *(4, 6, 8)[:dims])
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[dims]
    assert torch.allclose(blocks.half(x), pool(x, 2), atol=1e-6)
    assert torch.allclose(blocks.half(blocks.twice(x)), x, atol=1e-6)


@pytest.mark.parametrize("resample", [None, blocks.half, blocks.twice])
def test_residual_block_step_by_step(resample) -> None:
    block = _random(blocks.Residual(2, 6, 8, groups=2, resample=resample))
    x, modulation = _normal(2, 6, 8, 8), _normal(2, 16, seed=1)
    change = resample or (lambda v: v)
    scale, shift = (m[..., None, None] for m in modulation.chunk(2, dim=1))
    h = block.conv1(change(F.silu(block.norm1(x))))
    h = block.conv2(F.silu(block.norm2(h) * (1 + scale) + shift))
    given = x.clone()
    with torch.no_grad():
        assert torch.allclose(block(given, modulation), h + block.skip(change(x)), atol=1e-5)
    assert torch.equal(given, x), "the input was overwritten"


def test_residual_block_begins_as_the_identity() -> None:
    x = _normal(2, 8, 6, 6)
    assert torch.equal(blocks.Residual(2, 8, 8, groups=4)(x, _normal(2, 16)), x)


@pytest.mark.parametrize("tokens", [0, 7])
def test_attention_by_hand(tokens: int) -> None:
    heads, channels = 2, 8
    block = _random(attention.Attention(channels, heads, groups=4, tokens=tokens))
    x = _normal(2, channels, 3, 5)
    context = _normal(2, 6, tokens, seed=3) if tokens else None

    def by_hand(q, k, v):
        out = torch.empty_like(q)
        for head in range(heads):
            part = slice(head * channels // heads, (head + 1) * channels // heads)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(channels / heads)).softmax(-1)
            out[..., part] = weights @ v[..., part]
        return out

    def rows(v):
        return v.flatten(2).transpose(1, 2)

    expected = rows(x) + block.out(by_hand(*block.qkv(rows(block.norm(x))).chunk(3, dim=-1)))
    if tokens:
        cross = block.cross
        middle = expected.transpose(1, 2).unflatten(2, (3, 5))
        keys, values = cross.kv(cross.token_norm(context)).chunk(2, dim=-1)
        expected = expected + cross.out(by_hand(cross.q(rows(cross.norm(middle))), keys, values))
    assert torch.allclose(rows(block(x, context)), expected, atol=1e-4)


def test_sinusoidal_by_the_formula() -> None:
    out = embed.sinusoidal(torch.tensor([0.0, 250.5]), 8)
    frequencies = [10000 ** (-i / 4) for i in range(4)]
    assert out[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    expected = [math.cos(250.5 * f) for f in frequencies] + [math.sin(250.5 * f) for f in frequencies]
    assert out[1].tolist() == pytest.approx(expected, abs=1e-4)
    assert embed.sinusoidal(torch.tensor([1.0]), 7).shape == (1, 7)


def test_embedding_gives_each_block_its_modulation() -> None:
    module = _random(embed.Embedding(8, 16, (3, 0, 5), times=2, vector=4))
    t, vector = torch.tensor([[10.0, 900.0]]), _normal(1, 4)
    first = module.first(torch.cat([embed.sinusoidal(t[:, 0], 8), embed.sinusoidal(t[:, 1], 8)], dim=1))
    every = module.modulation(F.silu(module.second(F.silu(first)) + module.vector(vector)))
    out = module(t, vector)
    assert [m.shape[1] for m in out] == [6, 0, 10]
    assert torch.allclose(torch.cat(out, dim=1), every)
    assert torch.equal(torch.cat(module(t[:, 0], vector), 1), torch.cat(module(t[:, :1].expand(1, 2), vector), 1))


@pytest.mark.parametrize("spatial, patch", [((6, 8), 2), ((9, 6), 3), ((4, 6, 2), 2), ((5, 7), 1)])
def test_fold_and_unfold_are_inverse(spatial: tuple[int, ...], patch: int) -> None:
    x = _normal(2, 3, *spatial)
    folded = layout.fold(x, patch)
    assert folded.is_contiguous(memory_format=layout.CHANNELS_LAST[len(spatial)])
    assert torch.equal(layout.unfold(folded, patch), x)
    if len(spatial) == 2:
        assert torch.equal(folded, F.pixel_unshuffle(x, patch))


def test_pad_to_repeats_the_edge_and_crop_to_undoes_it() -> None:
    x = _normal(1, 2, 5, 8)
    padded = layout.pad_to(x, 4)
    assert padded.shape == (1, 2, 8, 8)
    assert torch.equal(padded[:, :, 5:], x[:, :, 4:5].expand(-1, -1, 3, -1))
    assert torch.equal(layout.crop_to(padded, (5, 8)), x)
    assert layout.pad_to(padded, 4) is padded


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_convolution_of_one_tap_is_the_same_by_both_ways(dims: int, batch: int) -> None:
    layer, x = _random(blocks.conv(dims, 6, 10, kernel=1)), _normal(batch, 6, *(5, 4, 3)[:dims])
    by_hand = torch.einsum("ki,bi...->bk...", layer.weight.flatten(1), x) + layer.bias.reshape(-1, *(1,) * dims)
    for given in (x, layout.channels_last(x)):
        assert torch.allclose(layer(given), by_hand, atol=1e-6)  # with gradients
        with torch.no_grad():
            found = layer(given)
        assert torch.allclose(found, by_hand, atol=1e-6)
    assert found.is_contiguous(memory_format=layout.CHANNELS_LAST[dims])
    assert list(layer.state_dict()) == ["weight", "bias"]

"""The KL autoencoder: sizes, whitening, one sample at a time, and that it learns to look through its bottleneck."""

import dataclasses
import math

import pytest
import torch

from amodal.codecs import losses
from amodal.codecs.kl import KLCodec, KLConfig, cosines, draw
from amodal.core.errors import InputError
from amodal.core.rng import Rng

SMALL = {
    "2-D": (KLConfig(4, (8, 16), 1, groups=4), (3, 1, 12, 20)),
    "3-D": (KLConfig(2, (8, 16), 1, dims=3, groups=4), (2, 1, 8, 12, 8)),
    "folded": (KLConfig(4, (8, 16), 1, patch=2, attention=True, head_size=8, groups=4), (3, 1, 16, 24)),
}
EVERY = pytest.mark.parametrize("name", SMALL)


def made(name):
    torch.manual_seed(0)
    config, shape = SMALL[name]
    return KLCodec(config), 2 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 1


@EVERY
def test_each_axis_shrinks_by_the_factor_and_comes_back(name):
    codec, x = made(name)
    z = codec.encode(x)
    assert list(z.shape) == [len(x), codec.channels, *(n // codec.factor for n in x.shape[2:])]
    assert codec.decode(z).shape == x.shape == codec(x).shape
    assert codec.factor == codec.config.patch * 2


def test_sizes_that_do_not_divide_are_padded():
    codec, _ = made("folded")
    x = torch.rand(2, 1, 13, 18)
    assert codec.encode(x).shape == (2, 4, 4, 5) and codec(x).shape == x.shape
    assert codec.reconstruct(x, Rng.of(0, 2)).image.shape == x.shape


@EVERY
def test_calibrated_latents_have_mean_0_and_variance_1(name):
    codec, x = made(name)
    codec.calibrate([x[:1], x[1:]])
    by_channel = codec.encode(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(by_channel.mean(1), torch.zeros(codec.channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(by_channel.std(1, correction=0), torch.ones(codec.channels), atol=1e-3, rtol=0)


@EVERY
def test_whitening_changes_nothing_of_the_image(name):
    codec, x = made(name)
    before = codec(x)
    codec.calibrate([x])
    torch.testing.assert_close(codec(x), before, atol=2e-5, rtol=1e-4)


@EVERY
def test_a_sample_does_not_depend_on_its_batch(name):
    codec, x = made(name)
    codec.eval()
    alone = torch.cat([codec(x[i : i + 1]) for i in range(len(x))])
    assert torch.equal(codec(x), alone)


def test_a_draw_has_the_stated_law():
    mean, log_variance = torch.full((2, 1, 100, 100), 3.0), torch.full((2, 1, 100, 100), -2.0)
    z = draw(mean, log_variance, Rng.of(0, 2))
    assert float(z.mean()) == pytest.approx(3.0, abs=0.01) and float(z.std()) == pytest.approx(math.exp(-1), rel=0.02)


def test_it_learns_to_reconstruct():
    codec, _ = made("folded")
    axis = torch.linspace(-1, 1, 16)
    x = torch.stack([torch.sin(3 * axis[:, None] + k) * torch.cos(2 * axis[None] - k) for k in range(8)])[:, None]
    adam = torch.optim.Adam(codec.parameters(), 6e-3)
    for step in range(60):
        seen = codec.reconstruct(x, Rng.of(step, len(x)))
        loss = losses.l1(seen.image, x) + 1e-6 * losses.kl(seen.mean, seen.log_variance)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert (codec(x) - x).abs().mean() < 0.15 < x.abs().mean() / 2


def test_no_width_is_refused_with_a_sentence():
    with pytest.raises(InputError, match="at least one width"):
        KLConfig(widths=())


@pytest.mark.parametrize("dims", [2, 3])
def test_the_linear_path_begins_as_the_lowest_cosines(dims):
    """As many latents as voxels: nothing is lost from the first step on. Fewer: what is slow is kept."""
    config = KLConfig(4**dims, (8, 16), 1, dims=dims, patch=2, groups=4, linear=True)
    x = torch.randn(2, 1, *(8, 12, 8)[:dims], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(KLCodec(config)(x), x, atol=1e-5, rtol=0)
    few = KLCodec(dataclasses.replace(config, channels=1 + dims))
    assert few(torch.ones_like(x)).sub(1).abs().max() < 1e-5
    assert few(x).square().sum() < 0.5 * x.square().sum()


def test_cosines_are_orthonormal_whatever_the_number_of_inputs():
    basis = cosines(KLConfig(12, (8, 16), 1, inputs=2, patch=2))
    torch.testing.assert_close(basis @ basis.T, torch.eye(12))
    assert cosines(KLConfig(20, (8,), 1, patch=4))[16:].abs().sum() == 0  # more latents than voxels


def test_the_linear_path_learns_and_draws_little_noise_at_first():
    codec = KLCodec(KLConfig(6, (8, 16), 1, patch=2, groups=4, linear=True))
    x = torch.randn(2, 1, 8, 8)
    made = codec.reconstruct(x, Rng.of(0, 2))
    assert (made.image - codec(x)).abs().max() < 0.2
    made.image.square().sum().backward()
    assert all(path.map.weight.grad.abs().sum() > 0 for path in (codec.encoder.linear, codec.decoder.linear))

"""The gradient step, the two stages, and the U-Net with transformers."""

from __future__ import annotations

import pytest
import torch

from amodal.core.rng import Rng
from amodal.diffusion.denoiser import Denoiser
from amodal.diffusion.process import DDPM
from amodal.diffusion.samplers import renoise
from amodal.methods.apt.guidance import pull
from amodal.methods.apt.inference import falling, noised, stage1, stage2
from amodal.methods.apt.network import Network, Transformer, variance_loss
from amodal.nn.unet import UNetConfig

PROCESS = DDPM(1000, "linear")
NET = UNetConfig(3, 6, (8, 16), 1, (False, True), 8, tokens=5, groups=4, resample="residual")


class Net64(torch.nn.Module):
    """A small network in double precision that mixes the modalities and depends on its input nonlinearly."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Conv2d(3, 6, 3, padding=1).double(), torch.nn.Conv2d(6, 3, 3, padding=1).double()

    def __call__(self, x, t):
        return self.b(torch.tanh(self.a(x)))


# guidance


def test_the_gradient_step_agrees_with_a_finite_difference():
    net, rng = Net64(), Rng.of(0, 2, "g")
    x, y = rng.normal(3, 6, 8).double(), rng.normal(3, 6, 8).double()
    present = torch.tensor([True, False, True])[None, :, None, None].expand_as(x)
    t, strength = torch.full((2,), 100.0), 7.0
    with torch.no_grad():
        shift = net(x, t) - pull(net, present, y, strength)(x, t)

        def miss(z, sample):
            return ((net(z, t) - y)[sample] * present[sample]).square().sum().sqrt()

        for sample, m, i, j in ((0, 0, 1, 2), (0, 1, 3, 3), (1, 2, 5, 7), (1, 1, 0, 0)):
            h = torch.zeros_like(x)
            h[sample, m, i, j] = 1e-5
            slope = (miss(x + h, sample) - miss(x - h, sample)) / 2e-5
            step = strength * (6 * 8) ** 0.5 / 256 * slope
            assert shift[sample, m, i, j].item() == pytest.approx(step.item(), rel=1e-6, abs=1e-10)


def test_the_strength_is_the_papers_on_256_by_256():
    x = torch.zeros(1, 1, 256, 256)
    present = torch.ones_like(x, dtype=torch.bool)
    y = torch.ones_like(x)
    out = pull(lambda x, t: x, present, y, 20.0)(x, torch.ones(1))
    assert torch.allclose(out, torch.full_like(x, 20 / 256))  # gradient of the norm of 65536 ones: 1 / 256 each


def test_no_strength_is_no_bend_and_a_perfect_prediction_is_not_pulled():
    def denoise(x, t):
        return x

    present = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert pull(denoise, present, torch.zeros(1, 1, 4, 4), 0.0) is denoise
    y = torch.rand(1, 1, 4, 4)
    assert torch.equal(pull(denoise, present, y, 20.0)(y, torch.ones(1)), y)


# stages


def test_times_of_stage_one_are_the_papers():
    times = falling(400, 20)
    assert len(times) == 21 and times[0] == 400 and times[-2:].tolist() == [20, 0]


def test_stage_one_is_renoising_from_the_noised_guess():
    guess = torch.rand(3, 2, 8, 8)

    def denoise(x, t):
        return torch.tanh(x) * 0.5

    found = stage1(denoise, PROCESS, guess, 400, 5, Rng.of(0, 3))
    rng, times = Rng.of(0, 3), falling(400, 5)
    x = noised(PROCESS, guess, times[0], rng)
    assert torch.equal(found, renoise(denoise, PROCESS, x, times, rng))
    alpha, sigma = PROCESS.at(times[0])
    again = alpha * guess + sigma * Rng.of(0, 3).normal_like(guess)
    assert torch.equal(x, again) and alpha**2 == pytest.approx(0.19, abs=0.01)  # signal left at M = 400, linear


@pytest.mark.parametrize(("turns", "weight"), [(1, 0.5), (7, 0.5), (5, 0.2)])
def test_unrolling_averages_geometrically(turns, weight):
    """With a denoiser that always says c: x0 = c + (1 - w)^N (x0 - c), Eq. 5."""
    start, c = torch.rand(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.3)
    found = stage2(lambda x, t: c, PROCESS, start, 40, 40, turns, weight, Rng.of(0, 2))
    assert torch.allclose(found, c + (1 - weight) ** turns * (start - c), atol=1e-6)


def test_stage_two_ends_by_stepping_down():
    seen = []

    def denoise(x, t):
        seen.append(t[0].item())
        return x

    said = []
    stage2(denoise, PROCESS, torch.zeros(1, 1, 4, 4), 40, 20, 6, 0.5, Rng.of(0, 1), lambda d, n: said.append((d, n)))
    assert seen == [40.0] * 5 + [20.0]
    assert said == [(i, 6) for i in range(1, 7)]


# the network


def test_a_transformer_begins_as_the_identity_and_one_token_is_added_everywhere():
    torch.manual_seed(0)
    block, x, token = Transformer(16, 2, 4, 5), torch.rand(2, 16, 6, 6), torch.rand(2, 1, 5)
    assert torch.equal(block(x, token), x)
    attended = block.look(block.kv(token).chunk(2, -1)[1])
    torch.nn.init.normal_(block.leave.weight)
    assert not torch.allclose(block(x, token), x)
    other = block(x, token.repeat(1, 3, 1))  # the same token three times over: a softmax over equals
    assert torch.allclose(block(x, token), other, atol=1e-5) and attended.shape == (2, 1, 16)


def test_all_attention_blocks_are_replaced():
    net = Network(NET, transformers=True)
    blocks = [m for m in net.modules() if type(m) is Transformer]
    assert len(blocks) == 1 + 2 + 1  # encoder, decoder and middle at the one coarse level
    assert net(torch.rand(2, 3, 8, 8), torch.ones(2), torch.rand(2, 1, 5)).shape == (2, 3, 8, 8)


class Says(torch.nn.Module):
    """A network that knows the noise, and says of the variance what it is told to."""

    def __init__(self, x0, mix):
        super().__init__()
        self.x0, self.mix = x0, mix

    def both(self, x, label, tokens):
        alpha, sigma = (v[:, None, None, None] for v in PROCESS.at(label + 1))
        return torch.cat([(x - alpha * self.x0) / sigma, torch.full_like(x, self.mix)], 1)


def test_the_variance_bound_is_zero_where_the_posterior_is_met_and_positive_elsewhere():
    x0 = Rng.of(0, 64, "x").uniform(1, 4, 4) * 2 - 1
    where, tokens = torch.ones(64, 1, 1, 1), torch.zeros(64, 1, 5)
    losses = []
    for mix in (-1.0, 0.0, 1.0):
        prior = Denoiser(Says(x0, mix), PROCESS, "noise")
        losses.append(variance_loss(prior, x0, Rng.of(3, 64), tokens, where).item())
    assert abs(losses[0]) < 0.05  # the least variance is the posterior's own (noise is known to rounding)
    assert losses[0] < losses[1] < losses[2]

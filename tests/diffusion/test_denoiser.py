"""What a network predicts: every prediction is inverted exactly, and its loss and weight are what the papers say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from amodal.core.rng import Rng
from amodal.diffusion.denoiser import TARGETS, Denoiser, around, expand, x0_from
from amodal.diffusion.process import DDPM, RectifiedFlow

PROCESSES = {"cosine": DDPM(1000, "cosine"), "linear": DDPM(1000, "linear"), "flow": RectifiedFlow()}
PREDICTIONS = pytest.mark.parametrize("prediction", TARGETS)
EVERYWHERE = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def images(n=4, m=3):
    return Rng.of(0, n).normal(m, 5, 6) / 3


class Perfect(nn.Module):
    """The network that knows the image: from x_t and its label it gives the exact target."""

    def __init__(self, x0, process, prediction):
        super().__init__()
        self.x0, self.process, self.target, self.labels = x0, process, TARGETS[prediction], []

    def forward(self, x, label):
        self.labels.append(label)
        t = (label + 1) / (1000 if self.process.end == 1 else 1)
        alpha, sigma = (expand(v, x) for v in self.process.at(t))
        eps = (x - alpha * self.x0) / sigma.clamp(min=1e-12)
        p, q = self.target(alpha, sigma)
        return p * self.x0 + q * eps


def test_targets_are_pinned():
    """(p, q) at alpha = 0.8, sigma = 0.6."""
    a, s = torch.tensor(0.8), torch.tensor(0.6)
    found = {name: tuple(round(v.item(), 6) for v in rule(a, s)) for name, rule in TARGETS.items()}
    assert found == {"noise": (0, 1), "x0": (1, 0), "v": (-0.6, 0.8), "flow": (-1, 1)}


@PREDICTIONS
@pytest.mark.parametrize(("a", "s"), [(0.8, 0.6), (0.3, 0.95), (0.999, 0.04), (0.25, 0.75)])
def test_every_prediction_is_inverted(prediction, a, s):
    a, s = torch.tensor(a, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
    x0, eps = images().double(), Rng.of(1, 4).normal(3, 5, 6).double()
    p, q = TARGETS[prediction](a, s)
    torch.testing.assert_close(x0_from(p * x0 + q * eps, a * x0 + s * eps, a, s, prediction), x0)


def test_v_is_inverted_at_pure_noise_and_x0_everywhere():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    x0, eps = images(), Rng.of(1, 4).normal(3, 5, 6)
    torch.testing.assert_close(x0_from(-x0, eps, zero, one, "v"), x0)
    torch.testing.assert_close(x0_from(eps - x0, eps, zero, one, "flow"), x0)
    torch.testing.assert_close(x0_from(x0, eps, zero, one, "x0"), x0)


@PREDICTIONS
def test_the_clean_image_is_its_own_prediction_and_nothing_is_ever_infinite(prediction):
    x, out = images(), torch.full((4, 3, 5, 6), 7.0)
    assert torch.equal(x0_from(out, x, torch.tensor(1.0), torch.tensor(0.0), prediction), x)
    assert torch.isfinite(x0_from(out, x, torch.tensor(0.0), torch.tensor(1.0), prediction)).all()


@EVERYWHERE
@PREDICTIONS
def test_the_perfect_network_gives_the_image_and_no_loss(process, prediction):
    x0 = images()
    net = Perfect(x0, process, prediction)
    denoiser = Denoiser(net, process, prediction)
    t = process.draw(torch.tensor([0.05, 0.3, 0.6, 0.8]))
    x = denoiser.noised(x0, t, Rng.of(1, 4).normal(3, 5, 6))
    torch.testing.assert_close(denoiser(x, t), x0, rtol=0, atol=2e-5)
    assert denoiser.loss(x0, Rng.of(2, 4), t=t).item() < 1e-8
    assert torch.equal(net.labels[0], process.label(t))


def test_noised_is_the_marginal():
    process = PROCESSES["cosine"]
    x0, eps, t = images(2), Rng.of(1, 2).normal(3, 5, 6), torch.tensor([0.0, 500.0])
    x = Denoiser(nn.Identity(), process).noised(x0, t, eps)
    bar = 0.4938435904  # of step 499
    assert torch.equal(x[0], x0[0])
    torch.testing.assert_close(x[1], math.sqrt(bar) * x0[1] + math.sqrt(1 - bar) * eps[1])


class Zero(nn.Module):
    def forward(self, x, label):
        return torch.zeros_like(x)


def test_the_loss_of_the_network_that_says_nothing():
    """mean (p x0 + q eps)^2: for noise prediction E eps^2 = 1, for x0 the mean square of the image."""
    x0, t = images(), torch.full((4,), 500.0)
    process = PROCESSES["cosine"]
    eps = Rng.of(2, 4).normal_like(x0)  # the loss draws the noise first if it is given the time
    noise = Denoiser(Zero(), process, "noise").loss(x0, Rng.of(2, 4), t=t)
    image = Denoiser(Zero(), process, "x0").loss(x0, Rng.of(2, 4), t=t)
    both = Denoiser(Zero(), process, "v").loss(x0, Rng.of(2, 4), t=t)
    a, s = process.at(t[:1])
    torch.testing.assert_close(noise, (eps**2).mean())
    torch.testing.assert_close(image, (x0**2).mean())
    torch.testing.assert_close(both, ((a * eps - s * x0) ** 2).mean())


def test_the_loss_counts_only_where_it_is_told():
    x0, t = images(), torch.full((4,), 500.0)
    where = torch.tensor([True, False, True])[None, :, None, None].expand(4, 3, 1, 1)
    denoiser = Denoiser(Zero(), PROCESSES["cosine"], "x0")
    torch.testing.assert_close(denoiser.loss(x0, Rng.of(2, 4), t=t, where=where), (x0[:, [0, 2]] ** 2).mean())
    nowhere = denoiser.loss(x0, Rng.of(2, 4), t=t, where=torch.zeros(4, 3, 1, 1, dtype=torch.bool))
    assert nowhere.item() == 0


def test_the_loss_draws_its_own_times():
    net = Perfect(images(), PROCESSES["linear"], "noise")
    denoiser = Denoiser(net, PROCESSES["linear"], "noise")
    assert denoiser.loss(images(), Rng.of(0, 4)).item() < 1e-6
    (label,) = net.labels
    assert torch.equal(label, (Rng.of(0, 4).uniform() * 1000).floor()) and len(label.unique()) == 4


@pytest.mark.parametrize(
    ("prediction", "low", "high"),
    # snr = 16/9 (alpha 0.8, sigma 0.6) with gamma = 1 and gamma = 5, Hang et al. 2023:
    # x0: min(snr, g); noise: min(snr, g) / snr; v: min(snr, g) / (snr + 1); flow: min(snr, g) s^2 / (a + s)^2
    [
        ("x0", 1.0, 16 / 9),
        ("noise", 9 / 16, 1.0),
        ("v", 9 / 25, 16 / 25),
        ("flow", 0.36 / 1.96, 0.64 / 1.96),
    ],
)
def test_min_snr_weights_are_pinned(prediction, low, high):
    a, s = torch.tensor(0.8), torch.tensor(0.6)
    for gamma, expected in ((1.0, low), (5.0, high), (0.0, 1.0)):
        weight = Denoiser(Zero(), PROCESSES["cosine"], prediction, snr_limit=gamma).weight(a, s)
        assert weight.item() == pytest.approx(expected, rel=1e-5)


@PREDICTIONS
def test_the_weight_means_the_same_error_of_the_image_whatever_is_predicted(prediction):
    """weight * (error of the output)^2 = min(snr, gamma) * (error of x0)^2."""
    a, s, x = torch.tensor(0.3), torch.tensor(0.9), images()
    out = torch.zeros_like(x)
    error = x0_from(out + 0.01, x, a, s, prediction) - x0_from(out, x, a, s, prediction)
    weight = Denoiser(Zero(), PROCESSES["cosine"], prediction, snr_limit=5.0).weight(a, s)
    torch.testing.assert_close(weight * 0.01**2, (error**2).mean() * (0.3 / 0.9) ** 2, rtol=1e-3, atol=0)


def test_the_weighted_loss_is_the_weight_times_the_loss():
    x0, t, process = images(), torch.full((4,), 300.0), PROCESSES["linear"]
    plain = Denoiser(Zero(), process, "noise").loss(x0, Rng.of(2, 4), t=t)
    bar = process.at(t[:1])[0].item() ** 2
    snr = bar / (1 - bar)
    assert snr < 1
    weighted = Denoiser(Zero(), process, "noise", snr_limit=snr / 4).loss(x0, Rng.of(2, 4), t=t)
    torch.testing.assert_close(weighted, plain / 4)


@PREDICTIONS
def test_a_time_a_modality(prediction):
    """t [B, M]: each modality has its own noise, and what is at time 0 comes back to the bit."""
    process, x0 = PROCESSES["cosine"], images(2)
    t = torch.tensor([[0.0, 400.0, 900.0], [700.0, 0.0, 10.0]])
    eps = Rng.of(1, 2).normal(3, 5, 6)
    denoiser = Denoiser(Perfect(x0, process, prediction), process, prediction)
    x = denoiser.noised(x0, t, eps)
    for b in range(2):
        for m in range(3):
            alone = denoiser.noised(x0[b : b + 1], t[b : b + 1, m], eps[b : b + 1])
            assert torch.equal(x[b, m], alone[0, m])
    out = denoiser(x, t)
    torch.testing.assert_close(out, x0, rtol=0, atol=2e-5)
    assert torch.equal(out[0, 0], x0[0, 0]) and torch.equal(out[1, 1], x0[1, 1])


def test_what_comes_out_is_float32_whatever_the_network_computes_in():
    class Half(nn.Module):
        def forward(self, x, label):
            return x.bfloat16()

    x = images()
    out = Denoiser(Half(), PROCESSES["cosine"], "x0")(x.double(), torch.full((4,), 10.0))
    assert out.dtype == torch.float32


def test_conditions_reach_the_network():
    class Told(nn.Module):
        def forward(self, x, label, vector):
            return x * 0 + vector[..., None, None]

    x = images()
    vector = torch.rand(4, 3)
    out = Denoiser(Told(), PROCESSES["cosine"], "x0")(x, torch.full((4,), 10.0), vector)
    torch.testing.assert_close(out, vector[..., None, None].expand_as(x))


def test_an_estimate_around_a_guess_is_the_posterior_mean():
    """x_0 ~ N(g, v), x_t = a x_0 + s eps: (g / v + a x_t / s^2) / (1 / v + a^2 / s^2). The guess where x_t says
    nothing, x_t where it is clean."""
    g, v, x = torch.randn(50), 0.1 + torch.rand(50), torch.randn(50)
    a, s = torch.tensor(0.6), torch.tensor(0.8)
    torch.testing.assert_close(around(g, v, x, a, s), (g / v + a * x / s**2) / (1 / v + a**2 / s**2))
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert torch.equal(around(g, v, x, zero, one), g)
    torch.testing.assert_close(around(g, v, x, one, zero), x)


def test_weights_may_be_of_what_the_network_sees():
    """A function of x_t and of the label that the network is told, without a gradient, as the same weights by hand."""
    net = torch.nn.Conv2d(1, 1, 1)
    denoiser = Denoiser(lambda x, t: net(x), RectifiedFlow(), "flow")
    x0, t, told = Rng.of(0, 2).normal(1, 4, 4), torch.tensor([0.3, 0.8]), []

    def where(x, label):
        told.append((x, label))
        return x.square() + net(x).abs()

    found = denoiser.loss(x0, Rng.of(1, 2), t=t, where=where)
    ((x, label),) = told
    eps = Rng.of(1, 2).normal_like(x0)
    torch.testing.assert_close(x, denoiser.noised(x0, t, eps))
    torch.testing.assert_close(label, denoiser.process.label(t))
    weights = where(x, label).detach()
    error = (net(x) - (eps - x0)).square()
    torch.testing.assert_close(found, (error * weights).sum() / weights.sum())
    ours, theirs = (
        torch.autograd.grad(v, net.weight, retain_graph=True)[0]
        for v in (found, (error * weights).sum() / weights.sum())
    )
    torch.testing.assert_close(ours, theirs)

"""Samplers, step by step: what one step gives by hand, the ancestral noise of DDPM, progress and repeatability.

That they reach the law of a whole prior is in `test_gaussian_world.py`.
"""

from __future__ import annotations

import math

import pytest
import torch

from amodal.core.rng import Rng
from amodal.diffusion.process import DDPM, RectifiedFlow
from amodal.diffusion.samplers import ddim, heun, multistep, renoise, repaint, step

LINEAR, FLOW = DDPM(1000, "linear"), RectifiedFlow()
BAR_300, BAR_500 = 0.396420, 0.0785872  # alpha-bar of times 300 and 500 on the linear schedule

ALL = {
    "ddim": lambda d, p, x, t, r, progress=None: ddim(d, p, x, t, progress=progress),
    "ancestral": lambda d, p, x, t, r, progress=None: ddim(d, p, x, t, r, 1.0, progress),
    "heun": lambda d, p, x, t, r, progress=None: heun(d, p, x, t, progress),
    "multistep": lambda d, p, x, t, r, progress=None: multistep(d, p, x, t, progress),
    "repaint": lambda d, p, x, t, r, progress=None: repaint(d, p, x, t, r, 2, progress),
    "renoise": lambda d, p, x, t, r, progress=None: renoise(d, p, x, t, r, progress),
}
EVERY = pytest.mark.parametrize("sample", ALL.values(), ids=ALL.keys())


def shrink(x, t):
    """A denoiser that can be followed by hand."""
    return 0.5 * x


def start(n=3):
    return Rng.of(9, n).normal(2, 4)


def numbers(process, t):
    return tuple(v.item() for v in process.at(torch.tensor(float(t))))


def test_the_schedule_used_below():
    assert numbers(LINEAR, 300)[0] ** 2 == pytest.approx(BAR_300, abs=5e-6)
    assert numbers(LINEAR, 500)[0] ** 2 == pytest.approx(BAR_500, abs=5e-6)


def test_one_step_of_ddim_by_hand():
    """x_s = a_s x0 + s_s eps, eps = (x_t - a_t x0) / s_t: Song et al. 2021, Eq. 12 with eta = 0."""
    x = start()
    out = ddim(shrink, LINEAR, x, torch.tensor([500.0, 300.0]))
    a_t, s_t, a_s, s_s = math.sqrt(BAR_500), math.sqrt(1 - BAR_500), math.sqrt(BAR_300), math.sqrt(1 - BAR_300)
    eps = (x - a_t * 0.5 * x) / s_t
    torch.testing.assert_close(out, a_s * 0.5 * x + s_s * eps, rtol=1e-3, atol=1e-4)


def test_one_step_on_the_flow_is_eulers():
    """dx = (eps - x0) dt with the velocity (x - x0) / t."""
    x = start()
    out = ddim(shrink, FLOW, x, torch.tensor([0.8, 0.5]))
    torch.testing.assert_close(out, x - 0.3 * (x - 0.5 * x) / 0.8)


def test_one_step_of_heun_by_hand():
    """The step again, with the mean of the predictions at both ends."""
    x = start()
    guess = x - 0.3 * (x - 0.5 * x) / 0.8
    x0 = (0.5 * x + 0.5 * guess) / 2
    torch.testing.assert_close(heun(shrink, FLOW, x, torch.tensor([0.8, 0.5])), x - 0.3 * (x - x0) / 0.8)


def test_two_steps_of_multistep_by_hand():
    """Lu et al. 2022, DPM-Solver++(2M): D = (1 + 1/2r) x0_i - 1/2r x0_{i-1}, r = h_{i-1} / h_i in log-SNR/2."""
    x, times = start(), torch.tensor([700.0, 500.0, 300.0])
    (a0, s0), (a1, s1), (a2, s2) = (numbers(LINEAR, t) for t in times)
    h1, h2 = (math.log(a1 / s1) - math.log(a0 / s0)), (math.log(a2 / s2) - math.log(a1 / s1))
    x1 = s1 / s0 * x - a1 * math.expm1(-h1) * 0.5 * x
    d = 0.5 * x1 + (0.5 * x1 - 0.5 * x) * h2 / (2 * h1)
    x2 = s2 / s1 * x1 - a2 * math.expm1(-h2) * d
    torch.testing.assert_close(multistep(shrink, LINEAR, x, times), x2, rtol=1e-4, atol=1e-5)


def test_the_first_and_the_last_step_of_multistep_are_of_first_order():
    x = start()
    times = torch.tensor([1.0, 0.5])  # the flow's log-SNR is infinite at both ends
    assert torch.equal(multistep(shrink, FLOW, x, times), ddim(shrink, FLOW, x, times))
    middle = multistep(shrink, FLOW, x, torch.tensor([1.0, 0.6, 0.3]))
    out = multistep(shrink, FLOW, x, torch.tensor([1.0, 0.6, 0.3, 0.0]))
    torch.testing.assert_close(out, 0.5 * middle)


@pytest.mark.parametrize("s", [0, 1, 250, 499])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_ancestral_noise_has_ddpms_variance(s, eta):
    """eta = 1: beta-tilde = (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s), Ho et al. 2020, Eq. 7; else eta^2 it."""
    t, x = 500, torch.zeros(1, 200_000)
    out = step(LINEAR, x, torch.zeros_like(x), torch.tensor(float(t)), torch.tensor(float(s)), eta, Rng([1]))
    bar_t, bar_s = (numbers(LINEAR, k)[0] ** 2 for k in (t, s))
    expected = eta**2 * (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
    assert out.var().item() == pytest.approx(expected, rel=0.02, abs=1e-12)


def test_ancestral_mean_is_ddpms():
    """Ho et al. 2020, Eq. 7: sqrt(bar_s) beta / (1 - bar_t) x0 + sqrt(alpha) (1 - bar_s) / (1 - bar_t) x_t."""
    x, t, s = start(), torch.tensor(500.0), torch.tensor(499.0)
    x0 = Rng.of(3, 3).normal(2, 4)

    class Silent:
        def normal_like(self, x):
            return torch.zeros_like(x)

    bar_t, bar_s = (numbers(LINEAR, k)[0] ** 2 for k in (500, 499))
    alpha = bar_t / bar_s
    mean = math.sqrt(bar_s) * (1 - alpha) / (1 - bar_t) * x0 + math.sqrt(alpha) * (1 - bar_s) / (1 - bar_t) * x
    torch.testing.assert_close(step(LINEAR, x, x0, t, s, 1.0, Silent()), mean, rtol=1e-3, atol=1e-4)


@EVERY
@pytest.mark.parametrize("process", [LINEAR, FLOW], ids=["linear", "flow"])
def test_the_last_step_returns_the_prediction(sample, process):
    x0 = Rng.of(3, 3).normal(2, 4)
    out = sample(lambda x, t: x0, process, start(), process.grid(4), Rng.of(0, 3))
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-6)


@EVERY
def test_progress_is_told_after_every_step(sample):
    said = []
    sample(shrink, LINEAR, start(), LINEAR.grid(5), Rng.of(0, 3), lambda done, of: said.append((done, of)))
    assert said == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


@EVERY
def test_the_same_streams_give_the_same_sample_whatever_is_beside_it(sample):
    def run(part):
        x, rng = Rng.of(9, 6).normal(2, 4)[part], Rng.of(4, 6)[part]
        return sample(shrink, LINEAR, x, LINEAR.grid(6), rng)

    whole = run(slice(None))
    assert torch.equal(run(slice(None)), whole)
    assert torch.equal(torch.cat([run(slice(0, 4)), run(slice(4, 6))]), whole)


@EVERY
def test_the_start_is_left_as_it_was(sample):
    x = start()
    sample(shrink, LINEAR, x, LINEAR.grid(3), Rng.of(0, 3))
    assert torch.equal(x, start())


@pytest.mark.parametrize(
    ("name", "calls"), [("ddim", 5), ("multistep", 5), ("heun", 9), ("repaint", 10), ("renoise", 5)]
)
def test_how_often_the_network_is_asked(name, calls):
    asked = []

    def denoise(x, t):
        assert t.shape == (len(x),)
        asked.append(t[0].item())
        return 0.5 * x

    ALL[name](denoise, LINEAR, start(), LINEAR.grid(5), Rng.of(0, 3))
    assert len(asked) == calls and min(asked) > 0  # never at the clean end, where there is nothing to ask


def test_noise_without_a_stream_is_a_mistake():
    with pytest.raises(ValueError, match="random stream"):
        ddim(shrink, LINEAR, start(), LINEAR.grid(3), eta=1.0)


def test_renoise_puts_fresh_noise_on_the_prediction():
    x = start()
    out = renoise(lambda x, t: torch.ones_like(x), LINEAR, x, torch.tensor([500.0, 300.0]), Rng.of(4, 3))
    expected = math.sqrt(BAR_300) + math.sqrt(1 - BAR_300) * Rng.of(4, 3).normal(2, 4)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)


def test_repaint_goes_back_with_the_variance_of_the_forward_process():
    """Down to s and up to t again keeps the marginal: with x0 known, x_t has mean a_t x0 and variance s_t^2 again."""
    n = 200_000
    seen = []

    def denoise(x, t):
        seen.append(x)
        return torch.full_like(x, 0.7)

    a_t, s_t = numbers(LINEAR, 500)
    x = a_t * 0.7 + s_t * Rng([5]).normal(n)
    repaint(denoise, LINEAR, x, torch.tensor([500.0, 300.0]), Rng([6]), repeats=3)
    assert len(seen) == 3
    for again in seen:
        assert again.mean().item() == pytest.approx(a_t * 0.7, abs=0.01)
        assert again.var().item() == pytest.approx(s_t**2, rel=0.02)
    assert torch.corrcoef(torch.stack([seen[0][0], seen[1][0]]))[0, 1] < 0.9  # really new noise

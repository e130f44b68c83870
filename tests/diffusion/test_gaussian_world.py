"""Exact tests: every sampler on every process reaches the law; order of convergence; posteriors in closed form."""

from __future__ import annotations

import pytest
import torch

from amodal.core.rng import Rng
from amodal.diffusion.process import DDPM, RectifiedFlow
from amodal.diffusion.samplers import ddim, heun, multistep, renoise, repaint
from amodal.physics.linear import mask
from amodal.physics.posterior import Observation, gradient, hold, project, proximal

from .gaussian import Streams, law, start, world

N = 20_000
PROCESSES = {
    "linear": DDPM(1000, "linear"),
    "scaled": DDPM(500, "scaled_linear", 0.0015, 0.0195),
    "cosine": DDPM(1000, "cosine"),
    "flow": RectifiedFlow(),
}
SAMPLERS = {
    "ddim": lambda d, p, x, r: ddim(d, p, x, p.grid(250), r),
    "ancestral": lambda d, p, x, r: ddim(d, p, x, p.grid(500), r, eta=1.0),
    "heun": lambda d, p, x, r: heun(d, p, x, p.grid(60)),
    "multistep": lambda d, p, x, r: multistep(d, p, x, p.grid(60)),
    "repaint": lambda d, p, x, r: repaint(d, p, x, p.grid(500), r, repeats=2),
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_reaches_the_law_on_every_process(process, sampler):
    process = PROCESSES[process]
    truth = world(process)
    x = SAMPLERS[sampler](truth.denoise, process, start(truth, N), Streams())
    mean, cov = law(x)
    scale = truth.cov.diagonal().max()
    # the standard error of a variance estimate is scale * sqrt(2 / N) = 1 %; 60 to 250 steps leave about as much
    assert (mean - truth.mean).abs().max() < 0.02 * scale.sqrt() + 0.01
    assert (cov - truth.cov).abs().max() < 0.06 * scale


@pytest.mark.parametrize(
    "sampler, order", [(ddim, 1), (heun, 2), (multistep, 2)], ids=["ddim", "heun", "multistep"]
)  # fmt: skip
def test_order_of_convergence(sampler, order):
    """Global error of the deterministic samplers against a very fine solution, on an interval away from both ends."""
    process = RectifiedFlow()
    truth = world(process)
    x = start(truth, 50)

    def solve(sampler, steps):
        t = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        flow = Exact()
        return sampler(truth_at(flow).denoise, flow, x, t)

    def truth_at(flow):
        return world(flow)

    fine = solve(heun, 3000)
    errors = [(solve(sampler, n) - fine).norm().item() for n in (40, 80)]
    measured = torch.log2(torch.tensor(errors[0] / errors[1])).item()
    assert abs(measured - order) < 0.25, f"order {measured:.2f}, errors {errors}"


class Exact(RectifiedFlow):
    """The rectified flow in double precision, so that rounding does not hide the order."""

    def at(self, t):
        return 1 - t.double(), t.double()


def test_renoise_follows_its_own_recursion():
    """renoise plugs the prediction in: its covariance shrinks by a known recursion and is not the law."""
    process = RectifiedFlow()
    truth = world(process, modalities=1, voxels=1)
    v, times = truth.cov.item(), process.grid(4)
    x = renoise(truth.denoise, process, start(truth, N), times, Streams())
    expected = 1.0
    for t, s in zip(times[:-1].tolist(), times[1:].tolist()):
        gain = v * (1 - t) / ((1 - t) ** 2 * v + t**2)
        expected = (1 - s) ** 2 * gain**2 * expected + s**2
    assert law(x)[1].item() == pytest.approx(expected, rel=0.04)
    assert expected < 0.8 * v


KNOWN = torch.tensor([True, False])  # the first modality is given


def given(truth, n):
    y = truth.mean[:2] + torch.tensor([0.4, -0.5], dtype=torch.float64)
    present = KNOWN[None, :, None].expand(n, 2, 2)
    images = torch.zeros(n, 2, 2, dtype=torch.float64)
    images[:, 0] = y
    mean, cov = truth.posterior(torch.tensor([True, True, False, False]), y)
    return y, present, images, mean, cov


@pytest.mark.parametrize("process", ["linear", "cosine", "flow"])  # "scaled" ends with signal left (alpha 0.11)
def test_hold_gives_the_exact_posterior(process):
    """A clean modality at time 0: the sampled law of the missing one is N(mean | y, cov | y)."""
    process = PROCESSES[process]
    truth = world(process)
    y, present, images, mean, cov = given(truth, N)
    bent = hold(truth.denoise, present[..., :1], images, process.end)
    x = multistep(bent, process, start(truth, N), process.grid(60))
    assert torch.equal(x[:, 0], images[:, 0])  # kept, to the bit
    m, c = law(x[:, 1])
    scale = truth.cov.diagonal().max()
    assert (m - mean).abs().max() < 0.03 * scale.sqrt()
    assert (c - cov).abs().max() < 0.06 * scale


def test_projection_alone_keeps_the_known_and_approaches_the_posterior_only_with_time_travel():
    """MDS by replacement conditions on noisy copies of the known; going back and forth (repaint) mends that."""
    process = DDPM(1000, "cosine")
    truth = world(process)
    y, present, images, mean, _ = given(truth, 4000)
    bent = project(truth.denoise, present, images)
    error = []
    for repeats in (1, 8):
        x = repaint(bent, process, start(truth, 4000), process.grid(100), Streams(1), repeats=repeats)
        assert torch.equal(x[:, 0], images[:, 0])
        error.append((law(x[:, 1])[0] - mean).norm().item())
    prior_error = (truth.mean[2:] - mean).norm().item()
    assert error[1] < 0.5 * error[0]
    assert error[1] < 0.25 * prior_error


def test_posterior_gradient_approaches_the_posterior_mean_as_steps_grow():
    """MPS with the moment-matched step: the bias of the mean over samples falls with the number of steps."""
    process = DDPM(1000, "cosine")
    truth = world(process)
    n = 4000
    y, present, images, mean, cov = given(truth, n)
    seen = Observation(mask(present), images)
    error = []
    for steps in (10, 200):
        bent = gradient(truth.denoise, process, seen, iterations=4)
        x = ddim(bent, process, start(truth, n), process.grid(steps), Streams(2), eta=1.0)
        error.append((law(x[:, 1])[0] - mean).norm().item())
        assert (x[:, 0] - images[:, 0]).abs().max() < 0.02
    assert error[1] < error[0]
    assert error[1] < 0.1 * (truth.mean[2:] - mean).norm().item()
    assert (law(x[:, 1])[1] - cov).abs().max() < 0.12 * truth.cov.diagonal().max()


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "heun", "multistep"])
def test_complete_noise_free_measurements_return_the_image(sampler):
    process = PROCESSES["cosine"]
    truth = world(process)
    images = truth.mean + 0.3 * Rng([3]).normal(8, 4)[0].double()
    images = images.reshape(8, 2, 2)
    everything = torch.ones(8, 2, 1, dtype=torch.bool)
    for bent in (
        project(truth.denoise, everything, images),
        hold(truth.denoise, everything, images, process.end),
        proximal(truth.denoise, process, Observation(mask(everything), images), gamma=1e-6, iterations=10),
    ):
        x = SAMPLERS[sampler](bent, process, start(truth, 8), Streams())
        assert (x - images).abs().max() < 1e-4

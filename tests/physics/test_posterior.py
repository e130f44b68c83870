"""Bends towards data, in closed form: the known is kept to the bit, proximal and gradient steps are the exact ones."""

from __future__ import annotations

import pytest
import torch

from amodal.core.rng import Rng
from amodal.diffusion.process import DDPM, RectifiedFlow
from amodal.physics.linear import Linear, identity, mask
from amodal.physics.posterior import Observation, gradient, hold, project, proximal

from ..diffusion.gaussian import world

PROCESSES = {"cosine": DDPM(1000, "cosine"), "linear": DDPM(1000, "linear"), "flow": RectifiedFlow()}
EVERYWHERE = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
B, M, N = 3, 2, 2


def draw(seed, *shape):
    return Rng([seed]).normal(*(shape or (B, M, N)))[0].double()


def half(x, t):
    return 0.5 * x


def test_project_keeps_the_known_to_the_bit_and_predicts_the_rest():
    x, images = draw(0), draw(1)
    present = torch.tensor([[True, False], [False, True], [True, True]])[..., None]
    out = project(half, present, images)(x, torch.zeros(B))
    known = present.expand_as(x)
    assert torch.equal(out[known], images[known]) and torch.equal(out[~known], 0.5 * x[~known])


def test_project_takes_voxels_too():
    x, images = draw(0), draw(1)
    known = draw(2) > 0
    out = project(half, known, images)(x, torch.zeros(B))
    assert torch.equal(out[known], images[known]) and torch.equal(out[~known], 0.5 * x[~known])


def test_hold_shows_the_known_clean_at_time_0():
    x, images = draw(0), draw(1)
    present = torch.tensor([[True, False], [False, True], [False, False]])[..., None]
    shown = []

    def denoise(x, t):
        shown.append((x, t))
        return 0.5 * x

    out = hold(denoise, present, images, 1000.0)(x, torch.tensor([700.0, 300.0, 5.0]))
    ((seen, times),) = shown
    assert times.tolist() == [[0, 700], [300, 0], [5, 5]]
    known = present.expand_as(x)
    assert torch.equal(seen[known], images[known]) and torch.equal(seen[~known], x[~known])
    assert torch.equal(out[known], images[known]) and torch.equal(out[~known], 0.5 * x[~known])


def test_hold_takes_a_time_a_modality_and_none_beyond_the_end():
    times = []
    bent = hold(lambda x, t: (times.append(t), x)[1], torch.tensor([[True, False]] * B)[..., None], draw(1), 900.0)
    bent(draw(0), torch.tensor([[5.0, 1000.0], [5.0, 20.0], [5.0, 900.0]]))
    assert times[0].tolist() == [[0, 900], [0, 20], [0, 900]]


@EVERYWHERE
def test_hold_makes_the_exact_conditional_prediction(process):
    """E[x0 | x_t of the missing, the known] from the posterior of the missing given the known, then given x_t."""
    truth = world(process)
    t = torch.full((1,), 0.4 * process.end)
    a, s = (v.double() for v in process.at(t))
    y, x_t = truth.mean[:N] + draw(3, N), draw(4, N)
    images = torch.stack([y, torch.zeros(N)])[None]
    x = torch.stack([draw(5, N), x_t])[None]  # what stands for the known in x must not matter
    out = hold(truth.denoise, torch.tensor([[[True], [False]]]), images, process.end)(x, t)
    mean, cov = truth.posterior(torch.tensor([True, True, False, False]), y)
    gain = a * cov @ torch.linalg.inv(a**2 * cov + s**2 * torch.eye(N))
    torch.testing.assert_close(out[0, 1], mean + gain @ (x_t - a * mean), rtol=1e-5, atol=1e-6)
    assert torch.equal(out[0, 0], y)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 5.0])
def test_the_proximal_step_of_a_mask(gamma):
    """(y + gamma x0) / (1 + gamma) where it was seen, x0 elsewhere."""
    x, y, kept = draw(0), draw(1), draw(2) > 0
    bent = proximal(half, PROCESSES["cosine"], Observation(mask(kept), mask(kept)(y)), gamma)
    expected = torch.where(kept, (y + gamma * 0.5 * x) / (1 + gamma), 0.5 * x)
    torch.testing.assert_close(bent(x, torch.zeros(B)), expected)


def test_the_proximal_step_of_any_operator():
    """x0 + A^T (A A^T + gamma)^-1 (y - A x0), the other form of the same minimum."""
    a, x, y = draw(3, 3, N), draw(0, B, N), draw(1, B, 3)
    A = Linear(lambda z: z @ a.T, lambda z: z @ a)
    out = proximal(half, PROCESSES["cosine"], Observation(A, y), 0.3, iterations=10)(x, torch.zeros(B))
    inverse = torch.linalg.inv(a @ a.T + 0.3 * torch.eye(3))
    torch.testing.assert_close(out, 0.5 * x + (y - 0.5 * x @ a.T) @ inverse @ a, rtol=1e-5, atol=1e-6)


def test_a_small_gamma_believes_the_data_and_a_large_one_the_prior():
    x, y = draw(0), draw(1)
    for gamma, expected in ((1e-8, y), (1e8, 0.5 * x)):
        bent = proximal(half, PROCESSES["cosine"], Observation(identity(), y), gamma)
        torch.testing.assert_close(bent(x, torch.zeros(B)), expected, rtol=0, atol=1e-6)


SEEN = torch.tensor([[[True, False], [True, True]]]).expand(B, M, N)


def exact(truth, process, x, t, A, y, noise):
    """E[x0 | x_t, y]: x0 | x_t is N(mu, S), S = (C^-1 + a^2/s^2)^-1; then y = A x0 + n as usual. A [rows, D]."""
    a, s = (v.double() for v in process.at(t[:1]))
    mu = truth.denoise(x, t).flatten(1)
    S = torch.linalg.inv(torch.linalg.inv(truth.cov) + (a / s) ** 2 * torch.eye(len(truth.cov)))
    K = S @ A.T @ torch.linalg.inv(A @ S @ A.T + noise**2 * torch.eye(len(A)))
    return (mu + (y - mu @ A.T) @ K.T).reshape(x.shape), mu, S


@EVERYWHERE
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("when", [0.1, 0.5, 0.9])
def test_the_gradient_step_is_the_exact_posterior_mean_in_a_gaussian_world(process, noise, when):
    truth = world(process)
    x, y, t = draw(0), draw(1), torch.full((B,), when * process.end)
    seen = Observation(mask(SEEN), mask(SEEN)(y), noise)
    out = gradient(truth.denoise, process, seen, iterations=6)(x, t)
    A = torch.eye(4).double()[SEEN[0].flatten()]
    expected, _, _ = exact(truth, process, x, t, A, y.flatten(1) @ A.T, noise)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=2e-4)
    if noise == 0:
        torch.testing.assert_close(out[SEEN], y[SEEN], rtol=0, atol=2e-4)


def test_the_gradient_step_is_the_gradient_of_the_likelihood():
    """Tweedie: the shift is (s^2/a) grad_x log N(y; A x0(x), A S A^T + noise^2), by finite differences."""
    process, noise = PROCESSES["linear"], 0.2
    truth = world(process)
    x, t = draw(0, 1, M, N), torch.full((1,), 400.0)
    a, s = (v.double().item() for v in process.at(t[0]))
    matrix = draw(3, 3, 4)
    A = Linear(lambda z: z.flatten(1) @ matrix.T, lambda v: (v @ matrix).reshape(-1, M, N))
    y = draw(1, 1, 3)
    _, mu, S = exact(truth, process, x, t, matrix, y, noise)
    precision = torch.linalg.inv(matrix @ S @ matrix.T + noise**2 * torch.eye(3))

    def log_likelihood(x):
        r = y - truth.denoise(x, t).flatten(1) @ matrix.T
        return -0.5 * (r @ precision @ r.T).item()

    slope = torch.zeros(4).double()
    for i in range(4):
        h = torch.zeros(4).double()
        h[i] = 1e-4
        h = h.reshape(1, M, N)
        slope[i] = (log_likelihood(x + h) - log_likelihood(x - h)) / 2e-4
    shift = gradient(truth.denoise, process, Observation(A, y, noise), iterations=8)(x, t).flatten(1) - mu
    torch.testing.assert_close(shift[0], s**2 / a * slope, rtol=1e-3, atol=1e-5)


def test_one_iteration_is_steepest_descent_with_an_exact_line_search():
    """u = (r.r / r.K r) r with r = y - A x0 and K = A S A^T: of all steps along the gradient the one that fits best."""
    process = PROCESSES["cosine"]
    truth = world(process)
    x, y, t = draw(0), draw(1), torch.full((B,), 600.0)
    A = torch.eye(4).double()[SEEN[0].flatten()]
    _, mu, S = exact(truth, process, x, t, A, y.flatten(1) @ A.T, 0.0)
    r = (y.flatten(1) - mu) @ A.T
    K = A @ S @ A.T
    step = (r * r).sum(1) / ((r @ K) * r).sum(1)
    expected = mu + (step[:, None] * r) @ A @ S
    out = gradient(truth.denoise, process, Observation(mask(SEEN), mask(SEEN)(y)), iterations=1)(x, t)
    torch.testing.assert_close(out.flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_more_iterations_fit_the_data_better():
    process = PROCESSES["cosine"]
    truth = world(process)
    x, y, t = draw(0), draw(1), torch.full((B,), 600.0)
    misfit = [
        (gradient(truth.denoise, process, Observation(mask(SEEN), mask(SEEN)(y)), k)(x, t) - y)[SEEN].norm().item()
        for k in (0, 1, 2, 3)
    ]
    assert misfit[0] > misfit[1] > misfit[3] and misfit[3] < 1e-4 * misfit[0]


def test_a_samples_gradient_does_not_depend_on_its_neighbours():
    process = PROCESSES["cosine"]
    truth = world(process)
    x, y, t = draw(0), draw(1), torch.tensor([900.0, 500.0, 100.0])

    def run(i):
        return gradient(truth.denoise, process, Observation(mask(SEEN[i]), mask(SEEN[i])(y[i])), 2)(x[i], t[i])

    together = run(slice(None))
    alone = torch.cat([run(slice(i, i + 1)) for i in range(B)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_the_gradient_works_where_gradients_are_off_and_leaves_none_behind():
    process = PROCESSES["cosine"]
    truth = world(process)
    x, y, t = draw(0), draw(1), torch.full((B,), 600.0)
    bent = gradient(truth.denoise, process, Observation(mask(SEEN), mask(SEEN)(y)))
    with torch.no_grad():
        off = bent(x, t)
    assert torch.equal(off, bent(x, t))
    assert not off.requires_grad and not x.requires_grad


@EVERYWHERE
def test_the_gradient_is_finite_at_pure_noise(process):
    truth = world(process)
    x, y, t = draw(0), draw(1), torch.full((B,), process.end)
    out = gradient(truth.denoise, process, Observation(mask(SEEN), mask(SEEN)(y)), 2)(x, t)
    assert torch.isfinite(out).all() and out.abs().max() < 20

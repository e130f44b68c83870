"""Noising processes: pinned numbers of every schedule, and the conventions that samplers and losses rely on."""

from __future__ import annotations

import pytest
import torch

from amodal.core.errors import InputError
from amodal.diffusion.process import DDPM, RectifiedFlow

COSINE, LINEAR = DDPM(1000, "cosine"), DDPM(1000, "linear")
SCALED = DDPM(500, "scaled_linear", 0.0015, 0.0195)
PROCESSES = {"cosine": COSINE, "linear": LINEAR, "scaled": SCALED, "flow": RectifiedFlow()}
ALL = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
DISCRETE = pytest.mark.parametrize("process", [COSINE, LINEAR, SCALED], ids=["cosine", "linear", "scaled"])


@pytest.mark.parametrize(
    ("process", "bar"),
    [
        # alpha-bar by the number of the step, 0 .. T - 1, as the papers' code prints it
        (COSINE, {0: 0.99995872, 249: 0.84701216, 499: 0.49384359, 998: 2.4287669e-6, 999: 2.4287669e-9}),
        (LINEAR, {0: 0.9999, 249: 0.52408537, 499: 0.07858724, 998: 4.1181936e-5, 999: 4.0358298e-5}),
        (SCALED, {0: 0.9985, 124: 0.71484225, 249: 0.34059949, 498: 0.01215575, 499: 0.01191871}),
    ],
    ids=["cosine", "linear", "scaled"],
)
def test_alpha_bar_is_pinned(process, bar):
    alpha, sigma = process.at(torch.tensor(list(bar)) + 1)  # time k + 1 carries step k
    expected = torch.tensor(list(bar.values()), dtype=torch.float64)
    torch.testing.assert_close(alpha.double() ** 2, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(sigma.double() ** 2, 1 - expected, rtol=2e-5, atol=1e-7)


def test_betas_are_pinned():
    """beta_k = 1 - bar_k / bar_{k-1}: both ends of the schedules, and the cosine's cap of 0.999."""
    for process, first, last in ((LINEAR, 1e-4, 0.02), (SCALED, 0.0015, 0.0195), (COSINE, 4.1284e-5, 0.999)):
        bar = process.at(torch.arange(process.steps + 1))[0].double() ** 2
        assert (1 - bar[1] / bar[0]).item() == pytest.approx(first, rel=2e-3)  # float32 tables
        assert (1 - bar[-1] / bar[-2]).item() == pytest.approx(last, rel=1e-5)


def test_rectified_flow_is_the_straight_line():
    alpha, sigma = RectifiedFlow().at(torch.tensor([0.0, 0.25, 1.0]))
    assert alpha.tolist() == [1.0, 0.75, 0.0] and sigma.tolist() == [0.0, 0.25, 1.0]
    assert RectifiedFlow().end == 1.0


@ALL
def test_time_0_is_clean_and_noise_only_grows(process):
    alpha, sigma = process.at(torch.zeros(1))
    assert alpha.item() == 1 and sigma.item() == 0
    alpha, sigma = process.at(torch.linspace(0, process.end, 501))
    assert (alpha.diff() <= 0).all() and (sigma.diff() >= 0).all()
    assert alpha[-1] < 0.11 and sigma[-1] > 0.99


@ALL
def test_both_numbers_are_float32_with_the_shape_of_t(process):
    t = torch.zeros(2, 3, dtype=torch.float64)
    for number in process.at(t):
        assert number.shape == (2, 3) and number.dtype == torch.float32


@DISCRETE
def test_discrete_schedules_preserve_variance(process):
    alpha, sigma = process.at(torch.arange(process.steps + 1))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(process.steps + 1), rtol=0, atol=2e-7)


@DISCRETE
def test_the_network_is_told_the_number_of_the_step(process):
    """The first step of sampling is T - 1, the last 0, the clean image -1."""
    assert process.label(process.grid(5))[0] == process.steps - 1
    assert process.label(process.grid(process.steps)).tolist() == list(range(process.steps - 1, -2, -1))


def test_the_labels_of_the_flow_span_the_same_range():
    assert RectifiedFlow().label(torch.tensor([1.0, 0.5, 0.0])).tolist() == [999, 499, -1]


@DISCRETE
def test_grids_fall_strictly_from_the_end_to_0(process):
    for steps in (*range(1, 60), process.steps // 2, process.steps - 1, process.steps):
        grid = process.grid(steps)
        assert len(grid) == steps + 1 and grid[0] == process.end and grid[-1] == 0
        assert (grid.diff() < 0).all() and torch.equal(grid, grid.round())


def test_a_grid_is_pinned():
    assert COSINE.grid(4).tolist() == [1000, 750, 500, 250, 0]
    assert SCALED.grid(3).tolist() == [500, 333, 167, 0]
    assert RectifiedFlow().grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    torch.testing.assert_close(RectifiedFlow(3).grid(4), torch.tensor([1, 0.9, 0.75, 0.5, 0]))


def test_a_shifted_flow_trains_where_it_walks():
    """t = s u / (1 + (s - 1) u) of uniform u: half of the times lie above s / (1 + s)."""
    t = RectifiedFlow(3).draw(torch.linspace(0, 1, 1001)[:-1])
    assert t[0] == 1 and t.min() > 0 and (t > 0.75).float().mean() == pytest.approx(0.5, abs=1e-2)
    alpha, sigma = RectifiedFlow(3).at(t)
    assert torch.equal(alpha + sigma, torch.ones_like(t)) and torch.equal(sigma, t)  # the path is the same
    with pytest.raises(InputError, match="shift=0: choose a number above 0; 1 is no shift"):
        RectifiedFlow(0)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(InputError, match=rf"steps={steps}: choose 1 to 1000, the steps trained"):
        COSINE.grid(steps)
    if steps < 1:
        with pytest.raises(InputError, match=rf"steps={steps}: choose at least 1"):
            RectifiedFlow().grid(steps)


@DISCRETE
def test_training_draws_every_step_alike_and_never_the_clean_image(process):
    u = torch.arange(process.steps * 4, dtype=torch.float64) / (process.steps * 4)
    t = process.draw(u)
    assert torch.equal(t.long().unique(), torch.arange(1, process.steps + 1))
    assert (torch.bincount(t.long())[1:] == 4).all()


def test_training_of_the_flow_never_draws_the_clean_image():
    t = RectifiedFlow().draw(torch.tensor([0.0, 0.25, 1 - 2**-24]))
    assert t[:2].tolist() == [1.0, 0.75] and 0 < t[2] < 1e-7


def test_processes_are_values():
    assert DDPM(1000, "cosine") == COSINE and hash(DDPM(1000, "cosine")) == hash(COSINE)
    assert DDPM(1000, "linear", last=0.01) != LINEAR
    half, whole = (p.at(torch.tensor(500.0))[0] for p in (DDPM(1000, "linear", last=0.01), LINEAR))
    assert half > whole + 0.1


def test_what_a_completion_looked_up_first_serves_training_after_it():
    process = DDPM(37, "linear", 0.001, 0.03)  # of no other test: its tables are not kept yet
    with torch.inference_mode():
        process.at(torch.tensor([3.0]))
    x = torch.ones(1, requires_grad=True)
    alpha, _ = process.at(torch.tensor([3.0]))
    (alpha * x).sum().backward()
    assert x.grad is not None and float(x.grad) == pytest.approx(float(alpha))

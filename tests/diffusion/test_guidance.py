"""Guidance: further from what is not asked for, and only when it should be."""

from __future__ import annotations

import pytest
import torch

from amodal.core.rng import Rng
from amodal.diffusion.guidance import Other, guided
from amodal.diffusion.process import RectifiedFlow
from amodal.diffusion.samplers import ddim


def mean(z, t, c, process=RectifiedFlow()):
    """E[z_0 | z_t] where z_0 ~ N(c, 1)."""
    alpha, sigma = (v.reshape(-1, 1) for v in process.at(t))
    return c + alpha / (alpha**2 + sigma**2) * (z - alpha * c)


def drawn(others, n=4000):
    asked = torch.tensor([[2.0]])
    z = Rng.of(0, n).normal(1)
    return ddim(guided(mean, asked, others), RectifiedFlow(), z, RectifiedFlow().grid(200), Rng.of(1, n), 0.0, None)


def test_a_draw_of_a_normal_world_goes_as_far_as_asked():
    """Guidance by w between N(a, 1) and N(b, 1) is the denoiser of N(b + w (a - b), 1), exactly: the difference of both
    denoisers is that of their means, shrunk alike."""
    for weight in (0.0, 1.0, 3.0):
        found = drawn([Other(weight, torch.tensor([[1.0]]), 0.0, 1.0)])
        assert found.mean().item() == pytest.approx(1 + weight, abs=0.08)
        assert found.std().item() == pytest.approx(1, abs=0.05)


def test_only_within_its_interval_and_from_several_at_once():
    z, t, asked = torch.tensor([[0.5]]), torch.tensor([0.5]), torch.tensor([[2.0]])
    one, other = Other(3.0, torch.tensor([[1.0]]), 0.4, 0.9), Other(2.0, torch.tensor([[0.0]]), 0.0, 1.0)
    apart = [mean(z, t, asked) - mean(z, t, o.condition) for o in (one, other)]
    both = guided(mean, asked, [one, other])(z, t)
    torch.testing.assert_close(both, mean(z, t, asked) + 2 * apart[0] + 1 * apart[1])
    for late in (0.39, 0.91):
        t = torch.tensor([late])
        torch.testing.assert_close(guided(mean, asked, [one])(z, t), mean(z, t, asked), rtol=0, atol=0)
    halfway = drawn([one]).mean().item()
    assert 2.1 < halfway < 3.9  # further than asked, not as far as with all of the draw


def test_what_changes_nothing_is_not_evaluated():
    calls = []

    def net(z, t, c):
        calls.append(float(c))
        return mean(z, t, c)

    asked = torch.tensor([[2.0]])
    no_weight, itself = Other(1.0, -asked, 0.0, 1.0), Other(5.0, asked.clone(), 0.0, 1.0)
    guided(net, asked, [no_weight, itself, Other(5.0, -asked, 0.6, 1.0)])(torch.zeros(1, 1), torch.tensor([0.5]))
    assert calls == [2.0]

"""Membership attacks: closed forms of Gaussians, scikit-free by-hand values, and losses that share their draws."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from amodal.core.contract import Batch, Player, Stage
from amodal.core.errors import InputError
from amodal.metrics.membership import losses, membership


def test_by_hand():
    found = membership([1.0, 2.0, 5.0], [3.0, 4.0])
    assert found.auc == pytest.approx(4 / 6)
    assert found.advantage == pytest.approx(2 / 3)  # accuse all below 2.5
    assert (found.members, found.others) == (3, 2)
    assert math.isnan(found.caught_at_1) and math.isnan(found.caught_at_10)


def test_scores_that_are_equal_are_a_coin():
    found = membership([1.0] * 20, [1.0] * 20)
    assert (found.auc, found.low, found.high, found.advantage) == (0.5, 0.5, 0.5, 0.0)


def test_certainty():
    found = membership(np.arange(100.0), 1000 + np.arange(100.0))
    assert (found.auc, found.advantage, found.caught_at_1, found.caught_at_10) == (1, 1, 1, 1)
    assert found.p < 1e-20


def test_gaussians_in_closed_form():
    """Losses N(0, 1) and N(delta, 1): AUC = Phi(delta / sqrt 2), advantage = 2 Phi(delta / 2) - 1."""
    rng, delta = np.random.default_rng(0), 0.8
    found = membership(rng.standard_normal(4000), rng.standard_normal(1000) + delta)
    auc = stats.norm.cdf(delta / math.sqrt(2))
    assert found.auc == pytest.approx(auc, abs=0.02)
    assert found.low < auc < found.high
    assert found.high - found.low < 0.06
    assert found.advantage == pytest.approx(2 * stats.norm.cdf(delta / 2) - 1, abs=0.04)
    assert found.caught_at_10 == pytest.approx(stats.norm.cdf(delta + stats.norm.ppf(0.1)), abs=0.05)
    assert found.caught_at_1 == pytest.approx(stats.norm.cdf(delta + stats.norm.ppf(0.01)), abs=0.05)


def test_the_interval_holds_a_coin_where_there_is_no_difference():
    rng, held = np.random.default_rng(1), 0
    for seed in range(8):
        found = membership(rng.standard_normal(30), rng.standard_normal(25), seed)
        held += found.low <= 0.5 <= found.high
    assert held >= 6


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], []), ([1.0, math.nan], [1.0, 2.0])])
def test_what_is_no_attack_is_refused(a, b):
    with pytest.raises(InputError, match="two finite scores"):
        membership(a, b)


def test_losses_meet_the_same_draws():
    """A stage whose loss is the distance of the image to noise: equal images must have equal losses, in any order."""

    def forward(batch, rng):
        return ((batch.images - rng.normal_like(batch.images)) ** 2).mean()

    weight = torch.nn.Parameter(torch.zeros(()))
    stage = Stage("prior", forward, (Player("net", lambda: [weight], lambda x: (x + weight, {})),))
    samples = [Batch(torch.full((1, 1, 4, 4), v), torch.ones(1, 1, 1, 1, dtype=torch.bool)) for v in (0.0, 0.0, 3.0)]
    found = losses(stage, samples, draws=4)
    assert found[0] == found[1] == pytest.approx(1, abs=0.5)
    assert found[2] > found[0] + 5
    assert losses(stage, samples[::-1], draws=4) == found[::-1]
    assert losses(stage, samples, draws=4, seed=1) != found

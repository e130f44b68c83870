"""Statistics: the interval covers what it says, pairing removes differences between subjects, verdicts are careful."""

import math

import numpy as np
import pytest

from amodal.core.errors import InputError
from amodal.metrics.statistics import ALL, Score, compare, interval, summarise, verdict


def score(subject, method, value, pattern="FLAIR", modality="FLAIR", metric="psnr"):
    return Score(subject, pattern, modality, metric, method, value)


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(300):
        low, high = interval(rng.normal(3, 1, 40), draws=400, seed=k)
        hits += low <= 3 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_interval_narrows_with_the_level_and_needs_two():
    x = np.arange(20.0)
    wide, narrow = interval(x, 0.99), interval(x, 0.5)
    assert wide[0] < narrow[0] < x.mean() < narrow[1] < wide[1]
    assert all(map(math.isnan, interval([1.0])))
    with pytest.raises(InputError, match="level"):
        interval(x, 95)


def test_summary_is_by_pattern_and_pooled_by_subject():
    scores = [score("a", "model", 20.0), score("a", "model", 30.0, "T2w+FLAIR"), score("b", "model", 40.0)]
    found = {s.pattern: s for s in summarise(scores)}
    assert (found["FLAIR"].n, found["FLAIR"].mean) == (2, 30.0)
    assert (found[ALL].n, found[ALL].mean) == (2, 32.5)  # the mean of a's 25 and b's 40
    assert found["FLAIR"].sd == pytest.approx(math.sqrt(200))
    assert math.isnan(found["T2w+FLAIR"].sd)


def test_one_pattern_is_not_pooled():
    assert [s.pattern for s in summarise([score("a", "model", 1.0)])] == ["FLAIR"]


def test_differences_are_paired():
    hard = np.linspace(10, 40, 12)  # subjects differ far more than methods do
    scores = [score(f"s{k}", "model", v + 1) for k, v in enumerate(hard)]
    scores += [score(f"s{k}", "single", v + 0.1 * (k % 2)) for k, v in enumerate(hard)]
    scores += [score("only", "model", 90.0)]
    found = compare(scores, "FLAIR", "psnr", "model", "single")
    assert (found.n, found.higher) == (12, 12)
    assert found.mean == pytest.approx(0.95)
    assert 0.9 < found.low < found.high < 1.0
    assert compare(scores, "FLAIR", "psnr", "model", "nobody") is None


@pytest.mark.parametrize(
    ("gain", "good", "words"), [(2.0, True, "adds something"), (-2.0, False, "do not use"), (0.0, False, "no clear")]
)
def test_verdict_says_what_the_interval_says(gain, good, words):
    noise = np.random.default_rng(0).normal(0, 0.3, 10)
    noise -= noise.mean()
    scores = [
        score(f"s{k}", m, 20 + v)
        for k, n in enumerate(noise)
        for m, v in (("model", gain + n), ("regression", 0), ("single", -5))
    ]
    found = verdict(scores, "FLAIR", "model", ("single", "regression"))
    assert found.good is good
    assert words in found.text
    assert "regression" in found.text


def test_a_gain_in_psnr_that_costs_ssim_is_no_gain():
    psnr = [score(f"s{k}", m, v) for k in range(8) for m, v in (("model", 25.0 + k / 10), ("single", 20.0))]
    ssim = [score(f"s{k}", m, v, metric="ssim") for k in range(8) for m, v in (("model", 0.7), ("single", 0.8))]
    assert verdict(psnr, "FLAIR", "model", ("single",)).good is True
    assert verdict(psnr + ssim, "FLAIR", "model", ("single",)).good is False


def test_verdict_is_silent_on_few_subjects_and_without_baselines():
    scores = [score(s, m, v) for s in "ab" for m, v in (("model", 30.0), ("single", 20.0))]
    assert verdict(scores, "FLAIR", "model", ("single",)).good is None
    assert verdict(scores, "FLAIR", "model", ("regression",)).good is None

"""Tests between methods, against what can be counted by hand, and that they do not cry wolf."""

import numpy as np
import pytest
from scipy import stats

from amodal.evaluate.paired import by_subject, compare_all, holm, sign_flip
from amodal.metrics.statistics import Score


def scores(a, b, metric="psnr", modality="FLAIR"):
    rows = [("a", a), ("b", b)]
    return [Score(f"sub-{k}", "FLAIR", modality, metric, who, v) for who, vs in rows for k, v in enumerate(vs)]


def test_sign_flips_are_counted_exactly():
    assert sign_flip([1.0] * 5) == pytest.approx(2 / 32)
    assert sign_flip([3.0, -1.0]) == pytest.approx(1.0)
    assert sign_flip([4.0, 1.0, 1.0]) == pytest.approx(0.25)  # only +++ and --- reach 6
    assert sign_flip([0.0] * 4) == 1
    assert np.isnan(sign_flip([]))
    assert np.isnan(sign_flip([np.inf, 1.0]))


def test_draws_agree_with_counting_and_with_the_t_test():
    d = np.random.default_rng(0).normal(0.4, 1, 40)
    assert sign_flip(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert sign_flip(d) == sign_flip(d)
    assert sign_flip(np.full(30, 1.0)) == pytest.approx(1 / 20001)


def test_the_test_does_not_cry_wolf():
    rng = np.random.default_rng(1)
    found = [sign_flip(rng.standard_normal(9)) < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(found) < 0.08


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_words_say_who_is_nearer():
    a = 30 + np.random.default_rng(0).normal(0, 0.1, 10)
    (found,) = compare_all(scores(a, a - 1), "a", "b")
    assert found.difference.mean == pytest.approx(1)
    assert found.words.startswith("a is nearer to the truth than b")
    (found,) = compare_all(scores(a, a - 1, "mae"), "a", "b", {"b": "the other"})
    assert found.words.startswith("the other is nearer")
    (found,) = compare_all(scores(a, a + np.resize([1, -1], 10)), "a", "b")
    assert found.words.startswith("no difference")
    (found,) = compare_all(scores([1, 2], [2, 3]), "a", "b")
    assert "too few" in found.words


def test_what_was_not_shared_does_not_count():
    rows = scores([1, 2, 3], [0, 0, 0]) + [Score("sub-9", "FLAIR", "FLAIR", "psnr", "a", 99.0)]
    assert by_subject(rows, "FLAIR", "psnr", "a", "b") == [1, 2, 3]
    assert compare_all(rows, "a", "nobody") == []


def test_p_values_of_one_metric_are_adjusted_together():
    a = 30 + np.random.default_rng(0).normal(0, 0.1, 8)
    rows = [s for m in ("T1w", "T2w", "FLAIR") for s in scores(a, a - 1, modality=m)]
    assert [c.adjusted for c in compare_all(rows, "a", "b")] == pytest.approx([3 * 2 / 256] * 3)

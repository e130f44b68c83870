"""MS-SSIM diversity: collapse is 1, pairs are different volumes, and the real cohort stands beside it."""

import numpy as np
import pytest
from scipy import ndimage

from amodal.core.errors import InputError
from amodal.metrics.diversity import diversity
from amodal.metrics.structure import msssim


def volumes(n, seed=0, variety=1.0):
    rng = np.random.default_rng(seed)
    base = ndimage.gaussian_filter(rng.standard_normal((24, 24, 22)), 2)
    own = [ndimage.gaussian_filter(rng.standard_normal(base.shape), 2) for _ in range(n)]
    return [np.clip(0.5 + 2 * (base + variety * x), 0, 1) for x in own]


def test_a_collapsed_model_has_no_diversity():
    one = volumes(1)[0]
    assert diversity({"T1w": [one, one, one]}, 1.0)["T1w"].value == pytest.approx(1)


def test_it_is_the_mean_over_all_pairs_where_there_are_few():
    made = volumes(4)
    expected = np.mean([msssim(made[i], made[j], 1.0) for i in range(4) for j in range(i + 1, 4)])
    found = diversity({"T1w": made}, 1.0)["T1w"]
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert (found.generated, found.real) == (4, 0)
    assert found.low < found.value < found.high
    assert "no floor" in str(found)


def test_less_variety_is_more_alike():
    values = [diversity({"T1w": volumes(4, variety=v)}, 1.0)["T1w"].value for v in (0.1, 0.5, 2.0)]
    assert values == sorted(values, reverse=True)


def test_modalities_are_apart_and_pooled():
    made = {"T1w": volumes(3, 1, 0.2), "FLAIR": volumes(4, 2, 1.0)}
    real = {"T1w": volumes(3, 3, 1.0), "FLAIR": volumes(3, 4, 1.0)}
    found = diversity(made, 1.0, real)
    assert list(found) == ["T1w", "FLAIR", "pooled"]
    assert found["pooled"].value == pytest.approx((3 * found["T1w"].value + 6 * found["FLAIR"].value) / 9)
    assert found["T1w"].value > found["T1w"].floor  # less varied than the real ones
    assert (found["pooled"].generated, found["pooled"].real) == (7, 6)


def test_pairs_are_drawn_by_the_seed():
    made = {"T1w": volumes(6)}
    draws = [diversity(made, 1.0, pairs=3, seed=s)["T1w"].value for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_one_volume_has_none():
    with pytest.raises(InputError, match="two generated volumes"):
        diversity({"T1w": volumes(1)}, 1.0)

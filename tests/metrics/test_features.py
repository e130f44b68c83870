"""Numbers about cohorts: intervals that hold, floors, groups, and refusals of what does not compare."""

import dataclasses
import json
import math

import numpy as np
import pytest

from amodal.core.errors import InputError
from amodal.metrics.features import METRICS, Features, Measure, compare


def cohort(n, d=6, shift=0.0, seed=0, **changes):
    values = np.random.default_rng(seed).standard_normal((n, d)) + shift
    made = Features(values, tuple(f"sub-{i}" for i in range(n)), "toy", "ab" * 32, "as they come")
    return dataclasses.replace(made, **changes)


def one(name, generated, real, **options):
    (found,) = compare(generated, real, (name,), **options)
    return found


def test_every_number_brings_what_belongs_beside_it():
    found = compare(cohort(30), cohort(40, seed=1), draws=50, splits=4)
    assert [m.metric for m in found] == list(METRICS)
    for m in found:
        assert (m.generated, m.real, m.floor_size) == (30, 40, 20)
        assert (m.extractor, m.sha256) == ("toy", "ab" * 32)
        assert m.low <= m.value <= m.high
        assert m.floor_low <= m.floor <= m.floor_high
        assert json.loads(json.dumps(m.to_dict(), allow_nan=False))["settings"]["dimensions"] == 6
        for words in ("n = 30 generated, 40 real", "real against real", "n = 20", "sha256 abababababab"):
            assert words in str(m)
    assert len({m.settings["draws"] for m in found}) == 1
    assert next(m for m in found if m.metric == "mmd").settings["bandwidths"]


def test_the_same_seed_gives_the_same_numbers():
    first, second = (compare(cohort(12), cohort(15, seed=1), draws=30, splits=3, seed=5) for _ in range(2))
    assert first == second
    assert compare(cohort(12), cohort(15, seed=1), draws=30, splits=3, seed=6)[0].low != first[0].low


@pytest.mark.parametrize("name", ["frechet", "mmd", "kid"])
def test_a_good_cohort_is_at_the_floor_and_a_bad_one_above_it(name):
    real = cohort(60, seed=1)
    good, bad = (one(name, cohort(60, shift=s, seed=2), real, draws=30) for s in (0.0, 1.0))
    assert good.floor_low - 0.05 <= good.same_size <= good.floor_high + 0.05
    assert bad.same_size > bad.floor_high
    assert bad.floor == good.floor


def test_small_samples_raise_the_floor_with_the_number():
    """Why the floor is needed: with n near d a perfect cohort has a large Frechet distance."""
    small, large = (one("frechet", cohort(n, seed=2), cohort(n, seed=1), draws=20) for n in (16, 400))
    assert small.value > 10 * large.value
    assert small.floor > small.value / 2


@pytest.mark.parametrize(("name", "least"), [("frechet", 0.85), ("mmd", 0.85), ("kid", 0.85), ("precision", 0.5)])
def test_intervals_hold_what_such_samples_give(name, least):
    """The mean of the estimate over many cohorts of these sizes is in about 95 % of the intervals."""
    bandwidths = (2.0, 4.0)
    options = {"draws": 60, "splits": 0} | ({"bandwidths": bandwidths} if name == "mmd" else {})
    found = [one(name, cohort(40, 3, 0.6, seed=2 * i), cohort(50, 3, seed=2 * i + 1), **options) for i in range(40)]
    center = np.mean([m.value for m in found])
    held = np.mean([m.low <= center <= m.high for m in found])
    assert least <= held <= 1.0


def test_subjects_are_drawn_whole():
    """Ten copies of each of 8 subjects: the interval must be as wide as that of 8, not of 80."""
    single, real = cohort(8, 3, seed=1), cohort(400, 3, shift=1.0, seed=2)
    values, labels = np.repeat(single.values, 10, 0), tuple(f"slice {i}" for i in range(80))
    alone = dataclasses.replace(single, values=values, labels=labels)
    grouped = dataclasses.replace(alone, groups=tuple(np.repeat([f"s{i}" for i in range(8)], 10)))
    width = {k: m.high - m.low for k, m in ((k, one("mmd", f, real)) for k, f in (("a", alone), ("g", grouped)))}
    assert width["g"] > 1.8 * width["a"]


def test_the_halves_of_a_floor_share_no_subject():
    """All slices of a subject are alike: halves that shared subjects would find nothing between them."""
    centers = np.random.default_rng(0).standard_normal((10, 4)) * 5
    values = np.repeat(centers, 20, 0) + 0.01 * np.random.default_rng(1).standard_normal((200, 4))
    labels, groups = tuple(map(str, range(200))), tuple(np.repeat([f"s{i}" for i in range(10)], 20))
    real = cohort(2, 4, values=values, labels=labels, groups=groups)
    blind = dataclasses.replace(real, groups=())
    found = [one("frechet", real, r, draws=0).floor for r in (real, blind)]
    assert found[0] > 10 * found[1]


def test_features_with_units_are_z_scored_by_the_real_ones():
    real, made = cohort(50, seed=1), cohort(50, shift=0.5, seed=2)
    scale = np.array([1, 1000, 1e-3, 7, 1, 1.0])
    units = [dataclasses.replace(f, values=f.values * scale + 5, standardise=True) for f in (made, real)]
    center, spread = real.values.mean(0), real.values.std(0)
    plain = [dataclasses.replace(f, values=(f.values - center) / spread) for f in (made, real)]
    for name in ("frechet", "kid", "mmd"):
        assert one(name, *units, draws=0).value == pytest.approx(one(name, *plain, draws=0).value, rel=1e-7)
    constant = [dataclasses.replace(f, values=np.c_[f.values, np.full(50, 3.0)]) for f in units]
    assert one("frechet", *constant, draws=0).value == pytest.approx(one("frechet", *units, draws=0).value, rel=1e-9)


@pytest.mark.parametrize("change", [{"sha256": "cd" * 32}, {"extractor": "other"}, {"preparation": "otherwise"}])
def test_what_was_extracted_otherwise_does_not_compare(change):
    with pytest.raises(InputError, match="extract both in one way"):
        compare(cohort(5), cohort(5, **change))


def test_unknown_metrics_and_lone_samples_are_refused():
    with pytest.raises(InputError, match="choose among frechet"):
        compare(cohort(5), cohort(5), ("fid",))
    with pytest.raises(InputError, match="two or more"):
        compare(cohort(1), cohort(5), ("frechet",))


def test_too_few_real_ones_have_no_floor():
    found = one("frechet", cohort(5), cohort(3, seed=1))
    assert math.isnan(found.floor)
    assert "no floor" in str(found)
    assert found.to_dict()["floor"] is None


def test_features_come_back_from_a_file(tmp_path):
    made = cohort(7, groups=tuple("aabbccd"), standardise=True)
    back = Features.load(made.save(tmp_path / "features.npz"))
    assert np.array_equal(back.values, made.values)
    assert dataclasses.replace(back, values=0) == dataclasses.replace(made, values=0)
    assert [p.name for p in tmp_path.iterdir()] == ["features.npz"]
    (tmp_path / "other.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="extract them anew"):
        Features.load(tmp_path / "other.npz")
    with pytest.raises(InputError, match="cannot be written"):
        made.save(tmp_path / "nowhere" / "features.npz")


def test_a_measure_says_its_sizes():
    m = Measure("mmd", 0.147, 0.1, 0.2, 50, 60, 0.05, 0.04, 0.06, 30, 0.15, "net", "f" * 64, "z-scored")
    assert str(m).startswith("mmd 0.147 [0.1, 0.2] (n = 50 generated, 60 real; real against real 0.05, generated 0.15")

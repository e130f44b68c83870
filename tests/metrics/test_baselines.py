"""Baselines: exact where the truth is in their family, blind to what is hidden, the same after a round trip as JSON."""

import json

import numpy as np
import pytest

from amodal.core.errors import InputError
from amodal.metrics.baselines import HEAD, Baselines

NAMES = ("T1w", "T1Gd", "T2w", "FLAIR")
ALL = np.ones(4, bool)
HIDDEN = np.array([True, True, True, False])


def stack(seed=0, present=ALL, noise=0.0):
    """T1Gd is affine in T1w, FLAIR quadratic in T1w and T2w; a border of -1 is background."""
    rng = np.random.default_rng(seed)
    t1, t2 = rng.uniform(-0.8, 0.8, (2, 20, 20, 20))
    gd = 0.5 * t1 + 0.2 + noise * rng.standard_normal(t1.shape)
    flair = 0.1 + 0.3 * t1 - 0.2 * t2 + 0.25 * t1 * t2 - 0.15 * t2**2 + noise * rng.standard_normal(t1.shape)
    out = np.stack([t1, gd, t2, flair]).astype(np.float32)
    out[:, :3] = -1
    out[~np.asarray(present)] = -1
    return out


@pytest.fixture(scope="module")
def fitted():
    return Baselines.fit([(stack(s, noise=0.01), ALL) for s in range(3)], NAMES, sample=4000)


def test_regression_finds_a_quadratic(fitted):
    x = stack(9)
    made = fitted.predict(x, HIDDEN, "FLAIR")
    assert np.abs(made - x[3])[3:].max() < 0.01
    assert made.dtype == np.float32


def test_single_finds_the_affine_map_of_the_best(fitted):
    assert fitted.available("single", "T1Gd", NAMES) == "T1w"
    offset, gain = fitted.single["T1Gd"]["T1w"].coefficients
    assert (offset, gain) == (pytest.approx(0.2, abs=0.01), pytest.approx(0.5, abs=0.01))
    x = stack(9)
    made = fitted.predict(x, np.array([True, False, True, True]), "T1Gd", "single")
    assert np.abs(made - x[1])[3:].max() < 0.02


def test_the_best_single_is_ranked_among_what_is_there(fitted):
    ranked = sorted(fitted.single["T1Gd"], key=lambda name: fitted.single["T1Gd"][name].error)
    assert ranked[0] == "T1w"
    assert fitted.available("single", "T1Gd", ("T2w", "FLAIR")) == next(n for n in ranked if n != "T1w")


def test_error_is_that_of_the_training_voxels():
    x = stack(4, noise=0.05)
    fitted = Baselines.fit([(x, ALL)], NAMES)
    made = fitted.predict(x, HIDDEN, "FLAIR")
    head = (x > HEAD).any(0)
    error = np.sqrt(np.mean((made - x[3])[head] ** 2))
    assert fitted.regression["FLAIR"]["T1w+T1Gd+T2w"].error == pytest.approx(error, rel=1e-3)
    assert error == pytest.approx(0.05, rel=0.1)


def test_every_subset_of_inputs_is_fitted(fitted):
    assert {len(fitted.regression[name]) for name in NAMES} == {7}
    assert {len(fitted.single[name]) for name in NAMES} == {3}
    more, less = (fitted.regression["FLAIR"][key].error for key in ("T1w+T1Gd+T2w", "T2w"))
    assert more < less


def test_prediction_never_sees_the_target_or_what_is_absent(fitted):
    x = stack(5)
    present = np.array([True, False, True, False])
    spoilt = x.copy()
    spoilt[1], spoilt[3] = 0.3, np.nan
    assert np.array_equal(fitted.predict(x, present, "FLAIR"), fitted.predict(spoilt, present, "FLAIR"))
    assert np.array_equal(fitted.predict(x, ALL, "FLAIR"), fitted.predict(x, HIDDEN, "FLAIR"))


def test_background_stays_and_range_is_kept(fitted):
    made = fitted.predict(stack(6), HIDDEN, "FLAIR")
    assert (made[:3] == -1).all()
    assert made.min() >= -1
    assert made.max() <= 1


def test_training_studies_may_lack_modalities():
    no_flair, no_t2 = np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 1], bool)
    fitted = Baselines.fit([(stack(0, no_flair, 0.05), no_flair), (stack(1, no_t2, 0.05), no_t2)], NAMES)
    assert fitted.available("regression", "FLAIR", NAMES) == "T1w+T1Gd"  # T2w was never there with FLAIR
    assert fitted.available("regression", "T2w", ("FLAIR",)) is None
    with pytest.raises(InputError, match="T2w from FLAIR"):
        fitted.predict(stack(2), np.array([0, 0, 0, 1], bool), "T2w")


def test_the_same_seed_gives_the_same_fit():
    studies = [(stack(0, noise=0.1), ALL)]
    first, again, other = (Baselines.fit(studies, NAMES, sample=500, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_round_trip_as_json(fitted):
    text = json.dumps(fitted.to_dict(), allow_nan=False)
    assert Baselines.from_dict(json.loads(text)) == fitted
    with pytest.raises(InputError, match="extra"):
        Baselines.from_dict({**fitted.to_dict(), "extra": 1})


def test_float16_on_disk_is_enough(tmp_path, fitted):
    np.save(tmp_path / "x.npy", stack(0, noise=0.01).astype(np.float16))
    half = Baselines.fit([(np.load(tmp_path / "x.npy", mmap_mode="r"), ALL)], NAMES)
    assert half.regression["FLAIR"]["T1w+T2w"].coefficients == pytest.approx(
        fitted.regression["FLAIR"]["T1w+T2w"].coefficients, abs=5e-3
    )


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(InputError, match="no training study"):
        Baselines.fit([], NAMES)

"""Coverage against what is known in closed form, and factors that hold on subjects they have not seen."""

import json

import numpy as np
import pytest
from scipy import stats

from amodal.core.errors import InputError
from amodal.evaluate import calibrate
from amodal.evaluate.calibrate import LEVELS, before, count, coverage, fit
from amodal.model.intervals import Calibration, Intervals, _widths, into_card, of_card

HEAD = np.ones((24, 24, 24), bool)


def image(seed, samples=8, wrong=1.0, floor=0.0, scale=(0.01, 0.06)):
    """The counts of an image whose posterior is normal with an SD of its own in each voxel, and which says that its SD
    is `wrong` times smaller; `floor`: noise of the truth that no sample shows."""
    rng = np.random.default_rng(seed)
    sd = rng.uniform(*scale, HEAD.shape)
    draws = rng.standard_normal((samples, *HEAD.shape)) * sd / wrong + 0.5
    truth = 0.5 + rng.standard_normal(HEAD.shape) * np.hypot(sd, floor)
    return count(draws.mean(0), draws.std(0, ddof=1), truth, HEAD)


def cohort(n, first=0, **options):
    return {f"sub-{k}": {"FLAIR|FLAIR": image(first + k, **options)} for k in range(n)}


def test_counts_lose_little():
    rng = np.random.default_rng(0)
    error, sd = 0.05 * rng.standard_normal(HEAD.shape), rng.uniform(0, 0.1, HEAD.shape)
    counts = count(0.5 + error, sd, np.full(HEAD.shape, 0.5), HEAD)
    assert counts.sum() == HEAD.sum()
    for factor, floor in ((0.7, 0.0), (1.6, 0.01), (3.0, 0.05)):
        exact = (np.abs(error) <= factor * (sd + floor)).mean()
        assert coverage(counts, factor, floor) == pytest.approx(exact, abs=0.004)


@pytest.mark.parametrize("level", LEVELS)
def test_a_true_posterior_covers_what_students_distribution_says(level):
    found = np.mean([before(image(k, samples=4), level) for k in range(3)])
    z = stats.norm.ppf((1 + level) / 2)
    exact = 2 * stats.t.cdf(z / np.sqrt(1 + 1 / 4), 3) - 1  # 4 draws: 3 degrees of freedom, and their mean errs too
    assert found == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("options", [{"wrong": 3.0}, {"wrong": 0.4}, {"floor": 0.03}, {"wrong": 2.0, "samples": 3}])
def test_factors_hold_on_subjects_not_seen(options):
    found = fit(cohort(8, **options))["FLAIR"]
    for level in LEVELS:
        unseen = [
            coverage(c, found.factors[f"{level:g}"], found.floor)
            for images in cohort(6, first=100, **options).values()
            for c in images.values()
        ]
        assert np.mean(unseen) == pytest.approx(level, abs=0.01)
        assert found.left_out[f"{level:g}"] == pytest.approx(level, abs=0.01)
        assert abs(found.before[f"{level:g}"] - level) > 0.02  # there was something to mend


def test_the_floor_is_found_where_samples_say_nothing():
    """Half of the voxels have samples that all agree, and truths that do not."""
    quiet = cohort(5, scale=(0.0, 1e-6), floor=0.02)
    counts = {name: {"FLAIR|FLAIR": v["FLAIR|FLAIR"] + image(int(name[4:]))} for name, v in quiet.items()}
    assert fit(counts)["FLAIR"].floor > 0.01
    assert fit(cohort(5, scale=(0.0, 0.06)))["FLAIR"].floor < 0.002


def test_subjects_weigh_the_same_however_large():
    """One subject with nine images of small error must not outvote four of one image each."""
    small = {f"{k}|FLAIR": image(k, wrong=0.2) for k in range(9)}
    counts = {"sub-many": small} | cohort(4, wrong=3.0)
    found = fit(counts)["FLAIR"]
    values = [np.mean([coverage(c, found.factors["0.5"], found.floor) for c in v.values()]) for v in counts.values()]
    assert np.mean(values) == pytest.approx(0.5, abs=0.002)
    assert (found.subjects, found.images) == (5, 13)


def test_what_is_left_out_says_how_many_subjects_are_needed():
    """Subjects whose SD maps are wrong by different amounts: coverage of new ones spreads as that of those left out."""

    def several(n, first):
        wrong = np.linspace(0.5, 2.0, n)
        return {f"sub-{k}": {"FLAIR|FLAIR": image(first + k, wrong=w)} for k, w in enumerate(wrong)}

    found = fit(several(12, 0))["FLAIR"]
    new = [coverage(c["FLAIR|FLAIR"], found.factors["0.5"], found.floor) for c in several(9, 100).values()]
    assert np.mean(new) == pytest.approx(0.5, abs=0.02)
    assert found.spread["0.5"] == pytest.approx(np.std(new, ddof=1), rel=0.2) and found.spread["0.5"] > 0.05
    assert found.worst["0.5"] < 0.5 - found.spread["0.5"]
    same = fit(cohort(8))["FLAIR"]
    assert same.spread["0.5"] < 0.01


def test_the_safe_factor_is_that_of_conformal_risk_control():
    counts = cohort(20)
    found = fit(counts)["FLAIR"]
    risk = 1 - np.mean([coverage(c, found.safe["0.9"], found.floor) for v in counts.values() for c in v.values()])
    assert (20 * risk + 1) / 21 == pytest.approx(0.1, abs=1e-3)
    assert found.safe["0.9"] > found.factors["0.9"]
    assert "0.9" not in fit(cohort(5))["FLAIR"].safe  # of five subjects no factor can promise that


def test_few_subjects_are_refused():
    with pytest.raises(InputError, match="at least 5"):
        fit(cohort(4))


def calibration(**changes):
    intervals = Intervals(0.01, {"0.5": 0.8, "0.9": 2.0}, {"0.5": 0.9}, {}, {}, {}, 8, 8)
    return Calibration(**{"samples": 8, "steps": 8, "weights": "ab12", "data": "x", "patterns": "all",
                          "protocol": "trust v2", "modalities": {"FLAIR": intervals}, **changes})  # fmt: skip


@pytest.mark.parametrize("scale", [(0.0, 0.06), (0.02, 0.06)])
def test_with_other_numbers_of_samples_intervals_cover_no_less(scale):
    """A true posterior, calibrated with 8 draws."""
    found = fit(cohort(6, samples=8, scale=scale))["FLAIR"]
    known = calibration(modalities={"FLAIR": found})
    assert known.factor("FLAIR", 0.9, 8) == found.factors["0.9"]
    for samples in (2, 4, 16):
        covered = coverage(image(50, samples=samples, scale=scale), known.factor("FLAIR", 0.9, samples), found.floor)
        assert covered > 0.89
    few = image(50, samples=3, scale=(0.0, 0.06))
    if scale[0] == 0:  # no floor: Student's distribution is exact
        assert found.floor == pytest.approx(1e-3)
        assert coverage(few, known.factor("FLAIR", 0.9, 3), found.floor) == pytest.approx(0.9, abs=0.02)
    assert _widths(0.9, 3)[0] == pytest.approx(2.919986 * np.sqrt(4 / 3), abs=1e-5)


def test_half_the_width():
    half = calibration().half("FLAIR", 0.9, np.array([0.0, 0.1]), 8)
    assert half == pytest.approx([0.02, 0.22])
    with pytest.raises(InputError, match=r"0.5, 0.9"):
        calibration().half("FLAIR", 0.8, np.zeros(1), 8)
    with pytest.raises(InputError, match="2 samples"):
        calibration().half("FLAIR", 0.9, np.zeros(1), 1)
    assert calibration().levels("T1w") == ()


def test_a_card_keeps_it_and_other_weights_do_not_take_it(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"format": 1, "card": {"licence": "CC0"}, "sha256": "ab12"}))
    into_card(tmp_path, calibration())
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["card"]["licence"] == "CC0" and about["format"] == 1
    assert of_card(about["card"], "ab12") == calibration()
    assert of_card(about["card"], "cd34") is None
    assert of_card({}, "ab12") is None
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]
    with pytest.raises(InputError, match="calibration"):
        of_card({"calibration": {"samples": "many"}}, "ab12")


def test_what_is_kept_comes_back(tmp_path):
    calibrate.keep(tmp_path / "a" / calibrate.FILE, {"T2w+FLAIR|FLAIR": image(0)})
    (back,) = calibrate.kept(tmp_path / "a" / calibrate.FILE).items()
    assert back[0] == "T2w+FLAIR|FLAIR" and (back[1] == image(0)).all()
    assert calibrate.kept(tmp_path / "none.npz") == {}

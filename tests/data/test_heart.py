"""The virtual heart: steady-state signal against Bloch's equations, conserved muscle, volumes that were asked for."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from amodal.cli.app import main
from amodal.core.errors import InputError
from amodal.data import layouts, nifti
from amodal.data.phantom import HeartConfig, heart, heart_studies, heart_subject, make_hearts, sequences
from amodal.data.phantom.heart import PARTS
from amodal.data.phantom.sequences import Matter, Protocol

SMALL = HeartConfig(size=(64, 64), spacing=3.0, disease=0.5)


@lru_cache(maxsize=4)
def one(index: int, config: HeartConfig = SMALL):
    return heart_subject(index, 0, config)


@pytest.mark.parametrize("offset", [0.0, 40.0, -90.0])
def test_balanced_ssfp_agrees_with_blochs_equations(offset):
    """Pulses of alternating sign, precession and relaxation, until the state repeats."""
    t1, t2, tr, flip = 1441.0, 290.0, 3.2, math.radians(55)
    m = np.array([0.0, 0.0, 1.0])
    turn = 2 * math.pi * offset * tr / 1000
    spin = np.array([[math.cos(turn), math.sin(turn), 0], [-math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    decay = np.diag([math.exp(-tr / t2)] * 2 + [math.exp(-tr / t1)])
    for pulse in range(6000):
        a = flip * (-1) ** pulse
        tip = np.array([[1, 0, 0], [0, math.cos(a), math.sin(a)], [0, -math.sin(a), math.cos(a)]])
        after = tip @ m
        m = decay @ spin @ after + [0, 0, 1 - math.exp(-tr / t1)]
    expected = math.hypot(after[0], after[1]) * math.exp(-1.6 / t2)
    matter = Matter(*(np.array([x]) for x in (t1, t2, 1.0, 1.0)))
    found = sequences.balanced_ssfp(matter, Protocol("", tr=tr, te=1.6, flip=55), offset)[0]
    assert found == pytest.approx(expected, rel=1e-4)


def test_on_resonance_it_is_the_textbook_formula():
    matter = Matter(*(np.array([x]) for x in (1030.0, 42.0, 1.0, 0.8)))
    e1, e2, a = math.exp(-3.2 / 1030), math.exp(-3.2 / 42), math.radians(55)
    expected = 0.8 * math.sin(a) * (1 - e1) / (1 - (e1 - e2) * math.cos(a) - e1 * e2) * math.exp(-1.6 / 42)
    assert sequences.balanced_ssfp(matter, Protocol("", 3.2, 1.6, flip=55))[0] == pytest.approx(expected, rel=1e-4)


def test_the_drawn_volumes_come_out_and_the_muscle_is_conserved():
    for index in range(3):
        p = one(index).parameters
        volume = {
            k: {n: v[n] for n in ("left", "papillary", "myocardium", "right")} for k, v in p["volumes_ml"].items()
        }
        cavity = {k: v["left"] + v["papillary"] for k, v in volume.items()}
        assert cavity["ED"] == pytest.approx(p["end_diastolic_ml"], rel=0.09)
        assert 1 - cavity["ES"] / cavity["ED"] == pytest.approx(p["ejection_percent"] / 100, abs=0.06)
        assert volume["ES"]["myocardium"] == pytest.approx(volume["ED"]["myocardium"], rel=0.08)
        assert volume["ED"]["right"] == pytest.approx(p["right_end_diastolic_ml"], rel=0.12)


def test_the_beat_is_exact_before_it_is_made_into_voxels():
    p = heart.draw_person(lambda name: np.random.default_rng(5), SMALL)
    beat = heart.beat(p)
    factor = {k: heart.shape_factor(v.inner, v.widest, v.base) * v.cavity**2 for k, v in beat.items()}
    whole = {k: heart.shape_factor(0, v.widest, v.base) * v.outer**2 for k, v in beat.items()}
    assert factor["ED"] == pytest.approx(p["end_diastolic_ml"])
    assert factor["ES"] == pytest.approx(p["end_diastolic_ml"] * (1 - p["ejection_percent"] / 100))
    assert whole["ES"] - factor["ES"] == pytest.approx(whole["ED"] - factor["ED"])
    assert beat["ES"].base < beat["ED"].base and beat["ES"].outer - beat["ES"].cavity > p["wall_mm"]


def test_blood_is_bright_muscle_darker_lung_darkest():
    virtual = one(0)
    image, labels = virtual.images["ED"], virtual.labels["ED"]
    level = {name: np.median(image[labels == PARTS[name].label]) for name in ("left", "myocardium", "lung", "fat")}
    assert level["left"] > 1.8 * level["myocardium"] > 1.8 * 1.5 * level["lung"]
    assert level["fat"] > 1.3 * level["myocardium"]


def test_anatomy_is_where_it_belongs():
    labels = one(1).labels["ED"]
    slices = {name: np.flatnonzero((labels == part.label).any((0, 1))) for name, part in PARTS.items()}
    assert slices["myocardium"][0] < slices["left"][0]  # the apex is muscle
    assert slices["left"][0] < slices["papillary"][0] < slices["papillary"][-1] < slices["left"][-1]
    assert slices["atrium"][0] > slices["left"][0] and slices["atrium"][-1] == labels.shape[2] - 1
    middle = int(np.median(slices["left"]))
    centre = {n: np.argwhere(labels[..., middle] == PARTS[n].label).mean(0) for n in ("left", "right", "myocardium")}
    assert centre["right"][0] < centre["left"][0]  # in the picture the right ventricle lies left
    assert np.abs(centre["myocardium"] - centre["left"]).max() < 3  # a ring
    # lung never touches the left cavity
    cavity = labels[..., middle] == 3
    grown = np.logical_or.reduce([np.roll(cavity, s, a) for s in (-1, 1) for a in (0, 1)])
    assert not (grown & (labels[..., middle] == PARTS["lung"].label)).any()


def test_hearts_differ_and_are_the_same_again():
    again = heart_subject(1, 0, SMALL)
    assert np.array_equal(again.images["ES"], one(1).images["ES"])
    assert np.abs(one(0).images["ED"] - one(1).images["ED"]).mean() > 20
    drawn = [heart.draw_person(_streams(i), replace(SMALL, disease=1.0)) for i in range(40)]
    assert {p["group"] for p in drawn} == {"dilated", "hypertrophic", "right"}
    assert np.std([p["turn_degrees"] for p in drawn]) > 8
    failing = [p["ejection_percent"] for p in drawn if p["group"] == "dilated"]
    assert np.mean(failing) == pytest.approx(30, abs=4)


def _streams(index: int):
    return lambda name: np.random.default_rng([index, sum(map(ord, name))])


def test_thick_slices_and_gaps():
    thick = HeartConfig(size=(48, 48), spacing=4.0, thickness=8.0, gap=2.0)
    assert HeartConfig().count == 32 and thick.count == 11
    virtual = one(0, thick)
    assert virtual.images["ED"].shape == (48, 48, 11)
    assert np.diag(virtual.affine)[:3] == pytest.approx([4, 4, 10])
    study = heart_studies(virtual)[1]
    assert study.label == "sub-001_ses-ES" and study.metadata["phase"] == "ES" and study.modalities == ("cine",)


def test_an_oblique_stack_points_where_the_heart_does():
    virtual = one(2, replace(SMALL, size=(16, 16), spacing=8.0, oblique=True, slices=4))
    axes = virtual.affine[:3, :3] / np.linalg.norm(virtual.affine[:3, :3], axis=0)
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-6)
    assert np.linalg.det(axes) == pytest.approx(1)
    assert axes[0, 2] > 0.3 and axes[1, 2] < -0.3 and axes[2, 2] > 0.3  # from apex to base: right, back, up
    centre = virtual.affine @ [7.5, 7.5, 1.5, 1]
    assert centre[:3] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_cohort_is_read_back(tmp_path: Path):
    config = HeartConfig(size=(32, 32), spacing=6.0, thickness=8.0)
    make_hearts(tmp_path / "hearts", 2, seed=4, config=config, workers=1)
    sources = layouts.find(tmp_path / "hearts")
    assert [s.label for s in sources] == [f"sub-00{i}_ses-{p}" for i in (1, 2) for p in ("ED", "ES")]
    study, virtual = sources[3].read(), heart_subject(1, 4, config)
    assert np.array_equal(study["cine"].data, virtual.images["ES"])
    assert study.metadata["phase"] == "ES" and study.metadata["group"] == virtual.parameters["group"]
    truth = tmp_path / "hearts/derivatives/truth/sub-002/ses-ED/anat"
    few = nifti.read(truth / "sub-002_ses-ED_desc-acdc_dseg.nii.gz").data
    assert set(np.unique(few)) == {0, 1, 2, 3}
    assert np.array_equal(nifti.read(truth / "sub-002_ses-ED_desc-heart_dseg.nii.gz").data, virtual.labels["ED"])
    row = (tmp_path / "hearts/participants.tsv").read_text().splitlines()[2].split("\t")
    sidecar = json.loads((truth / "sub-002_ses-ED_desc-heart_dseg.json").read_text())["Simulation"]
    volumes = sidecar["volumes_ml"]["ED"]
    assert float(row[4]) == pytest.approx(volumes["left"] + volumes["papillary"], abs=0.01)
    with pytest.raises(InputError, match="already exists"):
        make_hearts(tmp_path / "hearts", 1, config=config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": (8, 64)}, "16 or more"),
        ({"thickness": 0.0}, "0.5 to 20"),
        ({"disease": 2.0}, "between 0 and 1"),
        ({"noise": -1.0}, "0 or more"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings, words):
    with pytest.raises(InputError, match=words):
        HeartConfig(**settings)


def test_hearts_by_the_command_line(tmp_path: Path, capsys):
    words = ["phantom", str(tmp_path / "x"), "-n", "1", "--heart", "--size", "64", "--dry-run"]
    assert main(words) == 0 and "64x64x32" in capsys.readouterr().out
    assert main([*words, "--slice-thickness", "8"]) == 0 and "64x64x11" in capsys.readouterr().out
    assert main([*words, "--head"]) == 2 and "no head" in capsys.readouterr().err

"""The virtual cohort: pinned signal equations, invertible warps, and subjects that are what their truth says."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from amodal.core.errors import InputError
from amodal.data import nifti
from amodal.data.phantom import (
    TISSUES,
    PhantomConfig,
    body,
    lesions,
    make_cohort,
    scanner,
    sequences,
    subject,
    to_study,
    warp,
)
from amodal.data.phantom import anatomy as anatomies
from amodal.data.phantom.sequences import Matter, Protocol
from amodal.data.phantom.tissue import enhanced

SMALL = PhantomConfig(shape=(48, 56, 48), spacing=2.0, tumour=0.0, lesions=0.0)


def toy_labels() -> np.ndarray:
    """A brain of 80 mm made of ellipsoids: cortex with grooves, white matter, ventricles, nuclei, cerebellum."""
    x, y, z = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in (84, 96, 84)], indexing="ij")
    radius = np.sqrt((x / 36) ** 2 + (y / 43) ** 2 + (z / 36) ** 2)
    labels = np.zeros(x.shape, np.int16)
    labels[radius < 1] = 3
    labels[radius < 0.86] = 2
    labels[(radius > 0.8) & (np.sin(x / 2.5) * np.sin(y / 3) > 0.85)] = 0
    labels[(np.abs(np.abs(x) - 6) < 3.2) & (abs(y) < 14) & (abs(z - 4) < 5)] = 4
    labels[((np.abs(x) - 8) / 5) ** 2 + (y / 7) ** 2 + ((z + 6) / 5) ** 2 < 1] = 10
    labels[((np.abs(x) - 17) / 4) ** 2 + ((y - 5) / 9) ** 2 + ((z + 2) / 7) ** 2 < 1] = 12
    labels[((np.abs(x) - 11.5) / 2.5) ** 2 + ((y - 9) / 5) ** 2 + ((z + 3) / 5) ** 2 < 1] = 13
    labels[(labels > 0) & (z < -18) & (y < -8)] = 8
    return labels


@pytest.fixture(scope="module")
def labelmap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "toy.nii.gz"
    nib.Nifti1Image(toy_labels(), np.diag([1.0, 1, 1, 1])).to_filename(path)
    return path


@pytest.fixture(scope="module")
def toy(labelmap: Path) -> anatomies.Anatomy:
    return anatomies.from_labels(labelmap)


@lru_cache(maxsize=1)
def mni() -> anatomies.Anatomy:
    if importlib.util.find_spec("nilearn") is None:
        pytest.skip("nilearn, which brings the MNI152 template, is not installed")
    return anatomies.template()


def matter(t1: float, t2: float = 100.0, t2star: float = 50.0, pd: float = 1.0) -> Matter:
    return Matter(*(np.array([v]) for v in (t1, t2, t2star, pd)))


# signal equations ---------------------------------------------------------------------------------------------------


def test_signal_equations_give_hand_computed_numbers():
    # 0.8 (1 - e^-5) e^-0.9 ; TR 4500, T1 900, TE 90, T2 100
    assert sequences.spin_echo(matter(900, 100, pd=0.8), Protocol("", 4500, 90))[0] == pytest.approx(0.323064, abs=2e-6)
    # E1 = e^-0.02: 0.5 (1 - E1) / (1 - E1 cos 30) e^-0.1
    found = sequences.spoiled_gradient_echo(matter(1000, t2star=50), Protocol("", 20, 5, flip=30))[0]
    assert found == pytest.approx(0.0592442, rel=1e-3)
    # 0.7 |1 - 2 e^-2.5 + e^-9| e^-1.5
    p = Protocol("", 9000, 120, ti=2500)
    assert sequences.inversion_recovery_spin_echo(matter(1000, 80, pd=0.7), p)[0] == pytest.approx(0.130570, abs=2e-6)
    # 1 / (1 / 1500 + 5 * 0.2 / 1000)
    assert enhanced(1500.0, 0.2) == pytest.approx(600.0)


def test_spoiled_gradient_echo_is_brightest_at_the_ernst_angle():
    ernst = math.degrees(math.acos(math.exp(-30 / 1000)))
    signal = [
        sequences.spoiled_gradient_echo(matter(1000), Protocol("", 30, 5, flip=a))[0]
        for a in (ernst - 1, ernst, ernst + 1)
    ]
    assert signal[1] > max(signal[0], signal[2])


@pytest.mark.parametrize("t1", [400.0, 900.0, 4160.0])
def test_mprage_agrees_with_a_simulation_pulse_by_pulse(t1):
    p = Protocol("MPRAGE", tr=2300, te=3, ti=900, flip=9, echo_spacing=7, pulses=160)
    before, cos, sin = p.ti - 80 * 7, math.cos(math.radians(9)), math.sin(math.radians(9))
    m, read = 1.0, 0.0
    for _ in range(20):  # repetitions, until it is periodic
        m = 1 - (1 + m) * math.exp(-before / t1)
        for pulse in range(160):
            if pulse == 80:
                read = sin * abs(m) * math.exp(-3 / 50)
            m = 1 - (1 - m * cos) * math.exp(-7 / t1)
        m = 1 - (1 - m) * math.exp(-(p.tr - before - 160 * 7) / t1)
    assert sequences.mprage(matter(t1), p)[0] == pytest.approx(read, rel=1e-6)


def test_flair_nulls_csf_and_the_drawn_protocol_nearly_does():
    assert sequences.nulling_time(4160, 9000) == pytest.approx(2430.93, abs=0.05)  # 4160 ln(2 / (1 + e^-2.16346))
    rng = np.random.default_rng(0)
    for jitter, bound in ((0.0, 1e-6), (0.1, 0.08)):
        p = sequences.draw("FLAIR", rng, jitter, 4160.0)
        fluid, white = (sequences.inversion_recovery_spin_echo(matter(t, 100), p)[0] for t in (4160.0, 900.0))
        assert fluid / white < bound


def test_protocol_jitter_changes_the_protocol_and_none_does_not():
    same = {sequences.draw("T1w", np.random.default_rng(i), 0.0, 4160) for i in range(5)}
    assert same == {sequences.PROTOCOLS["T1w"][0]}
    drawn = [sequences.draw("T1w", np.random.default_rng(i), 0.1, 4160) for i in range(20)]
    assert {p.sequence for p in drawn} == {"MPRAGE", "spoiled gradient echo"}
    assert np.std([p.te for p in drawn if p.sequence == "MPRAGE"]) > 0.1


# warps --------------------------------------------------------------------------------------------------------------


def test_noise_fields_have_unit_variance_and_keep_their_scale():
    rng = np.random.default_rng(1)
    field = warp.noise_field(rng, (60, 60, 60), 2.0, 6.0)
    assert field.mean() == pytest.approx(0, abs=0.1)
    assert field.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(field, axis=0)).mean() < 0.45  # smooth


def test_warps_are_invertible_even_with_old_age_and_a_tumour():
    shape, spacing = (40, 44, 40), 2.5
    for seed in range(4):
        rng = np.random.default_rng(seed)
        velocity = warp.random_velocity(rng, shape, spacing)
        tumour = {"radius": 15.0, "mass": 0.3}
        coordinates = warp.voxel_grid(shape) * np.float32(spacing)
        velocity = velocity + lesions.mass_effect(coordinates, np.array([50.0, 55.0, 50.0]), tumour)
        forth, back = warp.exponentiate(velocity, spacing), warp.exponentiate(-velocity, spacing)
        assert np.abs(forth).max() > 3
        assert warp.jacobian(forth, spacing).min() > 0.1
        there = coordinates + np.moveaxis(forth, 0, -1)
        again = there + np.moveaxis(warp.sample(back, there / spacing, border=True), 0, -1)
        inner = (slice(8, -8),) * 3
        assert np.abs(again - coordinates)[inner].max() < 0.5  # mm, interpolation only


def test_the_velocity_of_an_old_subject_is_invertible():
    brain = mni()
    velocity, _ = body.velocity_field(np.random.default_rng(3), brain, 1.0, growth=4.5, tumour=None)
    assert warp.jacobian(warp.exponentiate(-velocity, body.WARP_SPACING), body.WARP_SPACING).min() > 0.05


def test_jacobian_of_a_known_map():
    grid = warp.voxel_grid((8, 8, 8)) * np.float32(2.0)
    stretch = np.moveaxis(grid * np.array([0.1, 0.2, -0.1], np.float32), -1, 0)
    assert warp.jacobian(stretch, 2.0) == pytest.approx(1.1 * 1.2 * 0.9, rel=1e-4)


# subjects -----------------------------------------------------------------------------------------------------------


def test_a_subject_follows_from_index_and_seed(toy):
    one, two, other, seeded = (subject(i, s, SMALL, toy) for i, s in ((3, 0), (3, 0), (4, 0), (3, 1)))
    for name in SMALL.modalities:
        assert one.images[name].tobytes() == two.images[name].tobytes()
        assert np.abs(one.images[name] - other.images[name]).mean() > 1
        assert np.abs(one.images[name] - seeded.images[name]).mean() > 1
    assert one.parameters == two.parameters
    json.dumps(one.parameters)


def test_changing_one_setting_leaves_the_rest_of_the_person(toy):
    plain, ill = (
        subject(2, 0, SMALL, toy),
        subject(2, 0, replace(SMALL, tumour=1.0, noise=0.0, modalities=("T2w",)), toy),
    )
    for key in ("age", "sex", "head_scale", "tissues"):
        assert plain.parameters[key] == ill.parameters[key]
    assert plain.parameters["sequences"]["T2w"] == ill.parameters["sequences"]["T2w"]
    assert ill.parameters["volumes_ml"]["core"] > 0.1
    assert plain.parameters["volumes_ml"]["core"] == 0


def test_tumours_are_as_large_as_asked(toy):
    """The core's volume is that of a ball whose radius lies in the range; the place and all else stay."""
    small, large = (
        subject(2, 0, replace(SMALL, tumour=1.0, tumour_radius=(mm, mm), noise=0.0, modalities=("T2w",)), toy)
        for mm in (7.0, 14.0)
    )
    one, other = (v.parameters["tumour"] for v in (small, large))
    assert (one["radius"], other["radius"]) == (7.0, 14.0)
    assert {k: v for k, v in one.items() if k != "radius"} == {k: v for k, v in other.items() if k != "radius"}
    volumes = [sum(v.parameters["volumes_ml"][k] for k in ("core", "rim", "necrosis")) for v in (small, large)]
    for volume, mm in zip(volumes, (7.0, 14.0)):
        assert 0.4 < volume / (4 / 3 * np.pi * mm**3 / 1000) < 1.5  # what lies outside the brain is lost


def test_truth_agrees_with_itself(toy):
    virtual = subject(1, 0, replace(SMALL, tumour=1.0, lesions=1.0), toy)
    stack = np.stack(list(virtual.fractions.values()))
    assert stack.min() >= 0
    assert stack.sum(0).max() < 1.001
    names = ["background", *virtual.fractions]
    for voxel in np.argwhere(virtual.labels >= 0)[::997]:
        shares = stack[(slice(None), *voxel)]
        best = names[int(np.argmax([1 - shares.sum(), *shares]))]
        assert virtual.labels[tuple(voxel)] == (0 if best == "background" else TISSUES[best].label)
    volume = virtual.parameters["volumes_ml"]["white"]
    assert volume == pytest.approx(virtual.fractions["white"].sum() * 8 / 1000, rel=1e-3)
    inside = stack.sum(0) > 0.5
    for image in virtual.images.values():
        assert not image[~inside].any()
        assert (image[inside] > 0).all()
        assert np.array_equal(image, np.rint(image))
    study = to_study(virtual)
    assert study.modalities == ("T1w", "T1Gd", "T2w", "FLAIR")
    assert study.metadata["age"] == virtual.parameters["age"]


def test_contrasts_are_ordered_as_in_practice():
    config = PhantomConfig(shape=(64, 72, 64), spacing=2.6, noise=0.0, bias=0.0, lesions=0, tumour=0, age=(80, 80),
                           modalities=("T1w", "T2w", "FLAIR", "PDw", "T2starw"))  # fmt: skip
    virtual = subject(0, 0, config, mni())
    mean = {
        (m, t): virtual.images[m][virtual.fractions[t] > 0.9].mean()
        for m in config.modalities for t in ("white", "cortex", "ventricle")
    }  # fmt: skip
    mean |= {(m, "wmh"): virtual.images[m][virtual.fractions["wmh"] > 0.8].mean() for m in config.modalities}
    assert mean["T1w", "white"] > 1.15 * mean["T1w", "cortex"] > 1.15 * 1.15 * mean["T1w", "ventricle"]
    assert mean["T2w", "ventricle"] > 1.4 * mean["T2w", "cortex"] > 1.4 * 1.3 * mean["T2w", "white"]
    assert mean["FLAIR", "wmh"] > 1.1 * mean["FLAIR", "cortex"] > 1.1 * 1.1 * mean["FLAIR", "white"]
    assert mean["FLAIR", "ventricle"] < 0.4 * mean["FLAIR", "white"]
    assert mean["T2w", "wmh"] > 1.3 * mean["T2w", "white"]
    assert mean["T1w", "wmh"] < 0.92 * mean["T1w", "white"]
    assert mean["PDw", "cortex"] > mean["PDw", "white"]
    assert mean["T2starw", "cortex"] > mean["T2starw", "white"]


def test_gadolinium_brightens_what_takes_it_up_and_nothing_else(toy):
    config = replace(SMALL, tumour=1.0, noise=0.0, bias=0.0, protocol_jitter=0.0, modalities=("T1w", "T1Gd"))
    found = 0
    for index in range(6):
        virtual = subject(index, 0, config, toy)
        before, after = virtual.images["T1w"], virtual.images["T1Gd"]
        rim, taking = (
            virtual.fractions["rim"] > 0.8,
            sum(part for name, part in virtual.fractions.items() if TISSUES[name].gd > 0),
        )
        if rim.any():
            found += 1
            assert (after[rim] > 1.5 * before[rim]).all()
        none = taking < 1e-4
        assert np.abs(after - before)[none].max() <= 1  # rounding
        oedema = virtual.fractions["oedema"] > 0.97
        assert not oedema.any() or np.abs(after[oedema] / before[oedema] - 1).max() < 0.08
    assert found >= 2


def test_ventricles_and_hyperintensities_grow_with_age(toy):
    ages = np.linspace(20, 85, 6)
    for index in (0, 5):
        volumes = []
        for age in ages:
            config = replace(SMALL, age=(float(age), float(age)), modalities=("T1w",))
            volumes.append(subject(index, 0, config, toy).parameters["volumes_ml"])
        ventricle, wmh, fluid = (np.array([v[k] for v in volumes]) for k in ("ventricle", "wmh", "csf"))
        assert (np.diff(ventricle) > 0).all()
        assert (np.diff(wmh) > 0).all()
        assert np.corrcoef(ages, ventricle)[0, 1] > 0.9
        assert np.corrcoef(ages, np.log(wmh))[0, 1] > 0.9
        assert fluid[-1] > fluid[0]
    person = [body.draw_person(i, 0, PhantomConfig()) for i in range(150)]
    drawn = np.array([[p["age"], lesions.hyperintensity_volume(p["age"], p["wmh_factor"])] for p in person])
    assert np.corrcoef(drawn[:, 0], np.log(drawn[:, 1]))[0, 1] > 0.8
    assert abs(drawn[:, 0].mean() - 52.5) < 5


def test_hyperintensities_reach_the_asked_volume(toy):
    config = replace(SMALL, age=(70, 70), modalities=("FLAIR",))
    p = subject(3, 0, config, toy).parameters
    assert p["volumes_ml"]["wmh"] == pytest.approx(lesions.hyperintensity_volume(70, p["wmh_factor"]), rel=0.05)


def test_tumour_pushes_and_ms_lesions_are_listed(toy):
    virtual = subject(6, 0, replace(SMALL, lesions=1.0), toy)
    rows = virtual.parameters["ms_lesions"]
    assert len(rows) >= 3
    share = virtual.fractions["lesion"] + virtual.fractions["active"]
    assert np.mean([share[r["x"], r["y"], r["z"]] > 0.4 for r in rows]) > 0.8


def test_thick_slices_average_and_move_the_affine(toy):
    thin = subject(0, 0, replace(SMALL, noise=0.0, modalities=("T2w",), stripped=False), toy)
    thick = subject(0, 0, replace(SMALL, noise=0.0, modalities=("T2w",), stripped=False, slice_thickness=6.0), toy)
    assert thick.images["T2w"].shape == (48, 56, 16)
    expected = thin.images["T2w"].reshape(48, 56, 16, 3).mean(-1)
    assert np.abs(thick.images["T2w"] - expected).max() <= 1.01  # both are rounded
    assert thick.affine[2, 2] == pytest.approx(6.0)
    assert thick.affine[:3, 3] == pytest.approx(thin.affine[:3, 3] + [0, 0, 2.0])
    assert thick.labels.shape == thick.images["T2w"].shape
    weights, _ = scanner.slabs(10, 1.0, 2.5, np.eye(4))
    assert weights @ np.arange(10) == pytest.approx([0.8, 3.4, 5.6, 8.2], abs=0.21)


def test_misregistration_moves_all_but_the_first_modality(toy):
    config = replace(SMALL, noise=0.0, modalities=("T1w", "T2w"))
    still, moved = subject(2, 0, config, toy), subject(2, 0, replace(config, misregistration=2.0), toy)
    assert np.array_equal(still.images["T1w"], moved.images["T1w"])
    assert np.abs(still.images["T2w"] - moved.images["T2w"]).mean() > 10
    pose = np.array(moved.parameters["misregistration"]["T2w"])
    assert 0.1 < np.linalg.norm(pose[:3, 3]) < 10
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1, abs=1e-4)


def test_bias_and_noise_are_as_large_as_asked(toy):
    config = replace(SMALL, bias=0.0, noise=0.0, modalities=("T1w",), protocol_jitter=0.0)
    clean, noisy, biased = (subject(1, 0, replace(config, **k), toy) for k in ({}, {"noise": 0.05}, {"bias": 0.2}))
    white = clean.fractions["white"] > 0.95
    ratio = noisy.images["T1w"][white] - clean.images["T1w"][white]
    assert ratio.std() == pytest.approx(50, rel=0.1)  # white matter is stored as 1000
    field = np.log(biased.images["T1w"][white] / clean.images["T1w"][white])
    assert 0.02 < field.std() < 0.4
    empty = subject(1, 0, replace(config, noise=0.05, stripped=False), toy).images["T1w"][:3, :3, :3]
    assert empty.mean() == pytest.approx(50 * math.sqrt(math.pi / 2), rel=0.25)  # Rayleigh


def test_head_lies_around_the_brain(toy):
    config = replace(SMALL, shape=(64, 72, 64), head=True, stripped=False, modalities=("T1w",), noise=0.0)
    virtual = subject(1, 0, config, toy)
    middle = virtual.labels[:, 36, 32]
    first = [int(np.flatnonzero(middle == TISSUES[name].label)[0]) for name in ("scalp", "skull")]
    assert first[0] < first[1] < int(np.flatnonzero(np.isin(middle, (1, 2)))[0])
    scalp, bone = (virtual.images["T1w"][virtual.fractions[name] > 0.9].mean() for name in ("scalp", "skull"))
    assert scalp > 3 * bone


def test_template_looks_like_a_brain():
    brain = mni()
    volume = {name: float(part.sum(dtype=np.float64)) / 1000 for name, part in zip(anatomies.PARTS, brain.fractions)}
    assert 450 < volume["white"] < 800
    assert 600 < volume["cortex"] < 1000
    assert 12 < volume["ventricle"] < 45
    assert 8 < volume["thalamus"] < 22
    assert volume["choroid"] > 0.3
    assert np.abs(brain.extent / [145, 181, 155] - 1).max() < 0.05


# cohorts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(labelmap: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PhantomConfig]:
    out = tmp_path_factory.mktemp("cohort") / "virtual"
    config = replace(SMALL, labelmap=labelmap, tumour=1.0)
    told: list[tuple[int, int]] = []
    paths = make_cohort(out, 2, seed=5, config=config, workers=1, progress=lambda done, of: told.append((done, of)))
    assert paths == [out / "sub-001", out / "sub-002"]
    assert told == [(1, 2), (2, 2)]
    return out, config


def test_cohort_holds_what_subject_makes(cohort, labelmap):
    out, config = cohort
    virtual = subject(1, 5, config)
    volume = nifti.read(out / "sub-002/anat/sub-002_ce-gadolinium_T1w.nii.gz")
    assert np.array_equal(volume.data, virtual.images["T1Gd"])
    assert np.array_equal(volume.affine, virtual.affine)
    sidecar = json.loads((out / "sub-002/anat/sub-002_FLAIR.json").read_text())
    assert sidecar["Description"].startswith("SIMULATED")
    assert sidecar["InversionTime"] == pytest.approx(virtual.parameters["sequences"]["FLAIR"]["ti"] / 1000, abs=1e-6)
    truth = out / "derivatives/truth/sub-002/anat"
    assert np.array_equal(nifti.read(truth / "sub-002_desc-tissue_dseg.nii.gz").data, virtual.labels)
    grey = sum(part for name, part in virtual.fractions.items() if TISSUES[name].group == "GM")
    assert nifti.read(truth / "sub-002_label-GM_probseg.nii.gz").data == pytest.approx(grey, abs=6e-4)
    assert (
        json.loads((truth / "sub-002_desc-tissue_dseg.json").read_text())["Simulation"]["age"]
        == virtual.parameters["age"]
    )
    header, *rows = (out / "participants.tsv").read_text().splitlines()
    assert header.split("\t")[:3] == ["participant_id", "age", "sex"]
    assert float(rows[1].split("\t")[1]) == virtual.parameters["age"]


def test_same_files_whatever_the_number_and_the_workers(cohort, tmp_path):
    out, config = cohort
    make_cohort(tmp_path / "more", 3, seed=5, config=config, workers=2)
    for path in sorted(out.rglob("sub-00*.*")):
        assert path.read_bytes() == (tmp_path / "more" / path.relative_to(out)).read_bytes(), path.name


@pytest.mark.parametrize("part", ["", "derivatives/truth"])
def test_cohort_is_valid_bids(cohort, part, bids_errors):
    assert bids_errors(cohort[0] / part) == []


def test_an_existing_folder_is_refused_and_a_failure_leaves_nothing(cohort, tmp_path, labelmap):
    out, config = cohort
    with pytest.raises(InputError, match="already exists"):
        make_cohort(out, 1, config=config)
    other = tmp_path / "precious"
    other.mkdir()
    (other / "scan.txt").write_text("mine")
    with pytest.raises(InputError, match="not a virtual cohort"):
        make_cohort(other, 1, config=config, overwrite=True)
    assert (other / "scan.txt").read_text() == "mine"
    with pytest.raises(RuntimeError, match="stop"):
        make_cohort(tmp_path / "half", 1, config=config, workers=1, progress=_stop)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def _stop(done: int, of: int) -> None:
    raise RuntimeError("stop")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tumour": 1.5}, "between 0 and 1"),
        ({"noise": -0.1}, "0 or more"),
        ({"modalities": ("T1w", "cine")}, "the phantom can make"),
        ({"modalities": ()}, "wanted modality"),
        ({"head": True}, "stripped=False"),
        ({"shape": (4, 64, 64)}, "8 or more"),
        ({"age": (60.0, 20.0)}, "youngest"),
        ({"tumour_radius": (20.0, 10.0)}, "smallest"),
        ({"tumour_radius": (0.0, 10.0)}, "above 0"),
        ({"tumour_radius": (9.0, math.inf)}, "in mm"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings, words):
    with pytest.raises(InputError, match=words):
        PhantomConfig(**settings)


def test_bad_anatomies_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no label map there"):
        subject(0, 0, replace(SMALL, labelmap=tmp_path / "none.nii.gz"))
    text = tmp_path / "text.nii.gz"
    text.write_text("hello")
    with pytest.raises(InputError, match="cannot be read"):
        anatomies.from_labels(text)
    path = tmp_path / "nothing.nii.gz"
    nib.Nifti1Image(np.full((9, 9, 9), 3, np.int16), np.eye(4)).to_filename(path)
    with pytest.raises(InputError, match="no white matter"):
        anatomies.from_labels(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"amodal\[phantom\]"):
        anatomies.template()

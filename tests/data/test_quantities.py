"""CT, PET and T2* of the virtual cohort: units that hold, the physics of each, and files that are read back."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from amodal.data import layouts, nifti
from amodal.data.phantom import PhantomConfig, ct, deposits, make_cohort, pet, subject
from amodal.data.phantom import anatomy as anatomies

from .test_phantom import toy_labels

FIVE = ("T1w", "FLAIR", "T2starw", "CT", "PET")
SMALL = PhantomConfig(shape=(56, 64, 56), spacing=2.0, modalities=FIVE, tumour=0.0, lesions=0.0, protocol_jitter=0.0)
HEAD = replace(SMALL, shape=(60, 68, 60), head=True, stripped=False)


@pytest.fixture(scope="module")
def labelmap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "toy.nii.gz"
    nib.Nifti1Image(toy_labels(), np.diag([1.0, 1, 1, 1])).to_filename(path)
    return path


@lru_cache(maxsize=8)
def made(path: Path, index: int, config: PhantomConfig):
    return subject(index, 0, config, anatomies.from_labels(path))


def core(virtual, name: str, share: float = 0.97) -> np.ndarray:
    return virtual.fractions[name] > share


def test_hounsfield_units_by_tissue(labelmap):
    virtual = made(labelmap, 1, HEAD)
    image = virtual.images["CT"]
    assert image.min() >= -1024 and np.array_equal(image, np.rint(image))
    air = sum(virtual.fractions.values()) < 0.001
    assert image[air].mean() == pytest.approx(-1000, abs=0.5)
    assert image[air].std() == pytest.approx(ct.NOISE, rel=0.05)
    white, grey = (np.median(image[core(virtual, name)]) for name in ("white", "cortex"))
    assert 22 < white < 32 and 6 < grey - white < 14  # the beam is hardened by the skull, by a few HU
    assert 600 < image[core(virtual, "skull")].mean() < 1400
    assert image[core(virtual, "skull")].std() > 100  # dense tables around spongy bone
    assert -120 < np.percentile(image[core(virtual, "scalp")], 10) < -40  # fat
    # half bone and half fluid lies half way: partial volume is linear in HU
    mixed = ct.image(
        _still,
        {"csf": _box(0.5), "skull": _box(0.5), "scalp": _box(0.0)},
        _box(0.0),
        30.0,
        replace(SMALL, shape=(8, 8, 8)),
    )[0]
    pure = ct.image(_still, {"csf": _box(1.0)}, _box(0.0), 30.0, replace(SMALL, shape=(8, 8, 8)))[0]
    assert mixed.mean() > pure.mean() + 300


def _still(name: str) -> np.random.Generator:
    return np.random.default_rng(0)


def _box(value: float) -> np.ndarray:
    return np.full((8, 8, 8), value, np.float32)


def test_a_stripped_ct_is_air_outside_the_brain(labelmap):
    image = made(labelmap, 1, SMALL).images["CT"]
    inside = sum(made(labelmap, 1, SMALL).fractions.values()) > 0.5
    assert (image[~inside] == ct.AIR).all()
    assert (image[inside] > -700).all()


def test_uptake_is_in_suv_by_tissue_and_blurred(labelmap):
    virtual = made(labelmap, 1, HEAD)
    image = virtual.images["PET"]
    factor = virtual.parameters["sequences"]["PET"]
    assert factor["uptake_factor"] == 1 and factor["fwhm_mm"] == pytest.approx(np.hypot(3.9, 2.5), abs=1e-3)
    deep_white = np.median(image[core(virtual, "white", 0.999)])
    assert pet.UPTAKE["white"] * 0.75 < deep_white < pet.UPTAKE["white"] * 1.9  # grey matter spills in
    assert np.percentile(image[core(virtual, "cortex", 0.9)], 95) > 2.2 * deep_white
    assert image[core(virtual, "scalp")].mean() < 1.5
    assert image.min() >= 0


def test_uptake_falls_with_age_as_published():
    """26 % less at 78 than at 18 (Kuhl et al. 1982)."""
    share = {"cortex": _box(1.0)}
    config = replace(SMALL, shape=(8, 8, 8), protocol_jitter=0.0)
    young, old = (pet.uptake(_still, share, age, config)[0].mean() for age in (18.0, 78.0))
    assert old / young == pytest.approx(0.74, abs=1e-4)


def test_the_blur_has_the_width_it_says_and_keeps_the_activity():
    config = replace(SMALL, shape=(33, 33, 33), spacing=1.0, noise=0.0)
    point = {"vessel": np.zeros((33, 33, 33), np.float32)}
    point["vessel"][16, 16, 16] = 1.0
    image = pet.count(np.random.default_rng(0), pet.uptake(_still, point, 40.0, config)[0], config, 1.0)
    assert image.sum() == pytest.approx(pet.UPTAKE["vessel"], rel=1e-3)
    x = np.arange(33) - 16.0
    variance = (image.sum((1, 2)) * x**2).sum() / image.sum()
    assert np.sqrt(8 * np.log(2) * variance) == pytest.approx(np.hypot(pet.FWHM, pet.FILTER), rel=0.03)


def test_counts_are_poisson_variance_follows_the_mean():
    config = replace(SMALL, spacing=1.5)
    rng, sigma = np.random.default_rng(0), 0.0
    one, four = (pet.count(rng, np.full((40, 40, 40), a, np.float32), config, 1.5) for a in (2.0, 8.0))
    assert one.mean() == pytest.approx(2, rel=5e-3) and four.mean() == pytest.approx(8, rel=5e-3)
    sigma = one[4:-4, 4:-4, 4:-4].var()
    assert four[4:-4, 4:-4, 4:-4].var() / sigma == pytest.approx(4, rel=0.1)
    quiet = pet.count(rng, np.full((40, 40, 40), 2.0, np.float32), replace(config, noise=0.01), 1.5)
    assert sigma / quiet[4:-4, 4:-4, 4:-4].var() == pytest.approx(4, rel=0.1)


def test_iron_as_published():
    """Hallgren & Sourander 1958: pallidum 21.41 (1 - e^-0.09 t) + 0.37, putamen 14.62 (1 - e^-0.04 t) + 0.46."""
    assert deposits.iron("pallidum", 30) == pytest.approx(20.341, abs=1e-3)
    assert deposits.iron("striatum", 30) == pytest.approx(10.677, abs=1e-3)


def test_iron_darkens_the_pallidum_in_t2star_with_age_and_leaves_t1w(labelmap):
    young, old = (
        made(labelmap, 2, replace(SMALL, age=(age, age), modalities=("T1w", "T2starw"), warp=0.0))
        for age in (20.0, 80.0)
    )
    for name, bound in (("T2starw", 0.97), ("T1w", 1.0)):
        ratio = [
            v.images[name][core(v, "pallidum", 0.9)].mean() / v.images[name][core(v, "white")].mean()
            for v in (young, old)
        ]
        assert ratio[1] < ratio[0] * bound if bound < 1 else abs(ratio[1] / ratio[0] - 1) < 0.02
    fields = [v.images["T2starw"][core(v, "pallidum", 0.9)].mean() for v in (young, old)]
    assert fields[1] < fields[0]


def test_one_modality_does_not_change_another(labelmap):
    alone = made(labelmap, 3, replace(SMALL, modalities=("T1w", "PET")))
    assert np.array_equal(alone.images["T1w"], made(labelmap, 3, SMALL).images["T1w"])
    assert np.array_equal(alone.images["PET"], made(labelmap, 3, SMALL).images["PET"])


def test_thick_slices_and_misregistration_of_quantities(labelmap):
    config = replace(SMALL, noise=0.0, stripped=False, modalities=("CT", "PET"))
    thin, thick = (made(labelmap, 2, replace(config, slice_thickness=t)) for t in (0.0, 8.0))
    assert thick.images["CT"].shape == (56, 64, 14)
    expected = thin.images["CT"].reshape(56, 64, 14, 4).mean(-1)
    assert np.abs(thick.images["CT"] - expected).max() <= 1.01
    moved = made(labelmap, 2, replace(config, misregistration=2.0))
    assert np.abs(moved.images["PET"] - thin.images["PET"]).max() > 0.3
    assert moved.images["CT"].min() >= -1001


@pytest.fixture(scope="module")
def cohort(labelmap, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("five") / "cohort"
    make_cohort(out, 2, seed=3, config=replace(SMALL, labelmap=labelmap), workers=1)
    return out


def test_what_is_written_is_read_back(cohort, labelmap):
    virtual = subject(1, 3, replace(SMALL, labelmap=labelmap))
    sources = layouts.find(cohort)
    assert [tuple(source.files) for source in sources] == [FIVE, FIVE]
    study = sources[1].read()
    for name in FIVE:
        assert np.array_equal(study[name].data, virtual.images[name]), name
    assert (cohort / "sub-002/ct/sub-002_ct.nii.gz").is_file()
    pet_file = cohort / "sub-002/pet/sub-002_pet.nii.gz"
    assert nib.load(pet_file).get_data_dtype() == np.float32
    sidecar = json.loads(pet_file.with_name("sub-002_pet.json").read_text())
    assert sidecar["Units"] == "g/ml" and sidecar["TracerName"] == "FDG" and sidecar["Description"].startswith("SIM")
    assert nifti.read(cohort / "sub-001/anat/sub-001_T2starw.nii.gz").shape == SMALL.shape


def test_the_cohort_is_valid_bids(cohort, bids_errors):
    assert bids_errors(cohort) == []

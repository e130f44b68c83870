"""The public surface, as the README shows it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

import amodal
from amodal.core.contract import Grid
from amodal.core.errors import InputError
from amodal.methods import any2all
from amodal.model import Model

SHAPE = (24, 20, 6)
AFFINE = np.diag([-1.0, 1.0, 3.0, 1.0])


@pytest.fixture
def subject(tmp_path, nifti_file):
    """A BIDS subject with T1w, T1Gd and T2w."""
    rng = np.random.default_rng(0)
    head = np.zeros(SHAPE, np.float32)
    head[4:20, 3:17] = 1
    (tmp_path / "ds" / "sub-01" / "anat").mkdir(parents=True)
    for name in ("T1w", "ce-gadolinium_T1w", "T2w"):
        data = (head * rng.uniform(100, 200, SHAPE)).astype(np.float32)
        nifti_file(f"ds/sub-01/anat/sub-01_{name}.nii.gz", data=data, affine=AFFINE, sform=2, qform=1)
    return tmp_path / "ds" / "sub-01"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    method = any2all.build(dataclasses.replace(any2all.tiny(), steps=2))
    windows = dict.fromkeys(method.modalities, (0.0, 100.0))
    return Model("any2all", method, Grid(), windows).save(tmp_path / "model")


def test_the_readme(subject, folder, tmp_path):
    study = amodal.read(subject)
    assert study.modalities == ("T1w", "T1Gd", "T2w") and study["T1w"].data.shape == SHAPE
    model = amodal.load(folder, device="cpu")
    full = model.complete(study, missing=["FLAIR"], samples=4, seed=0)
    full["FLAIR"].save(tmp_path / "flair.nii.gz")
    assert full.made == ("FLAIR",) and full.spread["FLAIR"].shape == SHAPE

    saved, reference = (nib.load(p) for p in (tmp_path / "flair.nii.gz", next(subject.rglob("*T2w.nii.gz"))))
    assert saved.shape == SHAPE and np.array_equal(saved.affine, reference.affine)
    for field in ("sform_code", "qform_code", "pixdim", "xyzt_units", "srow_x"):
        assert np.array_equal(saved.header[field], reference.header[field]), field
    np.testing.assert_allclose(saved.get_fdata(), full["FLAIR"].data, rtol=1e-6)
    background = full["T1w"].data == 0
    assert background.any() and (saved.get_fdata()[background] == 0).all()
    with pytest.raises(InputError, match="flair.nii.gz"):
        full["FLAIR"].save(tmp_path / "flair.nii.gz")
    full["FLAIR"].save(tmp_path / "flair.nii.gz", overwrite=True)


def test_what_was_acquired_is_not_touched(subject, folder):
    before = {p: p.read_bytes() for p in sorted(subject.rglob("*")) if p.is_file()}
    amodal.load(folder, device="cpu").complete(amodal.read(subject))
    assert {p: p.read_bytes() for p in sorted(subject.rglob("*")) if p.is_file()} == before


def test_read_takes_one_subject(subject, nifti_file, tmp_path):
    (tmp_path / "ds" / "sub-02" / "anat").mkdir(parents=True)
    nifti_file("ds/sub-02/anat/sub-02_T1w.nii.gz", shape=SHAPE)
    with pytest.raises(InputError, match="holds 2 studies .sub-01, sub-02.; give the folder of one of them"):
        amodal.read(subject.parent)


def test_a_study_of_ones_own(folder):
    """Volumes from arrays, no files at all."""
    rng = np.random.default_rng(0)
    volumes = {name: amodal.Volume(rng.uniform(0, 1, SHAPE), AFFINE) for name in ("t1", "t2")}
    full = amodal.load(folder, device="cpu").complete(amodal.Study("me", volumes))
    assert full.made == ("T1Gd", "FLAIR") and np.array_equal(full["FLAIR"].affine, AFFINE)


def test_the_public_names():
    assert set(amodal.__all__) == {"Study", "Volume", "load", "read"}
    assert all(callable(getattr(amodal, name)) for name in amodal.__all__)
    with pytest.raises(
        AttributeError, match="module 'amodal' has no attribute 'lood'; it has Study, Volume, load, read"
    ):
        amodal.lood  # noqa: B018


def test_importing_amodal_is_light():
    """torch comes with the first use, not with the name: `amodal --help` must not wait for it."""
    heavy = "print(*[m for m in ('torch', 'SimpleITK', 'nibabel', 'numpy') if m in sys.modules])"
    code = f"import sys, amodal, amodal.cli; {heavy}; amodal.Volume; {heavy}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == ["", "nibabel numpy"]

"""Volumes, studies and sources as values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amodal.core.errors import InputError
from amodal.data import nifti
from amodal.data.volume import Source, Study, Volume, distance, same_grid


def volume(value: float = 1.0, affine: np.ndarray | None = None) -> Volume:
    return Volume(np.full((4, 5, 6), value), np.eye(4) if affine is None else affine)


def test_a_volume_knows_its_spacing_and_orientation():
    oblique = np.array([[-0.8, 0.3, 0, 10], [0.6, 0.4, 0, -20], [0, 0, 5, 0], [0, 0, 0, 1.0]])
    v = volume(affine=oblique)
    assert v.spacing == pytest.approx((1.0, 0.5, 5.0))
    assert v.orientation == "LAS" and v.shape == (4, 5, 6) and v.data.dtype == np.float32
    for data, affine in ((np.zeros((4, 5)), np.eye(4)), (np.zeros((4, 5, 6)), np.eye(3))):
        with pytest.raises(ValueError):
            Volume(data, affine)


def test_like_keeps_grid_and_header_and_drops_the_path(nifti_file, tmp_path):
    v = nifti.read(nifti_file(affine=np.diag([-1, -1, 3, 1.0]), edit=lambda h: h.__setitem__("descrip", b"scanner")))
    new = v.like(v.data * 2)
    assert new.path is None and new.header is v.header and np.array_equal(new.affine, v.affine)
    made = v.like(v.data * 2, descrip="SYNTHETIC FLAIR")
    made.save(tmp_path / "out.nii.gz")
    again = nifti.read(tmp_path / "out.nii.gz")
    assert again.header["descrip"].item() == b"SYNTHETIC FLAIR"
    assert v.header["descrip"].item() == b"scanner"  # the source's own header is not touched
    assert np.array_equal(again.data, v.data * 2) and np.array_equal(again.affine, v.affine)
    assert Volume(v.data, v.affine).like(v.data, descrip="SYNTHETIC").header["descrip"].item() == b"SYNTHETIC"
    with pytest.raises(ValueError):
        v.like(v.data[1:])


def test_distance_is_that_of_the_farthest_corner():
    turned = np.eye(4)
    turned[0, 0] = 1.01  # 1 % longer along x: 3 voxels away from the origin that is 0.03 mm
    assert distance(np.eye(4), turned, (4, 5, 6)) == pytest.approx(0.03)
    turned[:3, 3] = 3, 4, 0
    assert distance(np.eye(4), turned, (1, 5, 6)) == pytest.approx(5.0)


def test_same_grid():
    nudged, moved = np.eye(4), np.eye(4)
    nudged[0, 3], moved[0, 3] = 0.01, 0.5
    assert same_grid(volume(), volume(2.0)) and same_grid(volume(), volume(affine=nudged))
    assert not same_grid(volume(), volume(affine=moved))
    assert not same_grid(volume(), Volume(np.zeros((4, 5, 7)), np.eye(4)))
    assert same_grid(volume(), volume(affine=moved), tolerance=0.6)


def test_a_study_is_in_canonical_order_under_canonical_names():
    study = Study("sub-01", {"flair": volume(4), "t1ce": volume(2), "T2": volume(3), "t1n": volume(1)}, session="1")
    assert study.modalities == tuple(study) == ("T1w", "T1Gd", "T2w", "FLAIR")
    assert [study[name].data[0, 0, 0] for name in study] == [1, 2, 3, 4]
    assert study["t1c"] is study["T1Gd"] and "t2f" in study and "PDw" not in study and "nonsense" not in study
    assert study.label == "sub-01_ses-1" and len(study) == 4
    assert Study("sub-01", {}).label == "sub-01"


def test_the_reference_is_the_first_present():
    study = Study("s", {"FLAIR": volume(), "T2w": volume(), "T1Gd": volume()})
    assert study.reference == "T1Gd" and study.without("T1Gd").reference == "T2w"
    with pytest.raises(InputError, match="holds no volume"):
        _ = study.only("PDw").reference


def test_without_and_only_leave_the_study_as_it_was():
    study = Study("s", {"T1w": volume(), "FLAIR": volume()}, metadata={"age": 61}, notes=("as it came",))
    assert study.without("flair", "PDw").modalities == ("T1w",)
    assert study.only("FLAIR", "T2w").modalities == ("FLAIR",)
    assert study.modalities == ("T1w", "FLAIR")
    assert study.without("FLAIR").metadata == {"age": 61} and study.only("T1w").notes == ("as it came",)


def test_what_is_wrong_with_a_study_is_said():
    study = Study("sub-01", {"T1w": volume()})
    with pytest.raises(InputError, match="sub-01 has no FLAIR; choose one of T1w"):
        _ = study["FLAIR"]
    with pytest.raises(InputError, match="two images for T1Gd"):
        Study("sub-01", {"t1ce": volume(), "T1Gd": volume()})
    with pytest.raises(InputError, match="unknown"):
        Study("sub-01", {"t9": volume()})


def test_a_source_reads_its_files(nifti_file):
    def shift(header):
        header["qoffset_z"] += 30

    files = {"t2": nifti_file("b.nii.gz", seed=2, edit=shift), "t1": nifti_file("a.nii.gz", seed=1)}
    source = Source("sub-01", "2", files, {"age": 61})
    assert tuple(source.files) == ("T1w", "T2w") and source.label == "sub-01_ses-2"
    study = source.read()
    assert study.modalities == ("T1w", "T2w") and study.session == "2" and study.metadata == {"age": 61}
    assert study["T1w"].path == files["t1"] and study.source is source
    assert np.array_equal(study["T2w"].data, nifti.read(files["t2"]).data)
    assert len(study.notes) == 1 and "b.nii.gz" in study.notes[0] and "30.0 mm" in study.notes[0]
    with pytest.raises(InputError, match="gone.nii.gz"):
        Source("sub-01", None, {"T1w": Path("gone.nii.gz")}).read()

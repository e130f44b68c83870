"""NIfTI: what is read is what is there, what is written keeps the geometry, and bad files get a sentence."""

from __future__ import annotations

import gzip
import hashlib
import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amodal.core.contract import Grid
from amodal.core.errors import AmodalError, InputError
from amodal.data import nifti
from amodal.data.frame import Frame
from amodal.data.volume import Volume

GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def rotation(degrees: float, axis: int = 2) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    out = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    out[i, i], out[i, j], out[j, i], out[j, j] = c, -s, s, c
    return out


def affine_of(directions: np.ndarray, spacing=(1.0, 1.0, 1.0), origin=(-90.5, 126.25, -72.0)) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = np.asarray(directions) * np.asarray(spacing)
    out[:3, 3] = origin
    return out


LPS = np.diag([-1.0, -1.0, 1.0])
PSR = np.array([[0, 0, 1.0], [-1, 0, 0], [0, 1, 0]])
SHEAR = np.eye(3) + np.array([[0, 0.12, 0], [0, 0, 0.07], [0, 0, 0]])
# name -> how the file is made; each must come back bit for bit through read, Frame, leave, write, read
CASES = {
    "RAS": {"affine": affine_of(np.eye(3))},
    "LAS": {"affine": affine_of(np.diag([-1.0, 1, 1])), "sform": 0},
    "LPS": {"affine": affine_of(LPS), "sform": 1, "qform": 2},
    "PSR": {"affine": affine_of(PSR, (1.0, 1.1, 1.2)), "qform": 4},
    "oblique": {"affine": affine_of(rotation(20, 0) @ rotation(20, 2) @ LPS)},
    "oblique, qform only": {"affine": affine_of(rotation(20, 1) @ PSR), "sform": 0},
    "sheared": {"affine": affine_of(SHEAR), "sform": 2, "qform": 0},
    "0.7 mm": {"affine": affine_of(LPS, (0.7, 0.7, 0.7))},
    "5 mm slices": {"affine": affine_of(LPS, (0.9, 0.9, 5.0))},
    "odd sizes": {"shape": (31, 17, 13), "affine": affine_of(LPS)},
    "int16 with slope": {"dtype": np.int16, "slope": (0.37, -12.5), "affine": affine_of(LPS)},
    "uint16": {"dtype": np.uint16, "affine": affine_of(LPS)},
    "big-endian": {"dtype": np.int16, "big": True, "slope": (2.0, 1.0), "affine": affine_of(PSR)},
    "4-D with a trailing 1": {"shape": (7, 9, 5, 1), "affine": affine_of(LPS)},
    "5-D with trailing 1s": {"shape": (7, 9, 5, 1, 1), "affine": affine_of(LPS)},
    "neither code": {"sform": 0, "qform": 0, "affine": np.diag([1.0, 1, 1.5, 1])},
    "qfac 0": {"sform": 1, "qform": 0, "edit": lambda h: h["pixdim"].__setitem__(0, 0)},
}


def disk_header(path) -> nib.Nifti1Header:
    raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    return nib.Nifti1Header(raw[:348], check=False)


@pytest.mark.parametrize("name", CASES)
def test_round_trip_is_exact(name, nifti_file, tmp_path):
    path = nifti_file(**CASES[name])
    volume = nifti.read(path)
    frame = Frame.of(volume, Grid())
    assert not frame.resampled
    back = frame.leave(frame.enter(volume))
    nifti.write(tmp_path / "out.nii.gz", back, like=volume, descrip="SYNTHETIC")
    again = nifti.read(tmp_path / "out.nii.gz")
    assert again.data.tobytes() == volume.data.tobytes()
    assert np.array_equal(again.affine, volume.affine)
    before, after = disk_header(path), disk_header(tmp_path / "out.nii.gz")
    for field in GEOMETRY:
        assert np.asarray(before[field]).tolist() == np.asarray(after[field]).tolist(), field
    assert after["descrip"].item() == b"SYNTHETIC"
    assert after["scl_slope"] == 1 and after["scl_inter"] == 0
    # and nibabel, the reader everybody has, sees the same picture in the same place
    ours, theirs = nib.load(tmp_path / "out.nii.gz"), nib.load(path)
    assert ours.shape == theirs.shape and np.array_equal(ours.affine, theirs.affine)
    assert np.array_equal(np.asarray(ours.dataobj), theirs.get_fdata().astype(np.float32))


@pytest.mark.parametrize("name", CASES)
def test_reads_what_nibabel_reads(name, nifti_file):
    path = nifti_file(**CASES[name])
    volume, image = nifti.read(path), nib.load(path)
    assert volume.data.dtype == np.float32 and volume.data.ndim == 3
    assert np.array_equal(volume.data, np.squeeze(image.get_fdata()).astype(np.float32))
    assert np.array_equal(volume.affine, image.affine)
    assert volume.path == path and volume.header is not None


def test_what_it_is_goes_by_content_not_by_name(nifti_file):
    plain = nifti_file("a.nii", seed=3)
    packed = nifti_file("b.nii.gz", seed=3)
    misnamed = plain.with_name("c.nii.gz")
    misnamed.write_bytes(plain.read_bytes())
    assert nifti.read(plain).data.tobytes() == nifti.read(packed).data.tobytes() == nifti.read(misnamed).data.tobytes()


def test_nifti2_stays_nifti2(tmp_path):
    path = tmp_path / "two.nii.gz"
    data = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    nib.save(nib.Nifti2Image(data, affine_of(rotation(20) @ LPS)), path)
    volume = nifti.read(path)
    nifti.write(tmp_path / "out.nii", volume.data, like=volume)
    image = nib.load(tmp_path / "out.nii")
    assert type(image) is nib.Nifti2Image
    assert np.array_equal(image.affine, volume.affine) and np.array_equal(image.get_fdata(), data)


def test_a_volume_without_header_gets_both_forms_or_only_sform_when_sheared(tmp_path):
    data = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    for directions, codes in ((rotation(20, 0) @ PSR, (1, 1)), (SHEAR, (1, 0))):
        affine = affine_of(directions, (0.7, 1.0, 5.0))
        nifti.write(tmp_path / "x.nii.gz", data, like=Volume(data, affine), overwrite=True)
        image = nib.load(tmp_path / "x.nii.gz")
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == codes
        assert np.allclose(image.affine, affine, atol=1e-5)
        assert np.allclose(image.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0))
        assert image.header.get_xyzt_units()[0] == "mm"
        if codes[1]:
            assert np.allclose(image.get_qform(), affine, atol=1e-4)


def test_a_stale_header_does_not_lie_about_a_new_grid(nifti_file, tmp_path):
    volume = nifti.read(nifti_file(affine=affine_of(LPS)))
    moved = volume.affine.copy()
    moved[:3, 3] += 10
    for new in (Volume(volume.data[1:], volume.affine, volume.header), Volume(volume.data, moved, volume.header)):
        nifti.write(tmp_path / "x.nii.gz", new.data, like=new, overwrite=True)
        again = nifti.read(tmp_path / "x.nii.gz")
        assert again.shape == new.shape and np.allclose(again.affine, new.affine, atol=1e-4)


def test_source_type_rounds_and_clips(nifti_file, tmp_path):
    volume = nifti.read(nifti_file(dtype=np.uint16, shape=(2, 2, 2)))
    values = np.array([-3, 0.4, 0.6, 1.5, 2.5, 70000, 65535, 12], np.float32).reshape(2, 2, 2)
    nifti.write(tmp_path / "x.nii.gz", values, like=volume, dtype="source")
    image = nib.load(tmp_path / "x.nii.gz")
    assert image.get_data_dtype() == np.uint16
    assert np.asarray(image.dataobj).ravel().tolist() == [0, 0, 1, 2, 2, 65535, 65535, 12]


def test_source_type_with_slope_keeps_the_slope(nifti_file, tmp_path):
    volume = nifti.read(
        nifti_file(dtype=np.int16, slope=(0.005, 0.0))
    )  # real values up to 1: plain integers would lose all
    nifti.write(tmp_path / "x.nii.gz", volume.data, like=volume, dtype="source")
    again = nifti.read(tmp_path / "x.nii.gz")
    assert again.data.tobytes() == volume.data.tobytes()
    assert again.header.get_data_dtype() == np.int16
    nifti.write(tmp_path / "y.nii.gz", volume.data * 100, like=volume, dtype=np.int16)
    assert np.array_equal(nifti.read(tmp_path / "y.nii.gz").data, np.rint(volume.data * 100))


def test_only_geometry_travels(nifti_file, tmp_path):
    def edit(header):
        header["intent_name"] = b"Jane Doe"
        header["aux_file"] = b"jane.txt"
        header["cal_max"] = 500
        header["slice_duration"] = 0.1
        header["descrip"] = b"scanner"

    volume = nifti.read(nifti_file(edit=edit))
    nifti.write(tmp_path / "x.nii.gz", volume.data, like=volume, descrip="SYNTHETIC " + "x" * 200)
    header = disk_header(tmp_path / "x.nii.gz")
    assert header["intent_name"].item() == header["aux_file"].item() == b""
    assert header["cal_max"] == 0 and header["slice_duration"] == 0
    assert len(header["descrip"].item()) == 79
    nifti.write(tmp_path / "y.nii.gz", volume.data, like=volume)
    assert disk_header(tmp_path / "y.nii.gz")["descrip"].item() == b"scanner"


def test_same_data_same_bytes_and_the_reference_is_untouched(nifti_file, tmp_path):
    path = nifti_file(affine=affine_of(LPS))
    before = nifti.sha256(path)
    volume = nifti.read(path)
    nifti.write(tmp_path / "one.nii.gz", volume.data, like=volume)
    os.utime(tmp_path / "one.nii.gz", (0, 0))
    nifti.write(tmp_path / "two.nii.gz", volume.data, like=volume)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()
    assert (tmp_path / "one.nii.gz").read_bytes()[3:8] == b"\0" * 5  # gzip: no name inside, and no date
    assert nifti.sha256(path) == before == hashlib.sha256(path.read_bytes()).hexdigest()


def test_writing_is_all_or_nothing(nifti_file, tmp_path, monkeypatch):
    volume = nifti.read(nifti_file())
    folder = tmp_path / "new" / "folder"
    out = folder / "x.nii.gz"
    volume.save(out)
    kept = out.read_bytes()
    with pytest.raises(InputError, match="already exists"):
        nifti.write(out, volume.data + 1, like=volume)
    assert out.read_bytes() == kept

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(AmodalError, match="No space left"):
            nifti.write(out, volume.data + 1, like=volume, overwrite=True)
    assert out.read_bytes() == kept and [p.name for p in folder.iterdir()] == ["x.nii.gz"]
    nifti.write(out, volume.data + 1, like=volume, overwrite=True)
    assert np.array_equal(nifti.read(out).data, volume.data + 1)
    assert [p.name for p in folder.iterdir()] == ["x.nii.gz"]


def test_what_cannot_be_written_is_refused(nifti_file, tmp_path):
    volume = nifti.read(nifti_file())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        volume.save(tmp_path / "file" / "x.nii.gz")
    with pytest.raises(InputError, match=r"\.nii\.gz or \.nii"):
        volume.save(tmp_path / "x.png")
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(InputError, match="already exists"):
        volume.save(tmp_path / "folder.nii.gz", overwrite=True)
    nan = volume.data.copy()
    nan[0, 0, 0] = np.nan
    with pytest.raises(AmodalError, match="1 voxels that are not finite"):
        nifti.write(tmp_path / "nan.nii.gz", nan, like=volume)
    assert not (tmp_path / "nan.nii.gz").exists()
    with pytest.raises(ValueError, match="like"):
        nifti.write(tmp_path / "x.nii.gz", nan[1:], like=volume)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def with_value(value: float) -> np.ndarray:
    data = ramp(7, 9, 5)
    data[3, 4, 2] = data[0, 0, 0] = value
    return data


def no_affine(header) -> None:
    header["srow_x"] = header["srow_y"] = header["srow_z"] = 0


def flat(header) -> None:
    header["srow_z"] = header["srow_y"]


BAD = {  # what the file is -> how it is made, what the message must say
    "4-D series": ({"shape": (7, 9, 5, 3)}, r"4-D series \(7x9x5x3\)"),
    "2-D image": ({"shape": (7, 9)}, r"2-D image \(7x9\)"),
    "complex": ({"data": ramp(7, 9, 5).astype(np.complex64), "dtype": np.complex64}, "complex64"),
    "RGB": ({"shape": (7, 9, 5), "dtype": np.uint8, "edit": lambda h: h.set_data_dtype("RGB")}, "RGB"),
    "NaN": ({"data": with_value(np.nan)}, "2 of 315 voxels are NaN"),
    "infinite": ({"data": with_value(-np.inf)}, "2 of 315 voxels are NaN or infinite"),
    "overflow": ({"data": with_value(1).astype(np.float64) * 1e300, "dtype": np.float64}, "NaN or infinite"),
    "all zero": ({"data": np.zeros((7, 9, 5), np.float32)}, "all voxels are 0"),
    "constant": ({"data": np.full((7, 9, 5), 3.0, np.float32)}, "all voxels are 3"),
    "flat affine": ({"edit": flat}, "cannot be inverted"),
    "zero affine": ({"qform": 0, "edit": no_affine}, "cannot be inverted"),
    "NaN affine": ({"edit": lambda h: h["srow_x"].__setitem__(0, np.nan)}, "cannot be inverted"),
    "zero spacing": ({"sform": 0, "qform": 0, "edit": lambda h: h["pixdim"].__setitem__(2, 0)}, "cannot be inverted"),
    "bad quaternion": ({"sform": 0, "qform": 1, "edit": lambda h: h.__setitem__("quatern_b", 2)}, "qform"),
    "pair": ({"edit": lambda h: h.__setitem__("magic", b"ni1")}, "hdr/.img"),
    "not a header": ({"edit": lambda h: h.__setitem__("magic", b"abc")}, "damaged NIfTI header"),
    "unknown type": ({"edit": lambda h: h.__setitem__("datatype", 77)}, "damaged NIfTI header"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_sentence(name, nifti_file):
    options, message = BAD[name]
    path = nifti_file(**options)
    with pytest.raises(InputError, match=message) as caught:
        nifti.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and text.endswith(".") and "\n" not in text


def test_bad_paths_get_one_sentence(nifti_file, tmp_path):
    good = nifti_file("good.nii.gz")
    packed, raw = good.read_bytes(), gzip.decompress(good.read_bytes())
    contents = {
        "text.nii.gz": (b"subject,age\n1,61\n", "not a NIfTI file"),
        "empty.nii.gz": (b"", "not a NIfTI file"),
        "short.nii": (raw[:200], "not a NIfTI file"),
        "zip.nii.gz": (gzip.compress(b"hello"), "not a NIfTI file"),
        "half.nii.gz": (packed[: len(packed) // 2], "truncated or damaged"),
        "tail.nii.gz": (packed[:-4], "truncated or damaged"),
        "flipped.nii.gz": (packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:], "truncated or damaged"),
        "cut.nii": (raw[:-1], f"truncated, {len(raw) - 1} of {len(raw)} bytes"),
        "recut.nii.gz": (gzip.compress(raw[:-100]), f"truncated, {len(raw) - 100} of {len(raw)} bytes"),
        "scan.dcm": (raw, "dcm2niix"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            nifti.read(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        nifti.read(tmp_path / "none.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(InputError, match="folder"):
        nifti.read(tmp_path / "folder.nii.gz")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 351), junk=st.binary(min_size=1, max_size=8))
def test_no_header_makes_it_fall_over(at, junk, nifti_file):
    """Whatever the header holds, the answer is a volume or a sentence, never another exception."""
    path = nifti_file("fuzz.nii", shape=(3, 4, 5), dtype=np.int16)
    raw = bytearray(path.read_bytes())
    raw[at : at + len(junk)] = junk
    path.write_bytes(raw)
    try:
        volume = nifti.read(path)
    except InputError:
        return
    assert np.isfinite(volume.data).all() and abs(np.linalg.det(volume.affine)) > 0
    assert isinstance(nifti.remarks(volume), tuple)


def test_forms_that_disagree_are_remarked_not_refused(nifti_file):
    def shift(header):
        header["qoffset_x"] += 12.5

    volume = nifti.read(nifti_file(affine=affine_of(LPS), edit=shift))
    assert np.allclose(volume.affine, affine_of(LPS))
    (remark,) = nifti.remarks(volume)
    assert "12.5 mm" in remark and "image.nii.gz" in remark
    for value in (2, np.nan):  # no quaternion
        volume = nifti.read(nifti_file(edit=lambda h, value=value: h.__setitem__("quatern_c", value)))
        assert nifti.remarks(volume) == ("image.nii.gz: its qform is not a rotation; the sform was used.",)
    assert nifti.remarks(nifti.read(nifti_file(affine=affine_of(rotation(20) @ LPS)))) == ()
    assert nifti.remarks(nifti.read(nifti_file(sform=2, qform=0, affine=affine_of(SHEAR)))) == ()


def test_real_scans_come_back_bit_for_bit(data_root, tmp_path):
    paths = [*sorted(data_root.glob("open-ms-mni/sub-07/anat/*_T1w.nii.gz"))[:1], data_root / "sri24" / "t1.nii.gz"]
    paths += sorted(data_root.glob("open-ms-raw/sub-01/ses-1/anat/*_FLAIR.nii.gz"))
    for path in paths:
        volume = nifti.read(path)
        frame = Frame.of(volume, Grid())
        nifti.write(tmp_path / "x.nii", frame.leave(frame.enter(volume)), like=volume, overwrite=True)
        again = nifti.read(tmp_path / "x.nii")
        assert again.data.tobytes() == volume.data.tobytes(), path
        for field in GEOMETRY:
            assert np.array_equal(disk_header(path)[field], disk_header(tmp_path / "x.nii")[field]), (path, field)

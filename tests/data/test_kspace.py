"""K-space files: each format read into its place, and each kind of bad input refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from amodal.core.errors import InputError
from amodal.data import kspace as module
from amodal.data.kspace import read

Z, C, X, Y = 3, 2, 8, 6
RNG = np.random.default_rng(0)
IMAGE = (RNG.normal(size=(Z, C, X, Y)) + 1j * RNG.normal(size=(Z, C, X, Y))).astype(np.complex64)


def forward(image, axes=(-2, -1)):
    shifted = np.fft.ifftshift(image, axes=axes)
    return np.fft.fftshift(np.fft.fftn(shifted, axes=axes, norm="ortho"), axes=axes).astype(np.complex64)


FULL = forward(IMAGE)
KEPT = np.array([1, 0, 1, 1, 0, 1], bool)
PART = np.where(KEPT, FULL, 0)


def save(tmp_path, name="k.npz", **arrays):
    path = tmp_path / name
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("data", "shape"), [(PART, (Z, C, X, Y)), (PART[0], (1, C, X, Y)), (PART[0, 0], (1, 1, X, Y))]
)  # fmt: skip
def test_npy_in_all_its_layouts(tmp_path, data, shape):
    np.save(tmp_path / "k.npy", data.astype(np.complex128))
    found = read(tmp_path / "k.npy")
    assert found.data.shape == shape and found.data.dtype == np.complex64
    assert np.array_equal(found.data.reshape(data.shape), data)
    assert found.sampled.shape == (1, 1, X, Y) and np.array_equal(found.sampled[0, 0, 0], KEPT)
    assert found.matrix == (X, Y) and found.affine is None and found.maps is None


def test_npz_with_all_it_may_hold(tmp_path):
    affine = np.diag([2.0, 2, 3, 1])
    maps = (IMAGE[0] / 3).astype(np.complex128)
    path = save(tmp_path, kspace=FULL, sampled=KEPT, maps=maps, affine=affine, noise=0.1, spacing=(1, 2, 3))
    found = read(path)
    assert np.array_equal(found.data, PART)  # the mask rules
    assert found.maps.shape == (1, C, X, Y) and found.maps.dtype == np.complex64
    assert np.array_equal(found.affine, affine) and found.noise == 0.1 and found.spacing == (1, 2, 3)


def test_some_slices_only(tmp_path):
    mask = np.broadcast_to(KEPT, (Z, X, Y)).copy()
    mask[1, :, 1] = True
    path = save(tmp_path, kspace=FULL, sampled=mask, maps=IMAGE)
    found = read(path, (1, 3))
    assert found.data.shape[0] == 2 and found.sampled.shape == (2, 1, X, Y) and len(found.maps) == 2
    assert found.sampled[0, 0, 0, 1] and not found.sampled[1, 0, 0, 1]
    with pytest.raises(InputError, match=r"slices 2:5 of 3"):
        read(path, (2, 5))


def test_masks_that_differ_between_slices_are_seen(tmp_path):
    data = PART.copy()
    data[1, :, :, 1] = FULL[1, :, :, 1]
    np.save(tmp_path / "k.npy", data)
    found = read(tmp_path / "k.npy")
    assert found.sampled.shape == (Z, 1, X, Y) and found.sampled[1, 0, 0, 1] and not found.sampled[0, 0, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"kspace": FULL.real.astype(np.int16)}, "int16; it must be complex"),
        ({"kspace": FULL.real}, "float32; it must be complex"),
        ({"kspace": np.where(KEPT, FULL, np.nan)}, "NaN or infinite"),
        ({"kspace": FULL, "sampled": np.zeros(Y)}, "samples nothing"),
        ({"kspace": np.zeros_like(FULL)}, "samples nothing"),
        ({"kspace": np.zeros_like(FULL), "sampled": KEPT}, "0 wherever it was sampled"),
        ({"kspace": FULL, "sampled": np.ones(Y + 1)}, "a mask of 7 differ"),
        ({"kspace": FULL, "sampled": np.ones((X, Y, 1))}, "a mask of 8 x 6 x 1 differ"),
        ({"kspace": FULL, "maps": IMAGE[:, :, :-1]}, "k-space of 3 x 2 x 8 x 6 and coil maps of 3 x 2 x 7 x 6"),
        ({"kspace": FULL, "maps": np.full_like(IMAGE, np.nan)}, "maps hold NaN"),
        ({"kspace": FULL[0, 0, 0]}, "an array of 6 is no k-space"),
        ({"kspace": FULL, "affine": np.eye(3)}, "no invertible 4x4"),
        ({"kspace": FULL, "spacing": (1, 0, 1)}, "three sizes of a voxel"),
        ({"other": FULL}, "holds other; name the array"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, words):
    with pytest.raises(InputError, match=words) as error:
        read(save(tmp_path, **arrays))
    assert "k.npz" in str(error.value)


def test_bad_files_are_refused(tmp_path):
    for name, words in (("none.npy", "no such file"), ("k.mat", "no such file")):
        with pytest.raises(InputError, match=words):
            read(tmp_path / name)
    (tmp_path / "k.mat").write_bytes(b"x")
    (tmp_path / "k.npy").write_bytes(b"not numpy")
    (tmp_path / "k.npz").write_bytes(b"not a zip")
    (tmp_path / "k.h5").write_bytes(b"not hdf5")
    for name, words in (("k.mat", "read from .h5"), ("k.npy", "not a readable .npy"), ("k.npz", "not a readable .npz"),
                        ("k.h5", "not a readable HDF5")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            read(tmp_path / name)
    np.save(tmp_path / "p.npy", np.array([{}], dtype=object), allow_pickle=True)  # a pickle is not opened
    with pytest.raises(InputError, match="not a readable .npy"):
        read(tmp_path / "p.npy")


def test_more_coils_than_memory_is_said_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_free", lambda: 5000)
    with pytest.raises(InputError, match=r"2 coils of 3 slices of 8 x 6 need about .* compress the coils"):
        read(save(tmp_path, kspace=FULL))


# HDF5

h5py = pytest.importorskip("h5py")

XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>{wide}</x><y>{y}</y><z>{z}</z></matrixSize>
<fieldOfView_mm><x>{fov}</x><y>120</y><z>{thick}</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
<fieldOfView_mm><x>160</x><y>120</y><z>{thick}</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center>
</kspace_encoding_step_1></encodingLimits><trajectory>{kind}</trajectory></encoding></ismrmrdHeader>"""


def xml(wide=X, z=1, fov=160, thick=5, kind="cartesian"):
    return XML.format(wide=wide, x=X, y=Y, z=z, fov=fov, thick=thick, last=Y - 1, centre=Y // 2, kind=kind)


def oversampled():
    """The same image with twice the field of view along the readout."""
    wide = np.zeros((Z, C, 2 * X, Y), np.complex64)
    wide[:, :, X - X // 2 : X - X // 2 + X] = IMAGE
    return forward(wide)


def test_fastmri_multicoil(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["kspace"], file["mask"] = oversampled(), KEPT.astype(np.float32)
        file["ismrmrd_header"] = xml(2 * X, fov=320)
    found = read(tmp_path / "f.h5")
    np.testing.assert_allclose(found.data, PART, atol=1e-5)
    assert found.spacing == (20, 20, 5) and "cropped from 16 to 8" in found.notes[0]
    assert np.array_equal(found.sampled[0, 0], np.broadcast_to(KEPT, (X, Y)))


def test_fastmri_single_coil_without_a_header(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["kspace"] = PART[:, 0]
    found = read(tmp_path / "f.h5", (0, 2))
    assert np.array_equal(found.data, PART[:2, :1]) and found.spacing is None


IDX = np.dtype([(n, "<u2") for n in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast",
                                     "phase", "repetition", "set", "segment")] + [("user", "<u2", 8)])  # fmt: skip
HEAD = np.dtype([
    ("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4"),
    ("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", 3), ("number_of_samples", "<u2"),
    ("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", 16), ("discard_pre", "<u2"),
    ("discard_post", "<u2"), ("center_sample", "<u2"), ("encoding_space_ref", "<u2"),
    ("trajectory_dimensions", "<u2"), ("sample_time_us", "<f4"), ("position", "<f4", 3), ("read_dir", "<f4", 3),
    ("phase_dir", "<f4", 3), ("slice_dir", "<f4", 3), ("patient_table_position", "<f4", 3), ("idx", IDX),
    ("user_int", "<i4", 8), ("user_float", "<f4", 8),
])  # fmt: skip


def acquisition(line, y=0, z=0, plane=0, flags=0, **changes):
    head = np.zeros((), HEAD)
    head["flags"], head["active_channels"], head["number_of_samples"] = flags, len(line), line.shape[1]
    head["center_sample"] = line.shape[1] // 2
    head["idx"]["kspace_encode_step_1"], head["idx"]["kspace_encode_step_2"], head["idx"]["slice"] = y, z, plane
    head["read_dir"], head["phase_dir"], head["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    head["position"] = (10, 20, 30 + 6 * plane)
    for name, value in changes.items():
        if name in IDX.names:
            head["idx"][name] = value
        else:
            head[name] = value
    return head, np.ascontiguousarray(line, np.complex64).view(np.float32).ravel()


def write(path, acquisitions, header):
    kind = np.dtype([("head", HEAD), ("traj", h5py.vlen_dtype(np.float32)), ("data", h5py.vlen_dtype(np.float32))])
    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", data=[header], dtype=h5py.string_dtype())
        data = group.create_dataset("data", (len(acquisitions),), kind)
        for i, (head, values) in enumerate(acquisitions):
            row = np.empty(1, kind)
            row["head"][0], row["traj"][0], row["data"][0] = head, np.zeros(0, np.float32), values
            data[i : i + 1] = row
    return path


def lines(data, kept=KEPT, **changes):
    """Acquisitions of slices [Z, C, X, Y], last slice first."""
    order = [(p, y) for p in reversed(range(len(data))) for y in np.flatnonzero(kept)]
    return [acquisition(data[p, :, :, y], y, plane=p, **changes) for p, y in order]


def test_ismrmrd_lines_in_their_places(tmp_path):
    noise = acquisition(IMAGE[0, :, :, 0], flags=1 << 18)
    navigator = acquisition(IMAGE[0, :, :, 0] * 99, y=2, flags=1 << 22)
    found = read(write(tmp_path / "r.h5", [noise, navigator, *lines(FULL)], xml()))
    np.testing.assert_allclose(found.data, PART, atol=1e-6)
    assert np.array_equal(found.sampled[0, 0, 0], KEPT)
    np.testing.assert_allclose(found.scan, IMAGE[0, :, :, 0], atol=1e-6)
    # 160 mm over 8, 120 mm over 6, slices 6 mm apart; LPS became RAS; position is that of voxel (X // 2, Y // 2)
    np.testing.assert_allclose(found.affine[:3, :3], np.diag([-20, -20, 6]))
    np.testing.assert_allclose(found.affine @ [X // 2, Y // 2, 1, 1], [-10, -20, 36, 1])
    assert found.spacing == pytest.approx((20, 20, 6))
    part = read(tmp_path / "r.h5", (1, 3))
    assert len(part.data) == 2 and np.allclose(part.affine[:, 3], found.affine @ [0, 0, 1, 1])


def test_ismrmrd_averages_repetitions_reversed_and_oversampled_lines(tmp_path):
    wide = oversampled()
    first, second = lines(1.5 * wide), lines(0.5 * wide, average=1)
    head, _ = first[0]
    p, y = int(head["idx"]["slice"]), int(head["idx"]["kspace_encode_step_1"])
    backwards = acquisition(1.5 * wide[p, :, ::-1, y], y, plane=p, flags=1 << 21, center_sample=X - 1)
    again = lines(7 * wide, repetition=1)
    found = read(write(tmp_path / "r.h5", [backwards, *first[1:], *second, *again], xml(2 * X, fov=320)))
    np.testing.assert_allclose(found.data, PART, atol=1e-5)
    assert any("2 repetitions; the first" in note for note in found.notes)
    np.testing.assert_allclose(found.affine @ [X // 2, Y // 2, 0, 1], [-10, -20, 30, 1], atol=1e-5)


def test_ismrmrd_of_three_dimensions_is_taken_to_slices(tmp_path):
    volume = forward(IMAGE.transpose(1, 2, 3, 0), (-3, -2, -1))  # [C, X, Y, KZ]
    given = [acquisition(volume[:, :, y, z], y, z + 1 - Z // 2) for y in np.flatnonzero(KEPT) for z in range(Z)]
    header = xml(z=Z, thick=15).replace(
        "</encodingLimits>",
        "<kspace_encoding_step_2><minimum>0</minimum><maximum>2"
        "</maximum><center>1</center></kspace_encoding_step_2></encodingLimits>",
    )
    found = read(write(tmp_path / "r.h5", given, header))
    np.testing.assert_allclose(found.data, PART, atol=1e-5)
    np.testing.assert_allclose(found.affine[:3, 2], [0, 0, 5])
    np.testing.assert_allclose(found.affine @ [X // 2, Y // 2, Z // 2, 1], [-10, -20, 30, 1], atol=1e-5)
    with pytest.raises(InputError, match="undersampled in both"):
        read(write(tmp_path / "s.h5", given[1:], header))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (xml(kind="spiral"), "its trajectory is spiral"),
        ("<nonsense", "header cannot be read"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><x/>', "declares XML entities"),
        (xml(wide=4), "outside its matrix"),
    ],
)
def test_ismrmrd_that_is_no_good(tmp_path, header, words):
    with pytest.raises(InputError, match=words):
        read(write(tmp_path / "r.h5", lines(FULL), header))


def test_hdf5_without_kspace(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["image"] = np.zeros(3)
    with pytest.raises(InputError, match="holds image, neither fastMRI"):
        read(tmp_path / "f.h5")
    with pytest.raises(InputError, match="none of its 1 acquisitions"):
        read(write(tmp_path / "n.h5", [acquisition(IMAGE[0, :, :, 0], flags=1 << 18)], xml()))

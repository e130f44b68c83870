"""One grid for a study: a head given by formula, so that every grid and every movement has an exact answer."""

from __future__ import annotations

import time

import numpy as np
import pytest
import SimpleITK as sitk

from amodal.core.errors import InputError
from amodal.data import layouts
from amodal.data.volume import Study, Volume
from amodal.preprocess import align as aligning
from amodal.preprocess.align import align, prepare, resample

# centre and half axes in mm of nested soft ellipsoids, what each adds to a T1w and to a T2w, how deeply it is folded
PARTS = (
    ((0, 0, 0), (75, 92, 82), 90.0, 30.0, 0.0),  # scalp
    ((0, 2, 2), (68, 84, 75), -60.0, 50.0, 0.0),  # fluid
    ((0, 2, 4), (63, 79, 70), 50.0, -20.0, 0.05),  # grey
    ((0, 4, 8), (52, 66, 56), 25.0, -25.0, 0.15),  # white
    ((14, 8, 12), (8, 26, 12), -80.0, 90.0, 0.0),  # ventricles
    ((-12, 6, 12), (7, 24, 11), -80.0, 90.0, 0.0),
    ((30, 45, 20), (9, 7, 12), -30.0, 40.0, 0.0),  # a lesion: no symmetry
    ((-5, -50, -30), (30, 18, 16), 20.0, -30.0, 0.0),
)
AXES = {"T1w": 2, "T2w": 3, "FLAIR": 3}


def head(world: np.ndarray, modality: str) -> np.ndarray:
    """The head at points [3, ...] in RAS+ mm."""
    out = np.zeros(world.shape[1:])
    x, y, z = world
    folds = np.sin(x / 5 + 0.3 * np.cos(y / 9)) * np.sin(y / 6 + 1) * np.sin(z / 7 + 2)
    for part in PARTS:
        centre, axes = np.array(part[0], float), np.array(part[1], float)
        apart = (world - centre.reshape(3, *[1] * (world.ndim - 1))) / axes.reshape(3, *[1] * (world.ndim - 1))
        radius = np.sqrt((apart**2).sum(0)) * (1 + part[4] * folds)
        out += part[AXES[modality]] / (1 + np.exp((radius - 1) * min(axes) / 1.2))  # edges about 3 mm wide
    return out


def world_of(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(shape)) + affine[:3, 3].reshape(3, 1, 1, 1)


def scan(modality: str, affine: np.ndarray, shape: tuple[int, ...], moved: np.ndarray | None = None) -> Volume:
    """A scan of the head after it was moved by a 4x4 matrix."""
    back = np.linalg.inv(np.eye(4) if moved is None else moved)
    points = world_of(affine, shape)
    points = np.einsum("ij,jxyz->ixyz", back[:3, :3], points) + back[:3, 3].reshape(3, 1, 1, 1)
    return Volume(head(points, modality), affine)


def centred(linear: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ (np.array(shape) - 1) / 2
    return affine


def rotation(*degrees: float) -> np.ndarray:
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.radians(degrees))
    return np.array(transform.GetMatrix()).reshape(3, 3)


def movement(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(*degrees), shift
    return matrix


SHAPE = (85, 104, 64)
REFERENCE = centred(np.diag([-2.0, 2.0, 3.0]), SHAPE)  # LAS
GRIDS = {
    "LPS": (np.diag([-2.2, -2.2, 3.5]), (80, 92, 54)),
    "PSR": (np.array([[0, 0, 3.0], [-2.0, 0, 0], [0, 2.0, 0]]), (104, 96, 60)),
    "oblique": (rotation(20, 0, 8) @ np.diag([2.0, 2.0, 3.0]), (92, 116, 76)),
    "sheared": (np.array([[2.0, 0.3, 0], [0, 2.0, 0.4], [0, 0, 3.0]]), (100, 110, 64)),
}


@pytest.fixture(scope="module")
def t1() -> Volume:
    return scan("T1w", REFERENCE, SHAPE)


@pytest.fixture(scope="module")
def inside() -> np.ndarray:
    return np.linalg.norm(world_of(REFERENCE, SHAPE) / np.array([75, 92, 82]).reshape(3, 1, 1, 1), axis=0) < 1


def study(**volumes: Volume) -> Study:
    return Study("sub-01", volumes, notes=("as found.",))


def test_a_study_on_one_grid_comes_back_as_it_is(t1):
    given = study(T1w=t1, T2w=scan("T2w", REFERENCE, SHAPE, movement((0, 0, 9), (5, 0, 0))))
    assert align(given) is given


@pytest.mark.parametrize("name", GRIDS)
def test_resampled_by_the_affines(t1, inside, name):
    linear, shape = GRIDS[name]
    out = resample(scan("T2w", centred(linear, shape), shape), t1)
    truth = scan("T2w", REFERENCE, SHAPE).data
    assert out.affine is not None and np.array_equal(out.affine, t1.affine) and out.shape == t1.shape
    error = np.abs(out.data - truth)[inside]
    assert error.mean() < 0.3 and error.max() < 12  # of 170; edges are 3 mm wide, voxels up to 3.5 mm


def test_voxels_that_fall_on_voxels_are_not_blurred(t1):
    flipped = Volume(t1.data[::-1, :, ::-1].copy(), t1.affine @ np.array(
        [[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1.0]]
    ))  # fmt: skip
    assert np.abs(resample(flipped, t1).data - t1.data).max() < 1e-3


def test_nothing_overshoots_and_nothing_is_made_up_outside(t1):
    noise = np.random.default_rng(0).choice([10.0, 200.0], (60, 70, 12))  # a B-spline would swing far beyond both
    out = resample(Volume(noise, centred(np.diag([2.1, 2.1, 3.0]), noise.shape)), t1).data
    x, y, z = np.abs(world_of(REFERENCE, SHAPE))
    seen = (x < 63) & (y < 73.5) & (z < 18)
    assert out[seen].min() == 10 and out[seen].max() == 200
    assert not out[(x > 63.01) | (y > 73.51) | (z > 18.01)].any()


MOVES = [("LPS", (1.5, -2.0, 5.0), (3.0, -2.0, 2.5)), ("sheared", (-4.0, 3.0, 0.0), (0.0, 6.0, -4.0))]


@pytest.mark.parametrize(("name", "degrees", "shift"), MOVES)
def test_a_known_movement_is_found(t1, inside, name, degrees, shift, monkeypatch):
    linear, shape = GRIDS[name]
    true = movement(degrees, shift)
    other = scan("T2w", centred(linear, shape), shape, true)
    found = []
    keep = aligning.measure
    monkeypatch.setattr(aligning, "measure", lambda *given: found.append(keep(*given)) or found[-1])
    out = align(study(T1w=t1, T2w=other))
    points = world_of(REFERENCE, SHAPE)[:, inside]
    wrong = found[0].matrix - true
    apart = np.linalg.norm(wrong[:3, :3] @ points + wrong[:3, 3:], axis=0)
    assert apart.mean() < 0.5 and apart.max() < 1.0
    assert out.notes[0] == "as found." and out.notes[1].startswith("T2w: rigidly registered to T1w (moved ")
    truth = scan("T2w", REFERENCE, SHAPE).data
    left, before = (np.abs(v.data - truth)[inside].mean() for v in (out["T2w"], resample(other, t1)))
    assert left < 1.0 and left < before / 4
    assert out["T1w"] is t1


def test_what_lies_right_is_not_registered(t1, inside):
    linear, shape = GRIDS["oblique"]
    out = align(study(T1w=t1, FLAIR=scan("FLAIR", centred(linear, shape), shape)))
    assert out.notes[1].startswith("FLAIR: resampled to T1w by the affines (measured mismatch 0.")
    assert np.abs(out["FLAIR"].data - scan("FLAIR", REFERENCE, SHAPE).data)[inside].mean() < 0.3


def test_the_same_on_every_run_and_any_number_of_threads(t1):
    linear, shape = GRIDS["LPS"]
    given = study(T1w=t1, T2w=scan("T2w", centred(linear, shape), shape, movement((1, 0, 3), (2, 1, 0))))
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    found = []
    try:
        for number in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(number)
            found.append(align(given))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert found[0].notes == found[1].notes
    assert np.array_equal(found[0]["T2w"].data, found[1]["T2w"].data)


def test_an_implausible_movement_is_not_applied(t1, monkeypatch):
    linear, shape = GRIDS["LPS"]
    other = scan("T2w", centred(linear, shape), shape)
    wild = aligning.Rigid(movement((0, 0, 35), (4, 0, 0)), 25.0, 35.0, before=0.5, after=0.7, covers=1.0)
    monkeypatch.setattr(aligning, "measure", lambda *given: wild)
    out = align(study(T1w=t1, T2w=other))
    assert "was not applied: check" in out.notes[1]
    assert np.array_equal(out["T2w"].data, resample(other, t1).data)


def test_volumes_that_lie_apart_are_refused(t1):
    linear, shape = GRIDS["LPS"]
    away = centred(linear, shape)
    away[:3, 3] += 400
    with pytest.raises(InputError, match=r"sub-01: T2w covers 0% of the head in T1w, .*; check that"):
        align(study(T1w=t1, T2w=Volume(scan("T2w", centred(linear, shape), shape).data, away)))


def test_a_slab_says_how_much_it_covers(t1):
    shape = (80, 92, 20)
    out = align(study(T1w=t1, T2w=scan("T2w", centred(np.diag([2.2, 2.2, 3.5]), shape), shape)))
    assert "of the head, the rest is 0" in out.notes[1]


def test_a_few_thick_slices_do_not_stop_it(t1):
    shape = (80, 92, 3)
    out = align(study(T1w=t1, T2w=scan("T2w", centred(np.diag([2.2, 2.2, 30.0]), shape), shape)))
    assert out["T2w"].shape == SHAPE and out["T2w"].data.max() > 50


def test_a_real_session(data_root):
    source = layouts.find(data_root / "open-ms-raw/sub-03/ses-2")[0]
    start = time.process_time()
    given, out = source.read(), prepare(source)
    assert time.process_time() - start < 15  # about 5 on one core
    assert out.source is source and set(out.source.files) == {"T1w", "T2w", "FLAIR"}
    assert np.array_equal(out["T1w"].data, given["T1w"].data)
    assert all(np.array_equal(out[name].affine, given["T1w"].affine) for name in out)
    assert all("rigidly registered" in note for note in out.notes)  # this patient moved by 6 mm after the T1w
    again = aligning._work(out["T1w"])
    for name in ("T2w", "FLAIR"):  # by the notes themselves: mutual information 0.36 -> 0.73 and 0.42 -> 0.70
        before = resample(given[name], given["T1w"])
        head, still = aligning._head(again), np.eye(4)
        mi = [aligning.mutual_information(again, aligning._work(v), head, still) for v in (before, out[name])]
        assert mi[1] > 1.4 * mi[0]

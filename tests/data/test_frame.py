"""Frames: every voxel goes where its millimetres say, and comes back to where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amodal.core.contract import Grid
from amodal.core.errors import InputError
from amodal.data.frame import Frame, window_of
from amodal.data.intensity import Window
from amodal.data.volume import Volume

ANY = ((0.01, 99.0),) * 3  # spacings all allowed: nothing is resampled


def affine_of(
    order=(0, 1, 2), signs=(1, 1, 1), spacing=(1.0, 1.0, 1.0), angles=(0.0, 0.0, 0.0), shear=0.0, origin=(0, 0, 0)
):
    """Voxel axes by permutation and sign, rotated by Euler angles in degrees, sheared, scaled."""
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = signs
    for k, degrees in enumerate(angles):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        i, j = [a for a in range(3) if a != k]
        turn = np.eye(3)
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        axes = turn @ axes
    axes = axes @ (np.eye(3) + shear * np.eye(3, k=1))
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = axes * np.asarray(spacing), origin
    return out


def millimetres(affine: np.ndarray, shape) -> np.ndarray:
    """The position of every voxel, [3, X, Y, Z]."""
    voxels = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)])
    return np.einsum("ij,jxyz->ixyz", affine, voxels)[:3]


def ramp(affine: np.ndarray, shape) -> np.ndarray:
    """An image that is a linear function of where it lies: it reads the same in any grid."""
    return np.einsum("i,ixyz->xyz", [1.0, -0.7, 0.4], millimetres(affine, shape)) + 500


geometries = st.builds(
    affine_of,
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    angles=st.tuples(*[st.floats(-25, 25)] * 3),
    shear=st.sampled_from([0.0, 0.1]),
    origin=st.tuples(*[st.floats(-150, 150)] * 3),
)
shapes = st.tuples(*[st.integers(1, 14)] * 3)


@settings(max_examples=100, deadline=None)
@given(affine=geometries, shape=shapes, multiple=st.tuples(*[st.sampled_from([1, 4, 16])] * 3))
def test_padding_comes_back_bit_for_bit_in_every_geometry(affine, shape, multiple):
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    volume = Volume(data, affine)
    frame = Frame.of(volume, Grid(spacing=ANY, multiple=multiple))
    inside = frame.enter(volume)
    assert inside.shape == frame.shape and inside.dtype == np.float32
    assert all(n % m == 0 for n, m in zip(frame.shape, multiple))
    assert not frame.resampled and not frame.cropped
    assert frame.leave(inside).tobytes() == data.tobytes()
    assert sorted(inside[inside != data.min()]) == sorted(data[data != data.min()])  # nothing else came in


@settings(max_examples=60, deadline=None)
@given(affine=geometries, shape=shapes, size=st.tuples(*[st.integers(1, 20)] * 3))
def test_cropping_keeps_what_it_covers_and_fills_the_rest(affine, shape, size):
    volume = Volume(np.random.default_rng(1).uniform(1, 2, shape), affine)
    frame = Frame.of(volume, Grid(size=size, spacing=ANY))
    assert frame.shape == size
    back = frame.leave(frame.enter(volume), fill=-7)
    kept = back != -7
    assert np.array_equal(back[kept], volume.data[kept])
    sizes = [min(n, size[k]) for k, n in enumerate(np.array(shape)[list(frame.order)])]
    assert kept.sum() == np.prod(sizes)
    assert frame.cropped == (not kept.all())
    assert (frame.leave(frame.enter(volume))[~kept] == 0).all()


@settings(max_examples=60, deadline=None)
@given(affine=geometries, shape=shapes, multiple=st.sampled_from([1, 8]))
def test_without_resampling_every_voxel_lies_where_its_millimetres_say(affine, shape, multiple):
    volume = Volume(ramp(affine, shape), affine)
    frame = Frame.of(volume, Grid(spacing=ANY, multiple=(multiple,) * 3))
    inside = frame.enter(volume, fill=-1e6)
    real = inside > -1e5
    assert real.sum() == np.prod(shape)
    assert np.allclose(inside[real], ramp(frame.affine, frame.shape)[real], atol=1e-2)
    assert np.allclose(sorted(frame.spacing), sorted(volume.spacing))


@pytest.mark.parametrize(
    ("geometry", "axes"),
    [
        ({}, "RAS"),
        ({"signs": (-1, 1, 1)}, "LAS"),
        ({"signs": (-1, -1, 1)}, "LPS"),
        ({"order": (1, 2, 0), "signs": (-1, 1, 1)}, "PSR"),
        ({"signs": (-1, -1, 1), "angles": (20, 0, 20)}, "LPS"),
    ],
)
def test_the_networks_grid_is_ras(geometry, axes):
    volume = Volume(np.arange(60.0).reshape(3, 4, 5), affine_of(**geometry))
    assert volume.orientation == axes
    frame = Frame.of(volume, Grid(spacing=ANY, multiple=(1, 1, 1)))
    assert Volume(frame.enter(volume), frame.affine).orientation == "RAS"


def test_a_flip_pinned():
    """LAS, 3 voxels along L: the first on disk is the rightmost, so it comes last in the network's grid."""
    volume = Volume(np.array([10.0, 20, 30]).reshape(3, 1, 1), affine_of(signs=(-1, 1, 1), origin=(5, 0, 0)))
    frame = Frame.of(volume, Grid(multiple=(1, 1, 1)))
    assert frame.enter(volume).ravel().tolist() == [30, 20, 10]
    assert frame.affine[0].tolist() == [1, 0, 0, 3]  # x = 5 - 2 for the last voxel on disk


def test_symmetric_padding_pinned():
    volume = Volume(np.arange(1.0, 4).reshape(3, 1, 1), np.eye(4))
    frame = Frame.of(volume, Grid(size=(8, 1, 1)))
    assert frame.enter(volume, fill=0).ravel().tolist() == [0, 0, 1, 2, 3, 0, 0, 0]
    assert frame.affine[0, 3] == -2
    cut = Frame.of(Volume(np.arange(7.0).reshape(7, 1, 1), np.eye(4)), Grid(size=(3, 1, 1)))
    assert cut.affine[0, 3] == 2 and cut.cropped


@settings(max_examples=50, deadline=None)
@given(
    affine=geometries.filter(lambda a: np.linalg.norm(a[:3, :3], axis=0).max() < 4),
    target=st.tuples(*[st.floats(0.7, 3.0)] * 3),
    multiple=st.sampled_from([1, 16]),
)
def test_resampling_reproduces_a_ramp_at_the_right_millimetres(affine, target, multiple):
    shape = (24, 22, 20)
    volume = Volume(ramp(affine, shape), affine)
    frame = Frame.of(volume, Grid(spacing=tuple((t, t) for t in target), multiple=(multiple,) * 3))
    inside = frame.enter(volume)
    assert np.allclose(frame.spacing, target, rtol=0.0101)
    # judge where neither the held edge nor the smoothing reaches: voxels well inside the scan
    voxels = np.einsum(
        "ij,jxyz->ixyz",
        np.linalg.inv(affine)[:3, :3],
        millimetres(frame.affine, frame.shape) - affine[:3, 3:, None, None],
    )
    ratio = np.array(frame.spacing)[np.argsort(frame.order)] / volume.spacing
    margin = 2 + 2 * np.maximum(ratio, 1)
    far = np.all([(v > m) & (v < n - 1 - m) for v, m, n in zip(voxels, margin, shape)], axis=0)
    truth = ramp(frame.affine, frame.shape)
    assert np.abs(inside - truth)[far].max(initial=0) < 2e-2
    # and the field of view is covered: all voxels come back, interpolated but in place
    back = frame.leave(inside, fill=np.nan)
    assert np.isfinite(back).all()
    steps = 3 * np.maximum(ratio, 1) + 3
    middle = tuple(slice(int(np.ceil(m)), int(n - np.ceil(m))) for m, n in zip(steps, shape))
    assert np.abs(back - volume.data)[middle].max(initial=0) < 5e-2


def test_resampling_is_centred_and_near_lossless_for_smooth_images():
    affine = affine_of(signs=(-1, -1, 1), spacing=(0.5, 0.5, 3.0))
    x, y, z = millimetres(affine, (64, 60, 12))
    volume = Volume(np.exp(-((x + 16) ** 2 + (y + 14) ** 2) / 50 - (z - 17) ** 2 / 200), affine)
    frame = Frame.of(volume, Grid(multiple=(1, 1, 1)))
    assert frame.resampled and frame.spacing == pytest.approx((0.7, 0.7, 3.0))
    inside = frame.enter(volume)
    x, y, z = millimetres(frame.affine, frame.shape)
    assert np.abs(inside - np.exp(-((x + 16) ** 2 + (y + 14) ** 2) / 50 - (z - 17) ** 2 / 200)).max() < 0.005
    assert np.abs(frame.leave(inside) - volume.data).max() < 0.01
    corners = np.array([[0, 0, 0, 1], [63, 59, 11, 1]]).T
    ends = np.array([[0, 0, 0, 1], [n - 1 for n in frame.shape] + [1]]).T
    assert np.allclose((affine @ corners).mean(axis=1), (frame.affine @ ends).mean(axis=1))


def test_downsampling_does_not_alias():
    """A checkerboard of single voxels has nothing to say at 4 mm but its mean."""
    data = np.indices((32, 32, 32)).sum(axis=0) % 2 * 100.0
    frame = Frame.of(volume := Volume(data, np.eye(4)), Grid(spacing=((3.3, 3.3),) * 3, multiple=(1, 1, 1)))
    inside = frame.enter(volume)[1:-1, 1:-1, 1:-1]
    assert np.abs(inside - 50).max() < 3


def test_interpolation_stays_in_the_images_range_and_padding_outside_it():
    rng = np.random.default_rng(0)
    data = (rng.uniform(size=(20, 20, 20)) > 0.5) * 100.0
    volume = Volume(data, affine_of(spacing=(3.0, 3.0, 3.0)))
    frame = Frame.of(volume, Grid(spacing=((1, 1),) * 3))
    inside = frame.enter(volume, fill=-50)
    assert set(np.unique(inside[inside < 0])) == {-50.0} and inside.max() <= 100
    back = frame.leave(inside)
    assert back.min() >= -50 and back.max() <= 100


def test_padding_is_the_darkest_value_unless_told():
    volume = Volume(np.arange(-10.0, 17).reshape(3, 3, 3), np.eye(4))
    frame = Frame.of(volume, Grid())
    assert frame.enter(volume)[0, 0, 0] == -10
    assert frame.enter(volume, fill=5)[0, 0, 0] == 5


def test_spacing_at_the_edge_of_the_range_is_not_resampled():
    for spacing in (float(np.float32(0.7)), 0.699, 1.6001):
        assert not Frame.of(Volume(np.zeros((4, 4, 4)), affine_of(spacing=(spacing, spacing, 1.0))), Grid()).resampled
    assert Frame.of(Volume(np.zeros((4, 4, 4)), affine_of(spacing=(0.6, 1.0, 1.0))), Grid()).resampled
    coarse = Frame.of(Volume(np.zeros((4, 4, 4)), affine_of(spacing=(1.0, 1.0, 10.0))), Grid())
    assert coarse.spacing == pytest.approx((1.0, 1.0, 8.0))


def test_masks_enter_and_leave_as_masks():
    affine = affine_of(order=(1, 2, 0), signs=(-1, 1, 1), spacing=(1.0, 0.5, 2.0))
    labels = np.random.default_rng(0).integers(0, 5, (9, 12, 6)).astype(np.int16)
    frame = Frame.of(volume := Volume(labels, affine), Grid(spacing=ANY))
    assert np.array_equal(frame.enter_mask(labels), frame.enter(volume, fill=0))
    finer = Frame.of(volume, Grid(spacing=((0.5, 0.5),) * 3))
    inside = finer.enter_mask(labels)
    assert inside.dtype == np.int16 and set(np.unique(inside)) == set(range(5))
    assert np.array_equal(finer.leave(inside, nearest=True), labels)
    assert finer.enter_mask(labels > 2).dtype == bool


def test_only_volumes_on_the_references_grid_may_enter():
    data = np.zeros((6, 7, 8))
    reference = Volume(data, affine_of(spacing=(1.0, 1.0, 3.0)), path=Path("t1.nii.gz"))
    frame = Frame.of(reference, Grid())
    nearly = reference.affine + 1e-4
    nearly[3] = [0, 0, 0, 1]
    assert frame.enter(Volume(data, nearly)).shape == frame.shape  # what rounding in a header does
    moved = reference.affine.copy()
    moved[2, 3] += 1.5
    with pytest.raises(InputError, match=r"flair.nii.gz and t1.nii.gz lie 1.50 mm apart.*resample it"):
        frame.enter(Volume(data, moved, path=Path("flair.nii.gz")))
    with pytest.raises(InputError, match=r"flair.nii.gz has 6x7x9 voxels and t1.nii.gz 6x7x8"):
        frame.enter(Volume(np.zeros((6, 7, 9)), reference.affine, path=Path("flair.nii.gz")))
    with pytest.raises(ValueError):
        frame.leave(np.zeros((6, 7, 8)))
    with pytest.raises(ValueError):
        frame.enter_mask(np.zeros((6, 7, 9)))


def test_a_frame_is_a_value():
    volume = Volume(np.zeros((6, 7, 8)), affine_of(angles=(10, 5, 0)))
    assert Frame.of(volume, Grid()) == Frame.of(volume, Grid())
    assert len({Frame.of(volume, Grid()), Frame.of(volume, Grid())}) == 1
    assert Frame.of(volume, Grid()) != Frame.of(volume, Grid(size=(16, 16, 16)))
    with pytest.raises(AttributeError):
        Frame.of(volume, Grid()).order = (0, 1, 2)


def test_entering_and_leaving_change_nothing_that_was_given():
    volume = Volume(np.random.default_rng(0).normal(size=(9, 9, 9)), affine_of(spacing=(0.5, 1.0, 1.0)))
    before = volume.data.copy()
    for grid in (Grid(), Grid(spacing=ANY, multiple=(1, 1, 1))):
        frame = Frame.of(volume, grid)
        inside = frame.enter(volume)
        kept = inside.copy()
        frame.leave(inside)[:] = 0
        assert np.array_equal(inside, kept)
        inside[:] = 0
    assert np.array_equal(volume.data, before)


def test_the_window_of_fine_voxels_is_that_of_the_networks_coarser_grid():
    """Bright vessels one voxel wide raise the window of a fine image, not that of what the network sees of it."""
    rng = np.random.default_rng(0)
    coarse = np.zeros((16, 16, 12), np.float32)
    coarse[3:13, 3:13, 2:10] = 100 + 10 * rng.standard_normal((10, 10, 8))
    fine = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    fine[12:52:5, 12:52:5, 8:40] *= 3
    thin, thick = Volume(fine, np.eye(4)), Volume(coarse, np.diag([4.0, 4, 4, 1]))
    grid = Grid(size=(24, 24, 24), spacing=((4.0, 4.0),) * 3, percentiles=(0.5, 99.5))
    own, seen, wanted = Window.of(fine), window_of(thin, grid), window_of(thick, grid)
    assert own.hi > 2 * wanted.hi and seen.hi == pytest.approx(wanted.hi, rel=0.15) and seen.lo == wanted.lo == 0
    assert wanted == Window.of(coarse)  # not resampled: its own
    assert window_of(thin, Grid(spacing=((0.5, 2.0),) * 3)) == Window.of(fine, Grid().percentiles)

"""Figures: which way up, which side is which, fixed colours, and pictures that are what was drawn."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from amodal.report import figures


def picture(tile):
    content = base64.b64decode(tile.data.partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(content)))


def volume_with(index, shape=(20, 30, 24)):
    x = np.zeros(shape, np.float32)
    x[index] = 1
    return x


@pytest.mark.parametrize(
    ("name", "index", "corner"),
    [  # a mark at one corner of the head must be seen at one corner of the picture
        ("axial", (slice(15, 20), slice(24, 30), slice(None)), (0, 0)),  # right and anterior: upper left
        ("coronal", (slice(15, 20), slice(None), slice(19, 24)), (0, 0)),  # right and superior: upper left
        ("sagittal", (slice(None), slice(24, 30), slice(19, 24)), (0, 0)),  # anterior and superior: upper left
        ("axial", (slice(0, 5), slice(0, 6), slice(None)), (1, 1)),  # left and posterior: lower right
        ("sagittal", (slice(None), slice(0, 6), slice(0, 5)), (1, 1)),  # posterior and inferior: lower right
    ],
)
def test_radiological_convention(name, index, corner):
    shown = figures.plane(volume_with(index), name, 10)
    halves = [np.array_split(half, 2, axis=1) for half in np.array_split(shown, 2, axis=0)]
    bright = {(i, j): halves[i][j].sum() for i in (0, 1) for j in (0, 1)}
    assert bright[corner] == shown.sum() > 0


def test_ras_undoes_orientation_without_interpolation():
    x = np.arange(24.0).reshape(2, 3, 4)
    las = np.diag([-1.0, 2, 3, 1])
    assert figures.ras(x, las)[1] == (1, 2, 3)
    assert np.array_equal(figures.ras(x, las)[0], x[::-1])
    psr = np.array([[0.0, 0, 3, 0], [-1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    turned, spacing = figures.ras(x, psr)
    assert spacing == (3, 1, 2)
    assert turned.shape == (4, 2, 3)
    assert turned[3, 1, 0] == x[0, 0, 3]


def test_thick_slices_keep_their_millimetres():
    x = np.random.default_rng(0).random((40, 50, 10)).astype(np.float32)
    box = figures.bounds(np.ones(x.shape, bool))
    for name, aspect in (("axial", 40 / 50), ("coronal", 40 / 60), ("sagittal", 50 / 60)):
        assert figures.tile(x, name, (1, 1, 6), figures.grey(0, 1), box, [3]).aspect == pytest.approx(aspect)


def test_a_tile_stacks_its_slices_in_order():
    x = np.zeros((16, 16, 20), np.float32)
    x[..., 5], x[..., 15] = 0.25, 0.75
    tile = figures.tile(x, "axial", (1, 1, 1), figures.grey(0, 1), figures.bounds(np.ones(x.shape, bool)), [5, 10, 15])
    shown = picture(tile).reshape(3, 16, 16)
    assert shown.mean((1, 2)) == pytest.approx([64, 0, 191], abs=2)


def test_large_planes_are_made_smaller():
    x = np.zeros((600, 700, 3), np.float32)
    tile = figures.tile(x, "axial", (0.5, 0.5, 3), figures.grey(0, 1), figures.bounds(np.ones(x.shape, bool)), [1])
    assert max(picture(tile).shape) == figures.LONGEST


def test_error_colours_are_fixed_and_signed():
    colour = figures.signed(0.3)
    shown = colour(np.array([[0.0, 0.3, -0.3, 9.0, -9.0, 0.15]]))[0].astype(int)
    assert shown[0].tolist() == [0, 0, 0]
    assert shown[1, 0] > shown[1, 2]  # too bright is orange
    assert shown[2, 2] > shown[2, 0]  # too dark is blue
    assert (shown[3] == shown[1]).all()
    assert (shown[4] == shown[2]).all()
    assert shown[5, 0] == pytest.approx(shown[1, 0] / 2, abs=1)


def test_spread_colours_grow_brighter():
    shown = figures.warm(0.15)(np.linspace(0, 0.15, 20)[None])[0].sum(axis=1).astype(int)
    assert (np.diff(shown) >= 0).all()
    assert shown[0] < 10


def test_bounds_hold_the_mask_and_a_margin():
    mask = np.zeros((30, 30, 30), bool)
    mask[10:20, 2:5, 28:] = True
    assert figures.bounds(mask, margin=4) == (slice(6, 24), slice(0, 9), slice(24, 30))
    assert figures.bounds(np.zeros((5, 6, 7), bool)) == (slice(0, 5), slice(0, 6), slice(0, 7))


def test_one_slice_is_enough():
    box = figures.bounds(np.ones((16, 16, 1), bool))
    assert figures.indices(box, "axial", 21) == [0]


def test_window_of_a_constant_image_is_usable():
    low, high = figures.window(np.full((4, 4, 4), 3.0))
    assert low == 3 < high


def test_histogram_draws_every_curve_and_escapes():
    svg = figures.histogram(
        {"a<b": ("truth", np.random.default_rng(0).random(500)), "c": ("synthetic", np.zeros(10))}, 0, 1
    )
    assert svg.count("<polyline") == 2
    assert "a&lt;b" in svg
    assert "a<b" not in svg


def test_strips_draw_every_subject():
    svg = figures.strips({"model": ("model", [30.0, 31.0, float("inf")]), "regression": ("regression", [20.0])}, "PSNR")
    assert svg.count("<circle") == 3
    assert "nan" not in svg
    assert figures.strips({"model": ("model", [])}, "PSNR").count("<circle") == 0
    assert figures.strips({"model": ("model", [5.0, 5.0])}, "PSNR").count("<circle") == 2


def test_strip_marks_what_is_synthetic():
    x = np.random.default_rng(0).random((24, 24, 24)).astype(np.float32)
    shown = np.asarray(Image.open(io.BytesIO(figures.strip(x, x, (1, 1, 1), np.ones(x.shape, bool)))))
    assert shown.shape == (480, 720, 3)
    assert shown[100, 241] == pytest.approx(np.array(figures.MADE), abs=40)  # the frame of the middle column
    assert shown[10:230, 490:710].max() < 20  # no error, no colour

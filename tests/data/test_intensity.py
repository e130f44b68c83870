"""Intensity windows: where they lie, that they come back, and what has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amodal.core.config import from_dict, to_dict
from amodal.core.errors import InputError
from amodal.data.intensity import QUANTITIES, Window, group_window


def test_ends_pinned():
    window = Window(100.0, 300.0)
    x = np.array([50, 100, 150, 200, 300, 900], np.float32)
    assert window.enter(x).tolist() == [-1, -1, -0.5, 0, 1, 1]
    assert window.leave(np.array([-1.0, 0, 1])).tolist() == [100, 200, 300]


def test_percentiles_are_of_all_voxels_below_and_of_the_head_above():
    head = np.arange(101.0, 201.0)  # 100 voxels, brighter than the mean of all
    data = np.concatenate([np.zeros(300), head])
    window = Window.of(data, (0, 50))
    assert window == Window(0.0, 150.5)
    assert Window.of(data, (0, 99)).hi == pytest.approx(np.percentile(head, 99))
    assert Window.of(data, (80, 99)).lo == pytest.approx(np.percentile(data, 80))


def test_empty_field_of_view_does_not_matter():
    rng = np.random.default_rng(0)
    head = rng.gamma(20, 10, 20000)
    tight, wide = (Window.of(np.concatenate([np.zeros(n), head])) for n in (5000, 200000))
    assert tight.lo == wide.lo == 0
    # the mean of all falls from 160 to 18, and more of the head counts; a plain percentile would move by far more
    assert wide.hi == pytest.approx(tight.hi, rel=0.02)
    plain = [np.percentile(np.concatenate([np.zeros(n), head]), 99.5) for n in (5000, 200000)]
    assert plain[0] / plain[1] > 1.1


def test_not_finite_voxels_are_left_out():
    data = np.arange(1000, dtype=np.float32)
    spoiled = np.concatenate([data, np.full(50, np.nan, np.float32), [np.inf, -np.inf]])
    assert Window.of(spoiled) == Window.of(data)


@settings(max_examples=200, deadline=None)
@given(
    data=hnp.arrays(
        np.float32,
        st.integers(0, 30),
        elements=st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0, np.nan, np.inf]),
    )
)
def test_always_a_window_or_a_sentence(data):
    finite = data[np.isfinite(data)]
    if len(np.unique(finite)) < 2:
        with pytest.raises(InputError, match="constant"):
            Window.of(data)
        return
    window = Window.of(data)
    assert finite.min() <= window.lo < window.hi <= finite.max()
    inside = window.enter(finite)
    assert inside.min() >= -1 and inside.max() <= 1
    assert window.enter(np.array([window.lo, window.hi], np.float64)) == pytest.approx([-1.0, 1.0])


@settings(max_examples=100, deadline=None)
@given(lo=st.floats(-1e4, 1e4), width=st.floats(1e-1, 1e5), at=st.floats(0, 1))
def test_leave_undoes_enter_inside_the_window(lo, width, at):
    window = Window(lo, lo + width)
    x = np.array([lo + at * width])
    assert window.leave(window.enter(x)) == pytest.approx(x, abs=1e-9 * (abs(lo) + width))


def test_one_bright_speck_hardly_moves_it():
    data = np.concatenate([np.zeros(20000), np.random.default_rng(0).uniform(50, 100, 20000)])
    clean, spoiled = Window.of(data), Window.of(np.concatenate([data, [1e6] * 5]))
    assert spoiled.lo == clean.lo == 0 and spoiled.hi == pytest.approx(clean.hi, rel=0.01)


def test_torch_and_numpy_agree_and_keep_float32():
    x = np.random.default_rng(0).normal(100, 50, (4, 5)).astype(np.float32)
    window = Window.of(x)
    array, tensor = window.enter(x), window.enter(torch.from_numpy(x))
    assert array.dtype == np.float32 and tensor.dtype == torch.float32
    assert np.allclose(array, tensor.numpy(), atol=1e-6)
    assert window.leave(array).dtype == np.float32
    assert np.allclose(window.leave(array), window.leave(tensor).numpy(), rtol=1e-6)


def test_as_json_and_back():
    window = Window(0.25, 812.5)
    assert to_dict(window) == {"lo": 0.25, "hi": 812.5, "knots": []}
    assert from_dict(Window, to_dict(window)) == from_dict(Window, {"lo": 0.25, "hi": 812.5}) == window
    bent = QUANTITIES["CT"].window
    assert bent is not None and from_dict(Window, to_dict(bent)) == bent


def test_hounsfield_units_enter_and_come_back():
    """The CT window, pinned at its knots and half way between them: 80 HU of brain take up 0.6 of the 2.0 there are."""
    window = QUANTITIES["CT"].window
    units = np.array([-3000, -1000, -150, -75, 0, 40, 80, 300, 1150, 2000, 3000], np.float32)
    found = window.enter(units)
    assert found == pytest.approx([-1, -1, -0.75, -0.625, -0.5, -0.2, 0.1, 0.3, 0.65, 1, 1], abs=1e-6)
    assert found.dtype == np.float32
    assert window.leave(found)[1:-1] == pytest.approx(units[1:-1], abs=1e-2)
    assert window.enter(torch.from_numpy(units)).numpy() == pytest.approx(found, abs=1e-6)
    assert window.leave(torch.from_numpy(found)).numpy()[1:-1] == pytest.approx(units[1:-1], abs=1e-2)
    # 0.075 of the scale is 10 HU in the brain and 182 in bone
    x = np.array([-0.2, 0.65], np.float32)
    assert window.spread(x, np.full(2, 0.075, np.float32)) == pytest.approx([10, 182.14], rel=1e-3)
    assert Window(0, 8).spread(x, np.full(2, 0.5)) == pytest.approx([2, 2])


@pytest.mark.parametrize("knots", [((5.0, 0.0),), ((-1.0, 0.0),), ((1.0, 2.0),), ((1.0, 0.5), (2.0, 0.4))])
def test_knots_that_do_not_rise_are_refused(knots):
    with pytest.raises(InputError, match="rise"):
        Window(0.0, 4.0, knots)


def test_the_group_window_holds_every_subject():
    assert group_window([6.5, 12.25, 8.0]) == Window(0.0, 12.25)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_an_impossible_window_is_refused(ends):
    with pytest.raises(InputError, match="second above the first"):
        Window(*ends)


def test_impossible_percentiles_are_refused():
    for percentiles in ((5, 5), (-1, 99), (0, 101)):
        with pytest.raises(InputError, match="percentiles"):
            Window.of(np.arange(10), percentiles)


def test_real_windows_hold_the_brain(data_root):
    from amodal.data import nifti

    for path in sorted((data_root / "open-ms-mni" / "sub-07" / "anat").glob("*.nii.gz")):
        data = nifti.read(path).data
        window = Window.of(data)
        head = data[data > data.mean()]
        assert window.lo == 0 and 1.2 * np.median(head) < window.hi < head.max()

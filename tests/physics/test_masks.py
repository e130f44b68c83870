"""Sampling masks: as much as was asked for, with the calibration centre, and the same from the same seed."""

from __future__ import annotations

import pytest
import torch

from amodal.core.errors import InputError
from amodal.physics.masks import MASKS, calibration, equispaced, poisson_disc, radial, random

SHAPE = (64, 96)
EVERY = pytest.mark.parametrize("name", MASKS)


@EVERY
@pytest.mark.parametrize("acceleration", [2, 4, 8])
def test_it_samples_what_was_asked_for(name, acceleration):
    kept = MASKS[name](SHAPE, acceleration, 0.08, 0)
    share = kept.float().mean().item()
    expected = 1 / acceleration + (0.08 * (1 - 1 / acceleration) if name == "equispaced" else 0)
    assert share == pytest.approx(expected, rel=0.12)
    assert kept.dtype == torch.bool and torch.broadcast_shapes(kept.shape, SHAPE) == SHAPE


@EVERY
def test_the_seed_decides(name):
    a, b, c = (MASKS[name](SHAPE, 4, 0.08, seed) for seed in (1, 1, 3))
    assert torch.equal(a, b) and not torch.equal(a, c)


@EVERY
def test_the_calibration_centre_is_there(name):
    box = calibration(MASKS[name](SHAPE, 8, 0.125, 0).expand(SHAPE))
    assert box[1] >= 12 and box[0] >= 8


def test_everything_and_nothing_extra():
    assert equispaced(SHAPE, 1, 0.0, 0).all()
    lines = equispaced(SHAPE, 4, 0.0, 2)[0].nonzero().flatten()
    assert (lines.diff() == 4).all() and len(lines) == 24
    assert random(SHAPE, 4, 0.0, 0).sum() == 24


def test_a_poisson_disc_keeps_its_distance_and_thins_outwards():
    kept = poisson_disc((96, 96), 8, 0.08, 0)
    points = kept.nonzero().float()
    radius = (points - 48).norm(dim=1)
    nearest = (torch.cdist(points, points) + 1e9 * torch.eye(len(points))).min(1).values
    far, near = nearest[radius > 40], nearest[(radius > 8) & (radius < 20)]
    assert far.min() > 1.9 and near.mean() < far.mean()
    assert not kept[0, 0] and not kept[-1, -1]  # nothing in the corners


def test_spokes_run_through_the_centre():
    kept = radial((65, 65), 10, 0.0, 0)
    assert kept[32, 32]
    assert torch.equal(kept, kept.flip((0, 1)))  # a spoke has two ends
    ring = [kept[32 - r : 33 + r, 32 - r : 33 + r].float().mean().item() for r in (4, 16, 32)]
    assert ring[0] > ring[1] > ring[2]


def test_the_calibration_box_is_the_largest_centred_one():
    kept = torch.zeros(20, 30, dtype=torch.bool)
    kept[6:14, 11:19] = True
    assert calibration(kept) == (8, 8)
    kept[:, 13:17] = True
    assert calibration(kept) == (20, 4)  # more samples than 8 x 8
    assert calibration(torch.zeros(20, 30, dtype=torch.bool)) == (0, 0)
    assert calibration(torch.ones(20, 30, dtype=torch.bool)) == (20, 30)


@EVERY
@pytest.mark.parametrize(("acceleration", "centre", "words"), [(0.5, 0.1, "acceleration=0.5"), (4, 1.5, "calibration")])
def test_what_cannot_be_is_refused(name, acceleration, centre, words):
    with pytest.raises(InputError, match=words):
        MASKS[name](SHAPE, acceleration, centre, 0)

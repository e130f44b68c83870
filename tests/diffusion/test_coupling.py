"""Noise that neighbouring slices share."""

from __future__ import annotations

import math

import pytest
import torch

from amodal.core.rng import Rng
from amodal.diffusion.coupling import correlate, couple


def test_correlated_noise_is_standard_normal_in_every_slice():
    weights = correlate(torch.eye(40), 3.0)  # row z: how slice z is mixed
    torch.testing.assert_close((weights**2).sum(1), torch.ones(40))
    noise = correlate(Rng.of(0, 40).normal(50_000), 3.0)
    assert (noise.var(1) - 1).abs().max() < 0.03 and noise.mean(1).abs().max() < 0.025


@pytest.mark.parametrize("length", [1.5, 3.0, 5.0])
def test_neighbours_are_alike_by_the_law(length):
    """Correlation at a distance d is exp(-(d / 2L)^2): the overlap of two Gaussians of width L."""
    weights = correlate(torch.eye(80, dtype=torch.float64), length)
    for d in (1, 2, 5):
        correlation = (weights[40] * weights[40 + d]).sum().item()
        assert correlation == pytest.approx(math.exp(-(d**2) / (4 * length**2)), abs=1e-6)
    assert (weights[0] * weights[1]).sum() > math.exp(-1 / (4 * length**2)) - 0.05  # at the ends nearly so


def test_no_length_and_single_slices_leave_the_noise_alone():
    noise = Rng.of(0, 6).normal(2, 3)
    assert correlate(noise, 0.0) is noise
    assert torch.equal(correlate(noise[:1], 3.0), noise[:1])


def test_voxels_of_a_slice_stay_independent():
    noise = correlate(Rng.of(0, 200).normal(2, 500), 2.0)
    pairs = torch.corrcoef(torch.stack([noise[:, 0].flatten(), noise[:, 1].flatten()]))
    assert abs(pairs[0, 1]) < 0.02


def test_samplers_draw_from_a_coupled_stream_as_from_any_other():
    x = torch.zeros(8, 2, 3)
    assert torch.equal(couple(Rng.of(0, 8), 3.0).normal_like(x), correlate(Rng.of(0, 8).normal(2, 3), 3.0))
    plain = Rng.of(0, 8)
    assert couple(plain, 0.0) is plain

"""Coils, noise and phase, told from simulated scans whose truth is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from amodal.core.contract import Measurement
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.physics import classic
from amodal.physics.coils import birdcage, compress, espirit, noise_level, phase, whiten, whitening
from amodal.physics.masks import equispaced
from amodal.physics.mri import simulate
from amodal.physics.prepare import misfit, oriented, phased, settle, wandering

SIZE = (48, 56)
NOISE = 0.01


def head(size=SIZE):
    """A disc with some structure, background 0, [1, X, Y]."""
    x, y = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
    disc = ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1).float()
    return (disc * (0.6 + 0.3 * torch.sin(7 * x) * torch.cos(9 * y)))[None]


def smooth_phase(size=SIZE, strength=1.0):
    x, y = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
    return torch.polar(torch.ones_like(x), strength * (0.5 + x - 0.6 * y))[None]


def scan(acceleration=2.0, noise=NOISE, coils=6, strength=1.0, calibration=0.3):
    maps = birdcage(SIZE, coils)[None]
    kept = equispaced(SIZE, acceleration, calibration).expand(1, 1, *SIZE)
    eps = Rng.of(0, 1).normal(coils, *SIZE, 2)
    return simulate(head() * smooth_phase(strength=strength), maps, kept, noise, eps), kept, maps


def test_a_birdcage_has_unit_energy_everywhere():
    maps = birdcage(SIZE, 6)
    assert maps.shape == (6, *SIZE) and maps.dtype == torch.complex64
    torch.testing.assert_close((maps.abs() ** 2).sum(0), torch.ones(SIZE))
    assert (maps.abs()[0] - maps.abs()[3]).abs().max() > 0.3  # coils see different sides
    with pytest.raises(InputError, match="coils=0"):
        birdcage(SIZE, 0)


def test_espirit_finds_the_coils_up_to_a_common_phase():
    kspace, _, maps = scan(acceleration=1, noise=1e-4)
    found = espirit(kspace[0], (24, 24))
    inside = head()[0] > 0
    agreement = (found.conj() * maps[0]).sum(0).abs()[inside]
    assert agreement.min() > 0.98 and agreement.mean() > 0.995
    torch.testing.assert_close((found.abs() ** 2).sum(0)[inside], torch.ones(int(inside.sum())), rtol=1e-3, atol=1e-3)


def test_espirit_needs_a_centre_and_one_coil_needs_nothing():
    kspace, _, _ = scan()
    with pytest.raises(InputError, match="4 x 24 samples; coil maps need 8"):
        espirit(kspace[0], (4, 24))
    assert torch.equal(espirit(kspace[0, :1], (24, 24)), torch.ones(1, *SIZE, dtype=torch.complex64))


def test_whitening_makes_noise_white():
    root = torch.view_as_complex(Rng([1]).normal(4, 4, 2)[0])
    noise = root @ torch.view_as_complex(Rng([2]).normal(4, 20_000, 2)[0]) * 3
    W = whitening(noise)
    white = W @ noise
    torch.testing.assert_close(white @ white.mH / 20_000, torch.eye(4) + 0j, rtol=0, atol=1e-3)
    x = torch.view_as_complex(Rng([3]).normal(2, 4, 5, 6, 2)[0])
    torch.testing.assert_close(whiten(x, W)[1, :, 2, 3], W @ x[1, :, 2, 3])
    with pytest.raises(InputError, match="5 noise samples cannot tell"):
        whitening(noise[:, :5])


@pytest.mark.parametrize("level", [0.003, 0.03])
def test_the_noise_level_is_found_in_kspace_itself(level):
    kspace, kept, _ = scan(acceleration=2, noise=level)
    assert noise_level(kspace, kept) == pytest.approx(level, rel=0.1)


def test_phase_comes_from_the_centre():
    kspace, _, maps = scan(acceleration=1, noise=1e-4)
    found = phase(kspace, maps, (16, 16))
    inside = head() > 0
    torch.testing.assert_close(found.abs(), torch.ones_like(found.abs()))
    assert (found * smooth_phase().conj())[inside].angle().abs().mean() < 0.05


def test_compression_keeps_the_energy():
    kspace, _, _ = scan(coils=8)
    small = compress(kspace, 4)
    torch.testing.assert_close(small @ small.mH, torch.eye(4) + 0j, rtol=0, atol=1e-5)
    assert whiten(kspace, small).norm() > 0.97 * kspace.norm()


def test_settling_makes_a_measurement_of_what_a_file_holds():
    kspace, kept, maps = scan()
    found, notes = settle(kspace, kept)
    assert found.noise == pytest.approx(NOISE, rel=0.15)
    assert any("ESPIRiT" in note for note in notes) and any("Noise" in note for note in notes)
    assert found.maps.shape == maps.shape and found.phase.shape == (1, *SIZE)
    truth = head()
    assert misfit(found, truth).item() == pytest.approx(1, abs=0.35)
    assert misfit(found, 0.7 * truth).item() > 3 * misfit(found, truth).item()


def test_maps_are_brought_to_unit_energy():
    kspace, kept, maps = scan()
    shaded = 3 * maps
    found, _ = settle(kspace, kept, shaded, noise=NOISE)
    torch.testing.assert_close(found.maps, maps)


def test_a_scan_of_noise_whitens():
    kspace, kept, maps = scan(noise=0.0)
    mix = torch.diag(torch.tensor([1.0, 3, 1, 2, 1, 1])) + 0j
    noise = mix @ torch.view_as_complex(Rng([7]).normal(6, 5000, 2)[0]) * NOISE
    extra = mix @ torch.view_as_complex(Rng([8]).normal(6, SIZE[0] * SIZE[1], 2)[0]).reshape(6, -1) * NOISE
    kspace = kspace + kept * extra.reshape(1, 6, *SIZE)
    found, _ = settle(kspace, kept, maps, noise)
    assert found.noise == pytest.approx(0.5**0.5)
    # maps and data were whitened together, so the image that explains the data is the root of the coils' energies
    assert misfit(found, classic.cg_sense(found, 1e-4)).item() == pytest.approx(1, abs=0.15)


def test_without_a_centre_there_is_no_phase():
    kspace, _, maps = scan()
    kept = equispaced(SIZE, 4, 0.0, 1).expand(1, 1, *SIZE)
    with pytest.raises(InputError, match="too few to tell the phase"):
        settle(kspace * kept, kept, maps, noise=NOISE)


def test_a_phase_that_fits_leaves_nothing_at_right_angles():
    kspace, kept, maps = scan()
    exact = Measurement(kspace, kept, maps, NOISE, smooth_phase())
    assert wandering(exact) == 0
    off = Measurement(kspace, kept, maps, NOISE, smooth_phase(strength=0.7))
    q = (head() * smooth_phase() * smooth_phase(strength=0.7).conj()).imag
    assert wandering(off) == pytest.approx(q.square().mean().sqrt().item(), rel=0.5)
    loose = dataclasses.replace(off, quadrature=wandering(off))
    m = (head() * smooth_phase() * smooth_phase(strength=0.7).conj()).real
    assert misfit(off, m).item() > 2 and misfit(loose, m).item() == pytest.approx(1, abs=0.25)
    truth = head() * smooth_phase()
    assert (phased(loose, m) - truth).norm() < 0.2 * (phased(off, m) - truth).norm()


@pytest.mark.parametrize("size", [(48, 56), (47, 55)])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_a_turned_scan_is_the_scan_of_the_turned_image(size, swap, flips):
    maps, kept = birdcage(size, 4)[None], equispaced(size, 3, 0.2).expand(1, 1, *size)
    image = head(size) * (1 + 0.2 * torch.linspace(-1, 1, size[0])[None, :, None])
    kspace = simulate(image * smooth_phase(size), maps, kept, 0.0, torch.zeros(1, 4, *size, 2))
    turned = oriented(Measurement(kspace, kept, maps, 1e-3, smooth_phase(size)), swap, flips)
    axes = [axis for axis, flip in zip((-2, -1), flips) if flip]
    expected = (image.transpose(-1, -2) if swap else image).flip(axes)
    assert misfit(turned, expected).item() < 0.01
    assert turned.sampled.sum() == kept.sum()


@pytest.mark.parametrize("name", classic.ALL)
def test_reconstructions_without_a_prior(name):
    """Fully sampled and noise-free they return the image; undersampled the better ones are nearer."""
    truth = head() * smooth_phase()
    whole, every, maps = scan(acceleration=1, noise=0.0)
    weights = {"zero-filled": (), "CG-SENSE": (1e-6,), "L1-wavelet": (1e-6,)}[name]
    out = classic.ALL[name](Measurement(whole, every, maps, 1e-3), *weights)
    assert (out - truth).norm() < 0.02 * truth.norm()
    part, kept, _ = scan(acceleration=3, calibration=0.15)
    one = Measurement(part, kept, maps, NOISE)
    error = (classic.ALL[name](one) - truth).norm() / truth.norm()
    zero = (classic.zero_filled(one) - truth).norm() / truth.norm()
    assert error <= {"zero-filled": 1, "CG-SENSE": 0.85, "L1-wavelet": 0.6}[name] * zero

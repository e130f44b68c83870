"""The scanner's operators: adjoints, closed forms, and that the fast form of a measurement is the measurement."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from amodal.core.contract import Batch, Measurement
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.physics.linear import inner, mask
from amodal.physics.mri import check, coils, fourier, magnitude, observe, real, sense, simulate, window

B, C, X, Y = 2, 3, 6, 9


def normal(seed, *shape, complex_=True):
    x = Rng([seed]).normal(*shape, 2)[0].double()
    return torch.view_as_complex(x) if complex_ else x[..., 0].contiguous()


def maps(n=B, seed=5):
    found = normal(seed, n, C, X, Y)
    return found / (found.abs() ** 2).sum(1, keepdim=True).sqrt()


def phase(n=B):
    found = normal(6, n, X, Y)
    return found / found.abs()


LINES = torch.tensor([1, 0, 0, 1, 1, 1, 0, 0, 1]).bool()[None, None, None]
PLANE = (normal(9, X, Y, complex_=False) > 0)[None, None]
EACH = (normal(8, B, X, Y, complex_=False) > 0)[:, None]
SAMPLED = {"lines": LINES, "plane": PLANE, "each": EACH, "all": torch.ones(1, 1, X, Y, dtype=torch.bool),
           "rows": LINES.new_tensor([1, 0, 1, 1, 0, 1])[None, None, :, None].expand(1, 1, X, Y)}  # fmt: skip


def measurement(pattern="lines", **changes):
    kept = SAMPLED[pattern]
    one = Measurement(mask(kept)(normal(1, B, C, X, Y)), kept, maps(), 0.1, phase(), (-2.0, 6.0))
    return dataclasses.replace(one, **changes)


OPERATORS = {
    "fourier": (fourier(), (B, C, X, Y), (B, C, X, Y), True),
    "fourier of one axis": (fourier((-1,)), (B, C, X, Y), (B, C, X, Y), True),
    "coils": (coils(maps()), (B, X, Y), (B, C, X, Y), True),
    "coils, same for all": (coils(maps(1)), (B, X, Y), (B, C, X, Y), True),
    "magnitude": (magnitude(maps()), (B, X, Y), (B, C, X, Y), False),
    "real": (real(), (B, X, Y), (B, X, Y), False),
    "window": (window((1, 2), (X, Y), (X + 3, Y + 4)), (B, X + 3, Y + 4), (B, X, Y), False),
    "sense": (sense(measurement()), (B, X, Y), (B, C, X, Y), True),
}  # name -> operator, shapes of image and data, whether images are complex
OPERATORS |= {f"observe {k}": (observe(measurement(k), (X, Y)).A, (B, X, Y), (B, C, X, Y), False) for k in SAMPLED}
PADDED = observe(measurement(corner=(2, 1)), (X + 4, Y + 3))
OPERATORS["observe padded"] = (PADDED.A, (B, X + 4, Y + 3), (B, C, X, Y), False)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_the_adjoint(name):
    """Re <A x, y> = Re <x, A^H y>, for each sample."""
    A, before, after, complex_ = OPERATORS[name]
    x, y = normal(2, *before, complex_=complex_), normal(3, *after, complex_=name != "window")
    torch.testing.assert_close(inner(A(x), y), inner(x, A.H(y)), rtol=1e-10, atol=1e-10)
    assert A.H(y).is_complex() == complex_ and A.H(y).shape == before


def test_the_fourier_transform_is_orthonormal_and_centred():
    x = normal(1, B, X, Y)
    F = fourier()
    torch.testing.assert_close(F.H(F(x)), x)
    torch.testing.assert_close(inner(F(x), F(x)), inner(x, x))
    point = torch.zeros(1, X, Y, dtype=torch.complex128)
    point[0, X // 2, Y // 2] = 1  # at the centre: no phase anywhere
    torch.testing.assert_close(F(point), torch.full_like(point, 1 / (X * Y) ** 0.5))
    flat = torch.ones(1, X, Y, dtype=torch.complex128)
    assert F(flat)[0, X // 2, Y // 2].real.item() == pytest.approx((X * Y) ** 0.5)


def test_one_coil_has_its_closed_forms():
    """A A^H = 1 on what was sampled, so the regularised least squares is (y + gamma F x) / (1 + gamma) there."""
    A = mask(PLANE[0]) @ fourier()
    y = A(normal(1, B, X, Y))
    torch.testing.assert_close(A(A.H(y)), y)


def test_maps_of_unit_energy_and_full_sampling_leave_the_image():
    one = measurement("all")
    A = sense(one)
    x = normal(1, B, X, Y)
    torch.testing.assert_close(A.H(A(x)), x)
    m = normal(1, B, X, Y, complex_=False)
    seen = observe(one, (X, Y)).A
    torch.testing.assert_close(seen.H(seen(m)), m)


def test_equispaced_lines_alias():
    """A^H A of one coil and every second line: the mean of the image and itself half a field of view on."""
    even = torch.zeros(1, 1, 1, 8, dtype=torch.bool)
    even[..., ::2] = True
    A = mask(even[0]) @ fourier()
    x = normal(1, B, X, 8)
    torch.testing.assert_close(A.H(A(x)), (x + x.roll(4, -1)) / 2)


def test_magnitude_is_coils_of_real_images():
    m, y = normal(1, B, X, Y, complex_=False), normal(2, B, C, X, Y)
    fast, plain = magnitude(maps()), coils(maps()) @ real()
    torch.testing.assert_close(fast(m), plain(m))
    torch.testing.assert_close(fast.H(y), plain.H(y))


@pytest.mark.parametrize("sampled", SAMPLED)
def test_an_observation_is_the_measurement_in_other_units(sampled):
    """||y - A x|| of an image in [-1, 1] is that of its magnitude in k-space, over the gain; so is the noise."""
    one = measurement(sampled, corner=(1, 2))
    seen = observe(one, (X + 2, Y + 5))
    x = normal(4, B, X + 2, Y + 5, complex_=False)
    m = (x[:, 1 : 1 + X, 2 : 2 + Y] + 1) / 2 * 8 - 2
    residual = one.kspace - sense(one)(m * one.phase)
    expected = inner(mask(one.sampled)(residual), mask(one.sampled)(residual)) / 16
    found = seen.y - seen.A(x)
    torch.testing.assert_close(inner(found, found), expected)
    assert seen.noise == pytest.approx(0.1 / 4)


def test_noise_stays_white_in_an_observation():
    noise = mask(LINES)(normal(1, 400, C, X, Y))
    one = measurement("lines", kspace=noise, maps=maps(1), phase=None, window=(-1.0, 1.0))
    y = observe(one, (X, Y)).y
    pairs = torch.view_as_real(y)[:, :, :, torch.fft.ifftshift(LINES[0, 0, 0])].flatten(1)
    assert pairs.var().item() == pytest.approx(1, rel=0.03)
    cov = torch.cov(pairs.T)
    assert (cov - torch.diag(cov.diagonal())).abs().max() < 0.3  # 5 standard errors of 400 samples


@pytest.mark.parametrize("sampled", SAMPLED)
def test_count_and_trace_are_those_of_the_matrix(sampled):
    seen = observe(measurement(sampled), (X, Y))
    basis = torch.eye(X * Y, dtype=torch.float64).reshape(-1, 1, X, Y).expand(-1, B, X, Y)
    energy = torch.stack([inner(v, v) for v in (seen.A(e) for e in basis)]).sum(0)
    torch.testing.assert_close(seen.trace, energy)
    kept = SAMPLED[sampled].expand(B, C, X, Y).flatten(1).sum(1)
    torch.testing.assert_close(seen.count, 2.0 * kept.double())


def test_the_nuisance_is_the_image_at_right_angles():
    one = measurement(quadrature=0.8)
    seen = observe(one, (X, Y))
    q = normal(4, B, X, Y, complex_=False)
    direct = sense(one)(1j * q * one.phase)
    torch.testing.assert_close(inner(seen.beside(q), seen.beside(q)), inner(direct, direct))
    torch.testing.assert_close(inner(seen.beside(q), seen.A(q)), inner(direct, sense(one)(q * one.phase)))
    assert seen.loose == pytest.approx(0.8 / 4) and observe(measurement(), (X, Y)).beside is None


def test_simulated_kspace_is_the_operator_and_noise():
    kept = LINES.expand(1, 1, X, Y)
    m, eps = normal(1, B, X, Y, complex_=False), Rng([3]).normal(B, C, X, Y, 2)[0].double()
    still = simulate(m, maps(), kept, 0.0, eps)
    torch.testing.assert_close(still, mask(kept)(fourier()(coils(maps())(m + 0j))))
    noisy = simulate(m, maps(), kept, 0.5, eps)
    torch.testing.assert_close(noisy - still, mask(kept)(0.5 * torch.view_as_complex(eps)))
    assert simulate(m, None, kept, 0.0, eps[:, :1]).shape == (B, 1, X, Y)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kspace": torch.zeros(B, C, X, Y)}, "float32; it must be complex"),
        ({"maps": maps()[:, :2]}, "coil maps of 2x2x6x9"),
        ({"maps": torch.cat([maps(), maps()])[:3]}, "coil maps of 3x3x6x9"),
        ({"sampled": torch.ones(1, 1, X, Y + 1, dtype=torch.bool)}, "a mask of 1x1x6x10"),
        ({"sampled": torch.zeros(1, 1, X, Y, dtype=torch.bool)}, "samples nothing"),
        ({"kspace": torch.full((B, C, X, Y), torch.nan + 0j)}, "NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        check(measurement(**changes), "FLAIR")
    check(measurement(), "FLAIR")


def test_a_batch_moves_and_slices_its_measurements():
    one = measurement("lines", maps=maps(1))
    batch = Batch(torch.zeros(B, 2, X, Y), torch.zeros(1, 2, 1, 1).bool(), measurement={"FLAIR": one})
    moved = batch.to("cpu", torch.float64)
    assert moved.images.dtype == torch.float64 and moved.measurement["FLAIR"].kspace.is_complex()
    part = one[1:2]
    assert len(part) == 1 and torch.equal(part.kspace, one.kspace[1:]) and torch.equal(part.phase, one.phase[1:])
    assert part.maps is one.maps and part.sampled is one.sampled and part.window == one.window


@pytest.mark.parametrize("name", OPERATORS)
def test_the_normal_operator_is_both_in_turn(name):
    A, before, _, complex_ = OPERATORS[name]
    x = normal(2, *before, complex_=complex_)
    kept = x.clone()
    torch.testing.assert_close(A.normal(x), A.H(A(x)))
    assert torch.equal(x, kept)  # nothing is done in place that the caller would notice


def coils_of_few(rank):
    """Maps of 3 coils that are mixtures of `rank` at every x, another mixture at each."""
    mix = normal(11, X, C, rank)
    few = normal(12, 1, rank, X, Y)
    return torch.einsum("xck,bkxy->bcxy", mix, few)


@pytest.mark.parametrize("rank", [1, 2])
def test_virtual_coils_keep_all_that_coils_know(rank):
    """Where three coils are mixtures of fewer, the fewer say the same: A^H A, A^H y, and noise of the same level."""
    truth = normal(3, B, X, Y, complex_=False)
    many = coils_of_few(rank)
    kspace = mask(LINES)(sense(measurement(maps=many, phase=None))(truth + 0j))
    one = measurement(maps=many, phase=None, kspace=kspace, window=(-1.0, 1.0))
    plain, few = observe(one, (X, Y)), observe(one, (X, Y), spare=1e-9)
    assert few.y.shape[1] == rank and plain.y.shape[1] == C
    x = normal(4, B, X, Y, complex_=False)
    torch.testing.assert_close(few.A.normal(x), plain.A.normal(x))
    torch.testing.assert_close(few.A.H(few.y), plain.A.H(plain.y))
    torch.testing.assert_close(few.trace, plain.trace)
    torch.testing.assert_close(few.count * C, plain.count * rank)
    assert few.noise == plain.noise


@pytest.mark.parametrize("pattern", ["lines", "rows", "plane"])
def test_virtual_coils_are_less_of_the_same_scan(pattern):
    """However many are left out, what is left is explained by the true image to the noise that was there: none."""
    truth = normal(3, B, X, Y, complex_=False)
    clean = measurement(pattern, phase=None, window=(-1.0, 1.0))
    one = dataclasses.replace(clean, kspace=sense(clean)(truth + 0j))
    few = observe(one, (X, Y), spare=0.4)
    assert few.y.shape[1] < C
    torch.testing.assert_close(few.A(truth), few.y)

"""Distances of samples: closed forms of Gaussians, rank-deficient covariances, SciPy, torchmetrics, and n below d."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from amodal.core.errors import InputError
from amodal.metrics import distances as D


def exact_sample(n, spreads, basis, mean, seed):
    """n samples whose mean and covariance (n - 1) are exactly `mean` and basis diag(spreads^2) basis'."""
    k = len(spreads)
    raw = np.random.default_rng(seed).standard_normal((n, k))
    q = np.linalg.qr(np.concatenate([np.ones((n, 1)), raw], 1))[0][:, 1:]  # orthonormal columns of mean 0
    return mean + np.sqrt(n - 1) * q * spreads @ basis[:, :k].T


def basis(d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


@pytest.mark.parametrize(
    ("n", "m", "d", "rank"),
    [(200, 150, 6, 6), (30, 40, 64, 12), (12, 9, 300, 5), (500, 8, 20, 4), (60, 60, 20, 3)],
    ids=["n > d", "n < d", "n << d", "one of each", "rank-deficient"],
)
def test_frechet_of_commuting_gaussians(n, m, d, rank):
    rng = np.random.default_rng(1)
    v, s, t = basis(d), rng.uniform(0.5, 3, rank), rng.uniform(0.5, 3, rank)
    mean, mean2 = rng.standard_normal(d), rng.standard_normal(d)
    expected = ((mean - mean2) ** 2).sum() + ((s - t) ** 2).sum()
    a, b = exact_sample(n, s, v, mean, 2), exact_sample(m, t, v, mean2, 3)
    assert D.frechet(a, b) == pytest.approx(expected, rel=1e-9)
    covariances = [v[:, :rank] @ np.diag(x**2) @ v[:, :rank].T for x in (s, t)]
    assert D.frechet_gaussian(mean, covariances[0], mean2, covariances[1]) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_gaussians_without_a_common_direction():
    """Covariances on orthogonal subspaces: their product is 0, and nothing is shared."""
    v = basis(40)
    a = exact_sample(25, np.array([1.0, 2.0]), v, np.zeros(40), 0)
    b = exact_sample(25, np.array([3.0]), v[:, 5:], np.ones(40), 1)
    assert D.frechet(a, b) == pytest.approx(40 + 1 + 4 + 9, rel=1e-9)


def test_frechet_in_one_dimension_by_hand():
    a, b = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [8.0]])
    assert D.frechet(a, b) == pytest.approx((1 - 6) ** 2 + (math.sqrt(2) - math.sqrt(3)) ** 2)


@pytest.mark.parametrize(("n", "d"), [(80, 10), (400, 32)])
def test_frechet_agrees_with_scipy_and_torchmetrics_where_they_are_right(n, d):
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)), rng.standard_normal((n, d)) + 1
    moments = a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T)
    root = linalg.sqrtm(moments[1] @ moments[3])
    assert np.isrealobj(root)
    peer = ((moments[0] - moments[2]) ** 2).sum() + np.trace(moments[1] + moments[3] - 2 * root)
    assert D.frechet(a, b) == pytest.approx(peer, rel=1e-8)
    assert D.frechet_gaussian(*moments) == pytest.approx(peer, rel=1e-8)
    assert D.frechet(a, b) == pytest.approx(float(_compute_fid(*map(torch.from_numpy, moments))), rel=1e-8)


def test_where_the_naive_square_root_fails():
    """30 samples in 200 dimensions: the product of covariances has no real root, and its trace loses digits."""
    rng = np.random.default_rng(2)
    spread = 1e5 * 10.0 ** -np.linspace(0, 3, 200)
    a = rng.standard_normal((30, 200)) * spread
    covariance = np.cov(a.T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = linalg.sqrtm(covariance @ np.cov((rng.standard_normal((30, 200)) * spread).T))
        own = linalg.sqrtm(covariance @ covariance)
    assert np.abs(np.imag(np.diagonal(root))).max() > 1e-3  # what makes the usual programs stop
    scale = np.trace(covariance)
    naive = float(np.real(2 * scale - 2 * np.trace(own)))
    assert abs(naive) > 1e-9 * scale  # of a sample to itself
    assert D.frechet(a, a) < 1e-13 * scale
    v, s, t = basis(200), np.geomspace(1e5, 1e2, 20), np.geomspace(1e2, 1e5, 20)
    mine = D.frechet(exact_sample(30, s, v, 0.0, 1), exact_sample(30, t, v, 0.0, 2))
    assert mine == pytest.approx(((s - t) ** 2).sum(), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 15), seed=st.integers(0, 10_000))
def test_frechet_is_a_distance(n, m, d, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, d)), 3 * rng.standard_normal((m, d)) + 1
    found = D.frechet(a, b)
    assert found == pytest.approx(D.frechet(b, a), rel=1e-9)
    assert D.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert found >= ((a.mean(0) - b.mean(0)) ** 2).sum() - 1e-9
    turn = basis(d, seed)
    assert D.frechet(a @ turn + 2, b @ turn + 2) == pytest.approx(found, rel=1e-7)  # rotations and shifts of both
    assert D.frechet(5 * a, 5 * b) == pytest.approx(25 * found, rel=1e-9)


def test_frechet_of_a_shift_is_its_square():
    a = np.random.default_rng(0).standard_normal((20, 50))
    assert D.frechet(a + 0.3, a) == pytest.approx(50 * 0.09, rel=1e-9)
    assert D.frechet(2 * a, a) == pytest.approx(D.frechet(2 * a, 0 * a[:2]) / 4, rel=1e-9)


def test_negative_covariances_are_refused():
    with pytest.raises(InputError, match="eigenvalue -1"):
        D.frechet_gaussian(np.zeros(2), np.diag([1.0, -1.0]), np.zeros(2), np.eye(2))


def gaussian_mmd(d, shift, s, t, bandwidth):
    """MMD^2 of N(0, s^2 I) and N(shift, t^2 I) in d dimensions with a Gaussian kernel, in closed form."""
    h = bandwidth**2

    def expected(variance, distance=0.0):
        return (h / (h + variance)) ** (d / 2) * math.exp(-distance / (2 * (h + variance)))

    return expected(2 * s * s) + expected(2 * t * t) - 2 * expected(s * s + t * t, d * shift**2)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 2.0), (0.3, 0.7)])
def test_mmd_is_unbiased_for_gaussians(shift, scale):
    rng, bandwidths, d = np.random.default_rng(7), (1.0, 2.0, 4.0), 3
    found = []
    for _ in range(60):
        a, b = rng.standard_normal((60, d)), shift + scale * rng.standard_normal((50, d))
        found.append(D.squared_mmd(a, b, bandwidths))
    expected = np.mean([gaussian_mmd(d, shift, 1.0, scale, h) for h in bandwidths])
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - expected) < 3.5 * error
    assert error < 0.005  # so that the line above says something


def test_mmd_by_hand():
    a, b = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0], [3.0]])
    k = lambda x, h: math.exp(-x * x / (2 * h * h))  # noqa: E731
    hand = 0.0
    for weight, h in ((0.25, 1.0), (0.75, 2.0)):
        within_b = (k(2, h) + k(3, h) + k(1, h)) / 3
        across = (k(0, h) + k(2, h) + k(3, h) + k(1, h) + k(1, h) + k(2, h)) / 6
        hand += weight * (k(1, h) + within_b - 2 * across)
    assert D.squared_mmd(a, b, (1.0, 2.0), (0.25, 0.75)) == pytest.approx(hand, abs=1e-12)
    assert D.mmd(a, b, (1.0, 2.0), (0.25, 0.75)) == pytest.approx(math.sqrt(max(hand, 0)), abs=1e-12)


def test_mmd_below_zero_is_zero():
    a = np.random.default_rng(0).standard_normal((30, 4))
    assert D.squared_mmd(a, a, (1.0,)) < 0
    assert D.mmd(a, a, (1.0,)) == 0


def test_bandwidths_follow_the_real_samples():
    a = np.random.default_rng(0).standard_normal((200, 16))
    found = D.bandwidths_of(a)
    assert found[2] == pytest.approx(math.sqrt(2 * 16), rel=0.1)  # the median distance of two normal vectors
    assert D.bandwidths_of(10 * a) == pytest.approx([10 * h for h in found])
    with pytest.raises(InputError, match="same features"):
        D.bandwidths_of(np.ones((5, 3)))


@pytest.mark.parametrize(
    ("bandwidths", "weights", "words"),
    [
        ((), None, "bandwidth"),
        ((0.0,), None, "above 0"),
        ((1.0, 2.0), (0.5, 0.6), "sum to"),
        ((1.0,), (0.5, 0.5), "as many"),
    ],
)
def test_kernels_that_are_none_are_refused(bandwidths, weights, words):
    a = np.zeros((3, 2))
    with pytest.raises(InputError, match=words):
        D.mmd(a, a, bandwidths, weights)


def test_kid_agrees_with_torchmetrics():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 12)), 0.3 + rng.standard_normal((40, 12))
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    assert D.kid(a, b) == pytest.approx(float(poly_mmd(x, y)), rel=1e-9)


def test_kid_of_a_shift_of_points():
    """Two point masses 0 and c: k(0, 0) = 1, k(c, c) = (|c|^2 / d + 1)^3, k(0, c) = 1."""
    a, b = np.zeros((3, 4)), np.ones((5, 4))
    assert D.kid(a, b) == pytest.approx(1 + 8 - 2)
    assert D.kid(a, a) == pytest.approx(0)


def test_precision_and_recall_of_manifolds():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((120, 4))
    assert D.precision(real, real) == D.recall(real, real) == 1
    assert D.precision(real + 50, real) == D.recall(real + 50, real) == 0
    narrow = 0.2 * rng.standard_normal((120, 4))  # all of it plausible, little of the variety
    assert D.precision(narrow, real) > 0.95
    assert D.recall(narrow, real) < 0.3
    half = np.concatenate([real[:60], real[:60] + 50])  # half of it nowhere near
    assert D.precision(half, real) == pytest.approx(0.5)


def test_manifolds_by_hand():
    reference = np.array([[0.0], [1.0], [10.0]])  # radii to the nearest: 1, 1, 9
    queries = np.array([[-1.0], [-1.1], [2.0], [18.9], [19.1], [5.0]])
    assert D.within(queries, reference, 1).tolist() == [True, False, True, True, False, True]
    with pytest.raises(InputError, match="choose 1 to 2"):
        D.within(queries, reference, 3)


@pytest.mark.parametrize("distance", [D.frechet, D.kid, D.precision, lambda a, b: D.mmd(a, b, (1.0,))])
def test_what_are_no_samples_is_refused(distance):
    good = np.zeros((5, 3))
    for bad in (np.zeros((5, 4)), np.zeros((1, 3)), np.zeros(3)):
        with pytest.raises(InputError, match="two or more vectors"):
            distance(good, bad)
    with pytest.raises(InputError, match="not finite"):
        distance(good, np.full((5, 3), np.nan))

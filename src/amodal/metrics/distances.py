"""Distances of two samples of feature vectors [n, d] and [m, d]: Frechet, KID, MMD, precision and recall.

All in double precision; none inverts a covariance or takes the square root of a matrix that is not symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist, pdist

from ..core.errors import InputError

SPREADS = (0.25, 0.5, 1.0, 2.0, 4.0)  # bandwidths of the MMD mixture, as multiples of the median distance
NEIGHBOURS = 3  # of the manifolds of precision and recall (Kynkaanniemi et al. 2019)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two samples taken as Gaussians (Dowson & Landau 1982; squared, as the FID is).

    |mean(a) - mean(b)|^2 + tr A + tr B - 2 tr (A B)^(1/2), covariances with n - 1. With A = X'X and B = Y'Y the last
    trace is the sum of the singular values of X Y' (its squares are the eigenvalues of A B): real for any rank, exact
    for n < d, and no eigenvalue's digits are lost in a product of covariances.
    """
    a, b = _samples(a, b)
    x, y = (_factor(v) for v in (a, b))
    return _frechet(a.mean(0), x, b.mean(0), y)


def frechet_gaussian(mean: np.ndarray, covariance: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """The same for two Gaussians given by mean [d] and symmetric positive semidefinite covariance [d, d]."""
    factors = []
    for c in (covariance, covariance2):
        values, vectors = linalg.eigh(np.asarray(c, float))
        if values.min() < -1e-6 * max(abs(values).max(), 1e-300):
            raise InputError(f"a covariance has the eigenvalue {values.min():.3g}; give one without negative ones.")
        factors.append(np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)
    return _frechet(np.asarray(mean, float), factors[0], np.asarray(mean2, float), factors[1])


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Kernel inception distance: the unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018).

    Over all pairs, which is what the published mean over random subsets estimates; it can be below 0.
    """
    a, b = _samples(a, b)
    return unbiased(*(polynomial(x, y) for x, y in ((a, a), (b, b), (a, b))))


def mmd(a: np.ndarray, b: np.ndarray, bandwidths: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """sqrt(max(MMD^2, 0)) with the unbiased MMD^2 and a mixture of Gaussian kernels (WFDM, section 2.5.7)."""
    return float(np.sqrt(max(squared_mmd(a, b, bandwidths, weights), 0.0)))


def squared_mmd(
    a: np.ndarray, b: np.ndarray, bandwidths: Sequence[float], weights: Sequence[float] | None = None
) -> float:
    """The unbiased MMD^2 with k(x, y) = sum_l w_l exp(-|x - y|^2 / (2 s_l^2)), weights w_l equal unless given.

    It can be below 0.
    """
    a, b = _samples(a, b)
    return unbiased(*(gaussians(x, y, bandwidths, weights) for x, y in ((a, a), (b, b), (a, b))))


def bandwidths_of(real: np.ndarray, spreads: Sequence[float] = SPREADS) -> tuple[float, ...]:
    """Bandwidths for `mmd` from the real features alone, so that all models are measured with one kernel.

    Multiples of the median distance of two real samples; the paper gives no values.
    """
    median = float(np.median(pdist(np.asarray(real, float))))
    if median <= 0:
        raise InputError("more than half of the real samples have the same features; give more varied ones.")
    return tuple(s * median for s in spreads)


def precision(generated: np.ndarray, real: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """The part of the generated samples that lie in the manifold of the real ones (Kynkaanniemi et al. 2019)."""
    return float(within(generated, real, neighbours).mean())


def recall(generated: np.ndarray, real: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """The part of the real samples that lie in the manifold of the generated ones."""
    return float(within(real, generated, neighbours).mean())


def within(queries: np.ndarray, reference: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Which queries lie in a ball around a reference sample that reaches to its k-th neighbour, bool [n]."""
    queries, reference = _samples(queries, reference)
    if not 1 <= neighbours < len(reference):
        raise InputError(
            f"neighbours={neighbours}: with {len(reference)} samples choose 1 to {len(reference) - 1}, usually 3."
        )
    radii = np.partition(cdist(reference, reference), neighbours, axis=1)[:, neighbours]  # 0 is itself
    return (cdist(queries, reference) <= radii).any(1)


def gaussians(
    x: np.ndarray, y: np.ndarray, bandwidths: Sequence[float], weights: Sequence[float] | None = None
) -> np.ndarray:
    """The mixture of Gaussian kernels of all pairs, [n, m]."""
    shares = np.full(len(bandwidths), 1 / max(len(bandwidths), 1)) if weights is None else np.asarray(weights, float)
    if len(shares) != len(bandwidths) or not len(shares) or min(*bandwidths, 1) <= 0 or shares.min() < 0:
        raise InputError("give at least one bandwidth above 0, and as many weights, none below 0.")
    if abs(shares.sum() - 1) > 1e-9:
        raise InputError(f"the weights of the kernels sum to {shares.sum():g}; they must sum to 1.")
    square = cdist(x, y, "sqeuclidean")
    return sum((w * np.exp(-square / (2 * s * s)) for w, s in zip(shares, bandwidths)), np.zeros_like(square))


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x.y / d + 1)^3 of all pairs, [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def unbiased(
    aa: np.ndarray, bb: np.ndarray, ab: np.ndarray, na: np.ndarray | None = None, nb: np.ndarray | None = None
) -> float:
    """The unbiased MMD^2 from kernel matrices. `na`, `nb`: how often each sample counts (a bootstrap draw).

    A sample never meets itself or its copies, so a draw is no more biased than the estimate.
    """
    wa, wb = (np.ones(len(k)) if n is None else np.asarray(n, float) for k, n in ((aa, na), (bb, nb)))
    return _among(aa, wa) + _among(bb, wb) - 2 * float(wa @ ab @ wb) / (wa.sum() * wb.sum())


def _among(kernel: np.ndarray, counts: np.ndarray) -> float:
    square = counts**2
    return float(counts @ kernel @ counts - square @ np.diag(kernel)) / float(counts.sum() ** 2 - square.sum())


def _frechet(mean: np.ndarray, x: np.ndarray, mean2: np.ndarray, y: np.ndarray) -> float:
    shared = linalg.svdvals(x @ y.T).sum()
    return max(float(((mean - mean2) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * shared), 0.0)


def _factor(a: np.ndarray) -> np.ndarray:
    """X with X'X = covariance, as few rows as there can be: the centred samples, or the triangle of their QR."""
    x = (a - a.mean(0)) / np.sqrt(len(a) - 1)
    return x if len(x) <= x.shape[1] else linalg.qr(x, mode="r")[0][: x.shape[1]]


def _samples(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(f"features of shape {a.shape} and {b.shape}: give two or more vectors [n, d] of one length d.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("some features are not finite; look for empty or broken volumes.")
    return a, b

"""Every paired metric on identical, shifted, scaled and noisy pairs, against what it must be in closed form."""

import math

import numpy as np
import pytest
from scipy import ndimage

from amodal.metrics.image import METRICS

SHAPE = (40, 44, 48)
SHIFT, GAIN, SD = 0.1, 0.9, 0.03
C1, C2 = 0.01**2, 0.03**2  # of SSIM, Wang et al. 2004
LEVEL = 0.5  # of the flat image, on which SSIM has closed forms


def textured():
    x = ndimage.gaussian_filter(np.random.default_rng(0).random(SHAPE), 1.5)
    return 0.2 + 0.6 * (x - x.min()) / np.ptp(x)


TRUTH, FLAT = textured(), np.full(SHAPE, LEVEL)
NOISE = SD * np.random.default_rng(1).standard_normal(SHAPE)
PEAK = math.inf
INNER = (slice(8, -8),) * 3  # where no filter meets the border, at which mirrored noise is louder


def luminance(a, b):
    return (2 * a * b + C1) / (a * a + b * b + C1)


def steepness():
    """The mean length of the gradient of the textured image, written out."""
    return float(np.sqrt(sum(np.gradient(TRUTH, axis=a) ** 2 for a in range(3))).mean())


def window(sigma=1.5, radius=5):
    w = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return w / w.sum()


def contrast(variance):
    """The contrast term of a flat image and noise: the window's own variance of it, which is never quite its own."""
    return C2 / (variance * (1 - (window() ** 2).sum() ** 3) + C2)


def sharpened():
    """White noise through a Laplacian of Gaussian that is blind to constants: the energy of its response."""
    impulse = np.zeros((15, 15, 15))
    impulse[7, 7, 7] = 1
    response = ndimage.gaussian_laplace(impulse, 1.5, radius=7)
    blind = response.sum()
    response[7, 7, 7] -= blind
    truth = ndimage.gaussian_laplace(TRUTH, 1.5, radius=7) - blind * TRUTH
    return math.sqrt(SD**2 * (response**2).sum() / (truth[INNER] ** 2).mean())


def halved(levels):
    """MS-SSIM of a flat image and noise: each halving leaves an eighth of its variance."""
    exponents = np.array((0.0448, 0.2856, 0.3001)[:levels])
    terms = [contrast(SD**2 / 8**k) for k in range(levels)]
    return float(np.prod(np.array(terms) ** (exponents / exponents.sum())))


ENERGY = float((TRUTH**2).mean())
IDENTICAL = {"psnr": PEAK, "ssim": 1, "msssim": 1, "mae": 0, "mse": 0, "nmse": 0, "gradient": 0, "high_frequency": 0}
CASES = {
    "identical": (TRUTH, TRUTH, IDENTICAL, 1e-12),
    "shifted": (
        TRUTH + SHIFT,
        TRUTH,
        {"psnr": 20.0, "mae": 0.1, "mse": 0.01, "nmse": 0.01 / ENERGY, "gradient": 0.0, "high_frequency": 0.0},
        1e-9,
    ),
    "shifted, flat": (
        FLAT + SHIFT,
        FLAT,
        {"ssim": luminance(0.6, 0.5), "msssim": luminance(0.6, 0.5) ** (0.2856 / 0.3304)},
        1e-9,
    ),
    "scaled": (
        GAIN * TRUTH,
        TRUTH,
        {
            "psnr": -10 * math.log10(0.01 * ENERGY),
            "mae": 0.1 * float(TRUTH.mean()),
            "mse": 0.01 * ENERGY,
            "nmse": 0.01,
            "gradient": 0.1 * steepness(),
            "high_frequency": 0.1,
        },
        1e-9,
    ),
    "scaled, flat": (
        GAIN * FLAT,
        FLAT,
        {"ssim": luminance(0.45, 0.5), "msssim": luminance(0.45, 0.5) ** (0.2856 / 0.3304)},
        1e-9,
    ),
    "noisy": (
        TRUTH + NOISE,
        TRUTH,
        {
            "psnr": -20 * math.log10(SD),
            "mae": SD * math.sqrt(2 / math.pi),
            "mse": SD**2,
            "nmse": SD**2 / ENERGY,
        },
        0.02,
    ),
    "noisy, flat": (FLAT + NOISE, FLAT, {"ssim": contrast(SD**2), "msssim": halved(2)}, 0.02),
}


@pytest.mark.parametrize("case", CASES)
def test_what_it_must_be(case):
    prediction, truth, expected, near = CASES[case]
    for data_range in (1.0, 500.0):  # the answer is of images in units of their range
        found = {m: METRICS[m](data_range * prediction, data_range * truth, data_range, None) for m in expected}
        assert found == pytest.approx(expected, rel=near, abs=near * 1e-2 if near > 1e-3 else near)


def test_noise_through_filters():
    """A central difference of white noise has variance sd^2 / 2 along each axis; the norm of three is a chi."""
    mask = np.zeros(SHAPE, bool)
    mask[INNER] = True
    chi = math.sqrt(2) * math.gamma(2) / math.gamma(1.5) * SD / math.sqrt(2)
    assert METRICS["gradient"](TRUTH + NOISE, TRUTH, 1.0, mask) == pytest.approx(chi, rel=0.02)
    assert METRICS["high_frequency"](TRUTH + NOISE, TRUTH, 1.0, mask) == pytest.approx(sharpened(), rel=0.02)


def test_no_metric_is_left_out():
    for kind in ("identical", "shifted", "scaled", "noisy"):
        seen = {m for name, case in CASES.items() if name.startswith(kind) for m in case[2]}
        assert seen | ({"gradient", "high_frequency"} if kind == "noisy" else set()) == set(METRICS)

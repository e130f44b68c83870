"""SSIM at several scales: against torchmetrics where its windows fit, against hand-made values, and with masks."""

import numpy as np
import pytest
import torch
from scipy import ndimage, signal
from skimage import measure
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from amodal.core.errors import InputError
from amodal.metrics.structure import EXPONENTS, msssim, scales_for, ssim


def texture(shape, seed=0):
    x = sum(ndimage.gaussian_filter(np.random.default_rng((seed, s)).standard_normal(shape), s) * s for s in (1, 3, 8))
    return (x - x.min()) / np.ptp(x)


@pytest.fixture(scope="module")
def pair():
    truth = texture((192, 181))
    return truth + 0.05 * np.random.default_rng(1).standard_normal(truth.shape), truth


def by_the_book(x, y, scales):
    """Wang et al. 2003, equation 7, with windows slid over the image as they are written down."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = line
    for _ in range(x.ndim - 1):
        window = np.multiply.outer(window, line)
    window /= window.sum()
    out = 1.0
    exponents = np.array(EXPONENTS[:scales]) / (1 if scales == 5 else sum(EXPONENTS[:scales]))
    for level in range(scales):
        mx, my, xx, yy, xy = (signal.fftconvolve(v, window, mode="valid") for v in (x, y, x * x, y * y, x * y))
        term = (2 * (xy - mx * my) + 9e-4) / (xx - mx**2 + yy - my**2 + 9e-4)
        if level == scales - 1:
            term = term * (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        out *= term.mean() ** exponents[level]
        even = tuple(slice(0, n // 2 * 2) for n in x.shape)
        x, y = (measure.block_reduce(v[even], 2, np.mean) for v in (x, y))
    return out


@pytest.mark.parametrize("scale", [1.0, 500.0])
def test_agrees_with_the_definition_in_2d(pair, scale):
    assert msssim(*(scale * v for v in pair), scale) == pytest.approx(by_the_book(*pair, 5), abs=1e-9)


def test_agrees_with_the_definition_in_3d():
    truth = texture((52, 48, 50))
    prediction = ndimage.gaussian_filter(truth, 1)
    assert msssim(prediction, truth, 1.0) == pytest.approx(by_the_book(prediction, truth, 3), abs=1e-9)


def test_torchmetrics_differs_by_its_border_only(pair):
    """It takes the coarsest scale's mean over reflected borders too, so it agrees to some thousandths."""
    x, y = (torch.from_numpy(v)[None, None] for v in pair)
    peer = multiscale_structural_similarity_index_measure(x, y, data_range=1.0)
    assert msssim(*pair, 1.0) == pytest.approx(float(peer), abs=2e-3)


def test_identical_shifted_and_opposite(pair):
    _, truth = pair
    assert msssim(truth, truth, 1.0) == pytest.approx(1)
    flat = np.full((180, 180), 0.5)  # contrast terms are 1, what is left is the luminance at the coarsest scale
    luminance = (2 * 0.3 + 1e-4) / (0.25 + 0.36 + 1e-4)
    assert msssim(flat + 0.1, flat, 1.0) == pytest.approx(luminance ** EXPONENTS[4], abs=1e-9)
    assert msssim(1 - truth, truth, 1.0) == 0  # negative contrast counts as none


def test_one_scale_is_ssim(pair):
    assert msssim(*pair, 1.0, scales=1) == pytest.approx(ssim(*pair, 1.0), abs=1e-12)


def test_worse_images_score_lower(pair):
    _, truth = pair
    scores = [msssim(ndimage.gaussian_filter(truth, s), truth, 1.0) for s in (0.5, 1, 2, 4)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((192, 224, 160), 4), ((192, 224, 176), 5), ((240, 240, 155), 4), ((64, 64, 5), 1), ((176, 176), 5)],
)
def test_as_many_scales_as_there_is_room_for(shape, scales):
    assert scales_for(shape) == scales


def test_more_scales_than_fit_are_refused(pair):
    with pytest.raises(InputError, match="room for 1 to 3"):
        msssim(pair[0][:60], pair[1][:60], 1.0, scales=4)


def test_only_the_mask_counts(pair):
    prediction, truth = pair
    mask = np.zeros(truth.shape, bool)
    mask[8:40, 8:40] = True
    spoilt = prediction.copy()
    spoilt[150:] = 9
    assert msssim(spoilt, truth, 1.0, mask) == pytest.approx(msssim(prediction, truth, 1.0, mask), abs=1e-9)
    assert 0 < msssim(prediction, truth, 1.0, mask) < 1
    speck = np.zeros(truth.shape, bool)
    speck[10, 11] = True  # gone at the second scale
    assert msssim(prediction, truth, 1.0, speck) == pytest.approx(ssim(prediction, truth, 1.0, speck))

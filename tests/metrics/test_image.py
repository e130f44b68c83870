"""Image metrics: against scikit-image, against hand-made values, and against what a careless version gets wrong."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import (
    mean_squared_error,
    normalized_root_mse,
    peak_signal_noise_ratio,
    structural_similarity,
)

from amodal.core.errors import InputError
from amodal.metrics import image
from amodal.metrics.image import (
    gradient_error,
    head_mask,
    high_frequency_error,
    mae,
    mse,
    msssim,
    nmse,
    paired,
    psnr,
    ssim,
    stripe_ratio,
    stripes,
)

METRICS = (psnr, ssim, mae, nmse, mse, gradient_error, high_frequency_error)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.random((40, 36, 30)), 2)
    truth = (truth - truth.min()) / np.ptp(truth)
    return truth + 0.05 * rng.standard_normal(truth.shape), truth


@pytest.mark.parametrize("size", [(40, 36, 30), (48, 33)])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1000.0, 500.0), (0.01, 3.0)])
def test_agrees_with_scikit_image(pair, size, scale, offset):
    prediction, truth = (
        scale * ndimage.zoom(x, np.array(size) / x.shape[: len(size)]) + offset for x in _cut(pair, size)
    )
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": scale}
    peer, full = structural_similarity(truth, prediction, full=True, **options)
    assert ssim(prediction, truth, scale) == pytest.approx(peer, abs=1e-6)
    assert psnr(prediction, truth, scale) == pytest.approx(
        peak_signal_noise_ratio(truth, prediction, data_range=scale), abs=1e-6
    )
    assert mse(prediction, truth, scale) == pytest.approx(mean_squared_error(truth, prediction) / scale**2, rel=1e-6)
    norm = normalized_root_mse(truth, prediction, normalization="euclidean")
    assert nmse(prediction, truth, scale) == pytest.approx(norm**2, rel=1e-6)
    mask = np.zeros(size, bool)
    mask[5:20, 3:9] = True
    assert ssim(prediction, truth, scale, mask) == pytest.approx(full[mask].mean(), abs=1e-6)


def _cut(pair, size):
    return pair if len(size) == 3 else [x[..., 15] for x in pair]


def test_known_values():
    truth = np.full((12, 12, 12), 0.5)
    assert psnr(truth + 0.1, truth, 1.0) == pytest.approx(20, abs=1e-4)
    assert psnr(truth + 0.1, truth, 2.0) == pytest.approx(20 + 20 * math.log10(2), abs=1e-4)
    assert mae(truth - 0.1, truth, 1.0) == pytest.approx(0.1, abs=1e-6)
    assert mae(truth - 0.1, truth, 4.0) == pytest.approx(0.025, abs=1e-6)
    assert nmse(truth + 0.1, truth, 3.0) == pytest.approx(0.04, abs=1e-6)
    assert ssim(truth + 0.1, truth, 1.0) == pytest.approx((2 * 0.3 + 1e-4) / (0.25 + 0.36 + 1e-4), abs=1e-5)


def ramp(slope=0.02):
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in (20, 18, 16)), indexing="ij")
    return slope * x + 0 * y + 0.01 * z


def test_the_gradient_error_is_the_slope_that_was_lost():
    assert gradient_error(ramp(0.05), ramp(0.02), 1.0) == pytest.approx(0.03)
    assert gradient_error(ramp(0.05), ramp(0.02), 2.0) == pytest.approx(0.015)
    flat = np.zeros((20, 18, 16))
    assert gradient_error(ramp(0.02), flat, 1.0) == pytest.approx(math.hypot(0.02, 0.01))


def test_blurring_costs_high_frequencies_first(pair):
    truth = pair[1] + 0.02 * np.random.default_rng(0).standard_normal(pair[1].shape)
    errors = [high_frequency_error(ndimage.gaussian_filter(truth, s), truth, 1.0) for s in (0.5, 1.0, 2.0)]
    assert errors == sorted(errors)
    assert errors[0] > 2.5 * math.sqrt(nmse(ndimage.gaussian_filter(truth, 0.5), truth, 1.0))
    assert high_frequency_error(truth, np.full(truth.shape, 0.5), 1.0) == math.inf


def test_regions_are_scored_apart(pair):
    prediction, truth = pair
    lesion, brain, nothing = (np.zeros(truth.shape, bool) for _ in range(3))
    lesion[18:24, 10:16, 12:18] = True
    brain[2:36, 2:33, 2:28] = True
    worse = np.where(lesion, prediction + 0.3, prediction)
    names = ("psnr", "ssim", "msssim", "mae", "gradient", "high_frequency")
    found = paired(worse, truth, 2.0, {"brain": brain, "lesion": lesion, "none": nothing}, names)
    assert set(found) == {"brain", "lesion"}
    for region, mask in (("brain", brain), ("lesion", lesion)):
        for name in names:
            assert found[region][name] == pytest.approx(image.METRICS[name](worse, truth, 2.0, mask), rel=1e-9)
    assert found["lesion"]["psnr"] < found["brain"]["psnr"] - 5
    with pytest.raises(InputError, match="choose among psnr"):
        paired(worse, truth, 1.0, {"brain": brain}, ("dice",))
    with pytest.raises(InputError, match="mask"):
        paired(worse, truth, 1.0, {"brain": brain[1:]})


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_mask_counts(pair, metric):
    prediction, truth = pair
    mask = np.zeros(truth.shape, bool)
    mask[12:20, 12:20, 12:20] = True
    spoilt = prediction.copy()
    spoilt[:4] = 7  # farther from the mask than any window reaches
    assert metric(spoilt, truth, 1.0, mask) == pytest.approx(metric(prediction, truth, 1.0, mask), abs=1e-6)
    assert metric(spoilt, truth, 1.0) != pytest.approx(metric(prediction, truth, 1.0), abs=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_torch_and_numpy_are_one(pair, metric):
    prediction, truth = (x.astype(np.float32) for x in pair)
    mask = truth > 0.4
    tensors = (torch.from_numpy(prediction).requires_grad_(), torch.from_numpy(truth))
    assert metric(*tensors, 1.0, torch.from_numpy(mask)) == pytest.approx(
        metric(prediction, truth, 1.0, mask), rel=1e-6
    )


@pytest.mark.parametrize("metric", METRICS)
def test_data_range_has_no_default(pair, metric):
    with pytest.raises(TypeError):
        metric(*pair)


@pytest.mark.parametrize("metric", (*METRICS, msssim))
@pytest.mark.parametrize("data_range", [0, -1.0, math.nan, math.inf])
def test_data_range_must_be_a_range(pair, metric, data_range):
    with pytest.raises(InputError, match="data_range"):
        metric(*pair, data_range)


@pytest.mark.parametrize("metric", METRICS)
def test_what_does_not_fit_is_refused(pair, metric):
    prediction, truth = pair
    with pytest.raises(InputError, match="one shape"):
        metric(prediction[1:], truth, 1.0)
    with pytest.raises(InputError, match="not finite"):
        metric(np.where(truth > 0.9, np.nan, prediction), truth, 1.0)
    with pytest.raises(InputError, match="mask"):
        metric(prediction, truth, 1.0, np.zeros(truth.shape, bool))
    with pytest.raises(InputError, match="mask"):
        metric(prediction, truth, 1.0, np.ones(truth.shape[1:], bool))


def test_few_slices_are_no_obstacle(pair):
    prediction, truth = (x[:, :, :5] for x in pair)
    assert 0 < ssim(prediction, truth, 1.0) < 1


def anatomy(shape=(48, 52, 40), seed=0):
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, 3)
    return smooth / smooth.std() * 0.15 + 0.5


def test_stripes_of_isotropic_anatomy_is_one():
    assert stripes(anatomy((64, 64, 64))) == pytest.approx(1, abs=0.25)
    assert stripes(anatomy((64, 64, 64)), smoothing=0) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stripes_are_found_along_their_axis_only(axis):
    volume = anatomy()
    shape = [1, 1, 1]
    shape[axis] = volume.shape[axis]
    striped = volume + 0.05 * np.random.default_rng(1).standard_normal(shape)
    ratios = [stripe_ratio(striped, [volume], axis=a) for a in range(3)]
    assert ratios[axis] > 1.3
    assert all(r < 1 for a, r in enumerate(ratios) if a != axis)
    assert stripe_ratio(volume, [volume], axis=axis) == 1


def test_voxel_noise_and_scale_are_no_stripes():
    volume = anatomy()
    noisy = volume + 0.03 * np.random.default_rng(2).standard_normal(volume.shape)
    assert stripe_ratio(noisy, [volume]) == pytest.approx(1, abs=0.1)
    assert stripe_ratio(100 * volume + 7, [volume]) == pytest.approx(1, abs=1e-3)


def test_stripes_outside_the_mask_do_not_count():
    volume, mask = anatomy(), np.zeros((48, 52, 40), bool)
    mask[10:40, 10:40, 8:32] = True
    spoilt = np.where(mask, volume, 9 * np.random.default_rng(3).random(volume.shape))
    assert stripes(spoilt, mask) == pytest.approx(stripes(volume, mask), rel=1e-5)


def test_head_mask_is_the_largest_part_without_holes():
    x, y, z = np.ogrid[:40, :40, :40]
    ball = (x - 20) ** 2 + (y - 20) ** 2 + (z - 20) ** 2 < 14**2
    hole = (x - 20) ** 2 + (y - 20) ** 2 + (z - 20) ** 2 < 5**2
    first, second = np.where(ball & ~hole & (x < 22), 0.5, 0.01), np.where(ball & ~hole & (x >= 20), 0.5, 0.01)
    first[1:3, 1:3, 1:3] = 1.0  # a speck
    assert np.array_equal(head_mask(np.stack([first, second])), ball)
    with pytest.raises(InputError, match="head"):
        head_mask(np.zeros((1, 4, 4, 4)))

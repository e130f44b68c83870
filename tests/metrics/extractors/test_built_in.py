"""The extractors that need no download: the same bits everywhere, and distances that grow as images get worse."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from amodal.core.errors import InputError
from amodal.metrics import extractors
from amodal.metrics.extractors import seeded, texture
from amodal.metrics.features import compare

SHA256 = "972350a0b9858945e2f62c7826500dcc190833c04ef3d50257d0b4029960f360"


def head(seed, ventricles=1.0):
    """A small head: skull-stripped ball with folds, a dark ventricle, of individual size and texture."""
    rng = np.random.default_rng(seed)
    x, y, z = np.ogrid[-1:1:32j, -1:1:36j, -1:1:30j]
    a, b, c = rng.uniform(0.75, 0.9, 3)
    radius = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    folds = ndimage.gaussian_filter(rng.standard_normal(radius.shape), 1.5)
    tissue = 0.55 + 0.9 * folds + 0.15 * (radius < 0.7)
    tissue[np.broadcast_to(np.hypot(x / 0.15, y / 0.4), radius.shape) ** 2 + (z / 0.3) ** 2 < ventricles] = 0.15
    return np.clip(np.where(radius < 1, tissue + 0.02 * rng.standard_normal(radius.shape), 0), 0, 1).astype(np.float32)


def features(name, change=lambda x: x, seeds=range(8), ventricles=1.0):
    found = extractors.load(name)
    return extractors.extract(found, [(f"sub-{s}", change(head(s, ventricles))) for s in seeds])


CHANGES = {
    "blur": lambda k: lambda x: ndimage.gaussian_filter(x, 0.4 * k),
    "noise": lambda k: lambda x: np.clip(x + 0.03 * k * np.random.default_rng(0).standard_normal(x.shape), 0, 1),
    "contrast": lambda k: lambda x: x ** (1 + 0.3 * k),
}


@pytest.mark.parametrize("name", ["seeded", "texture"])
@pytest.mark.parametrize("kind", CHANGES)
def test_worse_images_are_farther_away(name, kind):
    real = features(name, seeds=range(20, 28))
    found = [compare(features(name, CHANGES[kind](k)), real, ("frechet",), draws=0)[0] for k in (0, 1, 2, 3)]
    values = [m.value for m in found]
    assert values == sorted(values)
    assert values[1] > values[0]
    assert found[3].same_size > found[3].floor_high
    assert found[0].same_size < found[3].same_size / 1.2


def test_anatomy_moves_the_statistics_that_name_it():
    usual, wide = (texture.statistics(head(3, v)) for v in (1.0, 4.0))
    assert wide["percentile 10"] < usual["percentile 10"]
    assert wide["volume"] == pytest.approx(usual["volume"], rel=0.02)


def test_the_seeded_weights_are_the_same_everywhere():
    layers = seeded.weights()
    assert [tuple(w.shape[:2]) for w in layers] == [(16, 1), (32, 16), (64, 32), (64, 64)]
    assert extractors.load().sha256 == SHA256
    assert all(len(w.unique()) == 3 for w in layers[1:])
    assert not torch.equal(seeded.weights(1)[1], layers[1])
    assert layers[0][1:].mean((1, 2, 3, 4)).abs().max() < 1e-7


def test_the_seeded_network_sees_z_scores():
    forward = extractors.load().forward
    first = forward(head(0))
    assert first.shape == (1, 2 * sum(seeded.WIDTHS))
    assert np.allclose(first, forward(30 * head(0) + 4), rtol=1e-4, atol=1e-5)


def test_thin_stacks_have_features():
    assert np.isfinite(extractors.load().forward(head(0)[..., 18:20])).all()


def test_statistics_by_hand():
    x = np.zeros((6, 6, 6), np.float32)
    x[1:5, 1:5, 1:5] = 0.5
    x[3:5, 1:5, 1:5] = 1.0
    found = texture.statistics(x)
    assert found["volume"] == 64
    assert found["surface"] == pytest.approx(6 * 16 / 64)
    assert (found["extent x"], found["mean"], found["spread"]) == (4, 0.75, 0.25)
    assert found["entropy"] == pytest.approx(1)  # two grey levels, as many of each
    assert found["uniformity"] == pytest.approx(0.5)
    assert found["edges x"] == pytest.approx(0.5 / 3)
    assert found["edges y"] == 0
    # of 13 directions the 9 with a step along x have pairs across the middle, a third of their pairs
    step = 31 - 16
    across = 16 + 4 * (3 * 4) + 4 * (3 * 3)
    every = 3 * 48 + 6 * 36 + 4 * 27
    assert found["contrast"] == pytest.approx(step**2 * across / every)
    assert found["dissimilarity"] == pytest.approx(step * across / every)


def test_statistics_agree_with_scikit_image():
    from skimage.feature import graycomatrix, graycoprops

    x = np.random.default_rng(0).random((1, 20, 17)).astype(np.float32) * 0.9 + 0.1
    grey = texture._grey(x)[0].astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    pairs = graycomatrix(grey, [1], angles, levels=texture.LEVELS, symmetric=True).sum(3, keepdims=True)
    peer = {k: graycoprops(pairs / pairs.sum(), k)[0, 0] for k in ("contrast", "dissimilarity", "correlation")}
    found = texture.statistics(x)
    assert {k: found[k] for k in peer} == pytest.approx(peer, rel=1e-9)


def test_names_stay_in_order():
    assert texture.names() == tuple(texture.statistics(head(1)))


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("vgg", None, "choose among seeded, texture"),
        ("seeded", "file.pth", "takes no weights"),
        ("medicalnet-resnet50", None, "needs its published weights"),
        ("medicalnet-resnet50", "nothing.pth", "no such file"),
    ],
)
def test_what_cannot_be_loaded_is_refused(name, weights, words):
    with pytest.raises(InputError, match=words):
        extractors.load(name, weights)


@pytest.mark.parametrize(
    "volume", [np.zeros((8, 8, 8)), np.zeros((8, 8)), np.full((8, 8, 8), np.nan)], ids=["constant", "flat", "nan"]
)
def test_what_is_no_volume_is_refused_by_name(volume):
    with pytest.raises(InputError, match="sub-7"):
        extractors.extract(extractors.load(), [("sub-7", volume)])


def test_no_volume_at_all_is_refused():
    with pytest.raises(InputError, match="at least one"):
        extractors.extract(extractors.load(), [])


def test_volumes_are_read_one_at_a_time():
    alive = []

    def stream():
        for s in range(3):
            alive.append(s)
            yield f"sub-{s} T1w", head(s)

    found = extractors.extract(extractors.load(), stream(), subject=lambda label: label.split()[0])
    assert found.groups == ("sub-0", "sub-1", "sub-2")
    assert found.labels[0] == "sub-0 T1w"
    assert len(alive) == 3

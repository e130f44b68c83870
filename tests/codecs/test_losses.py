"""The losses of autoencoders, each against a number known otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from amodal.codecs.losses import (
    critic_loss,
    kl,
    l1,
    maker_loss,
    perceptual,
    planes,
    random_features,
    read_features,
    unit,
)  # fmt: skip
from amodal.core.errors import InputError
from amodal.core.rng import Rng


def test_l1():
    x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    assert l1(x, y) == 2.5
    assert l1(x, y, torch.tensor([[True], [False]])) == 1.5
    assert l1(torch.full((2,), torch.inf), torch.zeros(2), torch.tensor([False, False])) == 0


def test_kl_against_torch():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 50)
    law = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    truth = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).mean()
    assert torch.allclose(kl(mean, log_variance), truth, atol=1e-5)


@pytest.mark.parametrize(
    ("game", "critic", "maker"),
    [
        ("least_squares", 0.5 * (0.25 + 4.0), 1.0),
        ("hinge", 0.5 * (0.5 + 3.0), -2.0),
        ("log", 0.5 * (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(2.0))), math.log1p(math.exp(-2.0))),
    ],
)
def test_games(game, critic, maker):
    """Logits of 0.5 for what is real and 2 for what is made."""
    real, made = torch.full((2, 1, 3), 0.5), torch.full((2, 1, 3), 2.0)
    assert critic_loss(game, real, made) == pytest.approx(critic)
    assert maker_loss(game, made) == pytest.approx(maker)


@pytest.mark.parametrize("dims", [2, 3])
def test_random_features_are_the_same_everywhere(dims):
    """A pinned number: they follow from the seed alone, whatever was drawn before, on any device given."""
    torch.manual_seed(5)
    a = random_features(dims, widths=(4, 8))
    with torch.device("meta"):
        b = random_features(dims, widths=(4, 8))
    x = torch.linspace(-1, 1, 8**dims).reshape(1, 1, *(8,) * dims)
    assert all(torch.equal(p, q) for p, q in zip(a(x), b(x)))
    assert [f.shape[1:] for f in a(x)] == [(4, *(8,) * dims), (8, *(4,) * dims)]
    assert not a.state_dict() and not list(a.parameters())
    assert float(a(x)[1].mean()) == pytest.approx({2: 0.266986, 3: 0.0833033}[dims], rel=1e-4)


def test_perceptual_distance():
    torch.manual_seed(0)
    features = random_features(2)
    x = F.avg_pool2d(torch.randn(1, 1, 40, 40), 5, 1)
    blurred, shifted = F.avg_pool2d(x, 5, 1, 2), x + 0.05
    assert perceptual(features, x, x) < 1e-10
    assert perceptual(features, shifted, x) < perceptual(features, blurred, x)
    x.requires_grad_(True)
    y = torch.randn_like(x).requires_grad_(True)
    perceptual(features, x, y).backward()
    assert x.grad.abs().sum() > 0 and y.grad is None


def test_unit_length():
    assert torch.allclose(unit(torch.randn(2, 5, 4, 4)).norm(dim=1), torch.ones(2, 4, 4), atol=1e-3)


def test_planes_are_slices_of_the_volume():
    x = torch.arange(2 * 6 * 5 * 4.0).reshape(2, 1, 6, 5, 4)
    a, b, c = planes(torch.cat([x, -x], 1), 0.5, Rng.of(0, 2))
    assert a.shape == (6, 2, 5, 4) and b.shape == (4, 2, 6, 4) and c.shape == (4, 2, 6, 5)
    assert torch.equal(a[:, 0], -a[:, 1])  # both volumes are cut alike
    assert all(any(torch.equal(p, q) for q in x[0, 0]) for p in a[:3, 0])
    assert all(torch.equal(p, q) for p, q in zip(planes(x, 0.5, Rng.of(0, 2)), planes(x, 0.5, Rng.of(0, 2))))


def test_features_from_a_file(tmp_path):
    """Two levels, the second after a max-pooling; colour features see a grey image in all channels."""
    path = tmp_path / "features.safetensors"
    torch.manual_seed(0)
    first, second = torch.randn(4, 3, 3, 3), torch.randn(5, 4, 3, 3)
    save_file({"0.0.weight": first, "0.0.bias": torch.ones(4), "1.0.weight": second, "1.0.bias": torch.zeros(5)}, path)
    x = torch.randn(2, 1, 8, 8)
    h = F.relu(F.conv2d(x.expand(-1, 3, -1, -1), first, torch.ones(4), padding=1))
    found = read_features(path)(x)
    assert torch.allclose(found[0], h, atol=1e-5)
    assert torch.allclose(found[1], F.relu(F.conv2d(F.max_pool2d(h, 2), second, padding=1)), atol=1e-4)


def test_bad_feature_files_are_refused(tmp_path):
    path = tmp_path / "features.safetensors"
    save_file({"0.0.weight": torch.zeros(4, 3, 3, 3), "0.0.bias": torch.zeros(4), "0.1.weight": torch.zeros(4, 5, 3, 3),
               "0.1.bias": torch.zeros(4)}, path)  # fmt: skip
    with pytest.raises(InputError, match="do not form a chain"):
        read_features(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="no features can be read"):
        read_features(path)
    with pytest.raises(InputError, match="no features can be read"):
        read_features(tmp_path / "nothing.safetensors")

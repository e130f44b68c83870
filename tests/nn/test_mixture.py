"""The mixture's denoiser against densities worked out voxel by voxel, and its fit against mixtures that are known."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from amodal.core.contract import Batch
from amodal.core.rng import Rng
from amodal.diffusion.denoiser import TARGETS, target, x0_from
from amodal.diffusion.process import DDPM
from amodal.methods.stack import StackNet
from amodal.nn.mixture import Mixture, fit, monomials, spread
from amodal.nn.unet import UNetConfig

M, K = 3, 4
NET = UNetConfig(M, M, (8,), 1, (False,), 8, times=M, groups=4)


@pytest.fixture
def mixture():
    made = Mixture(M, K)
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(K, M, M)) * 0.3
    made.weights.copy_(torch.tensor([0.1, 0.4, 0.3, 0.2]))
    made.means.copy_(torch.tensor(rng.uniform(-0.8, 0.8, (K, M))))
    made.covariances.copy_(torch.tensor(roots @ roots.transpose(0, 2, 1) + 0.01 * np.eye(M)))
    return made


def expected(mixture: Mixture, y: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[x | y] and Var[x | y] of one voxel from the joint density, by the textbook."""
    weights, means, covariances = (v.double().numpy() for v in (mixture.weights, mixture.means, mixture.covariances))
    a, total, mean, square = np.diag(alpha), 0.0, 0.0, 0.0
    for w, m, c in zip(weights, means, covariances):
        s = a @ c @ a + np.diag(sigma**2)
        p = w * multivariate_normal.pdf(y, a @ m, s)
        one = m + c @ a @ np.linalg.solve(s, y - a @ m)
        spread = c - c @ a @ np.linalg.solve(s, a @ c)
        total, mean, square = total + p, mean + p * one, square + p * (one**2 + np.diag(spread))
    return mean / total, square / total - (mean / total) ** 2


LEVELS = {
    "all noised": ([0.8, 0.5, 0.2], [0.6, 0.866, 0.98]),
    "one clean": ([1.0, 0.5, 0.5], [0.0, 0.866, 0.866]),
    "one clean, one absent": ([1.0, 0.0, 0.3], [0.0, 1.0, 0.954]),
    "all absent": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("level", LEVELS)
def test_mean_and_variance_are_those_of_the_joint_density(mixture, level):
    alpha, sigma = (np.array(v) for v in LEVELS[level])
    y = np.random.default_rng(1).uniform(-1, 1, (5, M))
    seen = torch.tensor(y.T[None, :, :, None]), torch.tensor(alpha)[None], torch.tensor(sigma)[None]
    found = mixture(*seen), mixture.variance(*seen)
    for n in range(5):
        for made, wanted in zip(found, expected(mixture, y[n], alpha, sigma)):
            assert made[0, :, n, 0].numpy() == pytest.approx(wanted, abs=2e-5)


def test_what_is_clean_is_its_own_estimate(mixture):
    y = torch.linspace(-1, 1, M * 4).reshape(1, M, 4)
    assert mixture(y, torch.ones(1, M), torch.zeros(1, M)).numpy() == pytest.approx(y.numpy(), abs=1e-4)


def test_every_sample_has_its_own_noise_levels(mixture):
    y, alpha = torch.randn(2, M, 6), torch.tensor([[0.9, 0.5, 0.1], [0.2, 1.0, 0.7]])
    sigma = (1 - alpha**2).sqrt()
    both = mixture(y, alpha, sigma)
    for n in range(2):
        assert torch.allclose(both[n : n + 1], mixture(y[n : n + 1], alpha[n : n + 1], sigma[n : n + 1]), atol=1e-6)


def test_monomials_are_those_of_a_quadratic_form():
    assert monomials(torch.tensor([[[2.0], [3.0]]])).flatten().tolist() == [1, 2, 3, 4, 6, 9]


def drawn(mixture: Mixture, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    which = rng.choice(K, n, p=mixture.weights.double().numpy() / float(mixture.weights.double().sum()))
    roots = np.linalg.cholesky(mixture.covariances.double().numpy())
    x = mixture.means.numpy()[which] + (roots[which] @ rng.normal(size=(n, M, 1)))[..., 0]
    return torch.tensor(x, dtype=torch.float32), torch.tensor(which)


@pytest.fixture
def apart(mixture):
    """Four clusters that do not overlap, in which modalities go together."""
    mixture.means.copy_(torch.tensor([[-0.9, -0.9, -0.9], [0.8, 0.1, -0.4], [-0.5, 0.7, 0.2], [0.1, -0.3, 0.9]]))
    line = torch.tensor([1.0, -0.5, 0.8])
    mixture.covariances.copy_(0.01 * (line[:, None] * line)[None] + 0.001 * torch.eye(M))
    return mixture


@pytest.mark.parametrize("lacking", [0.0, 0.4])
def test_the_fit_finds_clusters_again_though_modalities_lack(apart, lacking):
    x, _ = drawn(apart, 6000)
    absent = torch.tensor(np.random.default_rng(2).random((6000, M)) < lacking)
    x = torch.where(absent, torch.full_like(x, 5.0), x)  # what is absent may hold anything
    fitted = Mixture(M, K)
    fitted.fit(x, ~absent, Rng.of(0, 1))
    order = [int(((fitted.means - m) ** 2).sum(1).argmin()) for m in apart.means]
    assert sorted(order) == list(range(K))
    assert torch.allclose(fitted.means[order], apart.means, atol=0.02)
    assert torch.allclose(fitted.weights[order], apart.weights, atol=0.03)
    assert torch.allclose(fitted.covariances[order], apart.covariances, atol=3e-3)


def test_every_step_of_the_fit_raises_the_likelihood(mixture):
    x, _ = drawn(mixture, 2000)
    present = torch.tensor(np.random.default_rng(3).random((2000, M)) < 0.7)
    levels = [Mixture(M, K).fit(x, present, Rng.of(1, 1), n) for n in range(1, 15)]
    # the floor under the variances costs next to nothing
    assert all(b > a - 1e-3 for a, b in zip(levels, levels[1:])) and levels[-1] > levels[0] + 0.1


def test_the_fit_is_better_than_any_quadratic_where_contrast_is_lost(apart):
    """A modality in which two clusters look alike: the third from the first two, held-out voxels."""
    x, _ = drawn(apart, 4000)
    test, _ = drawn(apart, 2000, seed=1)
    fitted = Mixture(M, K)
    fitted.fit(x, torch.ones(4000, M, dtype=torch.bool), Rng.of(0, 1))
    alpha, sigma = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    guess = fitted(test.T[None], alpha, sigma)[0, 2]
    features = [monomials(v[:, :2].T[None])[0].T for v in (x, test)]
    w = torch.linalg.lstsq(features[0], x[:, 2]).solution
    errors = [float(((g - test[:, 2]) ** 2).mean()) for g in (guess, features[1] @ w)]
    assert errors[0] < 0.5 * errors[1]


def test_only_bright_voxels_can_be_asked_for(apart):
    """Of a picture that is half background, the clusters alone; a modality that is absent does not make one bright."""
    x, _ = drawn(apart, 4096)
    images = torch.full((1, M, 64, 128), -1.0)
    images[..., :64] = x.T.reshape(1, M, 64, 64)
    images[:, 2, :, 64:] = 1.0
    present = torch.tensor([True, True, False]).reshape(1, M, 1, 1)
    fitted = Mixture(M, K)
    fit(fitted, lambda k: Batch(images, present), above=-0.95)
    near = torch.cdist(fitted.means[:, :2], torch.tensor([[-1.0, -1.0]]))
    assert float(near.min()) > 0.1
    fit(fitted, lambda k: Batch(images, present))
    assert float(torch.cdist(fitted.means[:, :2], torch.tensor([[-1.0, -1.0]])).min()) < 0.02


@pytest.mark.parametrize("prediction", TARGETS)
def test_a_target_stands_for_its_image(prediction):
    x0, x = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    alpha = torch.tensor([0.9, 0.3]).reshape(2, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    assert torch.allclose(x0_from(target(x0, x, alpha, sigma, prediction), x, alpha, sigma, prediction), x0, atol=1e-5)
    assert not target(x0, x, alpha, torch.zeros_like(sigma), prediction).any()


@pytest.mark.parametrize("prediction", TARGETS)
def test_an_untrained_network_predicts_what_its_mixture_does(apart, prediction):
    process = DDPM()
    net = StackNet(NET, process, prediction, K)
    x, _ = drawn(apart, 64 * 64)
    images = x.T.reshape(1, M, 64, 64)
    net.begin(lambda k: Batch(images, torch.ones(1, M, 1, 1, dtype=torch.bool)))
    t = torch.tensor([[0.0, 400.0, 400.0]])
    alpha, sigma = process.at(t)
    noisy = alpha[..., None, None] * images + sigma[..., None, None] * torch.randn(1, M, 64, 64)
    out = net(noisy, process.label(t))
    made = x0_from(out, noisy, alpha[..., None, None], sigma[..., None, None], prediction)
    assert torch.allclose(made, net.voxelwise.mixture(noisy, alpha, sigma), atol=1e-4)
    assert float(((made - images) ** 2)[:, 1:].mean().detach()) < 0.01  # clusters are told by the clean one alone


def test_the_spread_of_latents_counts_every_sample_once():
    away = torch.tensor([3.0, -3, 1, 1, -1, 1]).reshape(3, 1, 2).expand(3, 2, 2) * torch.tensor([1.0, 2])[:, None]
    doubt = torch.tensor([2.0, 4, 0]).reshape(3, 1, 1).expand(3, 1, 2)
    parts = [(away[:2], doubt[:2]), (away[2:], doubt[2:])]
    for found in ([(away, doubt)], parts):
        variance, scale = spread(iter(found))
        assert torch.allclose(variance, torch.tensor([11.0, 44]) / 3)
        assert scale == 2

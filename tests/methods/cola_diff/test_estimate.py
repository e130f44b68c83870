"""What the network begins with: the mixture's image, and the Gaussian around its latent in closed form."""

import dataclasses

import pytest
import torch

from amodal.core.contract import Batch
from amodal.core.rng import Rng
from amodal.diffusion.denoiser import TARGETS, x0_from
from amodal.methods import cola_diff
from amodal.methods.cola_diff.conditions import Task
from amodal.methods.cola_diff.estimate import FirstGuess
from amodal.methods.cola_diff.learning import training_task

C = 3


def stacks(n: int = 4, size: int = 32) -> torch.Tensor:
    """Two tissues in patches: the second modality is bright where the first is dark, the third follows both."""
    which = Rng.of(0, n, "tissue").uniform(1, size // 8, size // 8).gt(0.5).float()
    first = torch.nn.functional.interpolate(which, scale_factor=8) * 1.2 - 0.6
    first = first + 0.1 * Rng.of(1, n).normal(1, size, size)
    return torch.cat([first, -0.7 * first, 0.5 * first.abs() - 0.2, 0.3 * first], dim=1)


@pytest.mark.parametrize("prediction", TARGETS)
def test_the_beginning_is_the_gaussian_posterior_of_the_latent(prediction):
    """kappa_0 ~ N(guess, v) and kappa_t = alpha kappa_0 + sigma eps, the mean by precisions; v by channel and place."""
    first = FirstGuess(C, 4, 2, prediction)
    v = torch.tensor([0.1, 0.5, 2.0])
    first.variance.copy_(v)
    x, y = torch.randn(2, C, 4, 4), torch.randn(2, 2 * C, 4, 4)
    y[:, C] = Rng.of(0, 2, "doubt").uniform(4, 4) + 0.1
    alpha = torch.tensor([0.8, 0.1]).reshape(2, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    made = x0_from(first(x, y, alpha, sigma), x, alpha, sigma, prediction)
    wide = v[:, None, None] * y[:, C : C + 1]
    expected = (y[:, :C] / wide + alpha * x / sigma**2) / (1 / wide + alpha**2 / sigma**2)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_without_components_the_network_is_alone():
    first = FirstGuess(C, 4, 0, "v")
    x = torch.randn(2, C, 4, 4)
    assert not first(x, x, torch.full((2, 1, 1, 1), 0.5), torch.full((2, 1, 1, 1), 0.8)).any()
    assert not list(first.state_dict())


def test_the_image_is_made_from_what_is_given_alone():
    first, images = FirstGuess(C, 4, 6, "v"), stacks()
    first.begin(lambda k: Batch(stacks(), torch.ones(4, 4, 1, 1, dtype=torch.bool)))
    given = torch.tensor([[True, False, True, False]]).expand(4, 4)
    task = Task(given, torch.tensor([1, 1, 3, 3]), torch.ones(4, dtype=torch.bool))
    made = first.estimate(images, task)[0]
    wanted = torch.stack([images[0, 1], images[1, 1], images[2, 3], images[3, 3]])[:, None]
    assert float((made - wanted).square().mean()) < 0.01 < 0.1 * float(wanted.var())
    dark = torch.where(torch.arange(32) < 8, torch.full_like(images, -1.0), images)
    assert (first.estimate(dark, task)[0][..., :8] == -1).all() and torch.equal(
        first.estimate(dark, task)[0][..., 8:], made[..., 8:]
    )
    hidden = torch.where(given[..., None, None], images, torch.full_like(images, 0.9))
    assert torch.equal(first.estimate(hidden, task)[0], made)


def test_doubts_are_variances_averaged_over_a_latents_voxels():
    first, images = FirstGuess(C, 4, 6, "v"), stacks(size=32)
    first.begin(lambda k: Batch(stacks(), torch.ones(4, 4, 1, 1, dtype=torch.bool)))
    sure, blind = (
        Task(torch.tensor([given]).expand(4, 4), torch.full((4,), 3), torch.ones(4, dtype=torch.bool))
        for given in ([True, True, True, False], [False, False, True, False])
    )
    voxels = first.mixture.variance(images, *(torch.tensor([v]).expand(4, 4) for v in ([1.0, 1, 1, 0], [0.0, 0, 0, 1])))
    found = first.doubts(first.estimate(images, sure)[1], 4)
    assert found.shape == (4, 1, 8, 8)
    torch.testing.assert_close(found[1, 0, 2, 5], voxels[1, 3, 8:12, 20:24].mean())
    # the third modality is the same for both tissues, so it tells nothing of the fourth
    assert float(first.doubts(first.estimate(images, blind)[1], 4).mean()) > 10 * float(found.mean())


def begun(**settings):
    """A method that has not been trained but for what its last stage begins with, and what it began with."""
    config = dataclasses.replace(cola_diff.tiny(), components=6, guidance=False, **settings)
    torch.manual_seed(0)
    method = cola_diff.build(config).eval()
    batch = Batch(stacks(), torch.ones(4, 4, 1, 1, dtype=torch.bool))
    method.stages()[-1].begin(lambda k: batch)
    return method, batch


def test_the_first_step_of_training_fixes_how_far_latents_lie_from_their_estimates():
    method, batch = begun()
    variance = method.first.variance
    # latents have unit variance; contrasts that follow from one another are known far better than that
    assert (variance > 0).all() and float(variance.mean()) < 0.5
    tasks = [training_task(method, batch, Rng.of(seed, 4))[0] for seed in range(100)]
    doubts = torch.stack(
        [method.first.doubts(method.first.estimate(batch.images, task)[1], 4).mean() for task in tasks]
    )
    assert float(doubts.mean()) == pytest.approx(1.0, rel=0.5)
    out = method.complete(
        Batch(batch.images, torch.tensor([True, False, True, True]).reshape(1, 4, 1, 1)), Rng.of(0, 4)
    )
    assert torch.equal(out[:, 0], batch.images[:, 0])
    task = Task(torch.tensor([[True, False, True, True]]).expand(4, 4), torch.ones(4).long(), torch.ones(4).bool())
    estimate = method.first.estimate(batch.images, task)[0][:, 0]
    # an untrained network adds nothing to the estimate but for the noise of its last steps, and the codec takes nothing
    assert (
        float((out[:, 1] - estimate).abs().mean().detach()) < 0.05 < float((estimate - batch.images[:, 0]).abs().mean())
    )


def test_draws_differ_in_each_voxel_by_what_the_mixture_does_not_know():
    """The second modality from a third that looks the same in both tissues: the codec holds little of single voxels."""
    method, batch = begun()
    present = torch.tensor([False, False, True, False]).reshape(1, 4, 1, 1)
    task = Task(present.flatten()[None].expand(4, 4), torch.ones(4).long(), torch.ones(4).bool())
    sd = method.first.estimate(batch.images, task)[1].sqrt()[:, 0]
    draws = method.generations(Batch(batch.images, present), Rng.of(0, 4), 24)[:, :, 1]
    spread = draws.std(0)
    assert 0.7 < float(spread.mean() / sd.mean()) < 1.5
    single = draws - torch.nn.functional.avg_pool2d(draws, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert float(single.std(0).mean()) > 0.6 * float(sd.mean())  # not only latent by latent

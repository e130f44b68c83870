"""What a coarse grid loses of a sketch is put back: voxels say it at the image's own size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from amodal.core.contract import Batch
from amodal.data.volume import Study, Volume
from amodal.methods import copedit, wfdm
from amodal.model import Model
from amodal.model.detail import lost

SIZE, SPACING = (16, 16, 16), 6.0


def method(context=True):
    """Untrained, but for a mixture that knows how contrasts hang together."""
    torch.manual_seed(0)
    base = copedit.tiny()
    prior = replace(base.prior, context=context)
    made = copedit.build(
        replace(base, size=SIZE, spacing=(SPACING,) * 3, prior=prior, components=2, steps=1, blank=0.5)
    )
    if context:
        made.sketch.begin(lambda k: Batch(torch.from_numpy(images(k, SIZE))[None], torch.ones(1, 4, 1, 1, 1) > 0))
    return made.eval().requires_grad_(False)


def images(seed, shape):
    """Four contrasts of one fine pattern [4, *shape] in [-1, 1]."""
    x = np.random.default_rng(seed).uniform(-0.5, 0.9, shape)
    stack = np.stack([x, 0.2 - 0.5 * x, 0.9 * x - 0.1, 0.3 + 0.6 * x])
    stack[:, 0], stack[:, -1] = -1, 1  # so that windows are the same for all
    return stack.astype(np.float32)


@pytest.fixture
def study():
    """48 voxels of 2 mm where the network has 16 of 6 mm."""
    stack = images(9, (48, 48, 48))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    return Study("sub-1", {m: Volume(100 * (x + 1), affine) for m, x in zip(copedit.BRAIN, stack)})


def test_an_untrained_prior_on_a_coarse_grid_gives_back_the_fine_sketch(study):
    made = method()
    model = Model("copedit", made, copedit.grid(made.config))
    done = model.complete(study.without("FLAIR"))
    stack = np.stack([model.window(m, study[m]).enter(study[m].data) for m in copedit.BRAIN])
    there = torch.tensor([True, True, True, False]).reshape(1, 4, 1, 1, 1)
    fine = made.voxelwise(Batch(torch.from_numpy(stack)[None], there))[0, 3].numpy()
    assert np.abs(done.scaled["FLAIR"] - (fine + 1) / 2).max() < 0.02
    truth = (stack[3] + 1) / 2
    assert np.corrcoef(done.scaled["FLAIR"].ravel(), truth.ravel())[0, 1] > 0.95


def test_without_a_sketch_nothing_is_added(study):
    """Details of 2 mm are lost on a grid of 6 mm."""
    made = method(context=False)
    stack = images(9, SIZE)
    assert made.voxelwise(Batch(torch.from_numpy(stack)[None], torch.ones(1, 4, 1, 1, 1) > 0)) is None
    assert lost(made, stack, stack, np.array([True, True, True, False]), lambda x: x) is None
    done = Model("copedit", made, copedit.grid(made.config)).complete(study.without("FLAIR"))
    assert np.isfinite(done.scaled["FLAIR"]).all()


def test_what_is_lost_is_the_difference_of_two_sketches():
    made, stack = method(), images(9, SIZE)
    there = np.array([True, True, True, False])
    more = lost(made, stack, stack, there, lambda x: 0.25 * x)
    fine = made.voxelwise(Batch(torch.from_numpy(stack)[None], torch.from_numpy(there).reshape(1, 4, 1, 1, 1)))
    assert np.allclose(more[3], 0.75 * (fine[0, 3].numpy() + 1) / 2, atol=1e-6)


def test_the_estimate_of_a_latent_flow_is_drawn_at_the_images_own_size_too(study):
    """An estimate that is sure of itself comes back as it is, as fine as the image."""
    torch.manual_seed(0)
    config = replace(wfdm.tiny(), size=SIZE, spacing=SPACING, components=2, steps=1)
    made = wfdm.build(config).eval().requires_grad_(False)
    order = [copedit.BRAIN.index(name) for name in wfdm.BRAIN]
    made.estimate.begin(lambda k: Batch(torch.from_numpy(images(k, SIZE)[order])[None], torch.ones(1, 4, 1, 1, 1) > 0))
    made.estimate.variance.fill_(1e-8)
    model = Model("wfdm", made, wfdm.grid(config))
    done = model.complete(study.without("FLAIR"))
    stack = np.stack([model.window(m, study[m]).enter(study[m].data) for m in wfdm.BRAIN])
    there = torch.tensor([name != "FLAIR" for name in wfdm.BRAIN]).reshape(1, 4, 1, 1, 1)
    fine = made.voxelwise(Batch(torch.from_numpy(stack)[None], there))[0, wfdm.BRAIN.index("FLAIR")].numpy()
    assert np.abs(done.scaled["FLAIR"] - (fine + 1) / 2).max() < 0.05
    truth = (images(9, (48, 48, 48))[3] + 1) / 2
    assert np.corrcoef(done.scaled["FLAIR"].ravel(), truth.ravel())[0, 1] > 0.9
    assert made.voxelwise(Batch(torch.zeros(1, 4, 8, 8, 8), torch.ones(1, 4, 1, 1, 1) > 0)).shape == (1, 4, 8, 8, 8)

"""Slots that stay clean, prompts that reach the image, the variants of the paper's tables, gaps anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amodal.core.contract import Batch
from amodal.core.rng import Rng
from amodal.methods import copedit
from amodal.methods.copedit import patterns
from amodal.methods.copedit.system import frozen

from .worlds import BRAIN, HEART, awake, hidden, volumes

# the prior


@pytest.mark.parametrize("solver", ["ddim", "multistep"])
@pytest.mark.parametrize("missing", [(0,), (1, 3), (0, 1, 2)], ids=str)
def test_given_slots_stay_clean_to_the_bit(solver, missing):
    method = awake(replace(BRAIN, solver=solver, steps=5))
    data = hidden(BRAIN, *missing)
    seen = []
    method.prior.net.register_forward_hook(lambda net, given, out: seen.append(given[0].clone()))
    present = data.present.expand_as(data.images)
    with torch.no_grad():
        z = method.sample(data.images, present, Rng.of(0, 2))
        truth = method.whitening.enter(method.tokenizer.codec.encode(data.images.flatten(0, 1)[:, None]))
    truth = truth.unflatten(0, (2, 4))
    kept = [m for m in range(4) if m not in missing]
    assert len(seen) == 5
    for state in (*seen, z):
        assert torch.equal(state[:, kept], truth[:, kept])
    assert all((state[:, list(missing)] != truth[:, list(missing)]).all() for state in seen)


def test_the_loss_counts_only_what_is_missing_unless_told():
    """With a prediction of zero: the mean square of the missing latents; of all with `copy` 1 (Eq. 5)."""
    torch.manual_seed(0)
    data = Batch(volumes(BRAIN, 4), torch.ones(4, 4, 1, 1, 1, dtype=torch.bool))
    for copy in (0.0, 1.0):
        torch.manual_seed(0)
        method = copedit.build(replace(BRAIN, copy=copy)).train()  # its prior begins at zero
        rng = Rng.of(0, 4)
        loss = method.stages()[1].forward(data, rng)
        with torch.no_grad(), frozen(method.tokenizer):
            z = method.whitening.enter(method.tokenizer.codec.encode(data.images.flatten(0, 1)[:, None]))
        z = z.unflatten(0, (4, 4))
        missing = ~patterns.draw(BRAIN, torch.ones(4, 4, dtype=torch.bool), Rng.of(0, 4).fork("pattern"))
        expected = (z**2).mean() if copy else (z[missing] ** 2).mean()
        assert torch.allclose(loss, expected, atol=1e-5)


def test_prompts_reach_the_image_and_nothing_else_says_what_is_missing():
    """The condition changes what is made; without any guidance the prior is told nothing."""
    method, data = awake(), hidden(BRAIN, 2)
    base = method.complete(data, Rng.of(0, 2))
    method.tokenizer.prompts["position"].embed[-1].bias.data += 1.0
    assert not torch.equal(base, method.complete(data, Rng.of(0, 2)))
    blind = awake(replace(BRAIN, guidance=()))
    base = blind.complete(data, Rng.of(0, 2))
    blind.tokenizer.prompts["position"].embed[-1].bias.data += 1.0
    assert torch.equal(base, blind.complete(data, Rng.of(0, 2)))


VARIANTS = {
    "no count": {"guidance": ("position", "contrast")},
    "no prompts": {"guidance": ()},
    "mask codes": {"guidance": ("mask",)},
    "spatial": {"prior": replace(BRAIN.prior, inject="within")},
    "both": {"prior": replace(BRAIN.prior, inject="both")},
    "dit3d": {"backbone": "dit3d"},
    "dit": {"backbone": "dit"},
    "unet": {"backbone": "unet"},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("base", [BRAIN, HEART], ids=["brain", "heart"])
def test_variants_of_the_tables_learn_and_complete(base, name):
    """Tables 4, 7 and 8: each is a config."""
    change = VARIANTS[name]
    if "prior" in change:
        change = {"prior": replace(base.prior, inject=change["prior"].inject)}
    config = replace(base, **change, steps=2)
    torch.manual_seed(0)
    method = copedit.build(config).train()
    stage = method.stages()[1]
    data = Batch(volumes(config), torch.ones(2, len(config.modalities), 1, 1, 1, dtype=torch.bool))
    stage.begin(lambda k: data)
    optimiser = torch.optim.Adam(stage.players[0].parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = stage.players[0].loss(stage.forward(data, Rng.of(0, 2)))[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    gap = hidden(config, 1) if config.layout == "modalities" else hidden(config, *range(5, 11))
    out = method.eval().complete(gap, Rng.of(0, 2))
    known = gap.present.expand_as(out)
    assert torch.equal(out[known], gap.images[known]) and torch.isfinite(out).all()


@pytest.mark.parametrize("gap", [range(4, 8), range(3, 12), range(0, 5), [1, 2, 5, 7, 11], range(1, 16)], ids=str)
def test_gaps_anywhere_in_a_stack(gap):
    method, data = awake(HEART), hidden(HEART, *gap)
    out = method.complete(data, Rng.of(0, 2))
    known = data.present.expand_as(out)
    assert torch.equal(out[known], data.images[known]) and torch.isfinite(out).all()
    junk = torch.where(known, data.images, torch.full_like(data.images, 1e6))
    assert torch.equal(out, method.complete(Batch(junk, data.present), Rng.of(0, 2)))


def test_partly_acquired_slabs_inform_the_prior():
    """With a context, a slice beside the gap changes what is made in its own slab."""
    method, data = awake(HEART), hidden(HEART, 5, 6)
    other = Batch(data.images.clone(), data.present)
    other.images[..., 4] *= -1
    a, b = (method.complete(d, Rng.of(0, 2)) for d in (data, other))
    assert not torch.equal(a[..., 5:7], b[..., 5:7])

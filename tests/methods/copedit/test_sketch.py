"""Sketches of what is missing: what they know, how sure they are, and how the prior begins with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amodal.core.contract import Batch
from amodal.core.rng import Rng
from amodal.methods import copedit
from amodal.methods.copedit import patterns
from amodal.methods.copedit.sketch import Sketch

from .worlds import BRAIN, HEART, awake, hidden, sketched


def test_a_sketch_of_modalities_is_what_voxels_say():
    """Where one image is a linear function of two others it is made nearly exactly, and for sure; what all lack stays
    background; pieces that are worked on one by one fit together."""
    x = 0.3 * Rng.of(0, 3, "images").normal(2, 8, 8, 8)
    images = torch.cat([x, (0.1 + 0.5 * x[:, :1] - 0.3 * x[:, 1:])], 1)
    images[..., :2] = -1.0
    sketch = Sketch(replace(sketched(), modalities=("T1w", "T2w", "FLAIR")))
    sketch.begin(lambda k: Batch(images, torch.ones(3, 3, 1, 1, 1, dtype=torch.bool)))
    junk, present = images.clone(), torch.tensor([True, True, False]).reshape(1, 3, 1, 1, 1)
    junk[:, 2] = 1e3
    made, variance = sketch(junk, present)
    assert torch.equal(made[:, :2], images[:, :2]) and (variance[:, :2] == 0).all()
    assert (made[:, 2] - images[:, 2]).abs().max() < 0.02 and variance[:, 2].max() < 0.005
    assert (made[:, 2, ..., :2] == -1).all() and (variance[:, 2, ..., :2] == 0).all()
    wide = torch.cat([junk] * 300, 2)
    assert torch.allclose(sketch(wide, present)[0], torch.cat([made] * 300, 2), atol=1e-5)


def test_a_sketch_of_slices_is_less_sure_the_farther_they_are():
    """The variance of a random walk that is held at slices 3 and 8: n m / (n + m); at the end it grows; none where the
    plane is even."""
    x = torch.rand(1, 1, 16, 16, 12)
    x[:, :, :, :, :] = x[..., :1]  # the same in every slice
    present = torch.ones(12, dtype=torch.bool)
    present[[4, 5, 6, 7, 10, 11]] = False
    made, variance = Sketch(replace(HEART, size=(16, 16, 12)))(x, present.reshape(1, 1, 1, 1, -1))
    assert torch.allclose(made, x)
    rate = variance[0, 0, 8, 8] / variance[0, 0, 8, 8, 4] * (1 * 4 / 5)
    wanted = torch.tensor([0, 0, 0, 0, 4 / 5, 6 / 5, 6 / 5, 4 / 5, 0, 0, 1, 2])
    assert torch.allclose(rate, wanted, atol=1e-4) and variance[..., 4].min() > 0
    assert Sketch(HEART)(torch.zeros_like(x), present.reshape(1, 1, 1, 1, -1))[1].max() == 0


@pytest.mark.parametrize("config", [sketched(), HEART], ids=["brain", "heart"])
def test_an_untrained_prior_gives_back_the_sketch(config):
    """Its network is zero at first: the mean that one step makes is the sketch, as it was; a draw lies around it."""
    torch.manual_seed(0)
    method = copedit.build(replace(config, steps=1, blank=0.5)).eval()
    data = hidden(config, 1) if config.layout == "modalities" else hidden(config, *range(5, 9))
    whole = Batch(data.images, torch.ones_like(data.present))
    method.stages()[1].begin(lambda k: whole)
    sketch = method._seen(data.images, data.present).sketch
    out = method.complete(data, Rng.of(0, 2))
    assert torch.allclose(out, sketch.clamp(-1, 1), atol=1e-5)
    assert not torch.allclose(sketch, data.images, atol=0.05)
    assert torch.equal(out, method.complete(data, Rng.of(1, 2)))
    assert method.steps_for(1) == 1 and method.steps_for(5) == 25
    method.config = replace(method.config, steps=2)
    present = data.present.expand_as(data.images)
    one, other = (method.sample(data.images, present, Rng.of(seed, 2)) for seed in (0, 1))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("blank", [0.0, 1.0])
def test_a_blank_shows_the_prior_nothing_of_what_is_missing(blank):
    """Its network sees zeros at the last time then, else noisy latents."""
    method, data = awake(replace(BRAIN, blank=blank)).train(), hidden(BRAIN)
    seen = []
    method.prior.net.register_forward_hook(lambda net, given, out: seen.append((given[0], given[1])))
    method._denoise(Batch(data.images, torch.ones_like(data.present)), Rng.of(0, 2))
    (z, label), gone = seen[0], ~patterns.draw(BRAIN, torch.ones(2, 4).bool(), Rng.of(0, 2).fork("pattern"))
    assert bool((z[gone] == 0).all()) == bool(blank) and bool((label == 499).all()) == bool(blank)


@pytest.mark.parametrize("config", [sketched(), HEART], ids=["brain", "heart"])
def test_the_sketch_knows_nothing_of_what_is_missing(config):
    method = awake(config)
    data = hidden(config, 1, 2) if config.layout == "modalities" else hidden(config, *range(5, 9))
    junk = torch.where(data.present.expand_as(data.images), data.images, torch.full_like(data.images, 0.7))
    seen, other = (method._seen(images, data.present) for images in (data.images, junk))
    assert all(torch.equal(getattr(seen, k), getattr(other, k)) for k in ("context", "z", "sketch", "doubts"))
    truth, known, _ = method._known(data.images, torch.ones(2, len(config.modalities), dtype=torch.bool), Rng.of(0, 2))
    assert not torch.allclose(known.context, truth, atol=1e-4)
    if config.layout == "modalities":
        assert torch.equal(known.context[known.clean], truth[known.clean])


def test_the_variance_about_the_sketch_is_measured():
    """Latents that lie twice as far as d says, of a slot that was made; the others keep what they had."""
    sketch = Sketch(sketched())
    doubts = 0.5 + torch.rand(2, 4, 1, 4, 4, 4)
    made = torch.tensor([[True, True, False, False], [True, False, False, False]])
    away = torch.linspace(0.5, 2, sketch.config.codec.channels)[:, None, None, None]
    noise = Rng.of(0, 2, "noise").normal(4, len(away), 4, 4, 4).sign()
    sketch.measure([((away * doubts).sqrt() * noise, doubts, made)])
    v = sketch.variance(doubts)
    assert torch.allclose(v[made], (away * doubts)[made], rtol=0.05)
    assert (sketch.away[2:] == 1).all()

"""The paper's sizes and settings, what is missing of a subject, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amodal.core.contract import Batch
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.methods import copedit
from amodal.methods.copedit import patterns
from amodal.methods.copedit.system import CoPeDiT
from amodal.nn.count import parameters

from .worlds import BRAIN, EVERY, HEART, LONG, awake, hidden, volumes

# the paper's sizes


@pytest.mark.parametrize(
    ("which", "tokenizer", "prior"),
    [
        ("brats", (137_626_128, 137_560_592), 173_344_064),
        ("ixi", (137_625_102, 137_559_566), 173_344_064),
        ("cardiac", (24_028_460, 23_962_924), 33_074_312),
    ],
)
def test_published_sizes(which, tokenizer, prior):
    found = copedit.networks(copedit.published(which))
    assert parameters(found["tokenizer"][0]) == tokenizer
    assert parameters(found["prior"][0])[1] == prior
    assert found["prior"][0](*found["prior"][1]).shape == found["prior"][1][0].shape


def test_published_settings():
    """Tables 14 and 15, and the noise schedule: alpha-bar of the last step 0.0119."""
    for which, steps in (("brats", 200), ("ixi", 200), ("cardiac", 250)):
        config = copedit.published(which)
        assert (config.steps, config.timesteps, config.first, config.last) == (steps, 500, 0.0015, 0.0195)
        assert (config.codec.codes, config.codec.channels, config.codec.factor) == (8192, 8, 8)
        assert config.losses.temperature == 0.2 and config.losses.pretext == 0.01 and config.prompts.size == 512
        assert config.rates == (1e-4, 5e-5) and config.copy == 1.0
    with torch.device("meta"):
        process = CoPeDiT(copedit.tiny()).prior.process
    alpha, sigma = process.at(torch.tensor([500.0]))
    assert alpha.item() ** 2 == pytest.approx(0.0119, abs=5e-5) and sigma.item() ** 2 == pytest.approx(0.9881, abs=5e-5)
    assert process.grid(200)[:2].tolist() == [500, 498] and process.label(process.grid(25))[0] == 499
    with pytest.raises(InputError, match="published:brats"):
        copedit.published("acdc")


# what is missing


@pytest.mark.parametrize("bits", EVERY, ids=str)
def test_targets_of_every_pattern(bits):
    """Of 14 patterns of four modalities: the class of the count, and which are missing."""
    count, missing = patterns.labels(BRAIN, torch.tensor([bits]))
    assert count.item() == 4 - sum(bits) - 1
    assert missing[0].tolist() == [not b for b in bits]


@pytest.mark.parametrize(("length", "label"), [(8, 0), (16, 1), (24, 2), (3, -1), (5, 0), (11, 0), (13, 1), (31, 2)])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_targets_of_gaps(length, label, start):
    available = torch.ones(1, 32, dtype=torch.bool)
    available[0, start : start + length] = False
    count, missing = patterns.labels(LONG, available)
    assert count.item() == label and torch.equal(missing, ~available)


@pytest.mark.parametrize("config", [BRAIN, LONG], ids=["brain", "heart"])
def test_nothing_missing_is_no_class(config):
    count, missing = patterns.labels(config, torch.ones(1, config.places, dtype=torch.bool))
    assert count.item() == -1 and not missing.any()


@pytest.mark.parametrize("config", [BRAIN, LONG], ids=["brain", "heart"])
def test_whole_studies_are_shown_now_and_then(config):
    """A share of the samples keeps all there is of them, and the others are as they would be without."""
    present = torch.ones(2000, config.places, dtype=torch.bool)
    present[:1000, 0] = False
    some = replace(config, losses=replace(config.losses, whole=0.2))
    found, always = (patterns.draw_or_none(c, present, Rng.of(0, 2000)) for c in (some, config))
    kept = (found == present).all(1)
    assert kept[1000:].float().mean().item() == pytest.approx(0.2, abs=0.04)
    assert torch.equal(always, patterns.draw(config, present, Rng.of(0, 2000)))
    assert torch.equal(found[~kept], always[~kept])
    with pytest.raises(InputError, match="less than 1"):
        replace(config, losses=replace(config.losses, whole=1.0))


def test_patterns_are_fresh_and_even():
    """Section 3.2: the count is uniform, then the subset; another draw, another pattern; a draw is repeatable."""
    present = torch.ones(3000, 4, dtype=torch.bool)
    found = patterns.draw(BRAIN, present, Rng.of(0, 3000))
    missing = (~found).sum(1)
    assert [(missing == c).float().mean().item() for c in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert (~found).float().mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.03)
    assert torch.equal(found, patterns.draw(BRAIN, present, Rng.of(0, 3000)))
    assert not torch.equal(found, patterns.draw(BRAIN, present, Rng.of(1, 3000)))


def test_absent_modalities_are_never_available():
    present = torch.tensor([[True, False, True, True], [False, False, True, False], [True, True, False, False]])
    for seed in range(50):
        found = patterns.draw(BRAIN, present, Rng.of(seed, 3))
        assert not (found & ~present).any() and found.any(1).all() and not found.all(1).any()


def test_gaps_lie_anywhere_and_leave_something():
    found = patterns.draw(LONG, torch.ones(2000, 32, dtype=torch.bool), Rng.of(0, 2000))
    assert found.any(1).all() and not found.all(1).any()
    assert (~found).float().mean(0).min() > 0.15  # every slice is missing now and then
    gaps = [row for row in (~found).tolist() if sum(row) in (8, 16, 24)]
    assert len(gaps) > 600
    starts = {row.index(True) % 8 for row in gaps}
    assert len(starts) == 8  # not only at the bounds of slabs


def test_filling_is_linear_and_holds_the_ends():
    z = torch.arange(16.0)
    x = (0.1 * z - 0.7).expand(1, 1, 3, 4, 16).clone()
    present = torch.ones(16, dtype=torch.bool)
    present[[0, 1, 5, 6, 7, 15]] = False
    junk = torch.where(present, x, torch.full_like(x, 1e6))
    out = patterns.filled(junk, present)
    assert torch.allclose(out[..., 2:15], x[..., 2:15], atol=1e-6)
    assert torch.equal(out[..., 0], x[..., 2]) and torch.equal(out[..., 15], x[..., 14])
    assert torch.equal(out[..., present], x[..., present])


def test_filling_columns_of_their_own():
    x = torch.randn(1, 1, 4, 4, 8)
    present = torch.rand(1, 1, 4, 4, 8) > 0.5
    present[0, 0, 1, 2] = False
    out = patterns.filled(torch.where(present, x, torch.tensor(1e6)), present)
    assert torch.equal(out[present], x[present]) and out.abs().max() < 10
    assert torch.equal(out[0, 0, 1, 2], -torch.ones(8))


def test_which_slots_are_given():
    """16 slices in slabs of 4."""
    config = HEART
    present = torch.ones(1, 1, 1, 1, 16, dtype=torch.bool)
    present[..., 3:9] = False  # 3 of 4, none, 3 of 4, all
    assert patterns.given(config, present)[0].tolist() == [False, False, False, True]
    bare = replace(config, prior=replace(config.prior, context=False))
    assert patterns.given(bare, present)[0].tolist() == [True, False, True, True]  # the greater part is there
    comb = (torch.arange(16) % 3 == 0).reshape(1, 1, 1, 1, 16)
    assert patterns.given(config, comb)[0].sum() == 0
    assert patterns.given(bare, comb)[0].tolist() == [True, False, False, True]  # the best of what there is
    brain = torch.tensor([[True, False, True, True]]).reshape(1, 4, 1, 1, 1)
    assert patterns.given(BRAIN, brain)[0].tolist() == [True, False, True, True]


# refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modalities": ("T1w",)}, "two or more"),
        ({"layout": "slices"}, "those of one modality"),
        ({"size": (32, 30, 32)}, "no multiple of 4"),
        ({"guidance": ("mask", "count")}, "choose either"),
        ({"share": 1.0}, "between 0 and 1"),
    ],
)
def test_bad_configs_are_refused_with_a_sentence(change, words):
    with pytest.raises(InputError, match=words):
        replace(BRAIN, **change)


@pytest.mark.parametrize("config", [BRAIN, HEART], ids=["brain", "heart"])
def test_empty_patterns_are_refused_and_full_ones_come_back(config):
    method, data = awake(config), hidden(config)
    assert torch.equal(method.complete(data, Rng.of(0, 2)), data.images)
    nothing = Batch(data.images, torch.zeros_like(data.present))
    for ask in (lambda: method.complete(nothing, Rng.of(0, 2)), lambda: method.perceive(nothing)):
        with pytest.raises(InputError, match="give at least one modality"):
            ask()


def test_a_stack_of_another_length_is_refused():
    method = awake(LONG)
    with pytest.raises(InputError, match="32 slices"):
        method.complete(hidden(HEART, 3), Rng.of(0, 2))


def test_a_batch_without_any_whole_image_is_refused():
    method = copedit.build(BRAIN).train()
    nothing = Batch(volumes(BRAIN), torch.zeros(2, 4, 1, 1, 1, dtype=torch.bool))
    for stage in method.stages():
        with pytest.raises(InputError, match="whole image"):
            stage.forward(nothing, Rng.of(0, 2))

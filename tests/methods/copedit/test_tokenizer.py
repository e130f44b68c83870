"""The pretext tasks and their players, which leave each other alone; what is perceived."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from amodal.codecs.vq import VQConfig
from amodal.core.contract import Batch
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.methods import copedit
from amodal.methods.copedit import patterns
from amodal.methods.copedit.config import PromptConfig
from amodal.methods.copedit.patterns import cut
from amodal.methods.copedit.tokenizer import POOLS, Judged, PromptEncoder, agreed, average, info_nce, pretext
from amodal.nn.count import parameters

from .worlds import BRAIN, HEART, LONG, awake, hidden, volumes

SEQUENCE = replace(HEART, prompts=replace(HEART.prompts, sequence=True, shared=True))
SHORT = replace(HEART, size=(16, 16, 8))  # a stack of which every set of slices can be counted

# the tokenizer's tasks


def test_info_nce_in_closed_form():
    """Two subjects, cosines known: -log(e^(s11/t) / (e^(s11/t) + e^(s12/t))), mean over those with both parts."""
    anchor = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    t = 0.2
    first = -torch.log_softmax(torch.tensor([0.6, 0.0]) / t, 0)[0]
    second = -torch.log_softmax(torch.tensor([0.8, 1.0]) / t, 0)[1]
    both = torch.tensor([True, True])
    assert torch.allclose(info_nce(anchor, other, both, t), (first + second) / 2, atol=1e-6)
    alone = info_nce(anchor, other, torch.tensor([True, False]), t)  # no negative is left
    assert alone == 0


def test_prompts_are_averaged_over_what_is_available():
    values = torch.arange(2 * 3 * 2.0).reshape(2, 3, 2)
    where = torch.tensor([[True, False, True], [False, False, False]])
    assert torch.equal(average(values, where), torch.stack([(values[0, 0] + values[0, 2]) / 2, torch.zeros(2)]))


@pytest.mark.parametrize("config", [replace(BRAIN, modalities=("T1w", "T2w", "FLAIR")), SHORT], ids=["brain", "heart"])
def test_the_two_heads_agree_on_one_pattern(config):
    """By hand, over every set of places: p(S) ~ count prod place; of none missing the count says one in its classes."""
    k, rng = config.places, Rng.of(0, 2, "heads")
    count, place = rng.fork("count").uniform(config.counts), rng.fork("place").uniform(k)
    found = agreed(count.log(), place.logit(), patterns.classes(config))
    for b in range(2):
        said, chance = (count[b] / count[b].sum()).tolist(), {}
        for bits in itertools.product((False, True), repeat=k):
            label, _ = patterns.labels(config, ~torch.tensor([bits]))
            each = [p if bit else 1 - p for bit, p in zip(bits, place[b].tolist())]
            if not all(bits):
                chance[bits] = (said[label] if label >= 0 else 1 / len(said)) * math.prod(each), int(label)
        total = sum(p for p, _ in chance.values())
        wanted = [sum(p for p, label in chance.values() if label == c) / total for c in range(-1, len(said))]
        assert found.count[b].tolist() == pytest.approx(wanted, abs=1e-6)
        wanted = [sum(p for bits, (p, _) in chance.items() if bits[i]) / total for i in range(k)]
        assert found.missing[b].tolist() == pytest.approx(wanted, abs=1e-6)


def test_sure_heads_of_long_stacks_stay_numbers():
    """Logits that leave no doubt, and heads that contradict each other."""
    position = torch.where(torch.arange(32) < 8, 60.0, -60.0)[None]
    found = agreed(torch.tensor([[50.0, 0.0, 0.0]]), position, patterns.classes(LONG))
    assert found.count[0, 1] == pytest.approx(1) and ((found.missing[0] > 0.5) == (position[0] > 0)).all()
    odd = agreed(torch.tensor([[-500.0, 0.0, 500.0]]), position, patterns.classes(LONG))
    assert torch.isfinite(odd.count).all() and torch.isfinite(odd.missing).all()


def test_of_whole_studies_the_count_is_to_be_undecided():
    """Its loss is least where all classes are as likely; the heads agree on nothing missing where no place is."""
    flat, sure = (Judged(n, -9 * torch.ones(1, 4), *[torch.eye(1, 8)] * 2, torch.tensor([False]))
                  for n in (torch.zeros(1, 3), torch.tensor([[4.0, 0.0, 0.0]])))  # fmt: skip
    none, missing = torch.tensor([-1]), torch.zeros(1, 4, dtype=torch.bool)
    losses = [pretext(BRAIN.losses, judged, none, missing)[1]["count"] for judged in (flat, sure)]
    assert losses[0] == pytest.approx(math.log(3), abs=1e-6) and losses[1] > losses[0] + 0.5
    found = agreed(flat.number, flat.position, patterns.classes(BRAIN))
    assert found.count[0, 0] > 0.99 and found.missing.max() < 0.01


def test_where_a_gap_lies_is_told_by_a_sequence():
    """A gap moved along z: prompts pooled over all of the stack hardly change, those that are read along z do; latents
    far from zero and of any scale are standardised first."""
    change = {}
    for sequence in (False, True):
        torch.manual_seed(0)
        config = PromptConfig((8, 16), 24, 8, pool="both", sequence=sequence)
        encoder = PromptEncoder(4, 8, config).train()
        z = 50 + 1e-2 * Rng.of(0, 6, "z").normal(4, 8, 8, 8)
        first, second = z.clone(), z.clone()
        first[..., 2:4], second[..., 4:6] = 50.0, 50.0
        told = encoder(torch.cat([first, second])).detach().chunk(2)
        change[sequence] = float((told[0] - told[1]).norm() / told[0].std(0).norm())
    assert change[True] > 2 * change[False]


def test_a_few_bright_voxels_are_seen():
    """A mean over the volume hides them, the largest value does not."""
    x = torch.zeros(2, 3, 4, 4, 4)
    x[0, 1, 2, 3, 1] = 5.0
    both = POOLS["both"]((1, 1, 1))(x).flatten(1)
    assert torch.allclose(both[0], torch.tensor([0.0, 5.0 + 5 / 64, 0.0])) and (both[1] == 0).all()
    torch.manual_seed(0)
    config = replace(BRAIN, prompts=replace(BRAIN.prompts, pool="both", norm="group"))
    assert parameters(copedit.build(config).tokenizer) == parameters(copedit.build(BRAIN).tokenizer)


@pytest.mark.parametrize("config", [BRAIN, HEART], ids=["brain", "heart"])
def test_neither_player_leaves_gradients_in_the_other(config):
    torch.manual_seed(0)
    method = copedit.build(config).train()
    stage = method.stages()[0]
    data = Batch(volumes(config, 2), torch.ones(2, len(config.modalities), 1, 1, 1, dtype=torch.bool))
    out = stage.forward(data, Rng.of(0, 2))
    of = {"codec": method.tokenizer, "critic": method.critic}
    for player in stage.players:
        method.zero_grad()
        player.loss(out)[0].backward(retain_graph=True)
        own, others = of[player.name], [m for name, m in of.items() if name != player.name]
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in own.parameters())
        assert all(p.grad is None for other in (*others, method.prior) for p in other.parameters())


def test_a_critic_that_nobody_asks_rests():
    method = copedit.build(replace(BRAIN, losses=replace(BRAIN.losses, adversarial=0.0))).train()
    codec, critic = method.stages()[0].players
    out = method.stages()[0].forward(Batch(volumes(BRAIN), torch.ones(2, 4, 1, 1, 1, dtype=torch.bool)), Rng.of(0, 2))
    assert not critic.loss(out)[0].requires_grad and codec.loss(out)[1]["game"] == 0


def test_stages_can_be_trained_one_by_one():
    for stages in (("tokenizer",), ("prior",)):
        found = copedit.build(replace(BRAIN, stages=stages)).stages()
        assert tuple(stage.name for stage in found) == stages and found[0].share == 1.0
    with pytest.raises(InputError, match="train once"):
        replace(BRAIN, stages=())


def test_the_second_stage_leaves_the_tokenizer_alone():
    method = copedit.build(replace(BRAIN, prompts=replace(BRAIN.prompts, norm="batch"))).train()
    before = {k: v.clone() for k, v in method.tokenizer.state_dict().items()}
    data = Batch(volumes(BRAIN), torch.ones(2, 4, 1, 1, 1, dtype=torch.bool))
    stage = method.stages()[1]
    stage.players[0].loss(stage.forward(data, Rng.of(0, 2)))[0].backward()
    assert all(torch.equal(v, before[k]) for k, v in method.tokenizer.state_dict().items())
    assert all(p.grad is None for p in method.tokenizer.parameters()) and method.tokenizer.training


def test_crops_are_cut_at_random_for_every_sample():
    x = torch.arange(2 * 8**3.0).reshape(2, 1, 8, 8, 8)
    a = cut(x, (4, 0, 6), Rng.of(0, 2))
    b = cut(x, (4, 0, 6), Rng.of(1, 2))
    assert a.shape == (2, 1, 4, 8, 6) and not torch.equal(a, b)
    assert a[0].min() >= 0 and a[0].max() < 8**3 <= a[1].min()


def test_it_learns_to_perceive():
    """Contrasts that are told apart by their level; several patterns are asked about at every step."""
    torch.manual_seed(0)
    config = replace(BRAIN, losses=replace(BRAIN.losses, pretext=1.0, patterns=4), size=(16, 16, 16))
    method = copedit.build(config).train()
    stage = method.stages()[0]
    images = 0.1 * volumes(config, 4) + torch.linspace(-0.8, 0.8, 4).reshape(1, 4, 1, 1, 1)
    data = Batch(images, torch.ones(4, 4, 1, 1, 1, dtype=torch.bool))
    optimiser = torch.optim.Adam(stage.players[0].parameters(), 1e-2)
    position = []
    for step in range(40):
        out = stage.forward(data, Rng.of(step, 4))
        assert len(out.asked) == 4
        loss, logs = stage.players[0].loss(out)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        position.append(logs["position"])
    assert sum(position[-5:]) < 0.85 * sum(position[:5])


@pytest.mark.parametrize("config", [BRAIN, SEQUENCE], ids=["brain", "heart"])
def test_perception_is_trained_alone(config):
    """The middle stage changes nothing but prompts and heads, and looks at finished latents."""
    config = replace(config, stages=("tokenizer", "perception", "prior"), losses=replace(config.losses, whole=0.5))
    method = copedit.build(config).train()
    stage = method.stages()[1]
    assert stage.name == "perception" and sum(s.share for s in method.stages()) == pytest.approx(1)
    data = Batch(volumes(config, 4), torch.ones(4, len(config.modalities), 1, 1, 1, dtype=torch.bool))
    out = stage.forward(data, Rng.of(0, 4))
    whole = ~out[0][2].any(1)
    assert whole.any() and not whole.all() and torch.equal(out[0][0].paired, ~whole) and (out[0][1][whole] == -1).all()
    stage.players[0].loss(out)[0].backward()
    moved = {name.split(".")[1] for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"prompts", "embed"}


def test_it_learns_where_a_gap_lies():
    """Read along z, and not from a pool of the whole stack; latents are blocks' lowest cosines."""
    codec, images = VQConfig((8, 8), 8, 0, 32, linear=True), Rng.of(0, 8, "rough").normal(1, 16, 16, 16).tanh()
    right = {}
    for sequence in (False, True):
        torch.manual_seed(0)
        prompts = replace(SEQUENCE.prompts, sequence=sequence)
        method = copedit.build(replace(SEQUENCE, stages=("perception",), codec=codec, prompts=prompts)).train()
        optimiser = torch.optim.Adam(method.tokenizer.perceiving(), 1e-2)
        data = Batch(images, torch.ones(8, 1, 1, 1, 1, dtype=torch.bool))
        for step in range(60):
            loss, _ = method.stages()[0].players[0].loss(method._ask(data, Rng.of(step, 8)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        method.eval()
        gaps = [hidden(SEQUENCE, *range(start, start + 4), n=8).present for start in (0, 4, 8, 12)]
        found = [(method.perceive(Batch(images, gap)).missing > 0.5) == ~gap[:, 0, 0, 0] for gap in gaps]
        right[sequence] = float(torch.stack(found).float().mean())
    assert right[True] > right[False] + 0.1 and right[True] > 0.6


@pytest.mark.parametrize("name", ["small", "small:heart"])
def test_small_presets_make_prompts_in_one(name):
    """One encoder of all three prompts; every pattern is perceived, and nothing of the sizes depends on it."""
    base = copedit.PRESETS[name]()
    method = awake(replace(base, size=(16, 16, 16)))
    data = hidden(method.config, 1) if base.layout == "modalities" else hidden(method.config, *range(5, 9))
    seen = method.perceive(data)
    assert len(method.tokenizer.prompts) == 1 and seen.missing.shape == (2, method.config.places)
    assert torch.isfinite(method.complete(data, Rng.of(0, 2))).all()

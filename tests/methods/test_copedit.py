"""CoPeDiT: the pretext's targets for every pattern, slots that stay clean, two players that leave each other alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from amodal.codecs.memo import Memo, fingerprint
from amodal.core.contract import Batch
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.methods import copedit
from amodal.methods.copedit import patterns
from amodal.methods.copedit.patterns import cut
from amodal.methods.copedit.sketch import Regression
from amodal.methods.copedit.system import CoPeDiT, frozen
from amodal.methods.copedit.tokenizer import average, info_nce
from amodal.nn.count import parameters

BRAIN, LONG = copedit.tiny(), copedit.tiny_heart()  # of 32 slices
HEART = replace(LONG, size=(16, 16, 16))
EVERY = [bits for bits in itertools.product((False, True), repeat=4) if 0 < sum(bits) < 4]


def awake(config=BRAIN) -> CoPeDiT:
    """An untrained method whose networks do not begin as zero."""
    torch.manual_seed(0)
    method = copedit.build(config)
    for parameter in method.prior.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return method.eval().requires_grad_(False)


def volumes(config, n=2, size=16):
    """Smooth random volumes in [-1, 1]."""
    noise = Rng.of(0, n, "volumes").normal(len(config.modalities), size, size, size)
    return torch.tanh(3 * F.avg_pool3d(noise, 5, 1, 2))


def hidden(config, *places, n=2, size=16):
    """A batch that lacks some modalities, or slices."""
    present = torch.ones(n, len(config.modalities), 1, 1, size, dtype=torch.bool)
    if config.layout == "modalities":
        present[:, list(places)] = False
    else:
        present[..., list(places)] = False
    return Batch(volumes(config, n, size), present)


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


@pytest.mark.parametrize(("length", "label"), [(8, 0), (16, 1), (24, 2), (3, 0), (11, 0), (13, 1), (31, 2)])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_targets_of_gaps(length, label, start):
    available = torch.ones(1, 32, dtype=torch.bool)
    available[0, start : start + length] = False
    count, missing = patterns.labels(LONG, available)
    assert count.item() == label and torch.equal(missing, ~available)


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


# sketches


def sketched(config=BRAIN):
    return replace(config, prior=replace(config.prior, context=True))


def test_a_regression_finds_a_cubic_relation_in_every_pattern():
    """Where one image is a cubic of two others it is made exactly; what all lack stays background."""
    x = 0.6 * torch.tanh(Rng.of(0, 3, "images").normal(2, 8, 8, 8))
    third = 0.1 + 0.5 * x[:, 0] - 0.3 * x[:, 1] + 0.4 * x[:, 0] * x[:, 1] - 0.2 * x[:, 0] ** 3
    images = torch.cat([x, third[:, None]], 1)
    images[..., :2] = -1.0
    there, junk = torch.ones(3, 3, dtype=torch.bool), images.clone()
    junk[:, 2] = 1e3
    for lacks, error in ((False, 0.002), (True, 0.05)):  # one subject that lacks an image: what pairs it has count
        there[1, 0] = not lacks
        regression = Regression(3)
        regression.fit([(images, there)])
        made = regression(junk, torch.tensor([[True, True, False]]).expand(3, 3))
        assert torch.equal(made[:, :2], images[:, :2])
        assert (made[:, 2] - images[:, 2]).abs().mean() < error
    assert (made[:, 2, ..., :2] == -1).all()
    alone = regression(images, torch.tensor([[True, False, False]]).expand(3, 3))
    assert torch.isfinite(alone).all() and torch.equal(alone[:, 0], images[:, 0])


@pytest.mark.parametrize("config", [sketched(), HEART], ids=["brain", "heart"])
def test_an_untrained_prior_gives_back_the_sketch(config):
    """Its network is zero at first; in one step from noise (whose share is tiny) the sketch comes back as it was."""
    torch.manual_seed(0)
    method = copedit.build(replace(config, steps=1)).eval()
    data = hidden(config, 1) if config.layout == "modalities" else hidden(config, *range(5, 9))
    whole = Batch(data.images, torch.ones_like(data.present))
    method.stages()[1].begin(lambda k: whole)
    method.doubt.fill_(1e-8)
    sketch = method._sketch(data.images, data.present)
    out = method.complete(data, Rng.of(0, 2))
    assert torch.allclose(out, sketch.clamp(-1, 1), atol=1e-3)
    assert not torch.allclose(sketch, data.images, atol=0.05)


@pytest.mark.parametrize("config", [sketched(), HEART], ids=["brain", "heart"])
def test_the_sketch_knows_nothing_of_what_is_missing(config):
    method = awake(config)
    data = hidden(config, 1, 2) if config.layout == "modalities" else hidden(config, *range(5, 9))
    junk = torch.where(data.present.expand_as(data.images), data.images, torch.full_like(data.images, 0.7))
    seen, other = (method._seen(images, data.present) for images in (data.images, junk))
    assert torch.equal(seen.context, other.context) and torch.equal(seen.z, other.z)
    truth, known, _ = method._known(data.images, torch.ones(2, len(config.modalities), dtype=torch.bool), Rng.of(0, 2))
    assert not torch.allclose(known.context, truth, atol=1e-4)
    if config.layout == "modalities":
        assert torch.equal(known.context[known.clean], truth[known.clean])


def test_the_variance_about_the_sketch_is_measured():
    method = copedit.build(sketched()).eval()
    whole = Batch(volumes(BRAIN), torch.ones(2, 4, 1, 1, 1, dtype=torch.bool))
    method.stages()[1].begin(lambda k: whole)
    assert (method.doubt > 0).all() and not torch.equal(method.doubt, torch.ones_like(method.doubt))


def test_perception_is_trained_alone():
    """The middle stage changes nothing but prompts and heads, and looks at finished latents."""
    config = replace(BRAIN, stages=("tokenizer", "perception", "prior"))
    method = copedit.build(config).train()
    stage = method.stages()[1]
    assert stage.name == "perception" and sum(s.share for s in method.stages()) == pytest.approx(1)
    data = Batch(volumes(BRAIN), torch.ones(2, 4, 1, 1, 1, dtype=torch.bool))
    stage.players[0].loss(stage.forward(data, Rng.of(0, 2)))[0].backward()
    moved = {name.split(".")[1] for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"prompts", "embed"}


@pytest.mark.parametrize("name", ["small", "small:heart"])
def test_small_presets_make_prompts_in_one(name):
    """One encoder of all three prompts; every pattern is perceived, and nothing of the sizes depends on it."""
    base = copedit.PRESETS[name]()
    method = awake(replace(base, size=(16, 16, 16)))
    data = hidden(method.config, 1) if base.layout == "modalities" else hidden(method.config, *range(5, 9))
    seen = method.perceive(data)
    assert len(method.tokenizer.prompts) == 1 and seen.missing.shape == (2, method.config.places)
    assert torch.isfinite(method.complete(data, Rng.of(0, 2))).all()


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


# what is remembered


def test_memory_changes_nothing_but_the_work():
    layer, calls = torch.nn.Linear(3, 2), []

    def work(row):
        calls.append(row)
        return (layer(row), row.sum(1))

    memo, x = Memo(), torch.randn(4, 3)
    first = memo.each(work, x, of=layer)
    again = memo.each(work, x.flip(0), of=layer)
    assert len(calls) == 4 and all(torch.equal(a, b.flip(0)) for a, b in zip(first, again))
    layer.weight.data.add_(1)
    layer.weight.add_(0) if not layer.weight.requires_grad else None
    small = Memo(limit=1)
    small.each(work, x, of=layer)
    assert len(small.known) == 1


def test_new_weights_are_noticed():
    layer = torch.nn.Linear(3, 2)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    with torch.no_grad():
        layer.weight.mul_(2)
    assert fingerprint(layer) != before

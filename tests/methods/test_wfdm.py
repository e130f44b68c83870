"""WFDM: what the paper pins, what is known and what is not, the adapter, guidance, generation."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from amodal.core.config import from_dict, override, to_dict
from amodal.core.contract import Batch
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.diffusion.process import DDPM, RectifiedFlow
from amodal.methods import wfdm
from amodal.methods.wfdm import learning, network
from amodal.methods.wfdm.system import SCHEMES
from amodal.nn.count import parameters

TINY = wfdm.tiny()
M = len(TINY.modalities)


def build(trained=True, **settings):
    """A tiny method; with `trained` its weights are not 0, as if it had learned something."""
    torch.manual_seed(0)
    method = wfdm.build(dataclasses.replace(TINY, **settings))
    generator = torch.Generator().manual_seed(1)
    for parameter in method.parameters() if trained else ():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return method.eval().requires_grad_(False)


def batch(n=2, absent=(), size=16):
    present = torch.ones(n, M, 1, 1, 1, dtype=torch.bool)
    present[:, list(absent)] = False
    return Batch(torch.tanh(Rng.of(0, n, "stack").normal(M, size, size, size)), present)


# the paper's numbers


def test_the_published_model_is_pinned():
    config = wfdm.published()
    assert config.modalities == ("T1w", "T2w", "T1Gd", "FLAIR") and config.size == (192, 224, 160)
    assert (config.codec.kind, config.codec.channels, config.codec.subset) == (
        "fusion",
        4,
        ("LLL", "LLH", "LHL", "LHH"),
    )
    assert config.codec.attention > 0  # WF-SA-VAE is the selected codec
    assert (config.scheme, config.norm, config.steps, len(config.schema)) == ("rflow", "l2", 50, 25)
    assert (config.learning.kl, config.learning.perceptual, config.learning.adversarial) == (1e-7, 0.3, 0.1)
    nets = wfdm.networks(config)
    prior, (z, *_) = nets["prior"]
    assert z.shape == (1, 4, 48, 56, 40)
    assert parameters(prior)[0] == pytest.approx(171.2e6, rel=0.001)
    codec, (v,) = nets["codec"]
    assert codec(v).shape == v.shape == (1, 1, 192, 224, 160)


def test_the_schemes_of_table_5():
    assert SCHEMES["rflow"] == (RectifiedFlow(), "flow", 0.0)
    assert SCHEMES["ddpm-cosine"] == (DDPM(1000, "cosine"), "v", 1.0)
    process, prediction, eta = SCHEMES["ddpm-scaled-linear"]
    assert (process.schedule, process.steps, prediction, eta) == ("scaled_linear", 1000, "v", 1.0)
    for scheme in SCHEMES:
        for norm in ("l1", "l2"):
            method = build(scheme=scheme, norm=norm)
            assert method.prior.norm == norm and method.sampler == f"{scheme}-ddim"
            data = batch()
            assert method.stages()[1].forward(data, Rng.of(0, 2)).ndim == 0


def test_l1_is_the_absolute_error():
    """The same network, times and noise: the mean of |e| and of e^2 of one error field."""
    found = {norm: build(norm=norm).prior for norm in ("l1", "l2")}
    vector = torch.zeros(2, network.width_of(M, TINY.schema))
    z0 = Rng.of(3, 2).normal(4, 4, 4, 4)
    t = torch.tensor([0.3, 0.8])
    eps = Rng.of(0, 2).normal_like(z0)
    noisy = (1 - t).reshape(2, 1, 1, 1, 1) * z0 + t.reshape(2, 1, 1, 1, 1) * eps
    error = found["l2"].net(noisy, 1000 * t - 1, vector) - (eps - z0)
    for norm, expected in (("l1", error.abs().mean()), ("l2", (error**2).mean())):
        assert found[norm].loss(z0, Rng.of(0, 2), vector, t=t) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("preset", wfdm.PRESETS)
def test_presets_go_through_json(preset):
    config = wfdm.PRESETS[preset]()
    assert from_dict(wfdm.Config, json.loads(json.dumps(to_dict(config)))) == config
    kinds = {"wf-vae": ("fusion", False), "wavelet-vae": ("wavelet", False), "vae-gan": ("plain", False)}
    expected = kinds.get(preset.partition(":")[2], ("fusion", True))
    assert (config.codec.kind, config.codec.attention > 0) == expected


def test_settings_can_be_changed_from_the_command_line():
    config = override(TINY, ["scheme=ddpm-cosine", "steps=1000", 'stages=["prior"]', "learning.kl=1e-6"])
    assert [stage.name for stage in wfdm.build(config).stages()] == ["prior"]
    fields = json.dumps({"fields": [{"name": "iq", "kind": "number"}]})
    assert override(TINY, [f"schema={fields}"]).schema.names == ("iq",)
    with pytest.raises(InputError, match="choose one of rflow"):
        override(TINY, ["scheme=vp"])
    with pytest.raises(InputError, match="codec's latent 4"):
        wfdm.build(override(TINY, ["net.in_channels=8"]))


# conditions


def vector_of(method, target, **row):
    given = method.encode_metadata([row])
    return network.condition(torch.tensor([target]), M, given["values"], given["known"])


def test_not_given_is_not_no():
    """In the vector, in the encoder, in the modulations, in the image."""
    method = build()
    absent, no, yes = (vector_of(method, 0, **row) for row in ({}, {"tumour": "no"}, {"tumour": "yes"}))
    assert not torch.equal(absent, no) and not torch.equal(no, yes)
    encoder = method.net.metadata
    p = len(TINY.schema)
    codes = [encoder(v[:, M : M + p], v[:, M + p :]) for v in (absent, no, yes)]
    assert (
        min((a - b).abs().max() for a, b in ((codes[0], codes[1]), (codes[1], codes[2]), (codes[0], codes[2]))) > 1e-3
    )
    images = [
        method.generate(1, (16, 16, 16), Rng.of(0, 1), method.encode_metadata([row]))
        for row in ({}, {"tumour": "no"}, {"tumour": "yes"})
    ]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])
    unknown = method.generate(1, (16, 16, 16), Rng.of(0, 1), method.encode_metadata([{"tumour": "n/a"}]))
    assert torch.equal(images[0], unknown)
    assert torch.equal(images[0], method.generate(1, (16, 16, 16), Rng.of(0, 1)))


def test_not_given_is_not_zero_nor_the_mean():
    method = build()
    rows = method.encode_metadata([{"age": a} for a in (20, 40, 60)])
    method.net.metadata.fit(rows["values"], rows["known"])
    p = len(TINY.schema)
    absent, zero, mean = (vector_of(method, 0, **row) for row in ({}, {"age": 0}, {"age": 40}))
    codes = [method.net.metadata(v[:, M : M + p], v[:, M + p :]) for v in (absent, zero, mean)]
    assert not torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


def test_what_is_not_known_may_hold_anything():
    values, known = torch.full((1, len(TINY.schema)), 1e6), torch.zeros(1, len(TINY.schema), dtype=torch.bool)
    vector = network.condition(torch.tensor([2]), M, values, known)
    assert vector[0, :M].tolist() == [0, 0, 1, 0] and vector[0, M:].abs().max() == 0


def test_statistics_of_the_training_table():
    method = build()
    rows = [{"age": 20, "sex": "F"}, {"age": 40, "sex": "M"}, {"age": 60, "sex": "F"}, {"sex": "F", "tumour": "yes"}]
    table = method.encode_metadata(rows)
    encoder = method.net.metadata
    encoder.fit(table["values"], table["known"])
    age, sex, tumour, _ = range(4)
    assert encoder.mean[age] == 40 and encoder.deviation[age] == pytest.approx((800 / 3) ** 0.5)
    assert (encoder.low[age], encoder.high[age]) == (20, 60)
    assert encoder.counts[sex].tolist() == [0, 3, 1] and encoder.counts[tumour].tolist() == [3, 0, 1]
    assert encoder.counts[age].tolist() == [1, 3, 0]
    assert encoder.mean[sex] == 0 and encoder.deviation[sex] == 1


def test_modality_and_metadata_reach_every_block():
    method = build()
    embedding = method.net.unet.embed
    t = torch.tensor([500.0])
    base = embedding(t, vector_of(method, 0, age=40))
    for other in (vector_of(method, 1, age=40), vector_of(method, 0, age=50), vector_of(method, 0)):
        found = embedding(t, other)
        assert all(not torch.equal(a, b) for a, b in zip(base, found) if a.numel()) and len(found) == len(base)


# learning


def test_rare_modalities_are_the_target_more_often():
    """FLAIR in one of four subjects: with balance 1 its weight is 4, the target 4 / 7 of the time where it is."""
    method = build()
    present = torch.ones(4, M, 1, 1, 1, dtype=torch.bool)
    present[1:, 3] = False
    data = Batch(torch.zeros(4, M, 16, 16, 16), present)
    method._begin_codec(lambda k: data)
    assert method.weights.tolist() == pytest.approx([1, 1, 1, 4])
    targets = torch.cat([learning.pick(data, method.weights, Rng.of(k, 4))[1][None] for k in range(400)])
    assert (targets[:, 0] == 3).float().mean().item() == pytest.approx(4 / 7, abs=0.07)
    assert (targets[:, 1:] == 3).sum() == 0


def test_metadata_are_dropped_as_often_as_said():
    known = torch.ones(4000, 5, dtype=torch.bool)
    rng = Rng.of(0, 4000)
    kept = learning.drop(known, learning.Learning(drop=0.15, thin=0.0), rng)
    assert (~kept.any(1)).float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert kept[kept.any(1)].all()
    thin = learning.drop(known, learning.Learning(drop=0.0, thin=1.0), rng)
    assert set(thin.sum(1).tolist()) == set(range(6))
    assert not learning.drop(torch.zeros_like(known), learning.Learning(), rng).any()


def test_any_subset_of_the_others_is_given():
    """Never the target, never what is not there; every number from one to all."""
    method, data = build(), batch(60, absent=(1,), size=8)
    target = torch.zeros(60, dtype=torch.long)
    known = learning.given(data, target, method, Rng.of(0, 60))
    shown = known.reshape(60, M, 5, *known.shape[2:])[:, :, -1, 0, 0, 0]
    assert shown[:, 0].sum() == 0 and shown[:, 1].sum() == 0
    counts = shown.sum(1)
    assert set(counts.tolist()) == {1, 2}
    z = method.codec.encode(data.images[:1, 2:3])
    first = known.reshape(60, M, 5, *known.shape[2:])[0, 2]
    assert torch.equal(first[:4], z[0]) if shown[0, 2] else first.abs().max() == 0


def test_crops_are_parts_of_the_volume():
    x = torch.arange(8.0**3).reshape(1, 1, 8, 8, 8)
    part = learning.crop(x, (4, 0, 4), Rng.of(3, 1))
    assert part.shape == (1, 1, 4, 8, 4)
    first = int(part.flatten()[0])
    place = (first // 64, first // 8 % 8, first % 8)
    assert torch.equal(part, x[:, :, place[0] : place[0] + 4, :, place[2] : place[2] + 4])


def test_the_critic_does_not_pull_at_the_codec():
    method = build()
    method.requires_grad_(True).train()
    codec, critic = method.stages()[0].players
    game = method.stages()[0].forward(batch(), Rng.of(0, 2))
    critic.loss(game)[0].backward(retain_graph=True)
    assert all(p.grad is None for p in method.codec.parameters())
    method.zero_grad(set_to_none=True)
    loss, logs = codec.loss(game)
    loss.backward()
    assert all(p.grad is None for p in method.critic.parameters())
    assert set(logs) == {"l1", "kl", "perceptual", "adversarial"} and loss.item() == pytest.approx(sum(logs.values()))


def test_kl_is_summed_over_the_latent():
    """1e-7 * 1/2 sum(mu^2 + sigma^2 - log sigma^2 - 1): for mu = 1, sigma = 1 half the number of elements."""
    method = build(learning=learning.Learning(perceptual=0, adversarial=0, critic_width=8, critic_layers=1))
    x, mean = torch.zeros(2, 1, 16, 16, 16), torch.ones(2, 4, 4, 4, 4)
    game = learning.Game(x, learning.Reconstruction(x, mean, torch.zeros_like(mean)))
    assert learning.codec_loss(method, game)[1]["kl"] == pytest.approx(1e-7 * 256 / 2)
    other = learning.Game(x, learning.Reconstruction(x + 0.5, 0 * mean, torch.zeros_like(mean)))
    assert learning.codec_loss(method, other)[1]["l1"] == pytest.approx(0.25)  # of images in [0, 1]


def test_the_prior_learns_on_latents_of_unit_variance():
    method, data = build(), batch(4)
    method._begin_prior(lambda k: data)
    z = torch.cat([method.codec.encode(data.images[:, m : m + 1]) for m in range(M)])
    assert z.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("scheme", ["rflow", "ddpm-cosine"])
def test_an_aligned_prior_begins_as_the_normal_law_of_its_latents(scheme):
    """Untrained it is the posterior mean by precisions, of the modality's own mean and variance, at any time."""
    method = build(trained=False, aligned=True, scheme=scheme)
    normal = method.net.normal
    normal.slopes.copy_(Rng.of(0, M).normal(normal.slopes.shape[1], 4, 4, 4, 4))
    normal.variance.copy_(0.1 + 2 * Rng.of(1, M).uniform(4, 4, 4, 4))
    normal.mean[0], normal.deviation[0] = 50, 10
    z, t = Rng.of(2, 2).normal(4, 4, 4, 4), torch.tensor([0.9, 0.3]) * method.prior.process.end
    vector = torch.cat([vector_of(method, 1, age=40, tumour="yes"), vector_of(method, 3)])
    alpha, sigma = (v.reshape(2, 1, 1, 1, 1) for v in method.prior.process.at(t))
    columns = ["1", "age", "F", "M", "no tumour", "tumour", "no ms", "ms"]
    own = normal.slopes[1]
    mean = torch.stack([own[0] - own[1] + own[columns.index("tumour")], normal.slopes[3, 0]])
    v = normal.variance[[1, 3]]
    expected = (mean / v + alpha * z / sigma**2) / (1 / v + alpha**2 / sigma**2)
    torch.testing.assert_close(method.prior(z, t, vector), expected, atol=1e-4, rtol=1e-4)
    method.net.unet.head.bias.fill_(1.0)
    lacks = 1 / (1 / v + alpha**2 / sigma**2)  # what the network says is in units of its root
    torch.testing.assert_close(method.prior(z, t, vector), expected + lacks.sqrt(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(method.net.open(vector, alpha, sigma), lacks, atol=1e-5, rtol=1e-4)


def test_an_aligned_prior_is_shown_what_is_expected():
    """B x of the modality and of what is known, beside z_t, and it reaches the output; a plain prior sees z_t alone."""
    method = build(trained=False, aligned=True)
    normal, net = method.net.normal, method.net
    normal.slopes.copy_(Rng.of(0, M).normal(normal.slopes.shape[1], 4, 4, 4, 4))
    z, vector = Rng.of(2, 2).normal(4, 4, 4, 4), torch.cat([vector_of(method, 1, tumour="no"), vector_of(method, 3)])
    t, generator = torch.tensor([500.0, 500.0]), torch.Generator().manual_seed(1)
    mean = torch.stack([normal.slopes[1, 0] + normal.slopes[1, 4], normal.slopes[3, 0]])
    torch.testing.assert_close(net.seen(z, t, vector).shown, torch.cat([z, mean], dim=1))
    for parameter in net.unet.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    blind = net.unet(torch.cat([z, torch.zeros_like(z)], dim=1), t, vector=vector)
    assert (net.unet(net.seen(z, t, vector).shown, t, vector=vector) - blind).std() > 0.01 * blind.std()
    assert torch.equal(build(trained=False).net.seen(z, t, vector).shown, z)


def test_the_normal_law_is_a_regression_by_modality_and_place():
    """z = m + 0.3 age + (0.5 if there is a tumour) + a spread of its own in each channel; ages are z-scores."""
    method = build(trained=False, aligned=True)
    rng, which = Rng.of(0, 1200), torch.arange(1200) % 3
    ages, tumour = rng.uniform(1)[:, 0] * 60 + 20, rng.fork("tumour").uniform(1)[:, 0] > 0.5
    rows = [{"age": a, "tumour": "yes" if y else "no"} for a, y in zip(ages.tolist(), tumour.tolist())]
    told = method.encode_metadata(rows)
    method.net.metadata.fit(told["values"], told["known"])
    scale = torch.linspace(0.5, 2, 4).reshape(4, 1, 1, 1)
    parts = [which, (ages - 50) / 17.3 * 0.3, 0.5 * tumour]
    z = rng.normal(4, 4, 4, 4) * scale + sum(v.reshape(-1, 1, 1, 1, 1).float() for v in parts)
    found = zip(*(v.split(100) for v in (z, which, told["values"], told["known"])))
    normal = method.net.normal
    normal.fit(found, method.net.metadata.mean, method.net.metadata.deviation)
    for m in range(3):
        slopes = normal.slopes[m]
        assert slopes[1].mean().item() == pytest.approx(0.3, abs=0.03)
        assert (slopes[5] - slopes[4]).mean().item() == pytest.approx(0.5, abs=0.06)
        assert (slopes[0] + slopes[4]).mean().item() == pytest.approx(m, abs=0.06)
        assert torch.allclose(normal.variance[m].mean((1, 2, 3)), scale.flatten() ** 2, rtol=0.05)
    assert (normal.slopes[3] == 0).all() and (normal.variance > 0).all()  # never seen


def test_a_frozen_stage_stays_as_it_is():
    """Training the prior leaves the codec alone, and the adapter both."""
    method = build().requires_grad_(True).train()
    for stage, still in ((1, ("codec", "adapter", "critic")), (2, ("codec", "prior", "critic"))):
        player = method.stages()[stage].players[0]
        method.zero_grad(set_to_none=True)
        loss = player.loss(method.stages()[stage].forward(batch(), Rng.of(0, 2)))[0]
        loss.backward(inputs=list(player.parameters()))
        for name in still:
            assert all(p.grad is None for p in getattr(method, name).parameters())


# adapter


def test_the_adapter_begins_as_nothing():
    """Zero-initialised: prior and adapter are the prior, to the bit; and it begins as a copy of the encoder."""
    method = build(trained=False)
    generator = torch.Generator().manual_seed(1)
    for parameter in method.prior.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    method.adapter.take(method.net)
    z, t = Rng.of(0, 1).normal(4, 4, 4, 4), torch.tensor([0.5])
    vector, known = vector_of(method, 0, age=40), torch.randn(1, M * 5, 4, 4, 4)
    assert torch.equal(method._joint()(z, t, vector, known), method.prior(z, t, vector))
    for own, other in (("encoder", "encoder"), ("middle", "middle"), ("stem", "stem")):
        a, b = getattr(method.adapter, own).state_dict(), getattr(method.net.unet, other).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    embedded = method.adapter.embed(500 * torch.ones(1), vector)
    assert all(torch.equal(a, b) for a, b in zip(embedded, method.net.unet.embed(500 * torch.ones(1), vector)))


# the estimate that a completion begins with


def world(n=4, size=16):
    """Two tissues in cells of 4 voxels; each modality is a line of the first, with noise of 0.05."""
    which = Rng.of(0, n, "tissue").uniform(1, *[size // 4] * 3).gt(0.5).float()
    first = torch.nn.functional.interpolate(which, scale_factor=4) * 1.2 - 0.6
    noise = 0.05 * Rng.of(1, n).normal(M, size, size, size)
    lines = torch.tensor([1.0, -0.7, 0.5, 0.3]).reshape(M, 1, 1, 1)
    return Batch(first * lines + noise, torch.ones(n, M, 1, 1, 1, dtype=torch.bool))


def estimating(fitted=True, **settings):
    method = build(trained=False, components=4, **settings)
    data = world()
    if fitted:
        method._begin_prior(lambda k: data)
        method._begin_adapter(lambda k: data)
    return method, data


@pytest.mark.parametrize("prediction", ["rflow", "ddpm-cosine"])
def test_prior_and_estimate_meet_as_two_observations(prediction):
    """Of a latent N(p, S) by the prior and N(guess, v) by the estimate the mean by precisions, at any time; what the
    adapter says is in units of what both leave open."""
    method, _ = estimating(scheme=prediction)
    method.estimate.variance.copy_(torch.tensor([0.02, 0.1, 0.5, 2.0]))
    z, t = Rng.of(0, 2).normal(4, 4, 4, 4), torch.tensor([0.9, 0.2]) * method.prior.process.end
    known = Rng.of(1, 2).normal(network.known_width(4, M, True), 4, 4, 4)
    known[:, -1:] = Rng.of(2, 2).uniform(1, 4, 4, 4) + 0.1
    vector = torch.zeros(2, network.width_of(M, TINY.schema))
    alpha, sigma = (v.reshape(2, 1, 1, 1, 1) for v in method.prior.process.at(t))
    s, v = sigma**2 / (alpha**2 + sigma**2), method.estimate.variance.reshape(4, 1, 1, 1) * known[:, -1:]
    p, guess = method.prior(z, t, vector), known[:, -5:-1]
    expected = (p / s + guess / v) / (1 / s + 1 / v)
    torch.testing.assert_close(method._joint()(z, t, vector, known), expected, atol=2e-3, rtol=2e-3)
    method.adapter.direct.bias.fill_(1.0)
    lacks = method._joint()(z, t, vector, known) - expected
    torch.testing.assert_close(lacks, (1 / (1 / s + 1 / v)).sqrt(), atol=5e-3, rtol=5e-3)


def test_an_untrained_adapter_gives_back_the_estimate():
    """The mixture's image of what is missing, with what the codec loses of it, but for what the prior weighs."""
    method, data = estimating()
    method.estimate.variance.fill_(1e-6)  # nothing but the estimate counts
    given = torch.tensor([[True, False, True, False]]).expand(4, M)
    out = method.complete(Batch(data.images, given.reshape(4, M, 1, 1, 1)), Rng.of(0, 4))
    mean, _ = method.estimate.images(data.images, given)
    assert (out[:, 1] - mean[:, 1]).abs().max() < 0.02
    wrong = (data.images[:, 1] - mean[:, 1]).square().mean()
    assert wrong < 0.01 < 0.1 * data.images[:, 1].var()


def test_how_far_latents_lie_from_their_estimates_is_measured():
    method, data = estimating()
    assert (method.estimate.variance > 0).all() and method.estimate.variance.mean() < 1
    rngs = [Rng.of(seed, 4) for seed in range(40)]
    doubts = [learning.given(data, learning.pick(data, method.weights, r)[1], method, r)[:, -1].mean() for r in rngs]
    assert torch.stack(doubts).mean().item() == pytest.approx(1.0, rel=0.3)


def test_the_estimate_sees_what_is_shown_alone():
    method, data = estimating()
    shown, target = torch.tensor([[True, False, False, True]]).expand(4, M), torch.full((4,), 1)
    known, guess = learning.beside(method, data.images, shown, target)
    other = torch.where(shown.reshape(4, M, 1, 1, 1), data.images, torch.full_like(data.images, 0.9))
    again, same = learning.beside(method, other, shown, target)
    assert torch.equal(known, again) and torch.equal(guess, same)
    assert torch.equal(known[:, -5:-1], method.codec.encode(guess))


def test_the_adapter_learns_from_the_estimate_on():
    method, data = estimating()
    method.requires_grad_(True).train()
    stage = method.stages()[2]
    optimiser = torch.optim.Adam(stage.players[0].parameters(), 2e-3)
    losses = []
    for _ in range(40):
        loss = stage.forward(data, Rng.of(7, 4))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        assert all(p.grad is None for name in ("codec", "estimate") for p in getattr(method, name).parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_joint_network_leaves_the_state_as_it_is():
    method = build()
    before = list(method.state_dict())
    method.complete(batch(1, absent=(0,)), Rng.of(0, 1))
    assert list(method.state_dict()) == before and not any("joint" in name for name in before)


def test_the_bit_that_says_what_is_there_matters():
    """A modality that is background everywhere is not the same as one that is not there."""
    method = build()
    data = batch(1, absent=(0,))
    images = data.images.clone()
    images[:, 1] = -1
    with_it = method.complete(Batch(images, data.present), Rng.of(0, 1))
    present = data.present.clone()
    present[:, 1] = False
    assert not torch.equal(with_it[:, 0], method.complete(Batch(images, present), Rng.of(0, 1))[:, 0])


def test_a_target_does_not_depend_on_which_others_are_missing_with_it():
    """T1w of a subject whose FLAIR alone is given: the same whether T2w is made beside it or not. (Same noise.)"""
    method = build(chunk=1)
    both = method.complete(batch(1, absent=(0, 1)), Rng.of(0, 1))
    again = method.complete(batch(1, absent=(0, 1)), Rng.of(0, 1))
    assert torch.equal(both, again)
    z = Rng(Rng.of(0, 1).fork("latent").seeds * 2).normal(2)
    assert torch.equal(z[0], z[1])


def test_a_hole_is_filled_and_its_surroundings_kept():
    method, data = build(), batch(1)
    present = data.present.expand_as(data.images).clone()
    present[0, 1, 4:9] = False
    out = method.complete(Batch(data.images, present), Rng.of(0, 1))
    assert torch.equal(out[present], data.images[present]) and not torch.equal(out[~present], data.images[~present])


def test_nothing_missing_is_refused():
    with pytest.raises(InputError, match="nothing is missing of T1w, T2w, T1Gd, FLAIR"):
        build().complete(batch(), Rng.of(0, 2))


def test_one_image_is_the_posterior_mean():
    method = build()
    assert (method.steps_for(1), method.steps_for(8)) == (1, TINY.steps)


# generation


def test_a_generated_volume_depends_on_its_own_seed_alone():
    method = build()
    rows = method.encode_metadata([{"age": a} for a in (30, 50, 70)])
    whole = method.generate(3, (16, 16, 16), Rng.of(0, 3), rows)
    assert whole.shape == (3, M, 16, 16, 16) and whole.abs().max() <= 1
    part = method.generate(1, (16, 16, 16), Rng.of(0, 3)[1:2], {k: v[1:2] for k, v in rows.items()})
    assert torch.equal(part, whole[1:2])


def test_only_what_is_wanted_is_generated():
    method = build()
    wanted = torch.tensor([False, False, True, False])
    some = method.generate(1, (16, 16, 12), Rng.of(0, 1), {"wanted": wanted})
    every = method.generate(1, (16, 16, 12), Rng.of(0, 1))
    assert some.shape == (1, M, 16, 16, 12)
    assert torch.equal(some[:, 2], every[:, 2]) and (some[:, [0, 1, 3]] == -1).all()


def test_new_noise_in_every_step_belongs_to_the_sample():
    """eta = 1 is another image than eta = 0 from one noise, and the same whatever the chunk; nothing else hears it."""
    found = {}
    for eta in (None, 0.0, 1.0):
        for chunk in (1, 4):
            found[eta, chunk] = build(steps=4, eta=eta, chunk=chunk).generate(1, (16, 16, 16), Rng.of(5, 1))
    assert torch.equal(found[None, 4], found[0.0, 4])
    for eta in (0.0, 1.0):
        torch.testing.assert_close(found[eta, 1], found[eta, 4], atol=1e-5, rtol=1e-5)
    assert (found[1.0, 4] - found[0.0, 4]).std() > 0.1 * found[0.0, 4].std()
    assert build(eta=0.5).sampler == "rflow-ddim-eta0.5"
    with pytest.raises(InputError, match="eta=1: choose 0 to 1, with solver=ddim"):
        build(eta=1.0, solver="heun")


def test_only_a_flow_has_times_to_shift():
    assert build(shift=3.0).prior.process == RectifiedFlow(3.0) and build().prior.process == RectifiedFlow()
    with pytest.raises(InputError, match="shift=2: ddpm-cosine has fixed times; leave it 1, or choose scheme=rflow"):
        build(shift=2.0, scheme="ddpm-cosine")


@pytest.mark.parametrize("scheme, solver", [("rflow", "heun"), ("rflow", "multistep"), ("ddpm-cosine", "ddim")])
def test_solvers_and_schemes_generate(scheme, solver):
    method = build(scheme=scheme, solver=solver, steps=3)
    a, b = (method.generate(1, (16, 16, 16), Rng.of(seed, 1)) for seed in (0, 0))
    assert torch.equal(a, b) and torch.isfinite(a).all()


def test_guidance_goes_from_without_to_with():
    """x0 = without + w (with - without): w = 0 is the unconditional prediction, 1 the conditional one."""
    found = {}
    for weight in (0.0, 1.0, 3.0):
        method = build(guidance=weight)
        vector = vector_of(method, 0, age=40, tumour="yes")
        z, t = Rng.of(0, 1).normal(4, 4, 4, 4), torch.tensor([0.7])
        found[weight] = method._denoise(method.prior, vector, ())(z, t)
    bare = method.prior(z, t, network.unconditional(vector, M))
    assert torch.allclose(found[0.0], bare, atol=1e-6)
    assert torch.allclose(found[3.0], bare + 3 * (found[1.0] - bare), atol=1e-5)
    assert network.unconditional(vector, M)[0, :M].tolist() == [1, 0, 0, 0]


def test_flags_that_are_set_are_stressed_against_not_set():
    """What is said of age and sex, what is not known, and a flag that is off stay as they are; in the middle of a draw
    x0 = without + s (with - without), before and after as it is."""
    method = build(stress=4.0)
    vector = vector_of(method, 0, age=40, sex="M", tumour="yes")
    without = network.contrary(vector, M, method.config.schema)
    assert torch.equal(without, vector_of(method, 0, age=40, sex="M", tumour="no"))
    off = vector_of(method, 0, age=2, sex="M", ms="no")  # 2 is how "yes" is written
    assert torch.equal(network.contrary(off, M, method.config.schema), off)
    z = Rng.of(0, 1).normal(4, 4, 4, 4)
    for t, far in ((0.95, 1), (0.7, 4), (0.3, 1)):
        at = torch.tensor([t])
        found = method._denoise(method.prior, vector, ())(z, at)
        one, other = (method.prior(z, at, v) for v in (vector, without))
        assert not torch.allclose(one, other, atol=1e-3)
        torch.testing.assert_close(found, other + far * (one - other), atol=1e-4, rtol=1e-4)


def test_texture_is_of_what_moves_the_image_least():
    """Noise of the mean of a cell keeps its spread, that of the finest cosines takes it nearly all; completions, and
    codecs without a linear path, know nothing of it."""
    seen = []

    def drawn(texture, linear=True):
        codec = dataclasses.replace(TINY.codec, linear=linear)
        method = build(codec=codec, texture=texture, steps=1)
        method._denoise = lambda net, vector, beside: lambda z, t: seen.append(z) or z
        method.generate(1, (16, 16, 16), Rng.of(0, 1))
        method.complete(batch(1, absent=(0,)), Rng.of(0, 1))
        return [z.clone() for z in seen[-2:]]

    (whole, known), (less, same) = drawn(1.0), drawn(0.25)
    weight = build(codec=dataclasses.replace(TINY.codec, linear=True)).codec.influence
    assert torch.allclose(less, whole * 0.25 ** (1 - weight / weight.max())) and torch.equal(known, same)
    assert less[:, 0].std() > 0.9 * whole[:, 0].std() and less[:, 3].std() < 0.4 * whole[:, 3].std()
    assert torch.equal(drawn(0.25, linear=False)[0], drawn(1.0, linear=False)[0])


def test_what_a_coarse_prior_leaves_is_texture():
    """The details begin with that much of the noise in every channel, the low band as without a coarse prior."""
    seen = []

    def drawn(texture):
        codec = dataclasses.replace(TINY.codec, linear=True)
        method = build(codec=codec, aligned=True, coarse=(16, 16), texture=texture, steps=1)
        method._denoise = lambda net, vector, beside: lambda z, t: seen.append(z) or z
        method.generate(1, (16, 16, 16), Rng.of(0, 1))
        return method, [z.clone() for z in seen[-2:]]

    method, (low_whole, whole) = drawn(1.0)
    _, (low_less, less) = drawn(0.25)
    weight = method.codec.influence
    assert torch.equal(less, 0.25 * whole)
    torch.testing.assert_close(low_less, low_whole * 0.25 ** (1 - weight / weight.max()))


def test_progress_of_generation_reaches_its_end():
    said = []
    build(chunk=1).generate(2, (16, 16, 16), Rng.of(0, 2), progress=lambda done, of: said.append((done, of)))
    assert [done for done, _ in said] == list(range(1, len(said) + 1)) and {of for _, of in said} == {len(said)}

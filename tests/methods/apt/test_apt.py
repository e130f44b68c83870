"""APT as a whole: its published settings, its stages, and that the parts of its inference are what they are named."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from amodal.core.config import from_dict, override, to_dict
from amodal.core.contract import Batch
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.diffusion.bends import clip
from amodal.diffusion.coupling import couple
from amodal.diffusion.process import DDPM
from amodal.methods import apt
from amodal.methods.apt import system
from amodal.methods.apt.features.vit import ViT, ViTConfig
from amodal.methods.apt.inference import stage1
from amodal.nn.count import flops, parameters
from amodal.physics.posterior import project

from .test_features import checkpoint

TINY = apt.tiny()
SHOWN = {"given": 0.8, "known": "held", "net": dataclasses.replace(TINY.net, times=4)}


def build(**settings):
    """A tiny method with some settings, and weights that are not 0."""
    torch.manual_seed(0)
    method = apt.build(dataclasses.replace(TINY, **settings))
    generator = torch.Generator().manual_seed(1)
    for parameter in method.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    return method.eval().requires_grad_(False)


def stack(n=3, size=16):
    return torch.tanh(Rng.of(0, n, "stack").normal(4, size, size))


def batch(*absent, n=3, size=16):
    present = torch.ones(n, 4, 1, 1, dtype=torch.bool)
    present[:, list(absent)] = False
    return Batch(stack(n, size), present)


# the published configurations


def test_the_published_models_are_pinned():
    brats, adni = apt.published("brats"), apt.published("adni")
    assert brats.modalities == ("FLAIR", "T1w", "T1Gd", "T2w") and adni.modalities == ("T1w", "T2w", "PDw")
    assert (brats.start, brats.steps, brats.strength, brats.weight, brats.unroll) == (400, 20, 20.0, 0.5, 50)
    assert (adni.start, adni.steps, adni.strength, adni.weight, adni.unroll) == (200, 20, 50.0, 0.5, 50)
    assert (brats.near, adni.near) == (40, 20)
    assert (brats.timesteps, brats.prediction, brats.guess, brats.ranking) == (1000, "noise", "adaptive", "votes")
    networks = apt.networks(brats)
    net, inputs = networks["prior"]
    assert parameters(net) == (196_855_176, 196_855_176)
    assert flops(net, *inputs)[1] / 1e9 == pytest.approx(588.8, abs=0.05)
    assert parameters(networks["adapter"][0]) == (3_415_041, 3_415_041)
    assert parameters(networks["features"][0]) == (86_191_872, 0)  # frozen


def test_the_schedule_is_that_of_the_scripts():
    """Label 408 of the scripts is where M = 400 falls on their grid of 50: alpha-bar 0.18 (cosine: 0.63)."""
    t = torch.tensor(409.0)
    assert DDPM(1000, apt.published().schedule).at(t)[0] ** 2 == pytest.approx(0.18, abs=0.005)
    assert DDPM(1000, "cosine").at(t)[0] ** 2 == pytest.approx(0.63, abs=0.005)


@pytest.mark.parametrize("preset", apt.PRESETS)
def test_presets_build_for_any_modalities(preset):
    config = apt.for_modalities(apt.PRESETS[preset](), ("T1w", "T2w", "CT"))
    assert config.modalities == ("T1w", "T2w", "CT") and apt.grid(config).spacing[0] == config.spacing
    assert from_dict(apt.Config, json.loads(json.dumps(to_dict(config)))) == config
    with torch.device("meta"):
        assert parameters(apt.build(config))[1] > 0


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("net.out_channels=5", "net.in_channels=4 and net.out_channels=4"),
        ("net.tokens=7", "features are 32 wide"),
        ("start=2000", "choose 1 to 1000 for start"),
        ("steps=500", "0 to start"),
        ("guess=best", "choose one of adaptive, mean, random, noise, zero"),
        ("guess=mean", "add known=held"),
        ("known=held", "needs given above 0 and net.times=4"),
        ("given=0.5", "needs given above 0 and net.times=4"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, sentence):
    with pytest.raises(InputError, match=sentence):
        override(TINY, [setting])


# training


def begun(method, data):
    for stage in method.stages():
        if stage.begin is not None:
            stage.begin(lambda k: data)
    return method


def test_stages_share_out_the_whole_run():
    assert sum(stage.share for stage in apt.build(TINY).stages()) == pytest.approx(1)
    given = dataclasses.replace(TINY, features=dataclasses.replace(TINY.features, encoder="given"))
    stages = apt.build(given).stages()
    assert [s.name for s in stages] == ["features", "prior"] and sum(s.share for s in stages) == pytest.approx(1)


def test_begin_fixes_the_features_scale_and_the_book():
    method = build()
    assert method.codebook.votes.sum() == 0
    begun(method, batch(n=16))
    found = method.encoder.vectors(torch.cat([stack(16)] * 4).flatten(0, 1))
    assert found.mean(0).abs().max() < 1e-2 and (found.std(0) - 1).abs().max() < 0.05
    assert torch.allclose(method.codebook.votes.flatten(1).sum(1), torch.ones(4))
    assert torch.allclose(method.codebook.keys.norm(dim=1), torch.ones(64), atol=1e-4)


def test_given_weights_are_read_when_training_begins_and_their_path_is_not_kept(tmp_path):
    from safetensors.torch import save_file

    vit = ViTConfig(size=32, patch=8, channels=3, width=24, depth=2, heads=3, outputs=32, pool="cls")
    save_file(checkpoint(vit), tmp_path / "model.safetensors")
    features = dataclasses.replace(TINY.features, encoder="given", vit=vit, weights=str(tmp_path))
    method = build(features=features)
    assert method.config.features.weights == ""
    begun(method, batch(n=16))
    assert torch.equal(method.encoder.vit.head.weight, checkpoint(vit)["visual.head.proj.weight"])
    with pytest.raises(InputError, match="needs weights"):
        begun(build(features=dataclasses.replace(features, weights="")), batch(n=16))


def test_training_subsets_come_as_often_as_they_should():
    present = torch.ones(400, 4, dtype=torch.bool)
    for subsets, drop in ((0.75, "any"), (0.0, "one"), (1.0, "one")):
        features = dataclasses.replace(TINY.features, drop=drop)
        part = build(subsets=subsets, features=features)._some(present, Rng.of(0, 400), always=False)
        count = part.sum(1)
        assert (count < 4).float().mean().item() == pytest.approx(subsets, abs=0.06) and count.min() >= 1
        if drop == "one":
            assert count.min() >= 3


def test_variances_are_learned_where_the_network_has_room_for_them():
    method = build(net=dataclasses.replace(TINY.net, out_channels=8), prediction="noise").train().requires_grad_(True)
    stage = method.stages()[-1]
    loss, _ = stage.players[0].loss(stage.forward(batch(), Rng.of(0, 3)))
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in method.prior.parameters())
    assert method.complete(batch(1), Rng.of(0, 3)).shape == (3, 4, 16, 16)


def test_given_modalities_are_clean_and_the_others_share_a_time():
    present = torch.ones(2000, 4, dtype=torch.bool)
    present[:500, 2] = False
    method, rng = build(**SHOWN, tilt=2.0), Rng.of(0, 2000)
    part = method._some(present, rng, always=False)
    t = method._times(part, present, rng)
    proper = (part != present).any(1)
    shown = (t == 0).any(1)
    assert not shown[~proper].any() and shown[proper].float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert torch.equal(t[shown] == 0, part[shown])
    top = t.max(1).values
    assert all(set(row.tolist()) <= {0.0, high.item()} for row, high in zip(t, top)) and top.min() >= 1
    assert (top <= 250).float().mean().item() == pytest.approx(0.5, abs=0.04)  # u ** 2 < 1 / 4: half of all u
    plain = build(tilt=1.0)._times(part, present, Rng.of(1, 2000))
    assert plain.shape == (2000,) and (plain <= 250).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_what_is_given_does_not_count_in_the_loss():
    """With modalities 1 to 3 shown clean the loss is that of modality 0 alone."""
    method, data, found = build(**{**SHOWN, "given": 1.0}, subsets=1.0), batch(n=3), []
    method._some = lambda present, rng, always: torch.tensor([False, True, True, True]).expand_as(present)
    kept = method.prior.net.forward
    method.prior.net.forward = lambda x, label, tokens: found.append((x, label)) or kept(x, label, tokens)
    loss = method._predict(data, Rng.of(0, 3))
    ((x, label),) = found
    assert torch.equal(x[:, 1:], data.images[:, 1:]) and (label[:, 1:] == -1).all() and (label[:, 0] >= 0).all()
    again = method.prior.process.at(label + 1)
    rng = Rng.of(0, 3)
    rng.uniform(2)
    alpha, sigma = (v[:, :, None, None] for v in again)
    eps = rng.normal_like(data.images)
    tokens = method.fusion(method.encoder(data.images), torch.tensor([[False, True, True, True]] * 3))
    out = kept(x, label, tokens)
    assert loss.item() == pytest.approx(
        ((out - (alpha * eps - sigma * data.images))[:, 0] ** 2).mean().item(), rel=1e-5
    )


# inference


def test_known_modalities_are_held_at_time_zero_and_shown_once_more():
    method, data, seen = build(**SHOWN, unroll=1), batch(1), []
    unet = method.prior.net.unet
    kept = unet.forward
    unet.forward = lambda x, t, concat, tokens: seen.append((x, t, concat)) or kept(x, t, concat, tokens)
    made = method.complete(data, Rng.of(0, 3))
    known = [0, 2, 3]
    assert torch.equal(made[:, known], data.images[:, known]) and len(seen) == 3 * (TINY.steps + 1)
    for i, (x, t, clean) in enumerate(seen):  # slice by slice, on a CPU
        assert torch.equal(x[0, known], data.images[i % 3, known]) and (t[:, known] == -1).all()
        assert torch.equal(clean[:, known], x[:, known]) and (t[:, 1] >= 0).all()
    assert seen[0][1][0, 1] == TINY.start - 1


def test_the_same_prior_can_noise_what_is_known():
    data = batch(1)
    noised, held = build(**{**SHOWN, "known": "noised"}), build(**SHOWN)
    assert not torch.equal(noised.complete(data, Rng.of(0, 3)), held.complete(data, Rng.of(0, 3)))


def test_a_modality_known_in_part_comes_back_and_chunks_do_not_show():
    present = torch.ones(3, 4, 16, 16, dtype=torch.bool)
    present[:, 1], present[1, 2, :8] = False, False
    data = Batch(stack(), present)
    a, b = (build(**SHOWN, chunk=c).complete(data, Rng.of(0, 3)) for c in (16, 1))
    assert torch.equal(a, b) and torch.equal(a[present], data.images[present])


def test_noise_of_neighbouring_slices_is_coupled():
    """The same slice ten times: what is made differs between slices by its noise alone."""
    data = Batch(stack(1).expand(10, -1, -1, -1), batch(1, n=10).present)
    free, coupled = (
        build(coupling=c, start=900, guess="noise").complete(data, Rng.of(0, 10))[:, 1].diff(dim=0).square().mean()
        for c in (0.0, 3.0)
    )
    assert coupled < 0.3 * free


def test_guidance_off_is_plain_sampling_to_the_bit():
    data = batch(1)
    off = build(guidance="none", unroll=0).complete(data, Rng.of(0, 3))
    assert torch.equal(off, build(guidance="pull", strength=0.0, unroll=0).complete(data, Rng.of(0, 3)))
    method = build(unroll=0)
    present = data.present.expand_as(data.images)
    with torch.no_grad():
        known = torch.where(present, data.images, torch.full_like(data.images, -1.0))
        tokens = method._tokens(known, present)
        guess = torch.stack([method.codebook.guess(i, p, "votes") for i, p in zip(known, present)])
        plain = project(clip(lambda x, t: method.prior(x, t, tokens)), present, known)
        made = stage1(plain, method.prior.process, guess, TINY.start, TINY.steps, Rng.of(0, 3))
    assert torch.equal(off, made.clamp(-1, 1))


def test_every_way_to_begin_and_to_guide_is_another():
    data, found = batch(1), []
    for settings in (
        {}, {"guess": "random"}, {"guess": "noise"}, {"guess": "zero"}, {"guidance": "none"}, {"guidance": "exact"},
        {"unroll": 1}, {"start": 900},
    ):  # fmt: skip
        made = build(**{"steps": 2, "unroll": 2, **settings}).complete(data, Rng.of(0, 3))
        assert torch.equal(made[:, [0, 2, 3]], data.images[:, [0, 2, 3]]) and made.abs().max() <= 1
        assert not any(torch.equal(made, other) for other in found), settings
        found.append(made)


def test_guidance_pulls_towards_what_is_known():
    data = batch(1)
    present = data.present.expand_as(data.images)
    method = build()
    tokens = method._tokens(data.images, present)

    def miss(strength):
        bent = dataclasses.replace(method.config, strength=strength)
        x = Rng.of(5, 3).normal_like(data.images)
        from amodal.methods.apt.guidance import pull

        with torch.no_grad():
            plain = clip(lambda x, t: method.prior(x, t, tokens))
            x0 = pull(plain, present, data.images, bent.strength)(x, torch.full((3,), 300.0))
        return torch.where(present, x0 - data.images, torch.zeros_like(x0)).norm()

    assert miss(1.0) < miss(0.0)


def test_the_mean_is_one_evaluation_from_noise_given_what_is_shown(monkeypatch):
    """It is what stage 1 is handed in place of the book's guess."""
    data, method = batch(1), build(**SHOWN, guess="mean", unroll=0)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(system, "stage1", lambda *args: seen.append(args[2]) or stage1(*args))
    method.complete(data, Rng.of(0, 3))
    present = data.present.expand_as(data.images)
    images = torch.where(present, data.images, torch.full_like(data.images, -1.0))
    noise = couple(Rng.of(0, 3), method.config.coupling).normal_like(images)
    with torch.no_grad():
        tokens = method._tokens(images, present)
        expected = method._bent(images, present, tokens)(noise, torch.full((3,), 1000.0))
    assert torch.equal(seen[0], expected) and torch.equal(expected[present], images[present])
    # one image is that mean, several are draws
    assert (method.steps_for(1), method.steps_for(8), build().steps_for(1)) == (0, TINY.steps, TINY.steps)
    alone = build(**SHOWN, guess="mean", steps=0)
    assert torch.equal(alone.complete(data, Rng.of(0, 3)), expected.clamp(-1, 1)) and alone.sampler == "apt-mean"


def test_patch_tokens_are_another_condition():
    data = batch(1)
    features = dataclasses.replace(TINY.features, tokens="patches")
    method = build(features=features)
    tokens = method._tokens(data.images, data.present.expand_as(data.images))
    assert tokens.shape == (3, 16, 32)
    assert not torch.equal(method.complete(data, Rng.of(0, 3)), build().complete(data, Rng.of(0, 3)))


def test_retrieval_is_an_option():
    data = batch(n=16)
    table, near = begun(build(unroll=0), data), begun(build(unroll=0, retrieve=3), data)
    a, b = (method.complete(batch(1), Rng.of(0, 3)) for method in (table, near))
    assert not torch.equal(a, b)


def test_retrieval_by_subject_asks_once_for_all_slices(monkeypatch):
    """Each slice by itself, or the mean of what all of them ask for."""
    method, data, asked = begun(build(unroll=0, retrieve=3), batch(n=16)), batch(1), []
    nearest = method.codebook.nearest
    monkeypatch.setattr(method.codebook, "nearest", lambda v, k: asked.append(v) or nearest(v, k))
    for by in ("slice", "subject"):
        method.config = dataclasses.replace(method.config, retrieve_by=by)
        method.complete(data, Rng.of(0, 3))
    own, shared = torch.stack(asked[:3]), torch.stack(asked[3:])
    assert not torch.equal(own[0], own[1])
    torch.testing.assert_close(shared, own.mean(0).expand(3, -1))


def test_the_published_shapes_of_features_fit():
    """The given encoder's tokens enter the network: a small stand-in for BiomedCLIP with its kind of settings."""
    vit = ViTConfig(size=32, patch=8, channels=3, width=24, depth=2, heads=3, outputs=32, pool="cls")
    assert ViT(vit)(torch.rand(2, 1, 20, 24)).shape == (2, 17, 32)
    method = build(features=dataclasses.replace(TINY.features, encoder="given", vit=vit), transformers=True,
                   net=dataclasses.replace(TINY.net, attention=(False, True)))  # fmt: skip
    assert method.complete(batch(0, 2), Rng.of(0, 3)).shape == (3, 4, 16, 16)


def test_the_sampler_is_named():
    assert build().sampler == "apt-adaptive-renoise-unroll" and build(unroll=0).sampler == "apt-adaptive-renoise"

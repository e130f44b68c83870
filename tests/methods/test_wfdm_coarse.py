"""WFDM in two steps: the latent's low band by a coarse prior, then the details (not in the paper)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.methods import wfdm
from amodal.methods.wfdm import learning
from amodal.nn.wavelet import haar, low, unhaar, with_low

from .test_wfdm import TINY, M, batch, build, vector_of

SIZE = (16, 16, 16)


def coarse(trained=True, **settings):
    return build(trained, aligned=True, coarse=(16, 16), **settings)


def latents(n, broad=3.0, fine=0.5, seed=0):
    """Latents [n, 4, 4, 4, 4] whose low band has one spread and whose details have another, around a mean of 1."""
    bands = Rng.of(seed, n, "bands").normal(32, 2, 2, 2)
    bands[:, :4] *= broad
    bands[:, 4:] *= fine
    return unhaar(bands) + 1


def fit(method, n=1200):
    """The laws of both priors, of one modality, of volumes whose mean a flag moves."""
    rows = [{"tumour": "yes" if i % 2 else "no"} for i in range(n)]
    table = method.encode_metadata(rows)
    z = latents(n) + torch.tensor([0.0, 2.0])[torch.arange(n) % 2].reshape(n, 1, 1, 1, 1)
    part = (z, torch.zeros(n, dtype=torch.long), table["values"], table["known"])
    method.net.fit(part[2], part[3], [part])
    method.coarse.net.fit(part[2], part[3], [(low(z), *part[1:])])
    return method


def test_both_laws_are_of_what_each_draws():
    """The coarse prior begins from the law of the low band; where that is given, the prior from that of the details."""
    method = fit(coarse(trained=False))
    law, lower = method.net.normal, method.coarse.net.normal
    assert lower.variance[0].mean().item() == pytest.approx(9.0, rel=0.1)
    assert law.rest[0].mean().item() == pytest.approx(0.25 * 7 / 8, rel=0.05)  # seven of eight bands are details
    assert law.variance[0].mean().item() == pytest.approx(9.0 / 8 + 0.25 * 7 / 8, rel=0.1)
    vector = vector_of(method, 0, tumour="yes")
    z, t = torch.zeros(1, 4, 4, 4, 4), torch.zeros(1)
    found, expected = lower.expected(low(z), t, vector), low(law.expected(z, t, vector))
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.02)
    assert method.coarse.net.metadata.counts.equal(method.net.metadata.counts)
    assert not hasattr(build(aligned=True).net.normal, "rest")  # a prior that draws all of it has no use for it


def together(n, seed=0):
    """Latents of which all places of a direction rise and fall as one, each with some noise of its own."""
    along = Rng.of(77, 2).normal(4, 2, 2, 2)
    a = Rng.of(seed, n, "a").normal(2)
    return torch.einsum("nk,k...->n...", a, along) + 0.5 * Rng.of(seed, n, "own").normal(4, 2, 2, 2)


@pytest.mark.parametrize("t", [1.0, 0.7, 0.2, 0.001])
def test_what_varies_together_is_told_by_all_of_it(t):
    """The untrained coarse prior is the posterior mean of a normal law with that covariance (by dense matrices), and
    nearer to the truth than each place by itself; where nothing shows it is the mean."""
    method = coarse(trained=False, factors=2)
    law = method.coarse.net.normal
    table = method.encode_metadata([{}] * 1500)
    rest = (torch.zeros(1500, dtype=torch.long), table["values"], table["known"])
    method.coarse.net.fit(*rest[1:], [(together(1500), *rest)])
    z0, vector = together(6, seed=3), vector_of(method, 0).expand(6, -1)
    z = (1 - t) * z0 + t * Rng.of(5, 6).normal_like(z0)
    found = method.coarse(z, torch.full((6,), t), vector)
    u, own, mean = law.factors[0].flatten(1).double(), law.rest[0].flatten().double(), law.slopes[0, 0].flatten()
    whole = u.T @ u + torch.diag(own)
    gain = (1 - t) * whole @ torch.linalg.inv((1 - t) ** 2 * whole + t**2 * torch.eye(len(own)).double())
    expected = mean + (z.flatten(1) - (1 - t) * mean).double() @ gain.T
    torch.testing.assert_close(found.flatten(1).double(), expected, atol=2e-3, rtol=2e-3)
    truth = Rng.of(77, 2).normal(4, 2, 2, 2).flatten(1)
    truth = truth.T @ truth + 0.25 * torch.eye(truth.shape[1])
    assert (whole - truth).abs().mean() < 0.1 * truth.abs().mean()  # and that law is the one the latents follow
    if t == 0.7:
        alone = coarse(trained=False)
        alone.coarse.net.fit(*rest[1:], [(together(1500), *rest)])
        by_place = alone.coarse(z, torch.full((6,), t), vector)
        assert (found - z0).square().mean() < 0.7 * (by_place - z0).square().mean()


def test_the_network_is_shown_what_factors_do_not_explain():
    """In units of its deviation: white for latents that follow the law, whatever the time; a lump is not, and there
    the loss weighs more, by what z_t shows alone."""
    method = coarse(factors=2)
    net, law = method.coarse.net, method.coarse.net.normal
    table = method.encode_metadata([{}] * 1500)
    which = torch.zeros(1500, dtype=torch.long)
    net.fit(table["values"], table["known"], [(together(1500), which, table["values"], table["known"])])
    vector = vector_of(method, 0).expand(400, -1)
    for t in (0.95, 0.5, 0.05):
        z = (1 - t) * together(400, seed=8) + t * Rng.of(1, 400).normal(4, 2, 2, 2)
        label = torch.full((400,), 1000 * t - 1)
        seen = net.seen(z, label, vector)
        surprise, mean = seen.shown.chunk(2, dim=1)
        assert surprise.std().item() == pytest.approx(1, abs=0.08)
        torch.testing.assert_close(mean, seen.mean / 2)
        torch.testing.assert_close(surprise, law.surprise(z, seen.mean, label, vector))
    z, one = torch.zeros(1, 4, 2, 2, 2), vector[:1]
    flat = net.focus(law.expected(z, label[:1], one), label[:1], one, 1.0)
    assert flat.mean().item() == pytest.approx(1) and flat.std() < 0.05
    wide = build(aligned=True, coarse=(16, 16), factors=1, size=(64, 64, 64))
    z = torch.zeros(1, 4, 8, 8, 8)
    z[..., 1:3, 1:3, 1:3] = 4.0
    found = wide.coarse.net.focus(z, torch.tensor([499.0]), vector_of(wide, 0), 1.0)
    assert found[0, 0, 1, 1, 1] > 10 * found[0, 0, 6, 6, 6] and found.mean().item() == pytest.approx(1)
    even = wide.coarse.net.focus(z, torch.tensor([499.0]), vector_of(wide, 0), 0.0)
    torch.testing.assert_close(even, torch.ones_like(even))


def test_factors_of_a_prior_that_draws_all():
    """Without a coarse prior they are the prior's own; a modality of no volume, or of one, has what it can."""
    method = build(trained=False, aligned=True, factors=3)
    z = latents(4)
    table = method.encode_metadata([{}] * 4)
    which = torch.tensor([0, 0, 0, 2])
    method.net.fit(table["values"], table["known"], [(z, which, table["values"], table["known"])])
    law = method.net.normal
    assert law.factors[0].abs().amax((1, 2, 3, 4)).gt(0).all() and not law.factors[[1, 3]].any()
    assert (law.rest > 0).all() and (law.rest <= law.variance).all()
    for target in range(M):
        out = method.prior(z[:1], torch.tensor([0.5]), vector_of(method, target))
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("t", [1.0, 0.6, 0.1])
def test_what_is_given_is_kept_and_the_rest_is_wiener(t):
    """In a Gaussian world the untrained prior with a low band is E[z_0 | z_t, band] band by band: the band itself, and
    details shrunk by their variance; details of a real world are correlated, so a network has to add to that."""
    method = fit(coarse(trained=False))
    for weight in method.net.unet.parameters():
        weight.data.zero_()
    z0, vector = latents(3, seed=5), vector_of(method, 0, tumour="no").expand(3, -1)
    z = (1 - t) * z0 + t * Rng.of(9, 3).normal_like(z0)
    band = low(z0)
    found = method.prior(z, torch.full((3,), t), vector, band)
    torch.testing.assert_close(low(found), band, atol=1e-4, rtol=1e-4)
    rest = method.net.normal.rest[0]
    wiener = (1 - t) * rest / ((1 - t) ** 2 * rest + t**2)
    mean = method.net.normal.expected(z, torch.zeros(3), vector, band)
    expected = with_low(mean + wiener * (z - (1 - t) * mean), band)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    away = (found - z0).square().mean()
    assert t == 1 or away < (method.prior(z, torch.full((3,), t), vector) - z0).square().mean()


def test_the_network_sees_the_band():
    method = fit(coarse())
    vector, z = vector_of(method, 1), Rng.of(1, 1).normal(4, 4, 4, 4)
    a, b = low(latents(1)), low(latents(1, seed=3))
    seen = method.net.seen(z, torch.zeros(1), vector, a).shown
    assert torch.equal(seen[:, :4], z)
    torch.testing.assert_close(low(seen[:, 4:]), a, atol=1e-4, rtol=1e-4)
    details = [haar(method.prior(z, torch.tensor([0.9]), vector, band))[:, 4:] for band in (a, b)]
    assert (details[0] - details[1]).abs().max() > 1e-3


def test_a_volume_has_the_low_band_that_was_drawn():
    """One noise for both: the coarse prior begins from its low band."""
    method = fit(coarse(steps=3))
    drawn = []
    method.codec.decode = lambda z: drawn.append(z) or torch.zeros(len(z), 1, *SIZE)
    method.generate(1, SIZE, Rng.of(4, 1))
    (z,) = drawn
    rows = [vector_of(method, target)[0] for target in range(M)]
    noise = Rng(Rng.of(4, 1).fork("latent").seeds * M).normal(4, 4, 4, 4)
    band = method._solve(method.coarse, low(noise), torch.stack(rows), (), Rng.of(0, M), None)
    torch.testing.assert_close(low(z), band, atol=1e-4, rtol=1e-4)
    assert (haar(z)[:, 4:] - haar(method._solve(method.prior, noise, torch.stack(rows), (), Rng.of(0, M), None))[:, 4:]
            ).abs().max() > 1e-2  # fmt: skip


def test_steps_of_both_are_told_as_one_progress():
    said = []
    method = coarse(chunk=2, steps=3)
    method.generate(2, SIZE, Rng.of(0, 2), progress=lambda done, of: said.append((done, of)))
    assert [done for done, _ in said] == list(range(1, len(said) + 1)) and {of for _, of in said} == {len(said)}


def test_a_subject_is_completed_by_the_prior_alone():
    """What a subject shows is known better than a coarse prior can draw it."""
    a, b = coarse(), coarse()
    b.coarse.net.unet.stem.weight.data += 1
    data = batch(1, absent=(0,))
    assert torch.equal(a.complete(data, Rng.of(0, 1)), b.complete(data, Rng.of(0, 1)))
    assert not torch.equal(a.generate(1, SIZE, Rng.of(0, 1)), b.generate(1, SIZE, Rng.of(0, 1)))


def test_the_band_is_given_as_often_and_as_loosely_as_said():
    z, variance = latents(1), torch.full((1, 4, 2, 2, 2), 4.0)
    learn = dataclasses.replace(TINY.learning, whole=0.25, loose=0.1)
    found = [learning.given_low(z, variance, learn, Rng.of(seed, 1)) for seed in range(400)]
    assert sum(not band for _, band in found) / 400 == pytest.approx(0.25, abs=0.06)
    assert all(torch.equal(latent, z) for latent, band in found if not band)
    given = [(latent, *band) for latent, band in found if band]
    assert torch.stack([band - low(z) for _, band in given]).std().item() == pytest.approx(0.2, rel=0.05)
    latent, band = given[0]
    torch.testing.assert_close(latent, with_low(z, band))  # so what is given is exactly true of what is learned from
    exact = dataclasses.replace(learn, whole=0.0, loose=0.0)
    torch.testing.assert_close(learning.given_low(z, variance, exact, Rng.of(0, 1))[0], z)


def test_both_are_trained_in_one_stage():
    torch.manual_seed(0)
    method = wfdm.build(dataclasses.replace(TINY, aligned=True, coarse=(16, 16), stages=("prior",)))
    (stage,) = method.stages()
    stage.begin(lambda k: batch(4))
    (player,) = stage.players
    own = {id(p) for p in player.parameters()}
    assert {id(p) for p in method.coarse.parameters()} <= own and {id(p) for p in method.prior.parameters()} <= own
    for name, net in (("coarse", method.coarse), ("prior", method.prior)):
        assert net.net.normal.variance.std() > 0, name
    data = batch(1)
    data.images[..., 8:] = 1.0  # nothing that the regression has seen
    own = [low(method.encode(data.images[:, m : m + 1])) for m in range(M)]
    for whole, given in ((1.0, False), (0.0, True)):
        learn = dataclasses.replace(method.config.learning, whole=whole)
        method.config = dataclasses.replace(method.config, learning=learn)
        method.zero_grad()
        seen = []
        handle = method.net.unet.register_forward_pre_hook(lambda net, args, kept=seen: kept.append(args[0]))
        stage.forward(data, Rng.of(0, 2)).backward()
        handle.remove()
        assert all(net.net.unet.head.weight.grad.abs().max() > 0 for net in (method.coarse, method.prior))
        band = low(seen[0][:, 4:].float())  # of what is shown as expected: the volume's own, where it is given
        away = min((band - one).std() / one.std() for one in own)
        assert (away < 0.3) == given


def test_it_is_for_volumes_in_one_space_that_halve():
    with pytest.raises(InputError, match=r"coarse=\[16, 16\]: only for volumes in one space; set aligned=true"):
        build(coarse=(16, 16))
    with pytest.raises(InputError, match="factors=8: only for volumes in one space"):
        build(factors=8)
    with pytest.raises(InputError, match="multiple of 8; 5 cells of the latent have no half"):
        coarse(size=(16, 20, 16))
    assert set(wfdm.networks(dataclasses.replace(TINY, aligned=True, coarse=(16, 16)))) >= {"prior", "coarse"}

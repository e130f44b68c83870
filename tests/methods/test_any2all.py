"""Any2all: its published settings, its training times, MDS and MPS, and what couples slices."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from amodal.core.contract import Batch
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.diffusion.process import DDPM
from amodal.methods import any2all
from amodal.methods.any2all.slices import smooth
from amodal.methods.stack import features, quadratic
from amodal.nn.count import flops, parameters

from ..diffusion.gaussian import Gaussian, law, world

TINY = any2all.tiny()


def build(**settings):
    """A tiny method with some settings, and weights that are not 0."""
    torch.manual_seed(0)
    method = any2all.build(dataclasses.replace(TINY, **settings))
    generator = torch.Generator().manual_seed(1)
    for parameter in method.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    return method.eval().requires_grad_(False)


def stack(n=4, size=12):
    return torch.tanh(Rng.of(0, n, "stack").normal(4, size, size))


def lacking(*absent, n=4):
    present = torch.ones(n, 4, 1, 1, dtype=torch.bool)
    present[:, list(absent)] = False
    return present


# the published configuration, and the others


def test_the_published_model_is_pinned():
    config = any2all.published()
    assert config.modalities == ("T1w", "FLAIR", "T2starw", "CT", "PET")
    assert (config.timesteps, config.schedule, config.prediction, config.snr_limit) == (1000, "cosine", "noise", 0.0)
    assert (config.posterior, config.solver, config.steps, config.eta) == ("mds", "ddim", 150, 0.85)
    assert (config.times, config.coupling, config.smoothing) == ("shared", 0.0, 0.0)
    net, inputs = any2all.networks(config)["prior"]
    assert parameters(net) == (552_816_389, 552_816_389)  # guided-diffusion's 256 x 256 model, with 5 channels
    assert flops(net, *inputs)[1] / 1e9 == pytest.approx(2240, rel=0.005)


def test_presets_are_of_rising_size_and_build():
    sizes = [parameters(any2all.networks(any2all.PRESETS[p]())["prior"][0])[0] for p in ("tiny", "small", "published")]
    assert sizes[0] < 1e6 < sizes[1] < 1e7 < sizes[2]
    assert sizes[0] == sum(p.numel() for p in any2all.build(TINY).parameters())
    assert any2all.small().modalities == TINY.modalities == ("T1w", "T1Gd", "T2w", "FLAIR")


def test_a_network_of_other_width_is_refused():
    with pytest.raises(InputError, match="4 input channels for 2 modalities; give net.in_channels=2"):
        any2all.build(dataclasses.replace(TINY, modalities=("T1w", "T2w")))


# training times


def draw_times(present, times="own", seed=0):
    method = any2all.build(dataclasses.replace(TINY, times=times))
    rule = {"own": method._own_times, "shared": method._shared_times}[times]
    return rule(present, Rng.of(seed, len(present)))


def test_own_times_are_what_complete_will_meet():
    n = 4000
    t = draw_times(torch.ones(n, 4, dtype=torch.bool))
    clean = (t == 0).sum(1)
    assert t.min() == 0 and t.max() == 1000 and torch.equal(t, t.round())
    assert clean.max() == 3  # always something to learn
    distinct = torch.tensor([len(row[row > 0].unique()) for row in t])
    assert 0.10 < (distinct > 1).float().mean() < 0.15  # one in eight: all at their own times
    assert (clean[distinct > 1] == 0).all()
    for k in range(4):  # every number of given modalities, and each modality as often as another
        assert (clean == k).float().mean() > 0.08
    assert ((t == 0).float().mean(0) - (t == 0).float().mean()).abs().max() < 0.03
    learnt = t[:, 0][(t[:, 0] > 0)]
    # 7 in 8 samples share 1000 u^0.6 (mean 625), a modality then being learnt 51 % of the time; the others are uniform
    expected = (0.125 * 500 + 0.875 * 0.511 * 625) / (0.125 + 0.875 * 0.511)
    assert abs(learnt.mean() - expected) < 20


def test_every_subset_of_given_modalities_occurs():
    t = draw_times(torch.ones(2000, 4, dtype=torch.bool))
    subsets = {tuple(row.tolist()) for row in t == 0}
    assert len(subsets) == 15  # all but the full one


def test_what_is_absent_is_at_the_end_of_time_and_never_learnt():
    n = 2000
    present = Rng.of(1, n).uniform(4) < 0.6
    present[:, 0] |= ~present.any(1)
    t = draw_times(present)
    assert (t[~present] == 1000).all()
    assert ((t > 0) & present).any(1).all()
    alone = present.sum(1) == 1
    assert alone.any() and (t[alone][present[alone]] > 0).all()


def test_a_sample_without_anything_is_harmless():
    t = draw_times(torch.zeros(3, 4, dtype=torch.bool))
    assert (t == 1000).all()


def test_times_belong_to_the_sample():
    present = torch.ones(6, 4, dtype=torch.bool)
    method = any2all.build(TINY)
    whole = method._own_times(present, Rng.of(0, 6))
    part = method._own_times(present[2:4], Rng.of(0, 6)[2:4])
    assert torch.equal(whole[2:4], part)


def test_shared_times_are_one_for_the_stack():
    t = draw_times(torch.ones(500, 4, dtype=torch.bool), "shared")
    assert (t == t[:, :1]).all() and t.min() >= 1 and len(t[:, 0].unique()) > 300


class Silent(nn.Module):
    def forward(self, x, label):
        return torch.zeros_like(x)


@pytest.mark.parametrize("times", ["own", "shared"])
def test_the_loss_counts_what_is_present_and_noisy(times):
    """With a silent network of noise prediction the loss is the mean of eps^2 over exactly those channels."""
    method = any2all.build(dataclasses.replace(TINY, times=times, prediction="noise"))
    method.prior.net = Silent()
    data = Batch(stack(), lacking())
    data.present[0, 1] = data.present[2, 0] = False
    (stage,) = method.stages()
    imputed = torch.zeros(4, 4, dtype=torch.bool)
    imputed[1, 0] = imputed[3, 2] = True  # shown to the network as if it were there, but nothing to learn from
    for some in (torch.zeros_like(imputed), imputed):
        loss = stage.players[0].loss(stage.forward(Batch(data.images, data.present, {"imputed": some}), Rng.of(5, 4)))[
            0
        ]
        rng = Rng.of(5, 4)
        t = {"own": method._own_times, "shared": method._shared_times}[times](data.present[:, :, 0, 0], rng)
        counts = data.present & (t > 0)[..., None, None] & ~some[..., None, None]
        eps2 = rng.normal_like(data.images) ** 2
        torch.testing.assert_close(loss, (eps2 * counts).sum() / counts.expand_as(eps2).sum())


# inference


class Exact(nn.Module):
    """The best prior of a Gaussian world in place of a network."""

    def __init__(self, truth):
        super().__init__()
        self.truth, self.process = truth, truth.process

    def forward(self, x, t):
        return self.truth.denoise(x, t)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"times": "own", "solver": "multistep", "steps": 150}, 0.05),
        ({"times": "own", "solver": "heun", "steps": 150}, 0.05),
        ({"times": "own", "solver": "ddim", "steps": 150, "eta": 0.85}, 0.05),
        ({"posterior": "mps", "solver": "ddim", "steps": 150, "eta": 1.0}, 0.2),
    ],
    ids=["multistep", "heun", "ddim", "mps"],
)
def test_complete_draws_from_the_posterior(settings, tolerance):
    """In a Gaussian world: the mean over slices is the posterior mean, to a part of the way from the prior's."""
    n, process = 3000, DDPM(1000, "cosine")
    wide = world(process, modalities=4, voxels=2)
    truth = Gaussian(wide.mean / 2, wide.cov / 30, process, wide.shape)  # inside [-1, 1]: predictions are clipped
    method = any2all.build(dataclasses.replace(TINY, coupling=0.0, chunk=n, **settings))
    method.prior = Exact(truth)
    known = torch.tensor([True, False, True, False]).repeat_interleave(2)
    y = truth.mean[known] + torch.tensor([0.15, -0.1, 0.1, 0.12], dtype=torch.float64)
    images = torch.zeros(8, dtype=torch.float64)
    images[known] = y
    images = images.reshape(1, 4, 1, 2).expand(n, -1, -1, -1).float()
    out = method.complete(Batch(images, lacking(1, 3, n=n)), Rng.of(0, n))
    mean, cov = truth.posterior(known, y)
    found, spread = law(out[:, [1, 3]])
    shift = (truth.mean[~known] - mean).norm()
    assert shift > 0.1
    assert (found - mean).norm() < tolerance * shift
    assert (spread - cov).abs().max() < 2.5 * tolerance * cov.diagonal().max()


def test_one_step_is_the_posterior_mean():
    """In a Gaussian world: whatever the noise, one step from its end gives the conditional mean."""
    n, process = 6, DDPM(1000, "cosine")
    wide = world(process, modalities=4, voxels=2)
    truth = Gaussian(wide.mean / 2, wide.cov / 30, process, wide.shape)
    known = torch.tensor([True, False, True, False]).repeat_interleave(2)
    images = torch.zeros(8, dtype=torch.float64)
    images[known] = truth.mean[known] + 0.1
    method = any2all.build(dataclasses.replace(TINY, steps=1))
    method.prior = Exact(truth)
    batch = Batch(images.reshape(1, 4, 1, 2).expand(n, -1, -1, -1).float(), lacking(1, 3, n=n))
    mean, _ = truth.posterior(known, images[known])
    out = method.complete(batch, Rng.of(0, n))[:, [1, 3]].flatten(1)
    torch.testing.assert_close(out, mean.float().expand(n, -1), rtol=0, atol=1e-4)


def test_one_step_can_be_averaged_over_noise_and_more_steps_never_are():
    images, present = stack(3), lacking(1, n=3)
    said = []
    mean = build(steps=1, draws=4).complete(Batch(images, present), Rng.of(0, 3), lambda *at: said.append(at))
    assert said == [(1, 4), (2, 4), (3, 4), (4, 4)]
    single = build(steps=1)

    def draw(k):  # every other one sees the slices mirrored
        axes = (2,) if k % 2 else ()
        seen = Batch(images.flip(axes), present.expand_as(images).flip(axes))
        return single.complete(seen, Rng.of(0, 3).fork("draw", k)).flip(axes)

    four = [draw(k) for k in range(4)]
    torch.testing.assert_close(mean, sum(four) / 4)
    assert not torch.equal(four[0], four[1])
    a, b = (build(steps=2, draws=k).complete(Batch(images, present), Rng.of(0, 3)) for k in (1, 4))
    assert torch.equal(a, b)


def test_how_many_steps_are_taken_unless_told():
    own, shared, mps = build(steps=6), build(steps=6, times="shared"), build(steps=6, posterior="mps")
    assert (own.steps_for(1), own.steps_for(2), shared.steps_for(1), shared.steps_for(5)) == (1, 6, 6, 6)
    assert mps.steps_for(1) >= 20


@pytest.mark.parametrize("solver", ["ddim", "heun", "multistep", "repaint"])
@pytest.mark.parametrize("posterior", ["mds", "mps"])
def test_every_solver_and_posterior_keeps_the_known(solver, posterior):
    method = build(solver=solver, posterior=posterior, steps=2, eta=0.5)
    images, present = stack(2), lacking(1, n=2)
    out = method.complete(Batch(images, present), Rng.of(0, 2))
    known = present.expand_as(images)
    assert torch.equal(out[known], images[known]) and torch.isfinite(out).all()
    assert out.abs().max() <= 1 and not out.requires_grad


def test_mds_and_mps_are_different_samplers_of_one_prior():
    images, present = stack(2), lacking(1, n=2)
    a, b = (build(posterior=p).complete(Batch(images, present), Rng.of(0, 2)) for p in ("mds", "mps"))
    assert not torch.equal(a, b)


def test_mps_needs_no_gradients_of_the_caller_and_chunks_do_not_show():
    images, present = stack(3), lacking(2, n=3)
    method = build(posterior="mps", steps=3)
    with torch.no_grad():
        off = method.complete(Batch(images, present), Rng.of(0, 3))
    method.config = dataclasses.replace(method.config, chunk=2)
    assert torch.equal(off, method.complete(Batch(images, present), Rng.of(0, 3)))


def test_a_shared_time_prior_projects():
    """The published way: no network that takes a time a modality, known modalities replaced in every prediction."""
    method = build(times="shared", prediction="noise", solver="ddim", eta=0.85)
    seen = []
    net = method.prior.net.forward
    method.prior.net.forward = lambda x, label: (seen.append(label), net(x, label))[1]
    images, present = stack(2), lacking(0, n=2)
    out = method.complete(Batch(images, present), Rng.of(0, 2))
    assert torch.equal(out[:, 1:], images[:, 1:])
    assert all(label.shape == (2,) for label in seen) and len(seen) == method.config.steps
    assert seen[0][0] == 999


def test_an_own_time_prior_sees_the_known_at_time_0():
    method = build()
    seen = []
    net = method.prior.net.forward
    method.prior.net.forward = lambda x, label: (seen.append((x, label)), net(x, label))[1]
    images, present = stack(2), lacking(0, n=2)
    method.complete(Batch(images, present), Rng.of(0, 2))
    for x, label in seen:
        assert torch.equal(x[:, 1:], images[:, 1:]) and (label[:, 1:] == -1).all()
    assert [label[0, 0].item() for _, label in seen] == (method.prior.process.grid(TINY.steps)[:-1] - 1).tolist()


def test_without_coupling_the_order_of_slices_does_not_matter():
    images, order = stack(5), torch.tensor([3, 0, 4, 1, 2])
    method = build(coupling=0.0)
    rng = Rng.of(0, 5)
    out = method.complete(Batch(images, lacking(3, n=5)), rng)
    mixed = method.complete(Batch(images[order], lacking(3, n=5)), Rng([rng.seeds[i] for i in order]))
    assert torch.equal(mixed, out[order])


# coupling slices


def roughness(x):
    return x.diff(dim=0).square().mean().item()


def test_coupled_slices_fit_their_neighbours():
    """The same slice ten times: what is made differs between slices by its noise alone."""
    images, present = stack(1).expand(10, -1, -1, -1), lacking(3, n=10)
    free, coupled = (
        build(coupling=length).complete(Batch(images, present), Rng.of(0, 10))[:, 3] for length in (0.0, 3.0)
    )
    assert roughness(coupled) < 0.3 * roughness(free)


def test_smoothing_by_hand():
    """Slices that alternate: at pure noise and strength 1 the mean of three, 1 - 4/3; at the clean image nothing."""
    process = DDPM(1000, "cosine")
    x0 = (-1.0) ** torch.arange(8)[:, None]
    bent = smooth(lambda x, t: x0, process, 1.0)
    end, middle, clean = (bent(x0, torch.full((8,), t)) for t in (1000.0, 500.0, 0.0))
    torch.testing.assert_close(end[1:-1], x0[1:-1] * (1 - 4 / 3))
    torch.testing.assert_close(end[0], x0[0] / 3)  # the first slice is its own lower neighbour
    torch.testing.assert_close(middle[1:-1], x0[1:-1] * (1 - 4 / 3 * (1 - 0.49384359)))
    assert torch.equal(clean, x0)
    torch.testing.assert_close(smooth(lambda x, t: x0, process, 0.5)(x0, torch.full((8,), 1000.0))[1:-1], x0[1:-1] / 3)


def test_smoothing_keeps_ramps_and_takes_roughness():
    process = DDPM(1000, "cosine")
    ramp, rough = torch.arange(8.0)[:, None], Rng.of(0, 8).normal(100)
    t = torch.full((8,), 1000.0)
    torch.testing.assert_close(smooth(lambda x, t: ramp, process, 1.0)(ramp, t)[1:-1], ramp[1:-1])
    assert roughness(smooth(lambda x, t: rough, process, 1.0)(rough, t)) < 0.3 * roughness(rough)


def test_smoothing_works_in_complete():
    images, present = stack(6), lacking(3, n=6)
    plain, smoothed = (
        build(coupling=0.0, smoothing=s, steps=3).complete(Batch(images, present), Rng.of(0, 6)) for s in (0.0, 1.0)
    )
    assert torch.equal(smoothed[:, :3], images[:, :3])
    assert roughness(smoothed[:, 3]) < roughness(plain[:, 3])


# the network of a prior with one time a modality


def test_the_voxelwise_features():
    """1, x_i, g_i and the products of g."""
    x, gated = torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1), torch.tensor([5.0, 7.0]).reshape(1, 2, 1, 1)
    assert quadratic(x, gated).flatten().tolist() == [1, 2, 3, 5, 7, 25, 35, 49]
    assert features(2) == 8 and features(4) == quadratic(stack(1), stack(1)).shape[1]


@pytest.mark.parametrize("components", [0, 8])
def test_the_network_starts_at_0_and_does_not_mix_samples(components):
    """Of a standard normal image, which an unfitted mixture takes it for, v is 0."""
    torch.manual_seed(0)
    net = any2all.build(dataclasses.replace(TINY, components=components)).prior.net.eval()
    x, label = stack(3), torch.tensor([[-1.0, 999, 400, 0], [10, 20, 30, 40], [-1, -1, -1, 999]])
    assert torch.allclose(net(x, label), torch.zeros_like(x), atol=1e-4)
    net = build(components=components).prior.net
    whole = net(x, label)
    assert torch.equal(whole, torch.cat([net(x[i : i + 1], label[i : i + 1]) for i in range(3)]))
    assert torch.allclose(whole, net.train()(x, label), atol=1e-4)


def test_one_label_stands_for_all_modalities():
    net, x = build().prior.net, stack(3)
    label = torch.tensor([3.0, 500.0, 999.0])
    assert torch.equal(net(x, label), net(x, label[:, None].expand(3, 4)))


def test_some_estimates_leave_out_one_input_each_in_turn():
    images, present = stack(3), lacking(3, n=3)
    settings = {"steps": 1, "draws": 6}
    made = build(**settings, leave_out=0.2).complete(Batch(images, present), Rng.of(0, 3))

    def estimate(k, hidden):
        axes = (2,) if k // 2 % 2 else ()
        shown = lacking(3, *hidden, n=3)
        batch = Batch(images.flip(axes), shown)
        return build(steps=1).complete(batch, Rng.of(0, 3).fork("draw", k)).flip(axes)

    whole = sum(estimate(k, ()) for k in (0, 2, 4)) / 3
    less = sum(estimate(k, ((k - 1) // 2,)) for k in (1, 3, 5)) / 3
    assert torch.allclose(made[:, 3], 0.8 * whole[:, 3] + 0.2 * less[:, 3], atol=1e-5)
    assert not torch.allclose(whole[:, 3], less[:, 3], atol=1e-3)
    assert torch.equal(made[:, :3], images[:, :3])
    # of two inputs none is left out, and one draw is one draw
    few = lacking(2, 3, n=3)
    a, b = (build(**settings, leave_out=part).complete(Batch(images, few), Rng.of(0, 3)) for part in (0.2, 0.5))
    assert a.shape == b.shape and torch.isfinite(a).all()
    one, same = (build(steps=1, leave_out=part).complete(Batch(images, present), Rng.of(0, 3)) for part in (0.2, 0.0))
    assert torch.equal(one, same)

"""Any2all with measurements: exact where the posterior is known, and any mix of clean, measured and missing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from amodal.core.contract import Batch, Measurement
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.diffusion.process import DDPM
from amodal.diffusion.samplers import ddim, multistep
from amodal.methods import any2all
from amodal.methods.any2all.measured import follow, stacked
from amodal.methods.any2all.measured import split as unstack
from amodal.physics.linear import mask
from amodal.physics.mri import observe, simulate
from amodal.physics.posterior import LEAST, MOST, Observation, channel, gradient, hold, proximal, trust, white
from amodal.physics.prepare import misfit

from ..diffusion.gaussian import Gaussian, Streams, law, start, world

PROCESS = DDPM(1000, "cosine")
M, C, SIDE = 2, 3, 4
D = M * SIDE * SIDE
NOISE = 0.05


def maps(coils=C, side=SIDE):
    found = torch.view_as_complex(Rng([5]).normal(1, coils, side, side, 2)[0])
    return found / (found.abs() ** 2).sum(1, keepdim=True).sqrt()


def turn(side=SIDE):
    angle = Rng([6]).normal(1, side, side)[0]
    return torch.polar(torch.ones_like(angle), angle)


LINES = torch.tensor([True, False, True, False])[None, None, None].expand(1, 1, SIDE, SIDE)


def scan(m, noise=NOISE, n=1, seed=3):
    """K-space [n, C, side, side] of an image [side, side] in [-1, 1]: three coils, every second line, complex noise."""
    eps = Rng([seed]).normal(1, C, SIDE, SIDE, 2)[0]
    kspace = simulate((m[None].float() + 1) / 2 * turn(), maps(), LINES, noise / 2, eps)
    return Measurement(kspace.expand(n, -1, -1, -1), LINES, maps(), noise / 2, turn())


def small(kind=None):
    """A Gaussian world of two modalities of 4 x 4 voxels, well inside [-1, 1]. `kind`: white, one variance for all."""
    wide = world(PROCESS, M, SIDE * SIDE)
    if kind == "white":
        return Gaussian(wide.mean / 4, 0.05 * torch.eye(D).double(), PROCESS, (M, SIDE, SIDE))
    return Gaussian(wide.mean / 4, wide.cov / 4, PROCESS, (M, SIDE, SIDE))


def exact(truth, seen, m=0):
    """Posterior mean [D] and covariance of x given y = A x_m + n, A as a matrix of real numbers."""
    basis = torch.eye(SIDE * SIDE).reshape(-1, SIDE, SIDE)
    columns = torch.stack([torch.view_as_real(seen.A(e[None])).flatten() for e in basis], 1).double()
    A = torch.zeros(len(columns), D).double()
    A[:, m * SIDE * SIDE : (m + 1) * SIDE * SIDE] = columns
    y = torch.view_as_real(seen.y[:1]).flatten().double()
    gain = truth.cov @ A.T @ torch.linalg.inv(A @ truth.cov @ A.T + seen.noise**2 * torch.eye(len(A)).double())
    return truth.mean + gain @ (y - A @ truth.mean), truth.cov - gain @ A @ truth.cov


def given(truth, n, noise=NOISE):
    target = (truth.mean + 0.15 * Rng([9]).normal(D)[0].double()).reshape(M, SIDE, SIDE)[0]
    return scan(target, noise, n)


def draw(bent, truth, n, steps=150, sampler="ddim"):
    x = start(dataclasses.replace(truth, shape=(M, SIDE * SIDE)), n).reshape(n, M, SIDE, SIDE).float()
    if sampler == "multistep":
        return multistep(bent, PROCESS, x, PROCESS.grid(steps))
    return ddim(bent, PROCESS, x, PROCESS.grid(steps), Streams(4), eta=1.0)


def close(samples, mean, cov, truth, tolerance):
    """Mean within a part of the prior's SD, covariance within a part of the prior's variance."""
    found, spread = law(samples)
    scale = truth.cov.diagonal().max()
    assert (truth.mean - mean).abs().max() > 0.5 * scale.sqrt()  # the data say something
    assert (found - mean).abs().max() < tolerance * scale.sqrt()
    assert (spread - cov).abs().max() < 2 * tolerance * scale


@pytest.mark.parametrize("sampler", ["ddim", "multistep"])
def test_mps_draws_from_the_posterior_of_a_multi_coil_scan(sampler):
    """Complex k-space of three coils, undersampled: sample mean and covariance against the closed form."""
    n, truth = 2000, small()
    measured = given(truth, n)
    seen = observe(measured, (SIDE, SIDE))
    whole = stacked([Observation(channel_of(seen), seen.y, seen.noise)])
    bent = gradient(truth.denoise, PROCESS, whole, iterations=12)
    close(draw(bent, truth, n, 150 if sampler == "ddim" else 60, sampler), *exact(truth, seen), truth, 0.12)


def channel_of(seen, m=0):
    from amodal.physics.linear import Linear

    def adjoint(y):
        image = seen.A.H(y)
        out = image.new_zeros(len(image), M, *image.shape[1:])
        out[:, m] = image
        return out

    return Linear(lambda x: seen.A(x[:, m]), adjoint)


def test_mds_draws_from_the_posterior_of_a_multi_coil_scan_where_the_prior_is_white():
    n, truth, v = 2000, small("white"), 0.05
    measured = given(truth, n)
    seen = observe(measured, (SIDE, SIDE))

    def gamma(seen, residual, t):
        a, s = (u.double() for u in PROCESS.at(t))
        return (seen.noise**2 * (a**2 * v + s**2) / (v * s**2)).float()

    bent = channel(lambda one: proximal(one, PROCESS, seen, gamma, 20), 0)(truth.denoise)
    close(draw(bent, truth, n), *exact(truth, seen), truth, 0.12)


def test_a_clean_modality_and_a_scan_together():
    """Modality 1 is held clean, modality 0 measured: the posterior given both."""
    n, truth = 2000, small()
    measured = given(truth, n)
    seen = observe(measured, (SIDE, SIDE))
    known = truth.mean.reshape(M, -1)[1] + 0.1
    images = torch.zeros(n, M, SIDE, SIDE)
    images[:, 1] = known.reshape(SIDE, SIDE).float()
    present = torch.tensor([False, True]).reshape(1, M, 1, 1).expand(n, M, 1, 1)
    held = hold(truth.denoise, present, images, PROCESS.end)
    whole = stacked([Observation(channel_of(seen), seen.y, seen.noise)])
    samples = draw(gradient(held, PROCESS, whole, iterations=12), truth, n)
    assert torch.equal(samples[:, 1], images[:, 1])
    first = torch.arange(D) < SIDE * SIDE
    mean, cov = truth.posterior(~first, known)
    alone = Gaussian(torch.cat([mean, known]), torch.zeros(D, D).double(), PROCESS, truth.shape)
    alone.cov[: SIDE * SIDE, : SIDE * SIDE] = cov
    m, c = exact(alone, seen)
    k = SIDE * SIDE
    found, spread = law(samples[:, 0])
    assert (found - m[:k]).abs().max() < 0.1 * truth.cov.diagonal().max().sqrt()
    assert (spread - c[:k, :k]).abs().max() < 0.2 * truth.cov.diagonal().max()


@pytest.mark.parametrize(("kind", "iterations"), [("white", 1), (None, 20)])
def test_the_preconditioner_changes_the_way_and_not_the_goal(kind, iterations):
    """Where the prior is as white as it says, one pass through the network is enough."""
    truth, v = small(kind), 0.05
    measured = given(truth, 3)
    seen = observe(measured, (SIDE, SIDE))
    whole = stacked([Observation(channel_of(seen), seen.y, seen.noise)])
    x, t = 0.5 * Rng([2]).normal(3, M, SIDE, SIDE)[0], torch.full((3,), 500.0)
    a, s = (u.item() for u in PROCESS.at(t[:1]))
    gamma = torch.full((3,), seen.noise**2 * (a**2 * v + s**2) / (v * s**2))

    def near(residual, t):
        solve = white(seen, gamma, 30, 1e-6)
        return lambda r: torch.view_as_real(solve(unstack([seen], r)[0])).flatten(1)

    best = gradient(truth.denoise, PROCESS, whole, iterations=40)(x, t)
    helped = gradient(truth.denoise, PROCESS, whole, iterations=iterations, near=near)(x, t)
    plain = gradient(truth.denoise, PROCESS, whole, iterations=1)(x, t)
    assert (helped - best).norm() < 0.02 * (plain - best).norm()


# the rule of trust


def wide(error, t, side=32, noise=0.02):
    """A prediction with white errors of SD `error`, its residual, and gamma at time t."""
    S = maps(4, side)
    kept = torch.zeros(1, 1, 1, side, dtype=torch.bool)
    kept[..., ::2] = True
    eps = Rng([1]).normal(1, 4, side, side, 2)[0]
    truth = 0.3 * Rng([2]).normal(1, side, side)[0]
    kspace = simulate(truth, S, kept.expand(1, 1, side, side), noise, eps)
    seen = observe(Measurement(kspace, kept, S, noise, None, (-1.0, 1.0)), (side, side))
    guess = truth + error * Rng([4]).normal(1, side, side)[0]
    return trust(PROCESS)(seen, seen.y - seen.A(guess), torch.tensor([t])).item()


def test_gamma_is_noise_over_what_the_schedule_leaves():
    a, s = (v.item() for v in PROCESS.at(torch.tensor([300.0])))
    assert wide(0.0, 300.0) == pytest.approx(0.02**2 * (a**2 + s**2) / s**2, rel=1e-4)
    assert 1 < wide(0.0, 1.0) <= MOST and wide(0.0, 1000.0) == pytest.approx(max(0.02**2, LEAST), rel=0.02)


def test_a_prior_that_does_not_fit_is_trusted_less():
    """Late in sampling the schedule leaves nothing; the residual shows an error of 0.2: gamma is (noise/0.2)^2."""
    assert wide(0.2, 1.0) == pytest.approx((0.02 / 0.2) ** 2, rel=0.1)


# the method


def build(**settings):
    torch.manual_seed(0)
    method = any2all.build(dataclasses.replace(any2all.tiny(), **settings))
    generator = torch.Generator().manual_seed(1)
    for parameter in method.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    method.config = method.measuring(3)
    return method.eval().requires_grad_(False)


def stack(n=2, size=16):
    return torch.tanh(Rng.of(0, n, "stack").normal(4, size, size))


def measured_flair(images, noise=0.01, lines=2, **changes):
    n, size = len(images), images.shape[-1]
    kept = torch.zeros(1, 1, size, size, dtype=torch.bool)
    kept[..., ::lines] = True
    eps = Rng.of(1, n).normal(C, size, size, 2)
    kspace = simulate((images[:, 3] + 1) / 2 * turn(size), maps(C, size), kept, noise, eps)
    return Measurement(kspace, kept, maps(C, size), noise, turn(size), **changes)


def present(*names, n=2):
    return torch.tensor([m in names for m in any2all.BRAIN]).reshape(1, 4, 1, 1).expand(n, 4, 1, 1)


@pytest.mark.parametrize("posterior", ["mds", "mps"])
@pytest.mark.parametrize("times", ["own", "shared"])
@pytest.mark.parametrize("clean", [(), ("T1w",), ("T1w", "T2w")])
def test_any_mix_of_clean_measured_and_missing(posterior, times, clean):
    method = build(posterior=posterior, times=times)
    images = stack()
    batch = Batch(images, present(*clean), measurement={"FLAIR": measured_flair(images)})
    out = method.complete(batch, Rng.of(0, 2))
    assert torch.isfinite(out).all() and out.shape == images.shape and not out.requires_grad
    for i, name in enumerate(any2all.BRAIN):
        assert torch.equal(out[:, i], images[:, i]) == (name in clean)


def test_two_modalities_may_be_measured():
    method, images = build(), stack()
    other = measured_flair(images[:, [3, 1, 2, 0]], lines=1)
    batch = Batch(images, present("T2w"), measurement={"FLAIR": measured_flair(images), "T1w": other})
    out = method.complete(batch, Rng.of(0, 2))
    assert (out[:, 0] - images[:, 0]).abs().mean() < 0.05  # all of T1w was sampled


def test_complete_noise_free_kspace_returns_the_image():
    method, images = build(), stack()
    batch = Batch(images, present(), measurement={"FLAIR": measured_flair(images, noise=1e-4, lines=1)})
    out = method.complete(batch, Rng.of(0, 2))
    assert (out[:, 3] - images[:, 3]).abs().max() < 0.02


def test_complete_noise_free_kspace_returns_the_image_by_the_gradient_too():
    truth = small()
    image = truth.mean.reshape(M, SIDE, SIDE)[0] + 0.15 * Rng([9]).normal(SIDE, SIDE)[0].double()
    eps = torch.zeros(1, C, SIDE, SIDE, 2)
    kspace = simulate((image[None].float() + 1) / 2 * turn(), maps(), LINES | True, 0.0, eps)
    measured = Measurement(kspace.expand(4, -1, -1, -1), LINES | True, maps(), 1e-3, turn())
    images, there = torch.zeros(4, M, SIDE, SIDE), torch.zeros(4, M, 1, 1, dtype=torch.bool)
    bent = follow(truth.denoise, PROCESS, {0: measured}, there, images, held=False, iterations=4)
    assert (draw(bent, truth, 4, 40)[:, 0] - image).abs().max() < 0.02


def test_a_slice_does_not_depend_on_its_neighbours():
    method, images = build(coupling=0.0), stack()
    scan = measured_flair(images)
    both = method.complete(Batch(images, present("T1w"), measurement={"FLAIR": scan}), Rng.of(0, 2))
    one = Batch(images[1:], present("T1w", n=1), measurement={"FLAIR": scan[1:]})
    assert torch.equal(both[1:], method.complete(one, Rng.of(0, 2)[1:]))


def test_a_padded_image_is_measured_where_it_lies():
    method, images = build(), stack()
    scan = measured_flair(images, noise=1e-4, lines=1)
    padded = torch.nn.functional.pad(images, (3, 5, 2, 6), value=-1.0)
    batch = Batch(padded, present(), measurement={"FLAIR": dataclasses.replace(scan, corner=(2, 3))})
    out = method.complete(batch, Rng.of(0, 2))
    assert (out[:, 3, 2:18, 3:19] - images[:, 3]).abs().max() < 0.02


def test_windows_are_affine():
    """The same scan in other units: intensities between 100 and 500."""
    method, images = build(coupling=0.0), stack()
    plain = measured_flair(images)
    shifted = dataclasses.replace(plain, kspace=400 * plain.kspace, noise=400 * plain.noise, window=(0.0, 400.0))
    a, b = (method.complete(Batch(images, present(), measurement={"FLAIR": s}), Rng.of(0, 2)) for s in (plain, shifted))
    torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


def test_what_is_missing_is_at_last_its_posterior_mean():
    """One image: the missing is what `complete` makes of the reconstruction in one step. Of several draws, none is."""
    method, images = build(), stack()
    batch = Batch(images, present("T1w"), measurement={"FLAIR": measured_flair(images)})
    out = method.complete(batch, Rng.of(0, 2))
    alone = any2all.build(method.config)
    alone.load_state_dict(method.state_dict())
    alone.config = dataclasses.replace(method.config, steps=1, solver="multistep", finish=False)
    again = alone.eval().complete(Batch(out, present("T1w", "FLAIR")), Rng.of(0, 2).fork("finish"))
    assert torch.equal(out, again)
    method.config = method.measuring(3, samples=2)
    assert not torch.equal(method.complete(batch, Rng.of(0, 2))[:, 1], out[:, 1])


def test_one_image_holds_less_noise_than_a_draw():
    """Over seeds what was measured varies less in images that are finished than in draws, and both fit the data."""
    images, spread = stack(), {}
    scan = measured_flair(images, noise=0.02)
    for samples in (1, 2):
        method = build(coupling=0.0)
        method.config = method.measuring(3, samples)
        batch = Batch(images, present("T1w"), measurement={"FLAIR": scan})
        made = torch.stack([method.complete(batch, Rng.of(seed, 2))[:, 3] for seed in range(5)])
        spread[samples] = made.std(0).mean().item()
        assert (misfit(scan, (made[0] + 1) / 2) < 1.5).all()
    assert spread[1] < 0.8 * spread[2]


def test_the_settings_for_kspace():
    assert build().config.solver == "ddim" and build().config.eta == 1.0 and build().config.steps == 3
    method = any2all.build(any2all.tiny())
    assert method.measuring().steps == 20 and method.measuring(150).steps == 150
    method.config = dataclasses.replace(method.config, eta=0.85)
    assert method.measuring().eta == 0.85


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"PDw": s}, "PDw was measured, and the model knows"),
        (lambda s: {"FLAIR": s[:1]}, "measured in 1 slices of 2"),
        (lambda s: {"T1w": s}, "both as an image and as k-space"),
        (lambda s: {"FLAIR": dataclasses.replace(s, corner=(1, 0))}, "larger matrix"),
        (lambda s: {"FLAIR": dataclasses.replace(s, sampled=s.sampled & False)}, "samples nothing"),
        (lambda s: {"FLAIR": dataclasses.replace(s, maps=s.maps[:, :2])}, "coil maps"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    images = stack()
    batch = Batch(images, present("T1w"), measurement=change(measured_flair(images)))
    with pytest.raises(InputError, match=words):
        build().complete(batch, Rng.of(0, 2))


def test_nothing_at_all_is_refused():
    with pytest.raises(InputError, match="nothing of this subject"):
        build().complete(Batch(stack(), present()), Rng.of(0, 2))


def test_stacked_observations_keep_their_own_noise():
    a = Observation(mask(torch.tensor(True)), torch.ones(2, 3), 0.1)
    b = Observation(mask(torch.tensor(True)), torch.ones(2, 2) + 1j, 0.2)
    both = stacked([a, b])
    assert both.y.shape == (2, 7)
    torch.testing.assert_close(both.noise, torch.tensor([0.1] * 3 + [0.2] * 4))
    first, second = unstack([a, b], both.y)
    assert torch.equal(first, a.y) and torch.equal(second, b.y)


def test_mps_is_mds_while_there_is_little_signal():
    truth = small()
    measured = given(truth, 2)
    images, there = torch.zeros(2, M, SIDE, SIDE), torch.zeros(2, M, 1, 1, dtype=torch.bool)
    bent = follow(truth.denoise, PROCESS, {0: measured}, there, images, held=False)
    x = Rng([2]).normal(2, M, SIDE, SIDE)[0]
    late = bent(x, torch.full((2,), 200.0))
    early = bent(x, torch.full((2,), 900.0))
    seen = observe(measured, (SIDE, SIDE))
    mds = channel(lambda one: proximal(one, PROCESS, seen, trust(PROCESS), 12, 1e-3), 0)(truth.denoise)
    torch.testing.assert_close(early, mds(x, torch.full((2,), 900.0)))
    assert not torch.allclose(late[:, 1], mds(x, torch.full((2,), 200.0))[:, 1])  # the other modality follows too

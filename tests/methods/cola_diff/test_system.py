"""CoLa-Diff as a whole: conditions that never look at the target, losses, tasks of training, generations."""

import dataclasses
import math

import pytest
import torch

from amodal.core.contract import Batch
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.methods import cola_diff
from amodal.methods.cola_diff.conditions import Task, drawn, guidance, source_of
from amodal.methods.cola_diff.learning import (
    balance,
    forward_variance,
    posterior_divergence,
    prior_loss,
    stages,
    training_task,
)

N, SIZE = 4, 16
BRAIN = ("T1w", "T1Gd", "T2w", "FLAIR")


def method(seed=0, **changes):
    torch.manual_seed(seed)
    net = cola_diff.build(dataclasses.replace(cola_diff.tiny(), **changes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    return net


def batch(tissue=True, absent=(), n=N):
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(n, 4, SIZE, SIZE, generator=generator) - 1
    present = torch.ones(n, 4, 1, 1, dtype=torch.bool)
    for m in absent:
        present[:, m] = False
    maps = torch.randint(0, 5, (n, 4, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    density = torch.rand(n, 4, 4, 2, generator=generator) + 0.1
    return Batch(images, present, {"tissue": maps, "density": density} if tissue else None)


def everything(target, n=N):
    given = torch.ones(n, 4, dtype=torch.bool)
    given[:, target] = False
    return Task(given, torch.full((n,), target), torch.ones(n, dtype=torch.bool))


# structural guidance


def test_the_map_comes_from_the_first_modality_that_is_given():
    data, known = batch(), batch().metadata
    assert source_of(everything(3), known, BRAIN).tolist() == [0] * N
    assert source_of(everything(0), known, BRAIN).tolist() == [1] * N
    only = Task(torch.tensor([[False, False, False, True]] * N), torch.zeros(N).long(), torch.ones(N).bool())
    assert source_of(only, data.metadata, BRAIN).tolist() == [-1] * N  # FLAIR is no source


def test_the_map_never_comes_from_the_target():
    """Whatever the target looks like, and whatever its tissue map, what the network is told is the same."""
    net = method()
    for target in range(4):
        data = batch()
        one = net.conditions(data, everything(target))
        data.images[:, target] = 7.0
        data.metadata["tissue"][:, target] = 3
        data.metadata["density"][:, target] = 9.0
        other = net.conditions(data, everything(target))
        assert all(torch.equal(a, b) for a, b in zip(one, other))


def test_guidance_tells_class_and_density():
    images = torch.tensor([[0.0, 0.5, -0.5, 0.9]]).reshape(1, 1, 2, 2)
    tissue = torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8).reshape(1, 1, 2, 2)
    density = torch.tensor([[[0.0, 0.5], [0.5, 0.1], [0.0, 0.5], [0.0, 0.0]]])[None]
    known = Batch(images, torch.ones(1, 1, 1, 1).bool(), {"tissue": tissue, "density": density})
    maps = guidance(known, torch.tensor([0]))[0].flatten(1)
    assert maps[:, 3].tolist() == [-1.0] * 4  # outside
    assert maps[0, 0] == pytest.approx(1.0)  # in its class, at its mean
    assert maps[1, 1] == pytest.approx(1.0) and maps[2, 2] == pytest.approx(math.exp(-0.5))
    assert maps[0, 1] == pytest.approx(math.exp(-0.5) - 1)  # another class, one SD from fluid's mean
    assert (maps[3, :3] == -1).all()  # no tumour
    assert (guidance(known, torch.tensor([-1])) == -1).all()


def test_maps_change_the_image_and_none_does_too():
    net, rng = method(), Rng.of(0, N)
    with_maps = net.complete(batch(absent=(3,)), rng)
    again = net.complete(batch(absent=(3,)), Rng.of(0, N))
    without = net.complete(batch(tissue=False, absent=(3,)), Rng.of(0, N))
    assert torch.equal(with_maps, again) and not torch.equal(with_maps, without)


def test_without_guidance_maps_do_not_matter():
    net = method(guidance=False)
    a, b = (net.complete(batch(tissue=on, absent=(3,)), Rng.of(0, N)) for on in (True, False))
    assert torch.equal(a, b) and cola_diff.sources(net.config) == ()


# what is not given


def test_what_is_dropped_does_not_count():
    net, data = method(), batch()
    task = everything(3)
    task.given[:, 1] = False
    one = net.conditions(data, task)
    data.images[:, 1] = -5.0
    data.metadata["density"][:, 1] += 1
    other = net.conditions(data, task)
    assert all(torch.equal(a, b) for a, b in zip(one, other))
    latents = one[0].unflatten(1, (-1, net.codec.channels))
    assert (latents[:, 1] == 0).all() and (latents[:, 3] == 0).all() and (latents[:, 0] != 0).any()


def test_the_target_is_told():
    net, data = method(), batch()
    a, b = (net.conditions(data, everything(3))[1], net.conditions(data, everything(2))[1])
    assert a.shape == (N, 9) and a[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1] and not torch.equal(a, b)


def test_training_draws_every_target_and_many_inputs_more_often_than_few():
    n = 4000
    present = torch.ones(n, 4, dtype=torch.bool)
    task = drawn(present, present, Rng.of(0, n), 0.05)
    assert not task.given.gather(1, task.target[:, None]).any()
    share = torch.bincount(task.target, minlength=4) / n
    assert (share - 0.25).abs().max() < 0.03
    count = torch.bincount(task.given.sum(1), minlength=4) / n
    assert count[0] == pytest.approx(0.05, abs=0.015) and count[3] > count[2] > count[1] > 0.1
    assert task.guided.float().mean() == pytest.approx(0.95, abs=0.015)


def test_an_absent_or_imputed_modality_is_no_target():
    n = 500
    present = torch.tensor([[True, True, False, True]]).expand(n, 4)
    may = torch.tensor([[True, False, False, True]]).expand(n, 4)
    task = drawn(present, may, Rng.of(0, n), 0.0)
    assert set(task.target.tolist()) == {0, 3} and not task.given[:, 2].any()
    assert (task.given.sum(1) >= 1).all()


def test_one_target_alone_can_be_trained_and_made():
    net = method(target="T2w")
    task, learn = training_task(net, batch(), Rng.of(0, N))
    assert task.target.tolist() == [2] * N and learn.all()
    assert not training_task(net, batch(absent=(2,)), Rng.of(0, N))[1].any()
    net.complete(batch(absent=(2,)), Rng.of(0, N))
    with pytest.raises(InputError, match="makes T2w only"):
        net.complete(batch(absent=(3,)), Rng.of(0, N))
    with pytest.raises(InputError, match="choose one of"):
        dataclasses.replace(cola_diff.tiny(), target="CT")


# losses


def test_the_divergence_is_0_for_the_truth_at_the_lower_bound_and_known_elsewhere():
    net = method()
    x0, t = torch.randn(3, 4, 4, 4), torch.tensor([2.0, 500.0, 1000.0])
    low = torch.full_like(x0, -1.0)
    assert posterior_divergence(net, x0, x0, low, t).abs().max() < 1e-5
    high = posterior_divergence(net, x0, x0, -low, t)  # variance beta_t in place of the posterior's
    beta = forward_variance(net, t)
    before, now = net.process.at(t - 1)[1] ** 2, net.process.at(t)[1] ** 2
    ratio = (before / now).double()
    torch.testing.assert_close(high.double().mean((1, 2, 3)), 0.5 * (-ratio.log() + ratio - 1), atol=1e-4, rtol=1e-3)
    assert beta[0] == pytest.approx(1e-4 + (0.02 - 1e-4) / 999, rel=2e-2) and beta[2] == pytest.approx(0.02, rel=1e-3)


def test_a_wrong_clean_image_costs_what_the_posterior_mean_is_off():
    net = method()
    x0, t = torch.zeros(1, 1, 2, 2), torch.tensor([300.0])
    cost = posterior_divergence(net, x0, x0 + 0.5, torch.full_like(x0, -1.0), t)
    alpha, sigma = net.process.at(t - 1)
    beta, now = forward_variance(net, t), net.process.at(t)[1]
    off, variance = alpha * beta / now**2 * 0.5, beta * sigma**2 / now**2
    torch.testing.assert_close(cost, (0.5 * off**2 / variance).reshape(1, 1, 1, 1).expand_as(cost), rtol=1e-3, atol=0)


def test_a_latent_channel_may_count_by_how_much_it_moves_the_image():
    net = method()
    net.codec.whitening.scale.copy_(torch.tensor([1.0, 2.0, 4.0, 4.0]))
    assert balance(net).flatten().tolist() == [1.0] * 4  # the paper's loss
    half = method(learn=dataclasses.replace(net.config.learn, balance=0.5))
    half.codec.whitening.scale.copy_(net.codec.whitening.scale)
    torch.testing.assert_close(balance(half).flatten(), torch.tensor([2.0, 1.0, 0.5, 0.5]))


def test_a_share_of_training_is_the_posterior_mean_itself(monkeypatch):
    """No image and no noise go in, at the last step: the loss is that of a plain regression of the latent."""
    net = method(learn=dataclasses.replace(cola_diff.tiny().learn, mean=1.0))
    kappa, y = torch.randn(N, 4, 4, 4), torch.randn(N, net.config.conditions, 4, 4)
    seen = []

    def network(x, label, y, known):
        seen.append((x, label))
        return torch.zeros(len(x), 8, 4, 4)

    monkeypatch.setattr(net.net, "forward", network)
    _, logs = prior_loss(net, kappa, y, torch.ones(N, 9), torch.ones(N, dtype=torch.bool), Rng.of(0, N))
    ((x, label),) = seen
    assert (x == 0).all() and (label == net.config.timesteps - 1).all()
    assert logs["noise"] == pytest.approx(float(kappa.square().mean()), rel=1e-3)  # v is then -kappa


def test_no_critic_no_third_stage():
    learn = dataclasses.replace(cola_diff.tiny().learn, adversarial=0.0)
    assert [s.name for s in stages(method(learn=learn))] == ["codec", "prior"]
    found = stages(method())
    assert [s.name for s in found] == ["codec", "sharpen", "prior"]
    assert [p.name for p in found[1].players] == ["codec", "critic"]
    assert sum(s.share for s in found) == pytest.approx(1.0)


def test_the_prior_begins_with_latents_of_unit_variance():
    net = method()
    data = batch(n=8)
    net.stages()[-1].begin(lambda k: data)
    z = net.codec.encode(data.images.flatten(0, 1)[:, None])
    assert 0.5 < z.std() < 2.0 and z.mean().abs() < 0.5


# inference


@pytest.mark.parametrize(("prediction", "steps"), [("noise", 50), ("v", 1)])
def test_how_many_steps_one_image_takes(prediction, steps):
    net = method(prediction=prediction, steps=50)
    assert net.steps_for(1) == steps and net.steps_for(8) == 50
    assert net.sampler == "fastdpm-linear-kappa0"


def test_generations_differ_and_each_is_the_same_whatever_their_number():
    net, data = method(), batch(absent=(2, 3))
    three, two = (net.generations(data, Rng.of(0, N), k) for k in (3, 2))
    assert three.shape == (3, *data.images.shape) and torch.equal(three[:2], two)
    spread = three.var(0)
    assert (spread[:, 2:] > 0).any() and (spread[:, :2] == 0).all()
    assert torch.equal(three[0][:, :2], data.images[:, :2])


def test_the_posterior_mean_depends_on_no_noise_and_draws_do():
    data, net = batch(absent=(3,)), method(steps=1)
    assert torch.equal(net.complete(data, Rng.of(1, N)), net.complete(data, Rng.of(2, N)))
    many = method(steps=4)
    assert not torch.equal(many.complete(data, Rng.of(1, N)), many.complete(data, Rng.of(2, N)))
    draws = net.generations(data, Rng.of(1, N), 2)
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_two_identical_calls_give_identical_results(kappa):
    net, data = method(kappa=kappa, prediction="noise"), batch(absent=(1,))
    assert torch.equal(net.complete(data, Rng.of(5, N)), net.complete(data, Rng.of(5, N)))


def test_ancestral_steps_are_random_and_ddim_only_by_its_start():
    data = batch(absent=(1,))
    a, b = (method(kappa=k, steps=4).complete(data, Rng.of(5, N)) for k in (0.0, 1.0))
    assert not torch.equal(a, b)
    with pytest.raises(InputError, match="kappa"):
        method(kappa=1.5)


def test_nothing_missing_comes_back_as_it_is():
    data = batch()
    assert torch.equal(method().complete(data, Rng.of(0, N)), data.images)


@pytest.mark.parametrize("change", ["modified", "weighting", "filtering", "join"])
def test_every_ablation_can_be_built_and_run(change):
    base = cola_diff.tiny()
    net = method(net=dataclasses.replace(base.net, **{change: not vars(base.net)[change]}))
    assert torch.isfinite(net.complete(batch(absent=(0,)), Rng.of(0, N))).all()


def test_joined_conditions_reach_the_encoder_weighed():
    """The last map is a convolution of the conditions after auto-weight adaptation, and changes what comes out."""
    net = method().net
    y = torch.randn(1, method().config.conditions, 4, 4)
    maps = net.maps(y)
    assert len(maps) == len(net.config.channels) + 1
    torch.testing.assert_close(maps[-1], net.mapping.join[0](net.mapping.weigh(y)))
    x, label, known = torch.randn(1, 4, 4, 4), torch.zeros(1), everything(2, 1).vector(torch.tensor([0]))
    other = [*maps[:-1], maps[-1] + 1]
    assert not torch.allclose(net.evaluate(x, label, maps, known), net.evaluate(x, label, other, known))


def test_fusion_on_every_level_can_be_asked_for():
    net = method(net=dataclasses.replace(cola_diff.tiny().net, fusion="levels"))
    assert torch.isfinite(net.complete(batch(absent=(0,)), Rng.of(0, N))).all()

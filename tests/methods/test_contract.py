"""What every method owes its callers: it learns, it keeps what is there, and an image depends on its own seed alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from amodal.core.config import from_dict, to_dict
from amodal.core.contract import Batch
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.methods import METHODS

EVERY = pytest.mark.parametrize("name", METHODS)
N = 5  # samples: slices or volumes


def tiny(name):
    torch.manual_seed(0)
    return METHODS[name].build(METHODS[name].tiny())


@pytest.fixture(scope="module")
def methods():
    """Each method, tiny and not quite untrained: an untrained network may say 0 to everything."""
    found = {}
    for name in METHODS:
        method = tiny(name)
        generator = torch.Generator().manual_seed(1)
        for parameter in method.parameters():
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
        found[name] = method.eval().requires_grad_(False)
    return found


def images(method, n=N, size=16):
    """Discs of random place and size, another contrast in each modality."""
    rng = Rng.of(0, n, "images")
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size)] * method.dims, indexing="ij")
    where = 0.6 * rng.uniform(method.dims) - 0.3
    shape = (-1, *[1] * method.dims)
    r2 = sum((a - c.reshape(shape)) ** 2 for a, c in zip(axes, where.T))
    inside = torch.sigmoid(20 * (0.3 + 0.3 * rng.uniform(1).reshape(shape) - r2))
    gains = torch.linspace(0.3, 0.9, len(method.modalities)).reshape(1, -1, *[1] * method.dims)
    return (2 * gains * inside[:, None] - 1).clamp(-1, 1)


def batch(method, n=N, absent=(-1,), size=16):
    present = torch.ones(n, len(method.modalities), *[1] * method.dims, dtype=torch.bool)
    for m in absent:
        present[:, m] = False
    return Batch(images(method, n, size), present)


def mean_loss(stage, player, data):
    """The loss over the same random numbers each time."""
    with torch.no_grad():
        values = [player.loss(stage.forward(data, Rng.of(3, len(data), "probe", i)))[0] for i in range(6)]
    return torch.stack(values).mean().item()


@EVERY
def test_every_stage_learns_and_every_parameter_takes_part(name):
    method = tiny(name).train()
    data = batch(method, 6, absent=())
    for stage in method.stages():
        assert stage.players, f"{stage.name} has nobody who learns"
        if stage.begin is not None:
            stage.begin(lambda k: data)
        optimisers = [torch.optim.Adam(player.parameters(), 2e-3) for player in stage.players]
        before = mean_loss(stage, stage.players[0], data)
        for i in range(60):  # what begins with a fitted estimate has less left to learn, and takes longer
            for player, optimiser in zip(stage.players, optimisers):
                loss, extras = player.loss(stage.forward(data, Rng.of(1, len(data), "train", i)))
                assert loss.ndim == 0 and all(isinstance(v, float) for v in extras.values())
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                assert all(p.grad is not None for p in player.parameters())
                optimiser.step()
        assert mean_loss(stage, stage.players[0], data) < 0.75 * before


@EVERY
def test_stages_share_out_the_parameters(name):
    """No parameter is left out of training, and no two players of a stage pull at the same one."""
    method = tiny(name)
    trained = set()
    for stage in method.stages():
        of_stage = [id(p) for player in stage.players for p in player.parameters()]
        assert len(of_stage) == len(set(of_stage))
        trained |= set(of_stage)
    assert trained == {id(p) for p in method.parameters() if p.requires_grad}


@EVERY
def test_what_a_subject_lacks_does_not_count(name):
    """Absent channels may hold anything finite: the loss, and all gradients, are the same to the bit."""
    method = tiny(name).train()
    data = batch(method, absent=())
    data.present[0, 1] = data.present[1, 2:] = False
    junk = torch.where(data.present, data.images, torch.full_like(data.images, 1e6))
    found = []
    for content in (data.images, junk):
        method = tiny(name).train()  # anew: codes and batch norms follow what they see
        for stage in method.stages():
            loss = stage.players[0].loss(stage.forward(Batch(content, data.present), Rng.of(1, N)))[0]
            method.zero_grad()
            loss.backward()
            found.append([loss.detach(), *(p.grad.clone() for p in stage.players[0].parameters())])
    half = len(found) // 2
    for a, b in zip(found[:half], found[half:]):
        assert all(torch.equal(x, y) for x, y in zip(a, b))


@EVERY
def test_what_a_subject_has_does_count(name):
    method = tiny(name).train()
    data = batch(method, absent=())
    other = Batch(-data.images, data.present)
    for stage in method.stages():
        a, b = (stage.players[0].loss(stage.forward(x, Rng.of(1, N)))[0] for x in (data, other))
        assert a != b


@EVERY
@pytest.mark.parametrize("absent", [(-1,), (0,), (0, -1), (1, 2)], ids=str)
def test_what_is_present_comes_back_to_the_bit(methods, name, absent):
    method = methods[name]
    data = batch(method, absent=absent)
    out = method.complete(data, Rng.of(0, N))
    known = data.present.expand_as(data.images)
    assert out.shape == data.images.shape and out.dtype == torch.float32
    assert torch.equal(out[known], data.images[known])
    assert torch.isfinite(out).all() and out.abs().max() <= 1.5
    assert (out[~known] != data.images[~known]).any()


@EVERY
def test_slices_and_voxels_may_be_missing_too(methods, name):
    method = methods[name]
    data = batch(method, absent=())
    some = data.present.clone()
    some[1, 0] = some[3, 2] = False
    voxels = some.expand_as(data.images).clone()
    voxels[0, 1, 4:9] = False
    for present in (some, voxels):
        out = method.complete(Batch(data.images, present), Rng.of(0, N))
        known = present.expand_as(out)
        assert torch.equal(out[known], data.images[known]) and torch.isfinite(out).all()


@EVERY
def test_what_is_absent_may_hold_anything(methods, name):
    method = methods[name]
    data = batch(method)
    junk = torch.where(data.present, data.images, torch.full_like(data.images, 1e6))
    a, b = (method.complete(Batch(x, data.present), Rng.of(0, N)) for x in (data.images, junk))
    assert torch.equal(a, b)


@EVERY
def test_what_is_present_matters(methods, name):
    method = methods[name]
    data = batch(method)
    out = method.complete(data, Rng.of(0, N))
    other = method.complete(Batch(-data.images, data.present), Rng.of(0, N))
    assert not torch.equal(out[:, -1], other[:, -1])


@EVERY
def test_the_seed_decides_the_image(methods, name):
    method = methods[name]
    data = batch(method)
    a, b, c = (method.complete(data, Rng.of(seed, N)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@EVERY
@pytest.mark.parametrize("hole", [False, True], ids=["modalities", "voxels"])
def test_chunks_do_not_show(methods, name, hole):
    method = methods[name]
    data = batch(method)
    present = data.present.expand_as(data.images).clone()
    present[0, 0, 3:7] &= not hole
    kept, found = method.config, []
    if "chunk" not in vars(kept):  # a sample is a volume: the chunks are what the caller makes of them
        whole, rng = Batch(data.images, present), Rng.of(0, N)
        parts = [slice(i, i + 1) for i in range(N)]
        singles = [method.complete(Batch(data.images[p], present[p]), rng[p]) for p in parts]
        assert torch.equal(torch.cat(singles), method.complete(whole, Rng.of(0, N)))
        return
    try:
        for chunk in (1, 2, 100):
            method.config = dataclasses.replace(kept, chunk=chunk)
            found.append(method.complete(Batch(data.images, present), Rng.of(0, N)))
    finally:
        method.config = kept
    assert all(torch.equal(found[0], other) for other in found[1:])


@EVERY
def test_the_batch_is_left_as_it_was(methods, name):
    method = methods[name]
    data = batch(method)
    before = data.images.clone(), data.present.clone()
    method.complete(data, Rng.of(0, N))
    assert torch.equal(data.images, before[0]) and torch.equal(data.present, before[1])


@EVERY
def test_progress_reaches_its_end(methods, name):
    said = []
    methods[name].complete(batch(methods[name]), Rng.of(0, N), lambda done, of: said.append((done, of)))
    assert [done for done, _ in said] == list(range(1, len(said) + 1))
    assert {of for _, of in said} == {len(said)}


@EVERY
def test_nothing_at_all_is_refused_with_a_sentence(methods, name):
    method = methods[name]
    with pytest.raises(InputError, match="give at least one modality"):
        method.complete(batch(method, absent=range(len(method.modalities))), Rng.of(0, N))


@EVERY
def test_a_method_survives_its_files(methods, name, tmp_path):
    """Config through JSON, weights through safetensors: the same image."""
    method = methods[name]
    config = from_dict(METHODS[name].Config, json.loads(json.dumps(to_dict(method.config))))
    assert config == method.config
    save_file(method.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(7)
    again = METHODS[name].build(config).eval()
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    data = batch(method)
    assert torch.equal(again.complete(data, Rng.of(0, N)), method.complete(data, Rng.of(0, N)))


@EVERY
def test_a_method_says_what_it_is(name):
    module = METHODS[name]
    assert module.PAPER and module.TASKS and {"small", "tiny"} <= set(module.PRESETS)
    assert any(preset.startswith("published") for preset in module.PRESETS)
    for preset in module.PRESETS.values():
        config = preset()
        assert from_dict(module.Config, json.loads(json.dumps(to_dict(config)))) == config
    method = tiny(name)
    assert all(1 <= method.steps_for(k) <= 1000 for k in (1, 2, 50))
    assert method.dims in (2, 3) and method.modalities == method.config.modalities
    for net, inputs in module.networks(module.tiny()).values():
        assert all(p.is_meta for p in net.parameters()) and all(x.is_meta for x in inputs)
        assert net(*inputs).is_meta

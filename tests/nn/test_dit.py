"""The diffusion transformer: the paper's sizes, positions that turn rightly, blocks that look where they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amodal.core.errors import InputError
from amodal.nn.count import flops, parameters
from amodal.nn.dit import DiT, DiTConfig, modulated, patches, positions, rotated, rotations, unpatch

SMALL = DiTConfig(96, 4, 6, (2, 2, 2))


def awake(config: DiTConfig = SMALL, channels: int = 4, condition: int = 5) -> DiT:
    """A network that does not begin as zero."""
    torch.manual_seed(0)
    net = DiT(config, channels, condition)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("config", "slots", "spatial", "weights", "gflops", "with_attention"),
    [
        (DiTConfig(), 4, (24, 24, 8), 173_344_064, 555.1, 588.0),
        (DiTConfig(), 3, (24, 24, 8), 173_344_064, 424.5, 449.1),
        (DiTConfig(384, 12, 6, (1, 1, 1), stacked=True), 4, (24, 24, 1), 33_074_312, 104.0, 116.3),
    ],
    ids=["brats", "ixi", "cardiac"],
)
def test_sizes_of_the_paper(config, slots, spatial, weights, gflops, with_attention):
    """Table 15; with attention the cardiac one is ours, since attention stays within a slab as the text says."""
    with torch.device("meta"):
        net = DiT(replace(config, everywhere=True), 8, 1536)
        given = torch.empty(1, slots, 8, *spatial), torch.zeros(1), torch.empty(1, 1536)
    assert parameters(net) == (weights, weights)
    layers, whole = flops(net, *given)
    assert round(layers / 1e9, 1) == gflops
    assert round(whole / 1e9, 1) == with_attention


@pytest.mark.parametrize("head", [16, 48, 64])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotary_products_depend_on_the_shift_alone(head, axis):
    """q at p and k at p + d give one product wherever p is, along every axis; and another for another d."""
    cells = (4, 5, 6)
    angles = rotations(cells, head, torch.device("cpu"))
    torch.manual_seed(0)
    q, k = torch.randn(2, head)
    turned_q, turned_k = (rotated(v.expand(4 * 5 * 6, head), angles).unflatten(0, cells) for v in (q, k))
    a, b = turned_q.movedim(axis, 0), turned_k.movedim(axis, 0)
    products = [(a[:-d] * b[d:]).sum(-1) for d in (1, 2, 3)]
    for found in products:
        assert torch.allclose(found, found.flatten()[0].expand_as(found), atol=1e-4)
    assert abs(products[0].flatten()[0] - products[1].flatten()[0]) > 1e-3


def test_rotary_keeps_lengths():
    x = torch.randn(8, 16)
    assert torch.allclose(rotated(x, rotations((2, 2, 2), 16, x.device)).norm(dim=1), x.norm(dim=1), atol=1e-5)


def test_every_place_and_slot_has_its_own_position():
    together = positions((3, 4, 2), 4, 96, False, torch.device("cpu"))
    stacked = positions((3, 4, 1), 4, 96, True, torch.device("cpu"))
    assert together.shape == (1, 24, 96) and stacked.shape == (4, 12, 96)
    for table in (together, stacked):
        apart = torch.cdist(table.flatten(0, 1), table.flatten(0, 1)) + 9 * torch.eye(table.shape[0] * table.shape[1])
        assert apart.min() > 0.1
    assert torch.equal(stacked[0], positions((3, 4, 1), 1, 96, False, torch.device("cpu"))[0])


def test_patches_and_back():
    z = torch.randn(2, 3, 4, 4, 6, 8)
    cells = patches(z, (2, 3, 4))
    assert cells.shape == (2, 3, 2 * 2 * 2, 4 * 24)
    assert torch.equal(unpatch(cells, (2, 2, 2), (2, 3, 4)), z)
    assert torch.equal(cells[0, 0, 1].reshape(2, 3, 4, 4)[..., 0], z[0, 0, 0, :2, :3, 4:])  # z fastest


def test_rms_norm_in_closed_form():
    x, gain, scale, shift = torch.randn(4, 5, 6), torch.randn(6), torch.randn(6), torch.randn(6)
    rate = (x.double().pow(2).mean(-1, keepdim=True) + 1e-4).rsqrt()
    expected = x.double() * rate * gain.double() * (1 + scale.double()) + shift.double()
    assert torch.allclose(modulated(x, gain, shift, scale).double(), expected, atol=1e-5)


def test_it_begins_at_zero_and_every_parameter_learns():
    torch.manual_seed(0)
    net = DiT(SMALL, 4, 5)
    given = torch.randn(2, 3, 4, 4, 4, 4), torch.tensor([3.0, 400.0]), torch.randn(2, 5)
    assert torch.equal(net(*given), torch.zeros_like(given[0]))
    net = awake()
    net.requires_grad_(True)
    net(*given).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_slots_are_joined_by_every_other_block():
    """Without blocks across slots a slot is alone; with them what changes in one shows in all."""
    z, t = torch.randn(1, 3, 4, 4, 4, 4), torch.tensor([7.0])
    other = z.clone()
    other[:, 0] += 1
    for across in (True, False):
        net = awake(replace(SMALL, across=across, inject="both"))
        change = (net(z, t, torch.ones(1, 5)) - net(other, t, torch.ones(1, 5))).abs().amax((0, 2, 3, 4, 5))
        assert change[0] > 1e-3 and bool((change[1:] > 1e-4).all()) == across


@pytest.mark.parametrize("inject", ["across", "within", "both"])
def test_prompts_enter_where_they_should(inject):
    """Table 7: only the blocks named are told of the condition."""
    net = awake(replace(SMALL, inject=inject))
    seen = []
    for block in net.blocks:
        block.modulation.register_forward_hook(lambda layer, given, out: seen.append(given[0].flatten()))
    z, t = torch.randn(1, 3, 4, 4, 4, 4), torch.tensor([7.0])
    net(z, t, torch.zeros(1, 5))
    net(z, t, torch.ones(1, 5))
    told = [not torch.equal(a, b) for a, b in zip(seen[:4], seen[4:])]
    assert told == {"across": [False, True] * 2, "within": [True, False] * 2, "both": [True] * 4}[inject]


def test_counting_everywhere_changes_no_number():
    given = torch.randn(2, 3, 4, 4, 4, 4), torch.tensor([3.0, 400.0]), torch.randn(2, 5)
    assert torch.allclose(awake()(*given), awake(replace(SMALL, everywhere=True))(*given), atol=1e-5)


def test_time_condition_and_context_matter():
    net, z = awake(replace(SMALL, context=True)), torch.randn(1, 2, 4, 4, 4, 4)
    base = net(z, torch.tensor([5.0]), torch.zeros(1, 5), torch.zeros_like(z))
    for change in (
        net(z, torch.tensor([6.0]), torch.zeros(1, 5), torch.zeros_like(z)),
        net(z, torch.tensor([5.0]), torch.ones(1, 5), torch.zeros_like(z)),
        net(z, torch.tensor([5.0]), torch.zeros(1, 5), torch.ones_like(z)),
    ):
        assert (change - base).abs().max() > 1e-4


@pytest.mark.parametrize("wrong", [{"hidden": 100}, {"heads": 5}, {"hidden": 144, "heads": 6}, {"blocks": 0}])
def test_bad_widths_are_refused_with_a_sentence(wrong):
    with pytest.raises(InputError, match="choose"):
        replace(SMALL, **wrong)


def test_a_latent_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="does not divide"):
        awake()(torch.randn(1, 2, 4, 5, 4, 4), torch.zeros(1), torch.zeros(1, 5))

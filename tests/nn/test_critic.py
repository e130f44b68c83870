"""The patch critic, and that judging leaves it alone."""

from __future__ import annotations

import pytest
import torch

from amodal.nn.count import parameters
from amodal.nn.critic import Critic, judged


def test_size_of_the_published_one():
    assert parameters(Critic(3)) == (2_771_873, 2_771_873)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_patches(dims, norm):
    critic = Critic(dims, width=4, layers=2, norm=norm)
    assert critic(torch.randn(2, 1, *(16,) * dims)).shape == (2, 1, *(2,) * dims)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_judging_gives_gradients_to_the_image_alone(norm):
    torch.manual_seed(0)
    critic = Critic(3, width=4, layers=1, norm=norm)
    x = torch.randn(2, 1, 8, 8, 8, requires_grad=True)
    found = judged(critic, x)
    assert torch.equal(found, critic(x))
    found.sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in critic.parameters())


def test_a_group_norm_does_not_see_the_batch():
    critic = Critic(2, width=4, layers=1, norm="group").eval()
    x = torch.randn(3, 1, 16, 16)
    assert torch.allclose(critic(x)[:1], critic(x[:1]), atol=1e-6)


def test_gradients_in_bf16_are_near_those_in_fp32():
    """Of every layer, the last with its one channel too, after memory has held large numbers."""
    torch.manual_seed(0)
    critic, x = Critic(3, width=16, layers=3, norm="group"), torch.rand(4, 1, 32, 32, 32)
    found = []
    for enabled in (False, True):
        for _ in range(3):
            torch.full((1 << 22,), 1e30)
            critic.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = torch.nn.functional.softplus(critic(x)).mean()
            loss.backward()
            found.append(torch.cat([p.grad.flatten() for p in critic.parameters()]))
    assert all((g - found[0]).norm() < 0.2 * found[0].norm() for g in found)

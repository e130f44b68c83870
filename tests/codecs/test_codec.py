"""Latents of zero mean and unit variance."""

from __future__ import annotations

import pytest
import torch

from amodal.codecs.codec import Identity, Whitening


def test_identity():
    x = torch.randn(2, 1, 4, 4)
    assert Identity().decode(Identity().encode(x)) is x


def test_whitening_measures_and_inverts():
    torch.manual_seed(0)
    z = torch.randn(6, 3, 5, 5, 5) * torch.tensor([0.01, 1.0, 30.0])[:, None, None, None] + 4
    white = Whitening(3)
    white.fit(z.split(2))
    out = white.enter(z)
    by_channel = out.transpose(0, 1).flatten(1)
    assert torch.allclose(by_channel.mean(1), torch.zeros(3), atol=1e-3)
    assert torch.allclose(by_channel.std(1, correction=0), torch.ones(3), atol=1e-3)
    assert torch.allclose(white.leave(out), z, atol=1e-4)
    assert set(white.state_dict()) == {"mean", "scale"}


def test_a_constant_channel_stays():
    white = Whitening(2)
    z = torch.stack([torch.randn(50), torch.full((50,), 3.0)])[None]
    white.fit([z])
    assert white.scale[1] == 1 and torch.isfinite(white.enter(z)).all()


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="no latents"):
        Whitening(2).fit([])

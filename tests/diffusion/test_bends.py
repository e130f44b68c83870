"""Bends without physics: clipping, and evaluation in chunks."""

from __future__ import annotations

import pytest
import torch

from amodal.core.rng import Rng
from amodal.diffusion.bends import chunked, clip


def double(x, t):
    return 2 * x + t[:, None]


def test_clip_keeps_predictions_in_range():
    x, t = torch.tensor([[-3.0, -0.4, 0.0, 0.3, 9.0]]), torch.zeros(1)
    torch.testing.assert_close(clip(double)(x, t), torch.tensor([[-1.0, -0.8, 0.0, 0.6, 1.0]]))
    torch.testing.assert_close(clip(double, 0, 0.5)(x, t), torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.5]]))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100])
def test_chunks_cover_every_sample_once_in_order(size):
    x, t = Rng.of(0, 7).normal(3), torch.arange(7.0)
    seen = []

    def part(where):
        seen.append(where)
        return lambda x, t: double(x, t) + torch.arange(7.0)[where][:, None]  # what belongs to a sample goes with it

    out = chunked(part, size)(x, t)
    assert torch.equal(out, double(x, t) + t[:, None])
    assert [i for where in seen for i in range(where.start, where.stop)] == list(range(7))
    assert max(where.stop - where.start for where in seen) == min(size, 7)


def test_chunks_split_times_of_modalities_too():
    x, t = Rng.of(0, 3).normal(2), torch.arange(6.0).reshape(3, 2)
    assert torch.equal(chunked(lambda where: lambda x, t: x + t, 2)(x, t), x + t)


def test_bends_combine():
    x, t = Rng.of(0, 5).normal(3), torch.zeros(5)
    bent = clip(chunked(lambda where: double, 2), -0.5, 0.5)
    assert torch.equal(bent(x, t), (2 * x).clamp(-0.5, 0.5))

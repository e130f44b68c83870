"""Random streams: one a sample, the same whatever it shares a batch with, on every machine."""

from __future__ import annotations

import pytest
import torch

from amodal.core.rng import Rng, seed_of


def test_seeds_are_pinned():
    """A change here changes every image ever made with a seed."""
    assert seed_of(0) == 3_456_079_177_858_693_020
    assert seed_of(0, "complete", 0, 3) == 2_101_252_412_113_573_990
    assert Rng.of(0, 4, "complete", 0).seeds[3] == seed_of(0, "complete", 0, 3)


def test_numbers_are_pinned():
    assert Rng.of(0, 1).normal(3)[0].tolist() == pytest.approx([-0.03454, 0.117411, -1.25432], abs=1e-6)
    assert Rng.of(0, 1).uniform(2)[0].tolist() == pytest.approx([0.786942, 0.138619], abs=1e-6)
    assert Rng.of(0, 1).integers(1000, 3)[0].tolist() == [287, 704, 879]


def test_seeds_are_63_bit_and_tell_keys_apart():
    keys = [(1, 2), (12,), (2, 1), ("1", 2, ""), (1, 2, 0), ("1\n2",)]
    seeds = [seed_of(*k) for k in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= s < 2**63 for s in seeds)
    assert seed_of(1, "a") == seed_of("1", "a")  # printed keys count, not types: JSON may turn one into the other


def test_the_same_seed_gives_the_same_numbers():
    assert torch.equal(Rng.of(5, 3, "x").normal(4, 4), Rng.of(5, 3, "x").normal(4, 4))
    assert not torch.equal(Rng.of(5, 3, "x").normal(4, 4), Rng.of(6, 3, "x").normal(4, 4))
    assert not torch.equal(Rng.of(5, 3, "x").normal(4, 4), Rng.of(5, 3, "y").normal(4, 4))


def test_a_stream_goes_on_and_does_not_repeat():
    rng = Rng.of(5, 2)
    first, second = rng.normal(4), rng.normal(4)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_chunks_are_the_same_streams():
    whole = Rng.of(1, 6, "s").normal(5)
    rng = Rng.of(1, 6, "s")
    assert torch.equal(torch.cat([rng[0:2].normal(5), rng[2:6].normal(5)]), whole)
    rng = Rng.of(1, 6, "s")
    assert torch.equal(torch.cat([rng[2:6].normal(5), rng[0:2].normal(5)]), torch.cat([whole[2:], whole[:2]]))
    assert torch.equal(Rng.of(1, 99, "s")[3:6].normal(5), whole[3:6])  # a sample's stream depends on its index alone


def test_chunks_share_their_state_with_the_whole():
    rng, other = Rng.of(1, 3), Rng.of(1, 3)
    first = other.normal(2)
    second = other.normal(2)
    assert torch.equal(rng[1:2].normal(2), first[1:2])
    now = rng.normal(2)
    assert torch.equal(now[1], second[1]) and torch.equal(now[0], first[0])


def test_a_fork_depends_on_seeds_and_keys_not_on_what_was_drawn():
    rng, drawn = Rng.of(1, 3), Rng.of(1, 3)
    drawn.normal(10)
    assert torch.equal(rng.fork("a").normal(4), drawn.fork("a").normal(4))
    assert not torch.equal(rng.fork("a").normal(4), rng.fork("b").normal(4))
    assert not torch.equal(rng.fork("a").normal(4), Rng.of(1, 3).normal(4))
    assert torch.equal(rng[1:].fork("a").normal(4), rng.fork("a").normal(4)[1:])


def test_numbers_have_the_law_they_say():
    rng = Rng.of(0, 4)
    normal, uniform, integers = rng.normal(100_000), rng.uniform(100_000), rng.integers(10, 100_000)
    for row in normal:
        assert abs(row.mean()) < 0.015 and abs(row.var() - 1) < 0.02
    assert abs(torch.corrcoef(normal) - torch.eye(4)).max() < 0.015
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.005
    assert integers.dtype == torch.int64
    assert torch.bincount(integers.flatten(), minlength=10).float().div(400_000).sub(0.1).abs().max() < 0.003
    assert integers.max() == 9 and integers.min() == 0


def test_normal_like_takes_shape_and_type_and_minds_the_number_of_samples():
    x = torch.zeros(2, 3, 4, dtype=torch.float64)
    y = Rng.of(0, 2).normal_like(x)
    assert y.shape == x.shape and y.dtype == x.dtype
    assert torch.equal(y.float(), Rng.of(0, 2).normal(3, 4))
    with pytest.raises(ValueError, match="2 samples need 2 random streams, found 3"):
        Rng.of(0, 3).normal_like(x)

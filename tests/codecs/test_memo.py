"""Latents that are remembered: nothing changes but the work."""

from __future__ import annotations

import torch

from amodal.codecs.memo import Memo, fingerprint


def test_memory_changes_nothing_but_the_work():
    layer, calls = torch.nn.Linear(3, 2), []

    def work(row):
        calls.append(row)
        return (layer(row), row.sum(1))

    memo, x = Memo(), torch.randn(4, 3)
    first = memo.each(work, x, of=layer)
    again = memo.each(work, x.flip(0), of=layer)
    assert len(calls) == 4 and all(torch.equal(a, b.flip(0)) for a, b in zip(first, again))
    layer.weight.data.add_(1)
    layer.weight.add_(0) if not layer.weight.requires_grad else None
    small = Memo(limit=1)
    small.each(work, x, of=layer)
    assert len(small.known) == 1


def test_new_weights_are_noticed():
    layer = torch.nn.Linear(3, 2)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    with torch.no_grad():
        layer.weight.mul_(2)
    assert fingerprint(layer) != before

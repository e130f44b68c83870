"""Small methods and smooth random subjects that the tests of CoPeDiT share."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch.nn import functional as F

from amodal.core.contract import Batch
from amodal.core.rng import Rng
from amodal.methods import copedit
from amodal.methods.copedit.system import CoPeDiT

BRAIN, LONG = copedit.tiny(), copedit.tiny_heart()  # of 32 slices
HEART = replace(LONG, size=(16, 16, 16))
EVERY = [bits for bits in itertools.product((False, True), repeat=4) if 0 < sum(bits) < 4]


def awake(config=BRAIN) -> CoPeDiT:
    """An untrained method whose networks do not begin as zero."""
    torch.manual_seed(0)
    method = copedit.build(config)
    for parameter in method.prior.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return method.eval().requires_grad_(False)


def volumes(config, n=2, size=16):
    """Smooth random volumes in [-1, 1]."""
    noise = Rng.of(0, n, "volumes").normal(len(config.modalities), size, size, size)
    return torch.tanh(3 * F.avg_pool3d(noise, 5, 1, 2))


def hidden(config, *places, n=2, size=16):
    """A batch that lacks some modalities, or slices."""
    present = torch.ones(n, len(config.modalities), 1, 1, size, dtype=torch.bool)
    if config.layout == "modalities":
        present[:, list(places)] = False
    else:
        present[..., list(places)] = False
    return Batch(volumes(config, n, size), present)


def sketched(config=BRAIN):
    return replace(config, prior=replace(config.prior, context=True), components=2)

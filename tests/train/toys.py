"""Tiny methods for the tests of training."""

import time

import torch

from amodal.core.contract import Batch, Player, Stage
from amodal.train.engine import Plan

PLAN = Plan(steps=120, batch=2, rate=3e-3, warmup=5, ema=0.9, precision="fp32", save_every=20, validate_every=50)


class Toy(torch.nn.Module):
    """A small convolutional denoiser with everything that makes resuming hard: dropout, running statistics, noise."""

    dims, modalities, config = 2, ("T1w", "T2w"), None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        conv = torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.Conv2d(8, 2, 3, padding=1)
        self.net = torch.nn.Sequential(
            conv[0], torch.nn.BatchNorm2d(8), torch.nn.SiLU(), torch.nn.Dropout(0.1), conv[1]
        )

    def stages(self):
        def forward(batch, rng):
            noise = rng.normal_like(batch.images)
            return (self.net(batch.images + noise).float() - noise).square().mean()

        return (Stage("prior", forward, (Player("prior", self.net.parameters, lambda loss: (loss, {})),)),)


class Line(torch.nn.Module):
    """y = weight x + bias in one or two stages; the data know weight 2 and bias 1."""

    def __init__(self, stages=("slope",)) -> None:
        super().__init__()
        self.names = stages
        self.weight, self.bias = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
        self.seen: list = []

    def forward_stage(self, batch, rng):
        x = batch.images
        self.seen.append((rng.seeds, float(x.sum()), self.weight.item()))
        return (self.weight * x + self.bias - (2 * x + 1)).square().mean()

    def stages(self):
        parts = {"slope": [self.weight], "shift": [self.bias], "both": [self.weight, self.bias]}
        players = {
            n: (Player(n, lambda n=n: parts[n], lambda loss: (loss, {"double": 2 * loss.item()})),) for n in parts
        }
        return tuple(Stage(n, self.forward_stage, players[n]) for n in self.names)


def data(index, size=2):
    """A pure function of the index."""
    images = torch.randn(size, 2, 8, 8, generator=torch.Generator().manual_seed(index))
    return Batch(images, torch.ones(size, 2, 1, 1, dtype=torch.bool))


def slow(index):
    time.sleep(0.004)
    return data(index)

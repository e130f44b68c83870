"""Any2all: one unconditional prior over the stack of modalities, adapted at inference to whatever is there.

Paper: "A Unified Framework for Multimodal Image Reconstruction and Synthesis using Denoising Diffusion Models"
(arXiv:2602.08249, 2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ...core.contract import Grid
from ...nn.unet import UNetConfig
from .system import Any2all, Config

PAPER = (
    "Any2all: A Unified Framework for Multimodal Image Reconstruction and Synthesis using Denoising Diffusion Models "
    "(2026, arXiv:2602.08249)"
)
TASKS = ("missing modalities", "reconstruction", "generation")
BRAIN = ("T1w", "T1Gd", "T2w", "FLAIR")


def published() -> Config:
    """The paper's model: T1w, FLAIR, T2*, CT, PET; a 256 x 256 network; 1000 cosine steps, noise prediction.

    1.5 M steps at batch 24 (two weeks on four A6000); MDS 150 steps. What the text leaves open (width of the network,
    learning rate 1e-4, EMA 0.9999) follows guided-diffusion's published 256 x 256 model; eta is chosen.
    """
    modalities = ("T1w", "FLAIR", "T2starw", "CT", "PET")
    net = UNetConfig(
        in_channels=5,
        out_channels=5,
        channels=(256, 256, 512, 512, 1024, 1024),
        blocks=2,
        attention=(False, False, False, True, True, True),
        head_size=64,
        resample="residual",
    )
    return Config(modalities, net, prediction="noise", times="shared", solver="ddim", steps=150, eta=0.85, coupling=0.0)


def small() -> Config:
    """One time a modality, v prediction, a network that runs at half resolution and adds to what each voxel says by
    itself, 8 steps."""
    net = _unet(BRAIN, (32, 64, 128, 128), (False,) * 4, 32, patch=2, times=4, groups=16)
    return Config(BRAIN, net, components=12, draws=6, leave_out=0.2)


def tiny() -> Config:
    """For tests: learns to fill in a phantom's contrasts in a minute on one core."""
    net = _unet(BRAIN, (16, 32), (False, False), 16, patch=2, times=4, groups=8, blocks=1)
    return Config(BRAIN, net, components=8, steps=6)


def _unet(
    modalities: tuple[str, ...], channels: tuple[int, ...], attention: tuple[bool, ...], head_size: int, patch: int,
    times: int, groups: int = 32, blocks: int = 1,
) -> UNetConfig:  # fmt: skip
    n = len(modalities)
    return UNetConfig(n, n, channels, blocks, attention, head_size, patch=patch, times=times, groups=groups)


PRESETS = {"published": published, "small": small, "tiny": tiny}


def for_modalities(config: Config, names: Sequence[str]) -> Config:
    """A preset for other modalities than its own: the same network, with as many channels and times as modalities."""
    n = len(names)
    times = n if config.net.times > 1 else 1
    return replace(config, modalities=tuple(names), net=replace(config.net, in_channels=n, out_channels=n, times=times))


def grid(config: Config) -> Grid:
    """Slices as they come: any size, in-plane voxels of 0.7 to 1.6 mm."""
    return Grid()


def build(config: Config) -> Any2all:
    """The untrained method."""
    return Any2all(config)


def networks(config: Config) -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    """Each network on the meta device with inputs to count it by (batch 1, 256 x 256)."""
    with torch.device("meta"):
        times = 1 if config.times == "shared" else config.net.in_channels
        x, label = torch.empty(1, config.net.in_channels, 256, 256), torch.zeros(1, times)
        return {"prior": (build(config).prior.net, (x, label))}

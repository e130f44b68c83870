"""CoLa-Diff: a latent diffusion of one modality, conditioned on the others, with tissue maps as structural guidance.

Paper: "CoLa-Diff: Conditional Latent Diffusion Model for Multi-modal MRI Synthesis" (Jiang et al., MICCAI 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...codecs.kl import KLConfig
from ...core.contract import Grid
from ...core.errors import InputError
from .conditions import SOURCES
from .learning import Learning
from .network import NetConfig
from .system import ColaDiff, Config

PAPER = "CoLa-Diff: Conditional Latent Diffusion Model for Multi-modal MRI Synthesis (2023)"
TASKS = ("missing modalities",)
BRAIN = ("T1w", "T1Gd", "T2w", "FLAIR")
SETS = {"brats": BRAIN, "ixi": ("T1w", "T2w", "PDw")}


def published(which: str = "brats") -> Config:
    """The paper's model of T2w from the rest: BraTS 2018 or IXI, slices of 224 x 224 at 1 mm, 1000 linear steps, noise
    prediction, 50 steps of DDIM.

    Trained with --batch 8 (Adam, rate 9.6e-5, EMA 0.9999, two A5000). One model a target: --set target=FLAIR for
    another. What the text leaves open (codec, widths, depth of the mapping) is chosen: docs/methods/cola-diff.md.
    """
    if which not in SETS:
        raise InputError(f"published({which!r}): choose one of {', '.join(SETS)}.")
    codec = KLConfig(channels=3, widths=(128, 256, 512), attention=True)
    return Config(SETS[which], codec, NetConfig(), target="T2w", size=(224, 224))


def small() -> Config:
    """Any target from any subset: a codec of factor 4, v prediction, one step for the posterior mean; for a CPU."""
    codec = KLConfig(channels=12, widths=(32, 64), blocks=1, patch=2, groups=16, linear=True)
    net = NetConfig(
        channels=(64, 96, 128), attention=(False, True, True), blocks=1, head_size=32, groups=16, width=128, depth=2,
        join=True,
    )  # fmt: skip
    learn = Learning(
        adversarial=0.02, critic_width=16, sharpen=0.05, prior=0.7, rate=1e-3, codec_rate=1e-3, balance=0.5, mean=0.5,
    )  # fmt: skip
    return Config(BRAIN, codec, net, components=12, prediction="v", steps=10, voxel=(0.7, 2.0), learn=learn)


def tiny() -> Config:
    """For tests: latents of a quarter of the size, two levels."""
    codec = KLConfig(channels=4, widths=(8, 16), blocks=1, patch=2, groups=4)
    net = NetConfig((16, 24), (False, True), blocks=1, head_size=8, groups=4, width=16, depth=1, join=True)
    learn = Learning(adversarial=0.005, critic_width=8, critic_layers=1, rate=1e-3, codec_rate=2e-3)
    return Config(BRAIN, codec, net, prediction="v", steps=4, voxel=(0.7, 4.0), learn=learn)


PRESETS = {
    "published:brats": published,
    "published:ixi": lambda: published("ixi"),
    "small": small,
    "tiny": tiny,
}


def for_modalities(config: Config, names: Sequence[str]) -> Config:
    """A preset for other modalities than its own. InputError: its one target is not among them."""
    return replace(config, modalities=tuple(names))


def sources(config: Config) -> tuple[str, ...]:
    """Modalities whose tissue maps can guide, best first; none without guidance."""
    return tuple(name for name in SOURCES if name in config.modalities) if config.guidance else ()


def grid(config: Config) -> Grid:
    """Axial slices: cropped or padded to the config's size, in-plane voxels within its range."""
    return Grid(size=(*config.size, 0), spacing=(config.voxel, config.voxel, (0.7, 8.0)))


def build(config: Config) -> ColaDiff:
    """The untrained method."""
    return ColaDiff(config)


def networks(config: Config) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Each network on the meta device with inputs to count it by (batch 1, the config's size or 224 x 224)."""
    with torch.device("meta"):
        method = build(config)
        x, y = (n or 224 for n in config.size)
        latent = (-(-x // config.codec.factor), -(-y // config.codec.factor))
        prior = (
            torch.empty(1, config.codec.channels, *latent),
            torch.zeros(1),
            torch.empty(1, config.conditions, *latent),
            torch.empty(1, 2 * len(config.modalities) + 1),
        )
        return {"codec": (method.codec, (torch.empty(1, 1, x, y),)), "prior": (method.net, prior)}

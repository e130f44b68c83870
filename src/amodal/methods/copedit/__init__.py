"""CoPeDiT: one latent diffusion transformer for missing modalities and missing slices that perceives what is missing.

Paper: "Exploiting Completeness Perception with Diffusion Transformer for Unified 3D MRI Synthesis" (arXiv 2602.18400).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ...codecs.vq import VQConfig
from ...core.contract import Grid
from ...core.errors import InputError
from ...nn.dit import DiTConfig
from .backbones import network
from .config import Config, LossConfig, PromptConfig
from .system import CoPeDiT
from .tokenizer import CoPeVAE

PAPER = (
    "CoPeDiT: Exploiting Completeness Perception with Diffusion Transformer for Unified 3D MRI Synthesis "
    "(2026, arXiv:2602.18400)"
)
TASKS = ("missing modalities", "missing slices")
BRAIN = ("T1w", "T1Gd", "T2w", "FLAIR")


def published(which: str = "brats") -> Config:
    """The paper's models: "brats", "ixi", "cardiac"; on four A100.

    Brain: 400 k steps at batch 8, then 100 k at 32, PSNR 28.26 for one missing of four (BraTS), 24.34 of three (IXI).
    Cardiac: 100 k steps at batch 64, then 100 k at 64, PSNR 26.42 for 8 missing slices of 32 (UK Biobank).
    """
    table = {"brats": _brats, "ixi": _ixi, "cardiac": _cardiac}
    if which not in table:
        raise InputError(f"published:{which}: choose one of {', '.join(f'published:{name}' for name in table)}.")
    return table[which]()


def _brats() -> Config:
    losses = LossConfig(position=0.5, contrast=0.5)
    return Config(BRAIN, losses=losses, copy=1.0, steps=200)


def _ixi() -> Config:
    """80 slices of 1.2 mm become 64."""
    return replace(_brats(), modalities=("T1w", "T2w", "PDw"), spacing=(1.0, 1.0, 1.5))


def _cardiac() -> Config:
    losses = LossConfig(perceptual=0.02, count=0.5, contrast=0.5)
    prior = DiTConfig(384, 12, 6, (1, 1, 1), stacked=True)
    return Config(
        ("cine",), (192, 192, 32), (1.4, 1.4, 3.0), "slices", VQConfig(widths=(32, 64, 128)), losses=losses,
        prior=prior, copy=1.0, steps=250,
    )  # fmt: skip


def _rich() -> VQConfig:
    """A codec of 256^16 combinations of codes for 4 x 4 x 4 voxels: it loses less than a voxelwise regression does."""
    return VQConfig(widths=(32, 64), inner=32, units=1, channels=32, codes=256, groups=16, linear=True)


def _quick(sequence: bool = False) -> PromptConfig:
    """One small encoder of all three prompts."""
    return PromptConfig((32, 64), 96, 64, stride=2, shared=True, pool="both", sequence=sequence)


def small() -> Config:
    """For brains at 2 mm on a desktop or one GPU: a codec that shrinks by 4, latents of 24 x 28 x 20.

    One step makes the mean of what may be, which has the best PSNR and SSIM; more steps draw from it.
    """
    losses = LossConfig(
        perceptual=0.1, adversarial=0.0, planes=0.1, crop=(64, 64, 64), patterns=8, whole=0.2, critic_layers=2,
        critic_norm="group",
    )  # fmt: skip
    return Config(
        BRAIN, (96, 112, 80), (2.0, 2.0, 2.0), codec=_rich(), prompts=_quick(), losses=losses,
        prior=DiTConfig(192, 8, 4, (2, 2, 2), context=True), share=0.35, rates=(3e-4, 5e-4), steps=1,
        stages=("tokenizer", "perception", "prior"), blank=0.5,
    )  # fmt: skip


def small_heart() -> Config:
    """For short-axis stacks: 96 x 96 x 32 at 2 and 3.5 mm, slabs of 4 slices, of which parts may be there."""
    losses = LossConfig(perceptual=0.1, adversarial=0.0, planes=0.1, whole=0.2, critic_layers=2, critic_norm="group")
    prior = DiTConfig(192, 8, 4, (2, 2, 1), stacked=True, context=True)
    return Config(
        ("cine",), (96, 96, 32), (2.0, 2.0, 3.5), "slices", _rich(), _quick(sequence=True), losses,
        prior, share=0.35, rates=(3e-4, 5e-4), stages=("tokenizer", "perception", "prior"), blank=0.5, steps=1,
    )  # fmt: skip


def tiny() -> Config:
    """For tests: learns within a minute on one core."""
    codec = VQConfig(widths=(8, 16), inner=16, units=1, codes=64)
    losses = LossConfig(critic_width=8, critic_layers=1, critic_norm="group", planes=0.1, pretext=0.1)
    return Config(
        BRAIN, (32, 32, 32), (6.0, 6.0, 6.0), codec=codec, prompts=PromptConfig((8, 16), 24, 8),
        losses=losses, prior=DiTConfig(96, 4, 6, (2, 2, 2)), steps=4, rates=(2e-3, 1e-3),
    )  # fmt: skip


def tiny_heart() -> Config:
    """For tests."""
    prior = DiTConfig(96, 4, 6, (2, 2, 1), stacked=True, context=True)
    return replace(
        tiny(), modalities=("cine",), size=(32, 32, 32), spacing=(5.0, 5.0, 3.0), layout="slices", prior=prior
    )


PRESETS = {
    "published:brats": lambda: published("brats"),
    "published:ixi": lambda: published("ixi"),
    "published:cardiac": lambda: published("cardiac"),
    "small": small,
    "small:heart": small_heart,
    "tiny": tiny,
    "tiny:heart": tiny_heart,
}


def for_modalities(config: Config, names: Sequence[str]) -> Config:
    """A preset for other modalities than its own; slots and heads follow."""
    return replace(config, modalities=tuple(names))


def grid(config: Config) -> Grid:
    """A fixed field of view at a fixed spacing, centred on the study's."""
    x, y, z = config.spacing
    return Grid(size=config.size, spacing=((x, x), (y, y), (z, z)))


def build(config: Config) -> CoPeDiT:
    """The untrained method."""
    return CoPeDiT(config)


def networks(config: Config) -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    """Each network on the meta device with inputs to count it by, batch 1: a volume for the tokenizer, all slots for
    the prior. Modulations are counted for every sequence, as the paper counts them; the prior itself computes them
    once a sample (522.4 instead of 555.1 GFLOP for published:brats)."""
    counted = replace(config, prior=replace(config.prior, everywhere=True))
    with torch.device("meta"):
        spatial = [n // config.codec.factor for n in config.size]
        if config.layout == "slices":
            spatial[2] = 1
        z = torch.empty(1, config.slots, config.codec.channels, *spatial)
        given = [z, torch.zeros(1), torch.empty(1, config.condition), *([z] if config.prior.context else [])]
        return {
            "tokenizer": (CoPeVAE(config), (torch.empty(1, 1, *config.size),)),
            "prior": (network(counted), tuple(given)),
        }

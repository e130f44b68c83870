"""APT: multi-contrast MR synthesis with anatomical features, a codebook of first guesses and inference in two stages.

Paper: "Anatomical Consistency and Adaptive Prior-informed Transformation for Multi-contrast MR Image Synthesis via
Diffusion Model" (2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...core.contract import Grid
from ...core.errors import InputError
from ...nn.unet import UNetConfig
from .features.vit import ViTConfig
from .system import APT, Config, FeatureConfig

PAPER = (
    "APT: Anatomical Consistency and Adaptive Prior-informed Transformation for Multi-contrast MR Image Synthesis via "
    "Diffusion Model (2025)"
)
TASKS = ("missing modalities", "missing slices")
BRAIN = ("T1w", "T1Gd", "T2w", "FLAIR")
BIOMEDCLIP = ViTConfig(size=224, patch=16, channels=3, width=768, depth=12, heads=12, outputs=512, pool="cls")


def published(which: str = "brats") -> Config:
    """The paper's model for "brats" (FLAIR, T1w, T1Gd, T2w) or "adni" (T1w, T2w, PDw); 256 x 256, 196.9 M parameters.

    250,000 (ADNI: 350,000) iterations of 16 slices at rate 1e-4, after 500 epochs of the fusion in batches of 512. The
    text says cosine schedule; the published scripts train and sample with the linear one, with which M was chosen.
    """
    if which not in ("brats", "adni"):
        raise InputError(f"published({which!r}): choose brats or adni.")
    modalities = {"brats": ("FLAIR", "T1w", "T1Gd", "T2w"), "adni": ("T1w", "T2w", "PDw")}[which]
    start, near, strength = {"brats": (400, 40, 20.0), "adni": (200, 20, 50.0)}[which]
    n = len(modalities)
    net = UNetConfig(
        in_channels=n,
        out_channels=2 * n,
        channels=(128, 128, 256, 256, 512, 512),
        blocks=2,
        attention=(False, False, False, True, True, True),
        head_size=64,
        tokens=512,
        resample="residual",
    )
    features = FeatureConfig("given", BIOMEDCLIP, heads=8, tokens="fused", drop="one", share=0.05)
    return Config(
        modalities, net, features, transformers=True, subsets=0.0, start=start, steps=20, near=near, unroll=50,
        weight=0.5, strength=strength,
    )  # fmt: skip


def small() -> Config:
    """A network that runs at half resolution, with an encoder of its own; what is known is shown clean, and one image
    is the posterior mean."""
    return Config(
        BRAIN, _unet(4, (32, 64, 96, 128), 32, 96, 16, shown=True), FeatureConfig(share=0.05), prediction="v",
        given=1.0, components=12, tilt=1.3, known="held", guess="mean", ranking="error", start=200, steps=5, unroll=10,
        coupling=3.0,
    )  # fmt: skip


def tiny() -> Config:
    """For tests: some seconds a stage."""
    vit = ViTConfig(size=32, patch=8, width=32, depth=2, heads=2, outputs=32)
    features = FeatureConfig(vit=vit, heads=2, share=0.2)
    net = _unet(4, (16, 32), 16, 32, 8)
    return Config(BRAIN, net, features, prediction="v", steps=4, unroll=4, near=100, memory=64)


def _unet(
    n: int, channels: tuple[int, ...], head_size: int, tokens: int, groups: int, shown: bool = False
) -> UNetConfig:
    """`shown`: for a prior that is shown what is known clean, a time a modality."""
    attention = (False,) * len(channels)  # the middle always attends
    times = n if shown else 1
    return UNetConfig(n, n, channels, 1, attention, head_size, patch=2, times=times, tokens=tokens, groups=groups)


PRESETS = {
    "published:brats": published,
    "published:adni": lambda: published("adni"),
    "small": small,
    "tiny": tiny,
}


def build(config: Config) -> APT:
    """The untrained method."""
    return APT(config)


def grid(config: Config) -> Grid:
    """Slices as they come; published: on 256 x 256."""
    size = 256 if config.transformers else 0
    plane = config.spacing
    return Grid(size=(size, size, 0), spacing=(plane, plane, (0.7, 8.0)))


def for_modalities(config: Config, names: Sequence[str]) -> Config:
    """The config for other modalities than its own: as many channels as there are modalities."""
    n = len(names)
    each = config.net.out_channels // config.net.in_channels
    net = replace(config.net, in_channels=n, out_channels=each * n)
    if config.given:
        net = replace(net, times=n)
    return replace(config, modalities=tuple(names), net=net)


def networks(config: Config) -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    """Each network on the meta device with inputs to count it by (batch 1, 256 x 256)."""
    n = len(config.modalities)
    with torch.device("meta"):
        net = build(config)
        tokens = config.features.vit.patches if config.features.tokens == "patches" else 1
        image, width = torch.empty(1, 1, 256, 256), config.features.vit.outputs
        stack = torch.empty(1, n, 256, 256), torch.zeros(1), torch.empty(1, tokens, width)
        fused = torch.empty(1, tokens, n, width), torch.ones(1, n, dtype=torch.bool)
        return {
            "features": (net.encoder.vit, (image,)),
            "adapter": (net.fusion, fused),
            "prior": (net.prior.net, stack),
        }


def about(method: APT) -> dict[str, Any]:
    """The codebook in words, for the model's card: by target its sources, best first."""
    lines: dict[str, list[str]] = {name: [] for name in method.modalities}
    for row in method.codebook.table(method.config.ranking):
        seen = f"{row.share:.0%} of slices, RMSE {row.error**0.5:.3f}"
        lines[row.target].append(f"{row.source} {row.curve} x {row.scale:.2f} ({seen})")
    return {"codebook": lines}

"""WFDM: latent diffusion behind a codec on Haar coefficients, told the modality and what is known of the subject.

Beyond the paper it is also shown what the subject has. Paper: "Wavelet-Fusion Diffusion Model for Multimodal Brain MRI
Synthesis with Modality and Metadata Conditioning" (2026).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...codecs.wavelet_fusion import WaveletConfig
from ...core.contract import Grid
from ...nn.unet import UNetConfig
from ...nn.wavelet import low
from . import asking as asking
from .learning import Learning
from .network import Adapter, known_width, width_of
from .schema import built_in, read
from .system import WFDM, Config

PAPER = (
    "WFDM: Wavelet-Fusion Diffusion Model for Multimodal Brain MRI Synthesis with Modality and Metadata Conditioning "
    "(2026)"
)
TASKS = ("missing modalities", "generation")
BRAIN = ("T1w", "T2w", "T1Gd", "FLAIR")


def published() -> Config:
    """The paper's: 192 x 224 x 160 at 1 mm, latents 4 x 48 x 56 x 40, the 25 fields of BrainScape, rectified flow, 50
    steps. What the text leaves open (widths, weights of losses) follows MAISI; see docs/methods/wfdm.md."""
    net = UNetConfig(4, 4, (64, 128, 256, 512), 2, (False, False, True, True), head_size=64, dims=3)
    return Config(BRAIN, WaveletConfig(), net, built_in("brainscape"))


def small() -> Config:
    """96 x 112 x 80 at 2 mm and the fields of the virtual cohort: trains on a CPU."""
    codec = WaveletConfig(widths=(32, 96), blocks=1, attention=32, head_size=32, groups=16, linear=True)
    net = UNetConfig(4, 4, (48, 96, 192), 1, (False, False, True), head_size=32, dims=3, groups=16)
    learn = Learning(
        features=(8, 16, 32), critic_width=16, crop=(64, 64, 64), at_once=0.5, rates=(1e-3, 5e-4, 5e-4)
    )  # fmt: skip
    return Config(
        BRAIN, codec, net, built_in("virtual"), (96, 112, 80), 2.0, 64, aligned=True, components=12,
        learning=learn,
    )  # fmt: skip


def tiny() -> Config:
    """For tests: 16 x 16 x 16."""
    codec = WaveletConfig(widths=(8, 16), blocks=1, attention=8, head_size=8, pool=1, groups=4)
    net = UNetConfig(4, 4, (16, 32), 1, (False, False), head_size=16, dims=3, groups=8)
    learn = Learning(critic_width=8, critic_layers=1)
    return Config(BRAIN, codec, net, built_in("virtual"), (16, 16, 16), 8.0, 16, steps=4, learning=learn)


def variant(base: Callable[[], Config], kind: str) -> Callable[[], Config]:
    """A preset with one of the codecs that the paper compares (its Table 3)."""

    def preset() -> Config:
        config = base()
        widths = config.codec.widths
        changes: dict[str, dict[str, Any]] = {
            "wf-vae": {"attention": 0},
            "wavelet-vae": {"kind": "wavelet", "attention": 0, "blocks": 1},
            "vae-gan": {"kind": "plain", "attention": 0, "widths": (widths[1] // 4, widths[1] // 2, widths[1])},
        }
        return replace(config, codec=replace(config.codec, **changes[kind]))

    return preset


CODECS = ("wf-vae", "wavelet-vae", "vae-gan")
PRESETS = {
    "published": published, "small": small, "tiny": tiny,
    **{f"{name}:{kind}": variant(base, kind) for name, base in (("published", published), ("small", small))
       for kind in CODECS},
}  # fmt: skip


def for_modalities(config: Config, names: Sequence[str]) -> Config:
    """A preset for other modalities than its own."""
    return replace(config, modalities=tuple(names))


def with_schema(config: Config, path: str) -> Config:
    """A config with the fields of a user's file."""
    return replace(config, schema=read(path))


def grid(config: Config) -> Grid:
    """Volumes of one size and spacing; intensities clipped at a high percentile (section 2.3)."""
    spacing = (config.spacing, config.spacing)
    return Grid(size=config.size, spacing=(spacing, spacing, spacing), percentiles=(0.0, 99.5), multiple=(4, 4, 4))


def build(config: Config) -> WFDM:
    """The untrained method."""
    return WFDM(config)


class _Reconstruct(nn.Module):
    """Encoder and decoder, to be counted as one."""

    def __init__(self, method: WFDM):
        super().__init__()
        self.encoder, self.decoder = method.codec.encoder, method.codec.decoder

    def forward(self, v: Tensor) -> Tensor:
        return self.decoder(self.encoder(v)[0])


class _Adapt(nn.Module):
    """The adapter with one tensor as its result."""

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.adapter = adapter

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.adapter(*inputs)[0]


def networks(config: Config) -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    """Each network on the meta device with inputs to count it by (batch 1, the config's size)."""
    with torch.device("meta"):
        method, m = build(config), len(config.modalities)
        size = tuple(n // method.codec.factor for n in config.size)
        z, t = torch.empty(1, config.codec.channels, *size), torch.zeros(1)
        vector = torch.zeros(1, width_of(m, config.schema))
        known = torch.empty(1, known_width(config.codec.channels, m, config.components > 0), *size)
        drawn_first = {} if method.coarse is None else {"coarse": (method.coarse.net, (low(z), t, vector))}
        return {
            "codec": (_Reconstruct(method), (torch.empty(1, 1, *config.size),)),
            **drawn_first,
            "prior": (method.prior.net, (z, t, vector)),
            "adapter": (_Adapt(method.adapter), (method.net.seen(z, t, vector).shown, t, vector, known)),
        }

"""The settings of CoPeDiT; a variant of the paper's tables is a value here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...codecs.vq import VQConfig
from ...core.errors import InputError
from ...nn.critic import Norm
from ...nn.dit import DiTConfig

Prompt = Literal["count", "position", "contrast"]
LENGTHS = 3  # classes of how many slices are missing: a quarter, half, three quarters


@dataclass(frozen=True)
class PromptConfig:
    """The prompt encoders: `widths` of their two convolutions (both of one `stride`), `size` of a prompt, `contrast` of
    the vector that is compared between parts of a subject. `norm`: "group" does not depend on the batch, but a level
    that is the same everywhere is lost in it, and contrasts are told apart by their levels. `pool`: features are
    averaged over the volume ("mean"), or their largest values are added to that: what is bright in a few voxels, as
    vessels are, is lost in a mean. `sequence`: they are pooled in the plane alone and read along z, since where in a
    stack a gap lies is lost in a pool of all of it; latents are standardised first, since what shows that slices were
    interpolated is small in them. `shared`: one encoder makes all three prompts, else each has its own: what tells
    contrasts apart for one task then serves the others."""

    widths: tuple[int, int] = (128, 256)
    size: int = 512
    contrast: int = 128
    norm: Norm = "batch"
    stride: int = 1
    shared: bool = False
    pool: Literal["mean", "both"] = "mean"
    sequence: bool = False


@dataclass(frozen=True)
class LossConfig:
    """Weights of the tokenizer's losses beside an l1 of 1. `pretext` multiplies those of the three tasks. Without an
    adversarial loss the critic rests.

    `features`: a .safetensors file for the perceptual loss (`codecs.losses.read_features`); empty: random features.
    `planes`: the share of slices of each axis that it looks at. `crop`: voxels that the tokenizer learns from at a
    time, 0 for all of an axis. `patterns` of what is missing that are asked about at every step: for modalities more
    of them cost next to nothing, since each is an image of its own. `whole`: the share of patterns in which nothing is
    missing (the paper 0). `game`: of codec and critic.
    """

    perceptual: float = 0.05
    adversarial: float = 0.01
    pretext: float = 0.01
    count: float = 1.0
    position: float = 1.0
    contrast: float = 1.0
    temperature: float = 0.2
    features: str = ""
    planes: float = 0.2
    crop: tuple[int, int, int] = (0, 0, 0)
    patterns: int = 1
    whole: float = 0.0
    game: Literal["least_squares", "hinge", "log"] = "least_squares"
    critic_width: int = 32
    critic_layers: int = 3
    critic_norm: Norm = "batch"


@dataclass(frozen=True)
class Config:
    """`layout`: what a slot of the prior is: a whole "modalities" volume (brain), or a slab of `slices` (heart).

    `guidance`: the prompts that the prior is told: some of count, position, contrast; or ("mask",), the bits of what is
    there; or none. `backbone`: Table 8 of the paper. `copy`: weight in the prior's loss of what is given anyway (the
    paper 1). With `prior.context` it is shown a sketch and begins there (`sketch.py`); `components`: of the mixture
    that draws those of modalities. `blank`: the share of the prior's training in which nothing stands in the place of
    noisy latents: what it makes then is the mean of what may be, and one step of sampling asks for that; 0: one step
    begins at noise. `steps` of the `solver`.
    `stages` that are trained ("perception": the pretext alone, on the finished codec); `share`: the tokenizer's part of
    the run, the prior has the rest; `rates` of the two.
    """

    modalities: tuple[str, ...]
    size: tuple[int, int, int] = (192, 192, 64)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.40625)
    layout: Literal["modalities", "slices"] = "modalities"
    codec: VQConfig = field(default_factory=VQConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    prior: DiTConfig = field(default_factory=DiTConfig)
    backbone: Literal["mdit", "dit3d", "dit", "unet"] = "mdit"
    guidance: tuple[Literal["count", "position", "contrast", "mask"], ...] = ("count", "position", "contrast")
    copy: float = 0.0
    components: int = 12
    blank: float = 0.0
    timesteps: int = 500
    first: float = 0.0015
    last: float = 0.0195
    solver: Literal["ddim", "multistep"] = "ddim"
    steps: int = 25
    stages: tuple[Literal["tokenizer", "perception", "prior"], ...] = ("tokenizer", "prior")
    share: float = 0.5
    rates: tuple[float, float] = (1e-4, 5e-5)

    def __post_init__(self) -> None:
        if self.layout == "modalities" and len(self.modalities) < 2:
            raise InputError(f"modalities={list(self.modalities)}: missing modalities need two or more to choose from.")
        if self.layout == "slices" and len(self.modalities) != 1:
            raise InputError(f"modalities={list(self.modalities)}: missing slices are those of one modality, name it.")
        if bad := [n for n in self.size if n % self.codec.factor]:
            raise InputError(f"size={list(self.size)}: {bad[0]} is no multiple of {self.codec.factor}, choose others.")
        if "mask" in self.guidance and len(self.guidance) > 1:
            raise InputError(f"guidance={list(self.guidance)}: mask codes stand in place of prompts, choose either.")
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise InputError(f"stages={list(self.stages)}: name stages to train once, of tokenizer, perception, prior.")
        if not 0 <= self.blank <= 1 or self.components < 1:
            raise InputError(f"blank={self.blank}, components={self.components}: choose from 0 to 1, and 1 or more.")
        if not 0 <= self.losses.whole < 1:
            raise InputError(f"losses.whole={self.losses.whole}: choose a share from 0 to less than 1.")
        if not 0 < self.share < 1:
            raise InputError(f"share={self.share}: choose a part between 0 and 1 for the tokenizer.")

    @property
    def slots(self) -> int:
        """Of the prior: modalities, or slabs."""
        return len(self.modalities) if self.layout == "modalities" else self.size[2] // self.codec.factor

    @property
    def places(self) -> int:
        """What may be missing: modalities, or slices."""
        return len(self.modalities) if self.layout == "modalities" else self.size[2]

    @property
    def counts(self) -> int:
        """Classes of how much is missing."""
        return len(self.modalities) - 1 if self.layout == "modalities" else LENGTHS

    @property
    def condition(self) -> int:
        """How many numbers the prior is told."""
        return self.places if self.guidance == ("mask",) else len(self.guidance) * self.prompts.size

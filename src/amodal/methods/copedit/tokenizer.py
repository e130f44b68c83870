"""CoPeVAE: one vector-quantised autoencoder for all modalities, and what it perceives of a subject's completeness.

z = E(x)                    one modality, or one stack of slices, at a time
p_d, p_p, p_s = F1, F2, F3  prompts of the available z, averaged over them: how many are missing, which, what
H1, H2, H3                  the heads of the three pretext tasks (section 3.2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...codecs.vq import VQ, each
from ...nn.blocks import CONV
from ...nn.embed import full_precision
from ...nn.ranks import gathered
from .config import Config, LossConfig, PromptConfig
from .patterns import every_pattern

PROMPTS = ("count", "position", "contrast")
FEW = 10  # places of which all patterns are weighed against each other


@dataclass(frozen=True)
class Perception:
    """What the tokenizer sees without being told: probabilities of each count class [B, counts] (what lacks to 1: that
    nothing is missing) and, for every place, that it is missing [B, places]."""

    count: Tensor
    missing: Tensor


class Judged(NamedTuple):
    """The heads' answers: logits of the number missing [B, counts], of what is missing [B, places]; unit vectors of the
    available and of the missing part [B, contrast] (`paired`: there is a missing part to compare with)."""

    number: Tensor
    position: Tensor
    anchor: Tensor
    other: Tensor
    paired: Tensor


class Both(nn.Module):
    """The mean of every channel and its largest value, added."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(x, self.size) + F.adaptive_max_pool3d(x, self.size)


POOLS: dict[str, Callable[[int], nn.Module]] = {"mean": nn.AdaptiveAvgPool3d, "both": Both}


class PromptEncoder(nn.Module):
    """A latent [N, C, *spatial] -> `prompts` of them [N, prompts * size], float32 whatever the type of the rest."""

    def __init__(self, channels: int, config: PromptConfig, prompts: int = 1):
        super().__init__()
        first, second = config.widths
        kinds: dict[str, Callable[[int], nn.Module]] = {
            "batch": nn.BatchNorm3d,
            "group": lambda n: nn.GroupNorm(1, n),
        }
        # called embed: small, and every answer depends on it, so it stays in float32
        self.embed = nn.Sequential(
            CONV[3](channels, first, 3, config.stride, 1), kinds[config.norm](first), nn.ReLU(),
            CONV[3](first, second, 3, config.stride, 1), kinds[config.norm](second), nn.ReLU(),
            POOLS[config.pool](1), nn.Flatten(), nn.Linear(second, config.size), nn.ReLU(),
            nn.Linear(config.size, prompts * config.size),
        )  # fmt: skip
        for layer in self.embed:
            if isinstance(layer, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Tensor:
        return each(self.embed, z, self.training)


class CoPeVAE(nn.Module):
    """The tokenizer: codec, prompt encoders and heads."""

    def __init__(self, config: Config):
        super().__init__()
        prompts = config.prompts
        self.codec = VQ(config.codec)
        makers = {"all": len(PROMPTS)} if prompts.shared else dict.fromkeys(PROMPTS, 1)
        channels = config.codec.channels
        self.prompts = nn.ModuleDict({name: PromptEncoder(channels, prompts, n) for name, n in makers.items()})
        answers = {"count": config.counts, "position": config.places, "contrast": prompts.contrast}
        # called embed: in float32, as the prompts
        self.embed = nn.ModuleDict({name: nn.Linear(prompts.size, n) for name, n in answers.items()})
        self.together: Tensor | None
        few = config.layout == "modalities" and config.places <= FEW
        self.register_buffer("together", every_pattern(config.places) if few else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of images [N, 1, *spatial]."""
        return self.codec.decode(self.codec.encode(x))

    def told(self, z: Tensor) -> Tensor:
        """The prompts of single latents [N, C, *spatial] -> [N, 3, size]."""
        found = torch.cat([encoder(z.float()) for encoder in self.prompts.values()], dim=1)
        return found.unflatten(1, (len(PROMPTS), -1))

    def answer(self, name: str, prompt: Tensor) -> Tensor:
        """A head's answer to a prompt [B, size]."""
        with full_precision(prompt.device):
            return self.embed[name](F.silu(prompt.float()))

    def perceiving(self) -> list[nn.Parameter]:
        """The parameters of prompts and heads."""
        return [*self.prompts.parameters(), *self.embed.parameters()]

    def judge(self, available: Tensor, missing: Tensor, paired: Tensor) -> Judged:
        """Prompts of the available and of the missing part, [B, 3, size] each."""
        count, position, anchor = (self.answer(name, available[:, i]) for i, name in enumerate(PROMPTS))
        other = self.answer("contrast", missing[:, 2])
        return Judged(count, position, F.normalize(anchor, dim=1), F.normalize(other, dim=1), paired)

    def perceive(self, available: Tensor) -> Perception:
        """Prompts of the available part [B, 3, size] -> what is missing."""
        count, position = (self.answer(name, available[:, i]) for i, name in enumerate(PROMPTS[:2]))
        if self.together is None:
            return Perception(count.softmax(1), position.sigmoid())
        return agreed(count, position, self.together)


def agreed(count: Tensor, position: Tensor, patterns: Tensor) -> Perception:
    """What both heads together say of every pattern of what is missing, bool [P, places], and from that how many are
    missing and which: logits count [B, counts] and position [B, places]. Of nothing missing the count knows nothing:
    it says as much of it as of the others in the mean."""
    number = patterns.sum(1)
    places = torch.where(patterns, F.logsigmoid(position)[:, None], F.logsigmoid(-position)[:, None]).sum(2)
    unasked = torch.full_like(count[:, :1], -math.log(count.shape[1]))
    chance = (torch.cat([unasked, count.log_softmax(1)], 1)[:, number] + places).softmax(1)  # [B, P]
    counts = count.new_zeros(len(count), count.shape[1] + 1).index_add(1, number, chance)
    return Perception(counts[:, 1:], chance @ patterns.to(chance))


def average(values: Tensor, where: Tensor) -> Tensor:
    """Mean over some modalities: values [B, M, ...], where bool [B, M] -> [B, ...]; 0 where there is none."""
    weight = where.to(values.dtype) / where.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bm,bm...->b...", weight, values)


def pretext(config: LossConfig, judged: Judged, count: Tensor, missing: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The weighted loss of the three tasks (Eqs. 1-3) for labels count [B] and missing [B, places].

    Position is a question with several right answers, so every place is asked for itself.
    """
    right = (judged.position > 0) == missing
    by_count = F.cross_entropy(judged.number, count)
    by_position = F.binary_cross_entropy_with_logits(judged.position, missing.float())
    by_contrast = info_nce(judged.anchor, judged.other, judged.paired, config.temperature)
    loss = config.count * by_count + config.position * by_position + config.contrast * by_contrast
    logs = {
        "count": float(by_count.detach()), "position": float(by_position.detach()),
        "contrast": float(by_contrast.detach()),
        "count_right": float((judged.number.argmax(1) == count).float().mean()),
        "position_right": float(right.float().mean()),
    }  # fmt: skip
    return loss, logs


def info_nce(anchor: Tensor, other: Tensor, paired: Tensor, temperature: float) -> Tensor:
    """Each subject's available part must find its own missing part among those of all subjects of all processes.

    Eq. 3, with unit vectors [B, K]; `paired` bool [B]: subjects that have both parts.
    """
    anchor, other, paired = gathered(anchor), gathered(other), gathered(paired)
    scores = anchor @ other.T / temperature
    scores = scores.masked_fill(~paired[None], -torch.inf).masked_fill(~paired[:, None], 0.0)
    own = torch.arange(len(scores), device=scores.device)
    loss = F.cross_entropy(scores, own, reduction="none")
    return torch.where(paired, loss, torch.zeros_like(loss)).sum() / paired.sum().clamp(min=1)


def learned(module: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters that are learned (codes are not)."""
    return (p for p in module.parameters() if p.requires_grad)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, its batch norms included; as it was before once the block is left."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)

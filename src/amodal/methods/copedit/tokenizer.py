"""CoPeVAE: one vector-quantised autoencoder for all modalities, and what it perceives of a subject's completeness.

z = E(x)                    one modality, or one stack of slices, at a time
p_d, p_p, p_s = F1, F2, F3  prompts of the available z, averaged over them: how many are missing, which, what
H1, H2, H3                  the heads of the three pretext tasks (section 3.2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...codecs.vq import VQ, each
from ...nn.embed import full_precision
from ...nn.ranks import gathered
from .config import Config, LossConfig, PromptConfig
from .patterns import classes

PROMPTS = ("count", "position", "contrast")


@dataclass(frozen=True)
class Perception:
    """What the tokenizer sees without being told: probabilities of none of the count's classes (nothing is missing, or
    too few slices for one) and of each, [B, 1 + counts], and, for every place, that it is missing [B, places].
    In float64, on the CPU: of two unlikely answers one may still be far more likely."""

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

    def __init__(self, size: Size):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(x, self.size) + F.adaptive_max_pool3d(x, self.size)


Size = tuple[int, int, int]
POOLS: dict[str, Callable[[Size], nn.Module]] = {"mean": nn.AdaptiveAvgPool3d, "both": Both}


class PromptEncoder(nn.Module):
    """A latent [N, C, *spatial], `depth` long, -> `prompts` of them [N, prompts * size], float32 whatever the type of
    the rest."""

    def __init__(self, channels: int, depth: int, config: PromptConfig, prompts: int = 1):
        super().__init__()
        first, second = config.widths
        stride = (config.stride, config.stride, 1 if config.sequence else config.stride)
        length = depth if config.sequence else 1
        kinds: dict[str, Callable[[int], nn.Module]] = {
            "batch": nn.BatchNorm3d,
            "group": lambda n: nn.GroupNorm(1, n),
        }
        # called embed: small, and every answer depends on it, so it stays in float32
        self.embed = nn.Sequential(
            *([nn.BatchNorm3d(channels, affine=False)] if config.sequence else []),
            nn.Conv3d(channels, first, 3, stride, 1), kinds[config.norm](first), nn.ReLU(),
            nn.Conv3d(first, second, 3, stride, 1), kinds[config.norm](second), nn.ReLU(),
            POOLS[config.pool]((1, 1, length)),
            *([nn.Conv3d(second, second, (1, 1, 3), 1, (0, 0, 1)), nn.ReLU()] if config.sequence else []),
            nn.Flatten(), nn.Linear(length * second, config.size), nn.ReLU(),
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

    classes: Tensor

    def __init__(self, config: Config):
        super().__init__()
        prompts = config.prompts
        self.codec = VQ(config.codec)
        makers = {"all": len(PROMPTS)} if prompts.shared else dict.fromkeys(PROMPTS, 1)
        shape = config.codec.channels, config.size[2] // config.codec.factor
        self.prompts = nn.ModuleDict({name: PromptEncoder(*shape, prompts, n) for name, n in makers.items()})
        answers = {"count": config.counts, "position": config.places, "contrast": prompts.contrast}
        # called embed: in float32, as the prompts
        self.embed = nn.ModuleDict({name: nn.Linear(prompts.size, n) for name, n in answers.items()})
        self.register_buffer("classes", classes(config), persistent=False)

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
        return agreed(count, position, self.classes)


def agreed(count: Tensor, position: Tensor, classes: Tensor) -> Perception:
    """What both heads together say of every set of places that may be missing, and from that how many are missing and
    which: logits count [B, counts] and position [B, places]; `classes` [places]: the count's class of 0, 1 ... missing
    (-1: none; all of them cannot be missing).

    Of none the count head was taught to say nothing: it says as much of it as of the others in the mean.
    """
    said, places = count.cpu().double().softmax(1), position.cpu().double().sigmoid()
    classes = classes.cpu()
    said = torch.cat([torch.full_like(said[:, :1], 1 / said.shape[1]), said], 1)[:, classes + 1]  # [B, places]
    chance = said * numbers(places)[:, :-1]
    total = chance.sum(1, keepdim=True).clamp(min=1e-300)
    certain = places.expand(places.shape[1], -1, -1).clone()  # [places, B, places], of each one place for sure
    certain.diagonal(dim1=0, dim2=2).fill_(1.0)
    missing = places * (said * numbers(certain)[..., :-1]).sum(-1).T / total
    counts = chance.new_zeros(len(count), count.shape[1] + 1).index_add(1, classes + 1, chance / total)
    return Perception(counts, missing)


def numbers(places: Tensor) -> Tensor:
    """How many of independent places are missing: probabilities [..., K] -> of 0 to K of them [..., K + 1]."""
    chance = F.pad(torch.ones_like(places[..., :1]), (0, places.shape[-1]))
    for p in places.unbind(-1):
        chance = chance * (1 - p[..., None]) + F.pad(chance[..., :-1], (1, 0)) * p[..., None]
    return chance


def average(values: Tensor, where: Tensor) -> Tensor:
    """Mean over some modalities: values [B, M, ...], where bool [B, M] -> [B, ...]; 0 where there is none."""
    weight = where.to(values.dtype) / where.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bm,bm...->b...", weight, values)


def pretext(config: LossConfig, judged: Judged, count: Tensor, missing: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The weighted loss of the three tasks (Eqs. 1-3) for labels count [B] (-1: none) and missing [B, places].

    Position is a question with several right answers, so every place is asked for itself. No count class stands for
    none: the head is to be undecided then.
    """
    right, some = (judged.position > 0) == missing, count >= 0
    classes = judged.number.shape[1]
    wanted = torch.where(some[:, None], F.one_hot(count.clamp(min=0), classes), 1 / classes)
    by_count = F.cross_entropy(judged.number, wanted)
    by_position = F.binary_cross_entropy_with_logits(judged.position, missing.float())
    by_contrast = info_nce(judged.anchor, judged.other, judged.paired, config.temperature)
    loss = config.count * by_count + config.position * by_position + config.contrast * by_contrast
    logs = {
        "count": float(by_count.detach()), "position": float(by_position.detach()),
        "contrast": float(by_contrast.detach()),
        "count_right": float(((judged.number.argmax(1) == count) | ~some).float().mean()),
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

"""How WFDM learns: which modality is the target, what is hidden from the network, and the losses of the codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...codecs.kl import Reconstruction
from ...codecs.losses import critic_loss as judge
from ...codecs.losses import kl, l1, maker_loss, perceptual
from ...core.contract import Batch
from ...core.rng import Rng
from ...nn.critic import judged
from ...nn.wavelet import low, with_low

GAME = "log"  # section 2.5.1


@dataclass(frozen=True)
class Learning:
    """Weights of the codec's losses, as in the MAISI recipe: `kl` of the sum over the latent, `perceptual`,
    `adversarial`. `features`: widths of the fixed network of the perceptual loss. `crop`: voxels of the codec's
    sub-volumes (0: the whole axis). `balance`: how far rare modalities are the target more often (0: as they come, 1:
    inversely to their number). `drop`: how often nothing is told of the subject; `thin`: how often a random part of it.
    `focus`: how much more a coarse prior learns where volumes are unlike what its normal law lets expect (0: no more).
    `whole`: how often a prior learns without the low band that a coarse one draws; `loose`: noise on it where it is
    given, in units of what the regression leaves open, for a drawn one is never quite right. `at_once`: how often the
    adapter learns at pure noise, where the posterior mean is read. `shares`: of the time, and `rates` of learning, for
    codec, prior (with the coarse one) and adapter.
    """

    kl: float = 1e-7
    perceptual: float = 0.3
    adversarial: float = 0.1
    features: tuple[int, ...] = (16, 32, 64)
    critic_width: int = 32
    critic_layers: int = 3
    crop: tuple[int, int, int] = (0, 0, 0)
    balance: float = 1.0
    drop: float = 0.1
    thin: float = 0.3
    focus: float = 1.0
    whole: float = 0.25
    loose: float = 0.1
    at_once: float = 0.25
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rates: tuple[float, float, float] = (1e-4, 2e-4, 2e-4)


class Game(NamedTuple):
    """What codec and critic are given: the image, and what the codec made of it."""

    image: Tensor  # [B, 1, *spatial]
    made: Reconstruction


def codec_loss(method: Any, game: Game) -> tuple[Tensor, dict[str, float]]:
    """L1 + perceptual + KL + the critic's verdict, on images in [0, 1] (section 2.5.1)."""
    learn = method.config.learning
    real, made = (game.image + 1) / 2, (game.made.image + 1) / 2
    size = game.made.mean[0].numel()
    parts = {"l1": l1(made, real), "kl": learn.kl * size * kl(game.made.mean, game.made.log_variance)}
    if learn.perceptual:
        parts["perceptual"] = learn.perceptual * perceptual(method.features, made, real)
    if learn.adversarial:
        parts["adversarial"] = learn.adversarial * maker_loss(GAME, judged(method.critic, made))
    return torch.stack(list(parts.values())).sum(), {name: value.item() for name, value in parts.items()}


def critic_loss(method: Any, game: Game) -> tuple[Tensor, dict[str, float]]:
    """The critic tells images from what was made of them; nothing of it reaches the codec."""
    real, made = (method.critic((x.detach() + 1) / 2) for x in (game.image, game.made.image))
    return judge(GAME, real, made), {}


def pick(batch: Batch, weights: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """A target modality for every sample, drawn by `weights` [M] from those it has whole (from those it has in part if
    it has none): its image [B, 1, *spatial], and which it is [B]."""
    there, whole = batch.present.flatten(2).any(2), batch.present.flatten(2).all(2)
    usable = torch.where(whole.any(1, keepdim=True), whole, there)
    u = rng.fork("target").uniform(len(weights)).to(weights.device)
    # argmax of log w + Gumbel noise is a draw by weight
    score = torch.log(weights) - torch.log(-torch.log(u.clamp(1e-9, 1 - 1e-7)))
    target = torch.where(usable, score, -torch.inf).argmax(1)
    rows = torch.arange(len(batch), device=target.device)
    present = batch.present.expand_as(batch.images)[rows, target]
    return torch.where(present, batch.images[rows, target], -1.0)[:, None], target


def crop(x: Tensor, size: tuple[int, ...], rng: Rng) -> Tensor:
    """A random sub-volume of x [B, C, *spatial], another one of each sample; 0 keeps an axis whole."""
    lengths = [min(wanted or n, n) for wanted, n in zip(size, x.shape[2:])]
    if lengths == list(x.shape[2:]):
        return x
    u = rng.fork("crop").uniform(len(lengths))
    parts = []
    for sample, place in zip(x, u.tolist()):
        starts = [int(v * (n - length + 1)) for v, n, length in zip(place, x.shape[2:], lengths)]
        parts.append(sample[(slice(None), *(slice(s, s + length) for s, length in zip(starts, lengths)))])
    return torch.stack(parts)


def drop(known: Tensor, learning: Learning, rng: Rng) -> Tensor:
    """known [B, P] with all of it dropped, or a random part, as often as `learning` says."""
    u = rng.fork("drop").uniform(3 + known.shape[1]).to(known.device)
    keep = (u[:, 3:] < u[:, 2:3]) | (u[:, 1:2] >= learning.thin)
    return known & keep & (u[:, :1] >= learning.drop)


def given_low(z: Tensor, variance: Tensor, learning: Learning, rng: Rng) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Latents [B, C, *spatial] to learn from, and their low band where the prior is given it. That has some noise then,
    of the `variance` [B, C, *spatial / 2] that is left open, and so have the latents."""
    if rng.fork("whole").uniform()[0] < learning.whole:
        return z, ()
    band = low(z)
    band = band + learning.loose * variance.sqrt() * rng.fork("loose").normal_like(band)
    return with_low(z, band), (band,)


def given(batch: Batch, target: Tensor, method: Any, rng: Rng) -> Tensor:
    """A random subset of what each sample has besides its target, as the adapter sees it (`beside`).

    From one to all of the others, each number as likely as the next.
    """
    whole = batch.present.flatten(2).all(2)
    others = whole & (torch.arange(whole.shape[1], device=whole.device) != target[:, None])
    u = rng.fork("given").uniform(whole.shape[1] + 1).to(whole.device)
    rank = torch.where(others, u[:, 1:], 2.0).argsort(1).argsort(1)
    count = 1 + (u[:, :1] * others.sum(1, keepdim=True)).floor()
    present = batch.present.expand_as(batch.images)
    images = torch.where(present, batch.images, -1.0)
    return beside(method, images, others & (rank < count), target)[0]


def beside(method: Any, images: Tensor, shown: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """What is known beside the latents of `target` [B], from those `shown` of images [B, M, *spatial] (or of one
    subject's for all targets): channels as `Adapter` has them [B, known, *spatial / 4], and the estimate of the target
    [B, 1, *spatial], if there is one."""
    latents = torch.cat([known_latents(method, x, use) for x, use in zip(images, shown)])
    latents = latents.expand(len(target), *latents.shape[1:])
    if method.estimate is None:
        return latents, None
    rows = torch.arange(len(target), device=target.device)
    both = (v.expand(len(target), *v.shape[1:]) for v in method.estimate.images(images, shown))
    guess, variance = (v[rows, target][:, None] for v in both)
    doubt = method.estimate.doubts(variance, method.codec.factor)
    return torch.cat([latents, method.encode(guess), doubt.to(latents)], dim=1), guess


def known_latents(method: Any, images: Tensor, usable: Tensor) -> Tensor:
    """images [M, *spatial], usable bool [M] -> [1, M (C + 1), *spatial / 4]: each modality's latent, and whether it is
    there."""
    size = [-(-n // method.codec.factor) for n in images.shape[1:]]
    out = images.new_zeros(len(images), method.codec.channels + 1, *size)
    for m in torch.nonzero(usable).flatten().tolist():
        out[m, :-1] = method.encode(images[None, None, m])[0]
        out[m, -1] = 1
    return out.flatten(0, 1)[None]


def some(data: Callable[[int], Batch], samples: int) -> Iterator[Batch]:
    """The first batches, until they hold so many samples."""
    k = found = 0
    while found < samples:
        batch = data(k)
        k, found = k + 1, found + len(batch)
        yield batch

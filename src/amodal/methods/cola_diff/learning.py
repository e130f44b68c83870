"""How CoLa-Diff learns: the codec, the codec against a critic, the latent space network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ...codecs import losses
from ...codecs.kl import Reconstruction
from ...core.contract import Batch, Player, Stage
from ...core.rng import Rng
from ...diffusion.denoiser import TARGETS, x0_from
from ...nn.critic import Critic, judged
from .conditions import Task, drawn, guidance, source_of

if TYPE_CHECKING:
    from .system import ColaDiff

MEASURED = 16  # batches that the codec's latents are measured on


@dataclass(frozen=True)
class Learning:
    """Weights of the codec's losses (`adversarial` 0: no critic), and how often training hides all conditions.

    `codec`, `sharpen`, `prior`: shares of the run that each stage takes; `rate`: of the latent space network.
    `divergence`: weight of the variance's term, per step drawn. `balance`: how much more a latent channel counts that
    moves the image more: its error is weighed by the channel's SD, before latents are whitened, to twice this power.
    `mean`: share of the samples that are trained as a single image is made: at the last step, where nothing of the
    image is left, and without noise.
    """

    kl: float = 1e-6
    perceptual: float = 0.5
    adversarial: float = 0.1
    critic_width: int = 64
    critic_layers: int = 3
    codec: float = 0.25
    sharpen: float = 0.1
    prior: float = 0.65
    codec_rate: float = 2e-4
    rate: float = 9.6e-5
    divergence: float = 1.0
    balance: float = 0.0
    mean: float = 0.0
    drop: float = 0.05

    def critic(self) -> Critic | None:
        if not self.adversarial:
            return None
        return Critic(2, 1, self.critic_width, self.critic_layers, norm="group")


class Judged(NamedTuple):
    """What the codec made of some images, for its losses and the critic's."""

    image: Tensor
    made: Reconstruction


def stages(method: ColaDiff) -> tuple[Stage, ...]:
    """The codec first, then against a critic ("from a late step"), then the prior on latents of unit variance."""
    learn, features = method.config.learn, losses.random_features(2)
    reconstruct = _reconstruct(method)
    plain = Player("codec", method.codec.parameters, lambda seen: codec_loss(seen, learn, features))
    first = Stage("codec", reconstruct, (plain,), learn.codec, learn.codec_rate)
    prior = Player("prior", method.net.parameters, lambda value: value)
    last = Stage("prior", _noise(method), (prior,), learn.prior, learn.rate, begin=_calibrate(method))
    if (critic := method.critic) is None:
        return first, last
    fooling = Player("codec", method.codec.parameters, lambda seen: codec_loss(seen, learn, features, critic))
    judge = Player("critic", critic.parameters, lambda seen: critic_loss(seen, critic))
    return first, Stage("sharpen", reconstruct, (fooling, judge), learn.sharpen, learn.codec_rate), last


# the codec


def _reconstruct(method: ColaDiff) -> Callable[[Batch, Rng], Judged]:
    def forward(batch: Batch, rng: Rng) -> Judged:
        image = seen(method, batch, rng)
        return Judged(image, method.codec.reconstruct(image, rng))

    return forward


def seen(method: ColaDiff, batch: Batch, rng: Rng) -> Tensor:
    """One image of each sample [B, 1, X, Y]: a modality that is there or, one time in four, a tissue map."""
    present = batch.present.expand_as(batch.images).flatten(2).all(2)
    u = rng.uniform(3).to(present.device)
    order = rng.uniform(present.shape[1]).to(present.device)
    which = torch.where(present, order, torch.full_like(order, -1.0)).argmax(1)
    rows = torch.arange(len(which), device=which.device)
    image = batch.images[rows, which][:, None]
    image = torch.where(present.any(1)[:, None, None, None], image, torch.full_like(image, -1.0))
    known = batch.metadata or {}
    if not method.config.guidance or "tissue" not in known:
        return image
    source = source_of(Task(present, which, present.any(1)), known, method.modalities)
    maps = guidance(batch, source)
    tissue = maps[rows, (u[:, 1] * maps.shape[1]).long()][:, None].to(image.dtype)
    return torch.where(((u[:, 0] < 0.25) & (source >= 0))[:, None, None, None], tissue, image)


def codec_loss(
    seen: Judged, learn: Learning, features: nn.Module, critic: Critic | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Absolute error + perceptual distance + divergence of the latent (+ the critic's opinion)."""
    features = features.to(seen.image.device)
    image, mean, log_variance = seen.made
    terms = {
        "l1": losses.l1(image, seen.image),
        "perceptual": learn.perceptual * losses.perceptual(features, image, seen.image),
        "kl": learn.kl * losses.kl(mean, log_variance),
    }
    if critic is not None:
        terms["fooling"] = learn.adversarial * losses.maker_loss("hinge", judged(critic, image))
    return torch.stack(list(terms.values())).sum(), {name: float(v.detach()) for name, v in terms.items()}


def critic_loss(seen: Judged, critic: Critic) -> tuple[Tensor, dict[str, float]]:
    real, made = critic(seen.image), critic(seen.made.image.detach())
    return losses.critic_loss("hinge", real, made), {}


# the latent space network


def _calibrate(method: ColaDiff) -> Callable[[Callable[[int], Batch]], None]:
    def begin(data: Callable[[int], Batch]) -> None:
        device = next(method.parameters()).device
        batches = [data(i).to(device) for i in range(MEASURED)]
        method.codec.calibrate(seen(method, b, Rng.of(0, len(b), "calibrate", i)) for i, b in enumerate(batches))
        method.first.begin(data)
        method.first.measure(guessed(method, b, Rng.of(0, len(b), "guess", i)) for i, b in enumerate(batches))

    return begin


def guessed(method: ColaDiff, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
    """The latents of what a step of training wants, and its conditions."""
    task, learn = training_task(method, batch, rng)
    return wanted(method, batch, task, learn), method.conditions(batch, task)[0]


def _noise(method: ColaDiff) -> Callable[[Batch, Rng], tuple[Tensor, dict[str, float]]]:
    def forward(batch: Batch, rng: Rng) -> tuple[Tensor, dict[str, float]]:
        task, learn = training_task(method, batch, rng)
        y, known = method.conditions(batch, task)
        return prior_loss(method, wanted(method, batch, task, learn), y, known, learn, rng)

    return forward


@torch.no_grad()
def wanted(method: ColaDiff, batch: Batch, task: Task, learn: Tensor) -> Tensor:
    """kappa_0: the latents of the target of each sample, of background where there is nothing to learn."""
    x = batch.images[torch.arange(len(batch)), task.target][:, None]
    return method.codec.encode(torch.where(learn[:, None, None, None], x, torch.full_like(x, -1.0)))


def training_task(method: ColaDiff, batch: Batch, rng: Rng) -> tuple[Task, Tensor]:
    """A task for each sample, and whether it has anything to learn: what is absent, or imputed, is no target."""
    present = batch.present.expand_as(batch.images).flatten(2).all(2)
    imputed = (batch.metadata or {}).get("imputed", torch.zeros_like(present))
    may = present & ~imputed
    if method.config.target:
        only = torch.tensor([m == method.config.target for m in method.modalities], device=may.device)
        may = may & only
    return drawn(present, may, rng, method.config.learn.drop), may.any(1)


def prior_loss(
    method: ColaDiff, kappa: Tensor, y: Tensor, known: Tensor, learn: Tensor, rng: Rng
) -> tuple[Tensor, dict[str, float]]:
    """Eqs. 3, 5 and 6: squared error of the prediction, and the divergence of the posteriors at the step drawn."""
    process, config = method.process, method.config
    t, eps = process.draw(rng.uniform().to(kappa.device)), rng.normal_like(kappa)
    seen = (rng.uniform().to(kappa.device) >= config.learn.mean).to(kappa)  # 0: nothing, not even noise
    t, seen = torch.where(seen > 0, t, torch.full_like(t, config.timesteps)), seen[:, None, None, None]
    alpha, sigma = (v[:, None, None, None] for v in process.at(t))
    eps = eps * seen
    x = alpha * kappa * seen + sigma * eps
    out, between = method.net(x, process.label(t), y, known).float().chunk(2, dim=1)
    out = out + method.first(x, y, alpha, sigma)
    p, q = TARGETS[config.prediction](alpha, sigma)
    error = ((out - (p * kappa + q * eps)).square() * balance(method)).mean((1, 2, 3))
    guess = x0_from(out.detach(), x, alpha, sigma, config.prediction)
    divergence = posterior_divergence(method, kappa, guess, between, t).mean((1, 2, 3))
    weight = learn / learn.sum().clamp(min=1)
    terms = {"noise": (error * weight).sum(), "divergence": config.learn.divergence * (divergence * weight).sum()}
    return terms["noise"] + terms["divergence"], {name: float(v.detach()) for name, v in terms.items()}


def balance(method: ColaDiff) -> Tensor:
    """How much the error of each latent channel counts, [C, 1, 1], 1 on average."""
    weight = method.codec.whitening.scale ** (-2 * method.config.learn.balance)
    return (weight / weight.mean())[:, None, None]


def posterior_divergence(method: ColaDiff, x0: Tensor, guess: Tensor, between: Tensor, t: Tensor) -> Tensor:
    """KL(q(kappa_{t-1} | kappa_t, kappa_0) || p(kappa_{t-1} | kappa_t)), nats per element (Eq. 6).

    The predicted log variance lies between the bounds log beta~ and log beta, at (between + 1) / 2 of the way (Nichol &
    Dhariwal 2021, Eq. 15); the means differ by that of the clean image alone, whose gradient is Eq. 3's affair.
    """
    (_, sigma), beta, (before, _) = method.process.at(t), forward_variance(method, t), method.process.at(t - 1)
    late = t.clamp(min=2)  # at the first step the posterior has no variance: it takes the second's
    (_, sigma2), (_, small) = method.process.at(late), method.process.at(late - 1)
    true = forward_variance(method, late) * (small / sigma2) ** 2
    reach, low, high = (v[:, None, None, None] for v in (before * beta / sigma**2, true.log(), beta.log()))
    predicted = low + (between + 1) / 2 * (high - low)
    apart = (reach * (x0 - guess)) ** 2
    return 0.5 * (predicted - low + torch.exp(low - predicted) - 1 + apart * torch.exp(-predicted))


def forward_variance(method: ColaDiff, t: Tensor) -> Tensor:
    """beta_t: the variance that one step adds."""
    return 1 - (method.process.at(t)[0] / method.process.at(t - 1)[0]) ** 2

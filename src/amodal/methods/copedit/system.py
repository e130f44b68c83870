"""CoPeDiT: a tokenizer that perceives what is missing, and a 3-D diffusion transformer that it tells so.

Stage 1 (CoPeVAE, Eqs. 1-4)   L = l1 + VQ + perceptual + adversarial + lambda (L_d + L_p + L_c); the critic is the
                              second player
Stage 2 (MDiT3D, Eq. 5)       |z_0 - f(z_t, t, p)|^2, z_t = [z_s clean, z_c noised]; the tokenizer is frozen

Where paper and common sense differ, see docs/methods/copedit.md: slots keep their place (modality k is always slot k),
so nothing but the prompts says which are missing; latents have unit variance; given slots stay clean in sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...codecs.codec import Whitening
from ...codecs.losses import critic_loss, l1, maker_loss, perceptual, planes, random_features, read_features
from ...codecs.memo import Memo
from ...core.contract import Batch, Player, Progress, Stage, share
from ...core.errors import InputError
from ...core.rng import Rng, seed_of
from ...diffusion.denoiser import Denoise, Denoiser, expand
from ...diffusion.process import DDPM
from ...diffusion.samplers import ddim, multistep
from ...nn.critic import Critic, judged
from . import patterns
from .backbones import latents, network, slots
from .config import Config
from .detail import carry, transfer
from .tokenizer import CoPeVAE, Judged, Perception, average, pretext

SEEN = 8  # batches that codes and latent scale are measured on
SOLVERS: dict[str, Callable[..., Tensor]] = {"ddim": ddim, "multistep": multistep}


class Tokenised(NamedTuple):
    """What the players of the first stage need: images [N, 1, *spatial], what was made of them, the pretext's part."""

    images: Tensor
    made: Tensor
    commitment: Tensor
    used: float
    asked: tuple[tuple[Judged, Tensor, Tensor], ...]  # for every pattern: the answers, the count, what is missing
    rng: Rng


class Seen(NamedTuple):
    """What the prior is given of a subject: latents [B, slots, C, *spatial] (standardised; zero where not `clean`),
    clean [B, slots], context like the latents or None, condition [B, K] or None."""

    z: Tensor
    clean: Tensor
    context: Tensor | None
    condition: Tensor | None


class CoPeDiT(nn.Module):
    """The method. A sample is a volume [M, X, Y, Z]."""

    dims = 3

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.modalities = config, config.modalities
        losses = config.losses
        self.tokenizer = CoPeVAE(config)
        self.critic = Critic(3, 1, losses.critic_width, losses.critic_layers, losses.critic_norm)
        self.features = read_features(losses.features) if losses.features else random_features(2)
        self.whitening = Whitening(config.codec.channels)
        process = DDPM(config.timesteps, "scaled_linear", config.first, config.last)
        self.prior = Denoiser(network(config), process, "x0")
        self.memo = Memo()

    @property
    def sampler(self) -> str:
        return f"{self.config.solver}-x0"

    def encode_metadata(self, rows: Sequence[Mapping[str, Any]]) -> None:
        return None

    # stage 1: the tokenizer

    def stages(self) -> tuple[Stage, ...]:
        config = self.config
        players = (
            Player("codec", lambda: learned(self.tokenizer), self._codec_loss),
            Player("critic", self.critic.parameters, self._critic_loss),
        )
        prior = (Player("prior", lambda: learned(self.prior), lambda value: (value, {})),)
        first, second = config.rates
        share = config.share if len(config.stages) > 1 else 1.0
        both = (
            Stage("tokenizer", self._tokenise, players, share, first, self._start_codes),
            Stage("prior", self._denoise, prior, 1 - share or 1.0, second, self._measure),
        )
        return tuple(stage for stage in both if stage.name in config.stages)

    def _tokenise(self, batch: Batch, rng: Rng) -> Tokenised:
        """Images through the codec, and a fresh random pattern of what is missing through heads and prompts."""
        config, codec = self.config, self.tokenizer.codec
        images, present = cut(batch.images, batch.present, config.losses.crop, rng)
        whole = present.flatten(2).all(2)
        if not whole.any():
            raise InputError("no sample of the batch has a whole image; train on studies that do.")
        x = images[whole][:, None]  # every modality is an image of its own; those absent take no part
        z = codec.encode(x)
        codes = codec.embed(z)
        used = 1.0
        if self.training and torch.is_grad_enabled():
            used = codec.embed.follow(z, rng[:1].fork("codes").uniform(config.codec.codes)[0])
        told = by_modality(self.tokenizer.told(z), whole) if config.layout == "modalities" else None
        asked = []
        for k in range(config.losses.patterns):
            available = patterns.draw(config, self._places(whole), rng.fork("pattern", k))
            asked.append((self._judge(images, whole, told, available), *patterns.labels(config, available)))
        return Tokenised(x, codec.image(codes), codec.commitment(z, codes), used, tuple(asked), rng)

    def _places(self, whole: Tensor) -> Tensor:
        return whole if self.config.layout == "modalities" else whole.expand(-1, self.config.places)

    def _judge(self, images: Tensor, whole: Tensor, told: Tensor | None, available: Tensor) -> Judged:
        """Prompts of the available part (a mean over its modalities, or its filled stack) and of the missing one."""
        tokenizer = self.tokenizer
        if told is not None:
            hidden = whole & ~available
            return tokenizer.judge(average(told, available), average(told, hidden), hidden.any(1))
        parts = [self._filled(images, part, whole) for part in (available, ~available)]
        seen, other = (tokenizer.told(tokenizer.codec.encode(part)) for part in parts)
        return tokenizer.judge(seen, other, whole[:, 0] & (~available).any(1))

    def _filled(self, images: Tensor, available: Tensor, whole: Tensor) -> Tensor:
        """Stacks with the slices that are not available [B, Z] interpolated; absent stacks are empty."""
        return patterns.filled(images, (available & whole)[:, None, None, None])

    def _codec_loss(self, out: Tokenised) -> tuple[Tensor, dict[str, float]]:
        config = self.config.losses
        error = l1(out.made, out.images)
        looks = [pair.chunk(2, 1) for pair in planes(torch.cat([out.made, out.images], 1), config.planes, out.rng)]
        seen = torch.stack([perceptual(self.features, a, b) for a, b in looks]).mean()
        game = maker_loss(config.game, judged(self.critic, out.made)) if config.adversarial else error * 0
        answers = [pretext(config, *asked) for asked in out.asked]
        tasks = torch.stack([loss for loss, _ in answers]).mean()
        logs = {name: sum(said[name] for _, said in answers) / len(answers) for name in answers[0][1]}
        loss = error + out.commitment + config.perceptual * seen + config.adversarial * game + config.pretext * tasks
        parts = {"l1": error, "perceptual": seen, "commitment": out.commitment, "game": game}
        return loss, logs | {name: float(value.detach()) for name, value in parts.items()} | {"used": out.used}

    def _critic_loss(self, out: Tokenised) -> tuple[Tensor, dict[str, float]]:
        if not self.config.losses.adversarial:
            return torch.zeros(()), {}  # nobody asks the critic, so it rests
        made = out.made.detach()
        return critic_loss(self.config.losses.game, self.critic(out.images), self.critic(made)), {}

    def _start_codes(self, data: Callable[[int], Batch]) -> None:
        """Codes that are latents of the first batches: none begins dead."""
        found = []
        for k in range(SEEN):
            batch = data(k)
            whole = batch.present.flatten(2).all(2)
            found.append(self.tokenizer.codec.encode(batch.images[whole][:, None]))
        rng = Rng([seed_of("codes")])
        self.tokenizer.codec.embed.start(found, rng.uniform(self.config.codec.codes)[0])

    # stage 2: the prior

    def _measure(self, data: Callable[[int], Batch]) -> None:
        """The latents' mean and scale, from the first batches."""
        with frozen(self.tokenizer):
            batches = (data(k) for k in range(SEEN))
            wholes = ((b.images, b.present.flatten(2).all(2)) for b in batches)
            self.whitening.fit(self._encode(images[whole][:, None])[0] for images, whole in wholes)

    def _denoise(self, batch: Batch, rng: Rng) -> Tensor:
        """Eq. 5: what is missing is noised, what is available stays clean; the error of the former, or of both."""
        config, process = self.config, self.prior.process
        whole = batch.present.flatten(2).all(2)
        if not whole.any():
            raise InputError("no sample of the batch has a whole image; train on studies that do.")
        available = patterns.draw(config, self._places(whole), rng.fork("pattern"))
        present = self._voxels(available)
        with torch.no_grad(), frozen(self.tokenizer):
            z, told = self._whole(batch.images, whole)
            truth = slots(config, z)
            seen = self._view(z, told, present) if config.layout == "modalities" else self._seen(batch.images, present)
        t = process.draw(rng.uniform().to(truth.device))
        alpha, sigma = (expand(v, truth) for v in process.at(t))
        known = spread(whole if config.layout == "modalities" else whole.expand(-1, config.slots), truth)
        clean = spread(seen.clean, truth)
        noise = rng.normal_like(truth)
        noised = torch.where(known, alpha * truth + sigma * noise, noise)  # absent: nothing but noise
        out = self.prior.net(torch.where(clean, seen.z, noised), process.label(t), seen.condition, seen.context).float()
        weight = known * torch.where(clean, config.copy, 1.0)
        error = (out - truth) ** 2 * weight
        return error.sum() / weight.expand_as(error).sum().clamp(min=1e-6)

    def _voxels(self, available: Tensor) -> Tensor:
        """Available places [B, places] -> present [B, M, 1, 1, 1 or Z]."""
        return (
            available[..., None, None, None] if self.config.layout == "modalities" else available[:, None, None, None]
        )

    # both: what is known of a subject

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 1, *spatial] -> latents, not yet standardised, and their prompts [N, 3, size]."""
        z = self.tokenizer.codec.encode(x)
        return z, self.tokenizer.told(z)

    def _whole(self, images: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised latents [B, M, C, *spatial] and prompts [B, M, 3, size] where `whole` [B, M], else 0."""
        remember = self.memo.each if self.training else lambda function, x, of: function(x)
        z, told = remember(self._encode, images[whole][:, None], of=self.tokenizer)
        z = self.whitening.enter(z)
        return by_modality(z, whole), by_modality(told, whole)

    def _seen(self, images: Tensor, present: Tensor) -> Seen:
        """From what is present (broadcasts to images) alone; images may hold anything elsewhere."""
        return self._view(*self._glimpse(images, present), present)

    def _glimpse(self, images: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and prompts of what is present, its gaps filled for the encoder."""
        pairs = (v.flatten(0, 1)[:, None] for v in (images, present.expand(*images.shape[:2], *present.shape[2:])))
        return self._whole(patterns.filled(*pairs).reshape(images.shape), present.flatten(2).any(2))

    def _view(self, z: Tensor, told: Tensor, present: Tensor) -> Seen:
        """What the prior may know of latents [B, M, C, *spatial] and prompts [B, M, 3, size]."""
        config = self.config
        z, clean = slots(config, z * spread(present.flatten(2).any(2), z)), patterns.given(config, present)
        prompts = average(told, telling(present))
        context = z if config.prior.context else None
        return Seen(z * spread(clean, z), clean, context, self._condition(prompts, patterns.places(config, present)))

    def _condition(self, prompts: Tensor, places: Tensor) -> Tensor | None:
        """Prompts [B, 3, size] or the bits of what is there [B, places], as the prior is to be told."""
        guidance = self.config.guidance
        if guidance == ("mask",):
            return places.float()
        chosen = [prompts[:, i] for i, name in enumerate(("count", "position", "contrast")) if name in guidance]
        return torch.cat(chosen, dim=1) if chosen else None

    # inference

    def steps_for(self, samples: int) -> int:
        return self.config.steps

    @torch.inference_mode()
    def perceive(self, batch: Batch) -> Perception:
        """What is missing of each subject, as the tokenizer sees it: it is told nothing but the images there are."""
        present = self._there(batch)
        with frozen(self.tokenizer):
            _, told = self._glimpse(batch.images, present)
        return self.tokenizer.perceive(average(told, telling(present)))

    @torch.inference_mode()
    def complete(self, batch: Batch, rng: Rng, progress: Progress | None = None) -> Tensor:
        """Fill in volumes [B, M, X, Y, Z]; what is present comes back bit for bit."""
        present = self._there(batch)
        made = [
            self._complete(batch.images[i : i + 1], present[i : i + 1], rng[i : i + 1], share(progress, i, len(batch)))
            for i in range(len(batch))
        ]
        return torch.where(present, batch.images, torch.cat(made).to(batch.images.dtype))

    def _there(self, batch: Batch) -> Tensor:
        """What is present, voxel by voxel; InputError if that is nothing, or a stack of another length."""
        present = batch.present.expand_as(batch.images)
        depth, known = batch.images.shape[-1], self.config.size[2]
        if self.config.layout == "slices" and depth != known:
            raise InputError(f"a stack of {depth} slices: this model was made for {known} slices, give so many.")
        if not present.flatten(1).any(1).all():
            raise InputError("nothing of this subject is there; give at least one modality.")
        return present

    def _complete(self, images: Tensor, present: Tensor, rng: Rng, progress: Progress | None) -> Tensor:
        """One subject [1, M, X, Y, Z]."""
        z = self.sample(images, present, rng, progress)
        wanted = ~present.flatten(2).all(2)[0]
        made = torch.zeros_like(images)
        z = latents(self.config, z)[0]
        found = self._decode(z[wanted])
        if self.config.detail and len(found):
            found = self._detailed(found, images[0], present[0], wanted)
        made[:, wanted] = found.clamp(-1, 1).to(made.dtype)
        return made

    def _decode(self, z: Tensor) -> Tensor:
        """Standardised latents [K, C, *spatial] -> images [K, X, Y, Z]."""
        return self.tokenizer.codec.decode(self.whitening.leave(z))[:, 0]

    def _detailed(self, made: Tensor, images: Tensor, present: Tensor, wanted: Tensor) -> Tensor:
        """Images made [K, X, Y, Z], with what the codec loses of what is given, images and present [M, X, Y, Z]."""
        if self.config.layout == "slices":
            there = present[0].flatten(0, 1).all(0)
            return carry(made, images.float() - made, there, self.config.detail)
        given = images[~wanted].float()
        if not len(given):
            return made
        again = self._decode(self.whitening.enter(self.tokenizer.codec.encode(given[:, None])))
        return transfer(made, given, again, round(self.config.detail))

    def sample(self, images: Tensor, present: Tensor, rng: Rng, progress: Progress | None = None) -> Tensor:
        """Latents [B, slots, C, *spatial] of whole subjects: given ones as encoded, to the bit, the others drawn."""
        config, process = self.config, self.prior.process
        with frozen(self.tokenizer):
            seen = self._seen(images, present)
        clean = spread(seen.clean, seen.z)
        net = self.prior.net

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            out = net(torch.where(clean, seen.z, x), process.label(t), seen.condition, seen.context)
            return torch.where(clean, seen.z, out.float())

        bent: Denoise = denoise
        noise = rng.normal_like(seen.z)
        return SOLVERS[config.solver](bent, process, noise, process.grid(config.steps), progress=progress)


def cut(images: Tensor, present: Tensor, crop: Sequence[int], rng: Rng) -> tuple[Tensor, Tensor]:
    """A random sub-volume of every sample, `crop` voxels (0: all) along each axis; presence must not vary within."""
    sizes = [min(c, n) if c else n for c, n in zip(crop, images.shape[2:])]
    starts = rng.fork("crop").uniform(3)
    parts = []
    for image, u in zip(images, starts):
        corner = [int(v * (n - c + 1)) for v, n, c in zip(u, images.shape[2:], sizes)]
        x, y, z = (slice(a, a + c) for a, c in zip(corner, sizes))
        parts.append(image[:, x, y, z])
    return torch.stack(parts), present


def by_modality(values: Tensor, whole: Tensor) -> Tensor:
    """Values [N, ...] of the N images that are there, whole [B, M] -> [B, M, ...], 0 elsewhere."""
    return values.new_zeros(*whole.shape, *values.shape[1:]).index_put((whole,), values)


def telling(present: Tensor) -> Tensor:
    """Which modalities [B, M] the prompts are averaged over: the whole ones, or where there are none all that show."""
    flat = present.flatten(2)
    whole, some = flat.all(2), flat.any(2)
    return torch.where(whole.any(1, keepdim=True), whole, some)


def spread(flags: Tensor, like: Tensor) -> Tensor:
    """[B, slots] with axes appended, to go with `like`."""
    return flags.reshape(*flags.shape, *(1,) * (like.ndim - 2))


def learned(module: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters that are learned (codes are not)."""
    return (p for p in module.parameters() if p.requires_grad)


@contextmanager
def frozen(module: nn.Module):
    """The module in evaluation mode, its batch norms included; as it was before once the block is left."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)

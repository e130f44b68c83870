"""CoPeDiT: a tokenizer that perceives what is missing, and a 3-D diffusion transformer that it tells so.

Stage 1 (CoPeVAE, Eqs. 1-4)   L = l1 + VQ + perceptual + adversarial + lambda (L_d + L_p + L_c); the critic is the
                              second player
Stage 2 (MDiT3D, Eq. 5)       |z_0 - f(z_t, t, p)|^2, z_t = [z_s clean, z_c noised]; the tokenizer is frozen

Where paper and common sense differ, see docs/methods/copedit.md: slots keep their place (modality k is always slot k),
so nothing but the prompts says which are missing; latents have unit variance; given slots stay clean in sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...codecs.codec import Whitening
from ...codecs.losses import critic_loss, l1, maker_loss, perceptual, planes, random_features, read_features
from ...codecs.memo import Memo
from ...core.contract import Batch, Player, Progress, Stage, share
from ...core.errors import InputError
from ...core.rng import Rng, seed_of
from ...diffusion.denoiser import Denoiser, expand
from ...diffusion.process import DDPM
from ...diffusion.samplers import ddim, multistep
from ...nn.critic import Critic, judged
from . import patterns
from .backbones import latents, network, slots
from .config import Config
from .patterns import by_modality, cut, telling, there
from .sketch import Sketch, begun, filled_each
from .tokenizer import CoPeVAE, Judged, Perception, average, frozen, learned, pretext

SEEN = 8  # batches that codes and latent scale are measured on
PERCEIVING = 0.1  # of a run, against the share of the tokenizer: the stage that trains nothing but the prompts
DRAWN = 25  # steps of a draw, where one step makes a mean
SOLVERS: dict[str, Callable[..., Tensor]] = {"ddim": ddim, "multistep": multistep}


Asked = tuple[tuple[Judged, Tensor, Tensor], ...]  # for every pattern: the answers, the count, what is missing
Encode = Callable[[Tensor], Tensor]


class Tokenised(NamedTuple):
    """What the players of the first stage need: images [N, 1, *spatial], what was made of them, the pretext's part."""

    images: Tensor
    made: Tensor
    commitment: Tensor
    used: float
    asked: Asked
    rng: Rng


class Seen(NamedTuple):
    """What the prior is given of a subject: latents [B, slots, C, *spatial] (standardised; zero where not `clean`),
    clean [B, slots], condition [B, K] or None. Of the sketch, or None: its images, their latent like the others
    (`context`), its doubts [B, slots, 1, *spatial]."""

    z: Tensor
    clean: Tensor
    condition: Tensor | None
    sketch: Tensor | None = None
    context: Tensor | None = None
    doubts: Tensor | None = None


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
        self.sketch = Sketch(config) if config.prior.context else None
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
        heads = (Player("perception", self.tokenizer.perceiving, self._pretext_loss),)
        prior = (Player("prior", lambda: learned(self.prior), lambda value: (value, {})),)
        first, second = config.rates
        parts = {"tokenizer": config.share, "perception": PERCEIVING, "prior": 1 - config.share}
        whole = sum(parts[name] for name in config.stages)
        every = (
            Stage("tokenizer", self._tokenise, players, parts["tokenizer"] / whole, first, self._start_codes),
            Stage("perception", self._ask, heads, parts["perception"] / whole, 2e-3),
            Stage("prior", self._denoise, prior, parts["prior"] / whole, second, self._measure),
        )
        return tuple(stage for stage in every if stage.name in config.stages)

    def _tokenise(self, batch: Batch, rng: Rng) -> Tokenised:
        """Images through the codec, and a fresh random pattern of what is missing through heads and prompts."""
        config, codec = self.config, self.tokenizer.codec
        images, whole = cut(batch.images, config.losses.crop, rng), there(batch)
        x = images[whole][:, None]  # every modality is an image of its own; those absent take no part
        z = codec.encode(x)
        codes = codec.embed(z)
        used = 1.0
        if self.training and torch.is_grad_enabled():
            used = codec.embed.follow(z, rng[:1].fork("codes").uniform(len(codec.embed.codes))[0])
        asked = self._asked(images, whole, z, codec.encode, rng)
        return Tokenised(x, codec.image(codes), codec.commitment(z, codes), used, asked, rng)

    def _asked(self, images: Tensor, whole: Tensor, z: Tensor, encode: Encode, rng: Rng) -> Asked:
        """The pretext of fresh patterns, given the latents z of the images that are there."""
        config, asked = self.config, []
        told = by_modality(self.tokenizer.told(z), whole) if config.layout == "modalities" else None
        for k in range(config.losses.patterns):
            available = patterns.draw_or_none(config, self._places(whole), rng.fork("pattern", k))
            asked.append((self._judge(images, whole, told, available, encode), *patterns.labels(config, available)))
        return tuple(asked)

    def _ask(self, batch: Batch, rng: Rng) -> Asked:
        """The pretext alone, the codec frozen: many cheap steps."""
        whole, codec = there(batch), self.tokenizer.codec

        def encode(x: Tensor) -> Tensor:
            with torch.no_grad(), frozen(codec):
                return self.memo.each(lambda row: (codec.encode(row),), x, of=codec)[0]

        return self._asked(batch.images, whole, encode(batch.images[whole][:, None]), encode, rng)

    def _places(self, whole: Tensor) -> Tensor:
        return whole if self.config.layout == "modalities" else whole.expand(-1, self.config.places)

    def _judge(self, images: Tensor, whole: Tensor, told: Tensor | None, available: Tensor, encode: Encode) -> Judged:
        """Prompts of the available part (a mean over its modalities, or its filled stack) and of the missing one."""
        tokenizer = self.tokenizer
        if told is not None:
            hidden = whole & ~available
            return tokenizer.judge(average(told, available), average(told, hidden), hidden.any(1))
        paired = whole[:, 0] & (~available).any(1)
        parts = [patterns.filled(images, (part & whole)[:, None, None, None]) for part in (available, ~available)]
        z = encode(torch.cat([parts[0], parts[1][paired]]))  # together: batch norms see both kinds in one
        seen, other = tokenizer.told(z).split([len(images), len(z) - len(images)])
        return tokenizer.judge(seen, by_modality(other, paired), paired)

    def _codec_loss(self, out: Tokenised) -> tuple[Tensor, dict[str, float]]:
        config = self.config.losses
        error = l1(out.made, out.images)
        looks = [pair.chunk(2, 1) for pair in planes(torch.cat([out.made, out.images], 1), config.planes, out.rng)]
        seen = torch.stack([perceptual(self.features, a, b) for a, b in looks]).mean()
        game = maker_loss(config.game, judged(self.critic, out.made)) if config.adversarial else error * 0
        tasks, logs = self._pretext_loss(out.asked)
        loss = error + out.commitment + config.perceptual * seen + config.adversarial * game + config.pretext * tasks
        parts = {"l1": error, "perceptual": seen, "commitment": out.commitment, "game": game}
        return loss, logs | {name: float(value.detach()) for name, value in parts.items()} | {"used": out.used}

    def _pretext_loss(self, asked: Asked) -> tuple[Tensor, dict[str, float]]:
        """The three tasks, mean over the patterns that were asked about."""
        answers = [pretext(self.config.losses, *question) for question in asked]
        logs = {name: sum(said[name] for _, said in answers) / len(answers) for name in answers[0][1]}
        return torch.stack([loss for loss, _ in answers]).mean(), logs

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
        embed, rng = self.tokenizer.codec.embed, Rng([seed_of("codes")])
        embed.start(found, rng.uniform(len(embed.codes))[0])

    # stage 2: the prior

    def _measure(self, data: Callable[[int], Batch]) -> None:
        """The latents' mean and scale and, for sketches, how they are made and what they lack: from first batches."""
        wholes = [(batch.images, there(batch)) for batch in map(data, range(SEEN))]
        with frozen(self.tokenizer):
            self.whitening.fit(self._encode(images[whole][:, None])[0] for images, whole in wholes)
            if self.sketch is not None:
                self.sketch.begin(data)
                self.sketch.measure(self._missed(wholes))

    def _missed(self, wholes: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """How far latents lie from their sketches, how doubtful those are, and which slots they made."""
        for k, (images, whole) in enumerate(wholes):
            truth, seen, known = self._known(images, whole, Rng.of(0, len(images), "sketch", k))
            assert seen.context is not None and seen.doubts is not None
            yield truth - seen.context, seen.doubts, known & ~seen.clean

    def _known(self, images: Tensor, whole: Tensor, rng: Rng) -> tuple[Tensor, Seen, Tensor]:
        """A fresh pattern of what is available: true latents [B, slots, C, *spatial], what may be known of them, and
        which of them there are [B, slots]."""
        config = self.config
        present = self._voxels(patterns.draw(config, self._places(whole), rng.fork("pattern")))
        with torch.no_grad(), frozen(self.tokenizer):
            z, told = self._whole(images, whole)
            truth = slots(config, z)
            if config.layout == "slices":
                return truth, self._seen(images, present), whole.expand(-1, config.slots)
            return truth, self._view(images, z, told, present), whole

    def _denoise(self, batch: Batch, rng: Rng) -> Tensor:
        """Eq. 5: what is missing is noised, what is available stays clean; the error of the former, or of both."""
        process = self.prior.process
        truth, seen, known = self._known(batch.images, there(batch), rng)
        t = process.draw(rng.uniform().to(truth.device))
        blank = rng.fork("blank").uniform().to(truth.device) < self.config.blank
        t = torch.where(blank, torch.full_like(t, process.end), t)
        alpha, sigma = (expand(v, truth) for v in process.at(t))
        noise = rng.normal_like(truth)
        noised = torch.where(expand(known, truth), alpha * truth + sigma * noise, noise)  # absent: nothing but noise
        noised = torch.where(expand(blank, truth), torch.zeros_like(noised), noised)
        weight = expand(known * torch.where(seen.clean, self.config.copy, 1.0), truth) * self._importance()
        error = (self._predict(seen, noised, t, blank) - truth) ** 2 * weight
        return error.sum() / weight.expand_as(error).sum().clamp(min=1e-6)

    def _importance(self) -> Tensor:
        """Of the latent's channels [C, 1, 1, 1], mean 1: a linear codec's errors count as they do in the image."""
        variance = self.whitening.scale**-2 if self.config.codec.linear else torch.ones_like(self.whitening.scale)
        return (variance / variance.mean())[:, None, None, None]

    def _predict(self, seen: Seen, x: Tensor, t: Tensor, blank: Tensor) -> Tensor:
        """z_0 from x_t [B, slots, C, *spatial] at t [B], which says nothing where `blank` [B]; given slots clean; a
        prior with sketches begins there."""
        process = self.prior.process
        x = torch.where(expand(seen.clean, x), seen.z, x)
        out = self.prior.net(x, process.label(t), seen.condition, seen.context).float()
        if self.sketch is None or seen.context is None or seen.doubts is None:
            return out
        alpha, sigma = process.at(t)
        alpha, sigma = (expand(torch.where(blank, n, v), x) for v, n in ((alpha, 0.0), (sigma, 1.0)))
        return begun(seen.context, self.sketch.variance(seen.doubts), out, x, alpha, sigma)

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
        return self._view(images, *self._glimpse(images, present), present)

    def _glimpse(self, images: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and prompts of what is present, its gaps filled for the encoder."""
        whole = filled_each(images, present.expand(*images.shape[:2], *present.shape[2:]))
        return self._whole(whole, present.flatten(2).any(2))

    def _view(self, images: Tensor, z: Tensor, told: Tensor, present: Tensor) -> Seen:
        """What the prior may know of images of which some is present, latents [B, M, C, *spatial] and prompts
        [B, M, 3, size] of that."""
        config, shown = self.config, telling(present)
        clean = patterns.given(config, present)
        condition = self._condition(average(told, shown), patterns.places(config, present))
        known = slots(config, z * expand(present.flatten(2).any(2), z))
        seen = Seen(known * expand(clean, known), clean, condition)
        if self.sketch is None:
            return seen
        sketch, variance = self.sketch(images, present)
        if not shown.all():
            z = torch.where(expand(shown, z), z, self._whole(sketch, ~shown)[0])
        return seen._replace(sketch=sketch, context=slots(config, z), doubts=self.sketch.doubts(variance))

    def _condition(self, prompts: Tensor, places: Tensor) -> Tensor | None:
        """Prompts [B, 3, size] or the bits of what is there [B, places], as the prior is to be told."""
        guidance = self.config.guidance
        if guidance == ("mask",):
            return places.float()
        chosen = [prompts[:, i] for i, name in enumerate(("count", "position", "contrast")) if name in guidance]
        return torch.cat(chosen, dim=1) if chosen else None

    # inference

    def steps_for(self, samples: int) -> int:
        """One step makes a mean, which is the same at every draw; several samples are drawn in more."""
        return DRAWN if samples > 1 and self._mean else self.config.steps

    @property
    def _mean(self) -> bool:
        return self.config.steps == 1 and self.config.blank > 0

    @torch.inference_mode()
    def perceive(self, batch: Batch) -> Perception:
        """What is missing of each subject, as the tokenizer sees it: it is told nothing but the images there are."""
        present = self._there(batch)
        with frozen(self.tokenizer):
            _, told = self._glimpse(batch.images, present)
        return self.tokenizer.perceive(average(told, telling(present)))

    @torch.inference_mode()
    def voxelwise(self, batch: Batch) -> Tensor | None:
        """The sketch of modalities [B, M, X, Y, Z], at any size; None if the prior is shown none."""
        if self.sketch is None or self.config.layout == "slices":
            return None
        return self.sketch(batch.images, batch.present)[0]

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
        with frozen(self.tokenizer):
            seen = self._seen(images, present)
        wanted = ~present.flatten(2).all(2)[0]
        codec, z = self.tokenizer.codec, self._wanted(self._drawn(seen, rng, progress), wanted)
        if seen.sketch is None or seen.context is None:
            found = codec.decode(z)[:, 0]
        else:
            change = codec.image(z) - codec.image(self._wanted(seen.context, wanted))
            found = seen.sketch[0, wanted] + change[:, 0]
        made = torch.zeros_like(images)
        made[:, wanted] = found.clamp(-1, 1).to(made.dtype)
        return made

    def _wanted(self, z: Tensor, wanted: Tensor) -> Tensor:
        """Standardised latents of one subject [1, slots, C, *spatial] -> the codec's of some modalities."""
        return self.whitening.leave(latents(self.config, z)[0, wanted])

    def sample(self, images: Tensor, present: Tensor, rng: Rng, progress: Progress | None = None) -> Tensor:
        """Latents [B, slots, C, *spatial] of whole subjects: given ones as encoded, to the bit, the others drawn."""
        with frozen(self.tokenizer):
            seen = self._seen(images, present)
        return self._drawn(seen, rng, progress)

    def _drawn(self, seen: Seen, rng: Rng, progress: Progress | None) -> Tensor:
        config, process, clean = self.config, self.prior.process, expand(seen.clean, seen.z)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            blank = torch.full_like(t, self._mean, dtype=torch.bool)
            return torch.where(clean, seen.z, self._predict(seen, x, t, blank))

        noise = rng.normal_like(seen.z) * (not self._mean)
        return SOLVERS[config.solver](denoise, process, noise, process.grid(config.steps), progress=progress)

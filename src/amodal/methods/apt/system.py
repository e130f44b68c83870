"""APT: a unified prior conditioned on what the modalities have in common, started from a first guess out of a book.

z = fusion(encoder(x_c) for every modality c that is there)             section 3.1
eps_theta(x_t, t, z)    one prior over the stack, one time for all      section 3.2
codebook                which modality, bent and scaled, to begin with  section 3.3
stage 1, stage 2        from the noised guess down; then unrolling      section 3.4
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...core.contract import Batch, Player, Progress, Stage
from ...core.errors import InputError
from ...core.rng import Rng
from ...diffusion.bends import chunked, clip
from ...diffusion.coupling import couple
from ...diffusion.denoiser import Denoise, Denoiser, Prediction, expand
from ...diffusion.process import DDPM, Schedule
from ...nn.unet import UNetConfig
from ...physics.linear import mask
from ...physics.posterior import Observation, gradient, hold, project
from ..stack import StackNet
from .codebook import CURVES, Codebook, Ranking, prior
from .features.encoder import Encoder
from .features.fusion import Fusion, contrast, subset
from .features.vit import ViTConfig
from .features.weights import fill
from .guidance import pull
from .inference import stage1, stage2
from .network import Network, variance_loss

Guess = Literal["adaptive", "mean", "random", "noise", "zero"]


@dataclass(frozen=True)
class FeatureConfig:
    """`encoder`: "own", trained here on the user's images, or "given", a frozen one whose `weights` (a file,
    a folder or a hub id) are read when training begins; they travel with the model from then on. `tokens`: what
    cross-attention sees, one "fused" vector or one vector for each of the encoder's "patches". `drop`: modalities left
    out of the subset in training, "one" or "any" number.
    """

    encoder: Literal["own", "given"] = "own"
    vit: ViTConfig = field(default_factory=ViTConfig)
    weights: str = ""
    heads: int = 8
    tokens: Literal["fused", "patches"] = "fused"
    drop: Literal["one", "any"] = "any"
    share: float = 0.1  # of the training, for the encoder and for the fusion each


@dataclass(frozen=True)
class Config:
    """`start` M and `steps` S of stage 1 (0: no stage at all); `near`, `unroll` N (0: no stage 2) and `weight` w of
    stage 2. `guess`: what stage 1 begins with, "adaptive" out of the book (the paper) or the "mean" that one
    evaluation of a prior with `known`="held" tells. `ranking`: sources by the features' votes (the paper) or by their
    error. `retrieve`: take the curves and scales of so many most similar training slices in place of the table's (0),
    `retrieve_by` each slice or the mean of a subject's. `guidance`: "pull", the gradient step of Eq. 4 with `strength`
    alpha; "exact", the step that needs no strength; "none". `subsets`: how often in training the prior's features come
    from a random subset of the modalities, as they do in use. `given`: how often the prior is shown that subset clean,
    at time 0, with all others noised (0: never, the paper); such a prior can be used with `known`="held", which shows
    it modalities that are known as they are, in place of noising them with the rest and pulling. `components`: of the
    mixture that such a prior estimates each voxel by, before its network does better (0: a learned map, see
    `methods.stack`). `tilt`: training times are drawn as u ** tilt of the whole, u uniform: above 1 more of the small
    ones, where inference begins. `coupling`: how far the noise of neighbouring slices is alike (SD in slices, 0
    independent). `spacing`: range of millimetres between voxels in the slice. `chunk`: slices per evaluation.
    """

    modalities: tuple[str, ...]
    net: UNetConfig
    features: FeatureConfig = field(default_factory=FeatureConfig)
    transformers: bool = False
    timesteps: int = 1000
    schedule: Schedule = "linear"
    prediction: Prediction = "noise"
    subsets: float = 0.75
    given: float = 0.0
    components: int = 0
    tilt: float = 1.0
    known: Literal["noised", "held"] = "noised"
    start: int = 400
    steps: int = 20
    near: int = 40
    unroll: int = 50
    weight: float = 0.5
    guess: Guess = "adaptive"
    ranking: Ranking = "votes"
    retrieve: int = 0
    retrieve_by: Literal["slice", "subject"] = "slice"
    memory: int = 256
    guidance: Literal["pull", "exact", "none"] = "pull"
    strength: float = 20.0
    coupling: float = 0.0
    spacing: tuple[float, float] = (0.7, 1.6)
    chunk: int = 16

    def __post_init__(self) -> None:
        n = len(self.modalities)
        if self.net.in_channels != n or self.net.out_channels not in (n, 2 * n):
            raise InputError(
                f"the network has {self.net.in_channels} input and {self.net.out_channels} output channels for {n} "
                f"modalities; give net.in_channels={n} and net.out_channels={n} (or {2 * n}, with variances)."
            )
        if self.net.tokens != self.features.vit.outputs:
            raise InputError(
                f"net.tokens={self.net.tokens}: features are {self.features.vit.outputs} wide; give that number."
            )
        if self.net.times != (n if self.given else 1) or (self.known == "held" and not self.given):
            raise InputError(
                f"given={self.given}, known={self.known}, net.times={self.net.times}: a prior that is shown known "
                f"modalities clean needs given above 0 and net.times={n}; any other has net.times=1 and known=noised."
            )
        if self.guess == "mean" and self.known != "held":
            raise InputError("guess=mean: only a prior that is shown what is known can tell it; add known=held.")
        if self.given and (self.transformers or self.net.out_channels != n):
            raise InputError(
                f"given={self.given}: choose net.out_channels={n} and transformers=false with it, or given=0."
            )
        if not (0 < self.start <= self.timesteps and 0 < self.near <= self.start and 0 <= self.steps <= self.start):
            raise InputError(
                f"start={self.start}, steps={self.steps}, near={self.near}: choose 1 to {self.timesteps} for start, "
                "1 to start for near, and 0 to start for steps."
            )


class APT(nn.Module):
    """Encoder, fusion, codebook and prior. A sample is an axial slice [M, X, Y]."""

    dims = 2

    def __init__(self, config: Config):
        super().__init__()
        features = config.features
        self.weights = features.weights  # a path of the machine that trains: not part of the model
        self.config = replace(config, features=replace(features, weights=""))
        self.modalities = config.modalities
        width = features.vit.outputs
        self.encoder = Encoder(features.vit, features.encoder == "own", features.tokens == "patches")
        self.fusion = Fusion(width, features.heads)
        self.codebook = Codebook(config.modalities, width, config.memory)
        process = DDPM(config.timesteps, config.schedule)
        net = (
            StackNet(config.net, process, config.prediction, config.components)
            if config.given
            else Network(config.net, config.transformers)
        )
        self.prior = Denoiser(net, process, config.prediction)

    # training

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.features.share
        own = self.config.features.encoder == "own"
        rest = 1 - share * (1 + own)
        encoder = Stage("encoder", self._see, (Player("encoder", self._encoder_parameters),), share)
        features = Stage("features", self._fuse, (Player("fusion", self.fusion.parameters),), share,
                         begin=self._begin_features)  # fmt: skip
        last = Stage("prior", self._predict, (Player("prior", self.prior.parameters),), rest,
                     begin=self._begin_prior)  # fmt: skip
        return (*((encoder,) if own else ()), features, last)

    def _encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())

    def _see(self, batch: Batch, rng: Rng) -> Tensor:
        """One modality a sample, of those present."""
        images, present = known(batch)
        chosen = subset(present, rng.uniform(present.shape[1]).to(images.device), torch.ones_like(present[:, 0]).long())
        index = chosen.float().argmax(1)
        return self.encoder.loss(images[torch.arange(len(images)), index].unsqueeze(1), rng)

    def _fuse(self, batch: Batch, rng: Rng) -> Tensor:
        images, present = known(batch)
        with torch.no_grad():
            tokens = self.encoder(images)
        part = self._some(present, rng, always=True)
        whole, some = (self.fusion.whole(tokens, there) for there in (present, part))
        return contrast(whole, some, self.fusion.log_scale)

    def _predict(self, batch: Batch, rng: Rng) -> Tensor:
        """Modalities a subject lacks are first guesses to the network and do not count in the loss."""
        images, present = known(batch)
        where = present[..., None, None]
        with torch.no_grad():
            part = self._some(present, rng, always=False)
            tokens = self.fusion(self.encoder(images), part)
            if not present.all():
                full = where.expand_as(images)
                images = torch.stack([self.codebook.guess(i, p, self.config.ranking) for i, p in zip(images, full)])
        learns_variance = self.config.net.out_channels > len(self.modalities)
        if learns_variance:
            return variance_loss(self.prior, images, rng, tokens, where)
        t = self._times(part, present, rng)
        return self.prior.loss(images, rng, tokens, t=t, where=where & (expand(t, images) > 0))

    def _times(self, part: Tensor, present: Tensor, rng: Rng) -> Tensor:
        """One time a sample [B]; or [B, M], 0 for the modalities of `part` in samples that are shown them clean."""
        u = rng.uniform(2).to(present.device)
        t = self.prior.process.draw(u[:, 0] ** self.config.tilt)
        if self.config.given == 0:
            return t
        clean = part & (u[:, 1] < self.config.given)[:, None] & ~(part == present).all(1, keepdim=True)
        return torch.where(clean, torch.zeros_like(t)[:, None], t[:, None])

    def _some(self, present: Tensor, rng: Rng, always: bool) -> Tensor:
        """A random subset of what is present [B, M]; without `always` only now and then (`subsets`)."""
        u = rng.uniform(present.shape[1] + 2).to(present.device)
        count = present.sum(1)
        keep = 1 + (u[:, -2] * (count - 1)).floor().long() if self.config.features.drop == "any" else count - 1
        part = subset(present, u[:, :-2], keep)
        return part if always else torch.where(u[:, -1:] < self.config.subsets, part, present)

    def _begin_features(self, data: Callable[[int], Batch]) -> None:
        """Read given weights; fix the scale of the features."""
        if self.config.features.encoder == "given":
            if not self.weights:
                raise InputError(
                    "features.encoder=given needs weights; add features.weights=FILE (BiomedCLIP's) "
                    "or choose features.encoder=own."
                )
            fill(self.encoder.vit, self.weights)
        images, present = self._some_slices(data)
        self.encoder.measure(images[present])

    def _begin_prior(self, data: Callable[[int], Batch]) -> None:
        """Compute the codebook; fit what the network begins with."""
        images, present = self._some_slices(data)
        self.codebook.fit(images, present, self.encoder.vectors, self._fused)
        cast("StackNet | Network", self.prior.net).begin(data)

    def _some_slices(self, data: Callable[[int], Batch]) -> tuple[Tensor, Tensor]:
        """About `memory` training slices [N, M, X, Y] with presence [N, M]."""
        found = [known(data(0).to(self.codebook.votes.device))]
        while len(found) * len(found[0][0]) < max(self.config.memory, 64):
            found.append(known(data(len(found)).to(self.codebook.votes.device)))
        return torch.cat([images for images, _ in found]), torch.cat([present for _, present in found])

    # inference

    @property
    def sampler(self) -> str:
        if not self.config.steps:
            return f"apt-{self.config.guess}"
        return f"apt-{self.config.guess}-renoise" + ("-unroll" if self.config.unroll else "")

    def encode_metadata(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The method does not use metadata."""

    def steps_for(self, samples: int) -> int:
        """How many steps unless told: one image is the posterior mean, where the prior tells it; several are draws."""
        return 0 if samples == 1 and self.config.guess == "mean" else self.config.steps

    def complete(self, batch: Batch, rng: Rng, progress: Progress | None = None) -> Tensor:
        """Fill in slices [B, M, X, Y]; what is present comes back bit for bit."""
        config, process = self.config, self.prior.process
        images, present = batch.images, batch.present.expand_as(batch.images)
        if not present.any():
            raise InputError("nothing of this subject is there; give at least one modality.")
        images = torch.where(present, images, torch.full_like(images, -1.0)).float()
        parts, noise = (config.steps, config.unroll), couple(rng, config.coupling)
        with torch.no_grad():
            tokens = self._tokens(images, present)
            denoise = chunked(lambda part: self._bent(images[part], present[part], tokens[part]), config.chunk)
            guess = torch.where(present, images, self._guess(images, present, rng))
            if config.guess == "mean":  # what the prior expects of noise, given what it is shown
                guess = denoise(guess, torch.full_like(images[:, 0, 0, 0], process.end))
            if not config.steps:
                return torch.where(present, batch.images, guess.clamp(-1, 1).to(batch.images.dtype))
            x0 = stage1(denoise, process, guess, config.start, config.steps, noise, _part(progress, parts, 0))
            if config.unroll:
                stride = max(1, round(config.start / config.steps))
                x0 = stage2(denoise, process, x0, min(config.near, config.start), stride, config.unroll, config.weight,
                            noise, _part(progress, parts, 1))  # fmt: skip
        return torch.where(present, batch.images, x0.clamp(-1, 1).to(batch.images.dtype))

    def _bent(self, images: Tensor, present: Tensor, tokens: Tensor) -> Denoise:
        """The prior of some slices, clipped, and replaced where it is known: it is shown whole modalities that are
        known, or else pulled towards all that is known."""
        plain = clip(lambda x, t: self.prior(x, t, tokens))
        if self.config.known == "held":
            whole = present.flatten(2).all(2)[..., None, None]
            return hold(project(plain, present, images), whole, images, self.prior.process.end)
        bends: dict[str, Callable[[], Denoise]] = {
            "pull": lambda: pull(plain, present, images, self.config.strength),
            "exact": lambda: clip(gradient(plain, self.prior.process, Observation(mask(present), images * present))),
            "none": lambda: plain,
        }
        return project(bends[self.config.guidance](), present, images)

    def _tokens(self, images: Tensor, present: Tensor) -> Tensor:
        """[B, P, W]: computed once; slice by slice on a CPU, so that a slice's do not depend on its batch."""
        there = present.flatten(2).any(2)
        parts = [slice(None)] if images.device.type != "cpu" else [slice(i, i + 1) for i in range(len(images))]
        return torch.cat([self.fusion(self.encoder(images[p]), there[p]) for p in parts])

    def _fused(self, images: Tensor, present: Tensor) -> Tensor:
        """One vector a slice [N, W], what training slices are retrieved by."""
        found = [self.fusion.whole(self.encoder(images[i : i + 1]), present[i : i + 1]) for i in range(len(images))]
        return torch.cat(found)

    def _guess(self, images: Tensor, present: Tensor, rng: Rng) -> Tensor:
        """What stage 1 begins with, [B, M, X, Y]."""
        config, book = self.config, self.codebook
        if config.guess == "zero":
            return torch.zeros_like(images)
        if config.guess in ("noise", "mean"):
            return couple(rng, config.coupling).normal_like(images)
        if config.guess == "random":
            return torch.stack(
                [self._random(i, p, u) for i, p, u in zip(images, present, rng.uniform(2, len(images[0])))]
            )
        near: Sequence[Tensor | None] = [None] * len(images)
        if config.retrieve:
            there = present.flatten(2).any(2)
            vectors = self._fused(images, there)
            if config.retrieve_by == "subject":
                vectors = vectors.mean(0, keepdim=True).expand_as(vectors)
            near = [book.nearest(v, config.retrieve) for v in vectors]
        return torch.stack([book.guess(i, p, config.ranking, k) for i, p, k in zip(images, present, near)])

    def _random(self, images: Tensor, present: Tensor, u: Tensor) -> Tensor:
        """For every target some source that is there, through some curve: the paper's control (Table 3)."""
        out, there = torch.zeros_like(images), present.flatten(1).any(1).nonzero().flatten().tolist()
        for target in range(len(images)) if there else ():
            source, k = there[int(u[0, target] * len(there))], int(u[1, target] * len(CURVES))
            row = self.codebook.row(target, source, k)
            out[target] = torch.where(present[source], prior(images[source], row), out[target])
        return out


def known(batch: Batch) -> tuple[Tensor, Tensor]:
    """Images with background where nothing is, and which modalities are there [B, M]."""
    images = torch.where(batch.present, batch.images, torch.full_like(batch.images, -1.0))
    return images, batch.present.flatten(2).any(2)


def _part(progress: Progress | None, parts: Sequence[int], index: int) -> Progress | None:
    """The progress of one of several parts, told as progress of the whole."""
    before = sum(parts[:index])
    return None if progress is None else lambda done, of: progress(before + done, sum(parts))

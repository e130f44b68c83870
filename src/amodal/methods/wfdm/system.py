"""WFDM: a codec on Haar coefficients, and a diffusion in its latents that is told the modality and what is known of the
subject. Beyond the paper: an adapter that shows the frozen diffusion what the subject has.

    z = s_z E(x)             codec: 4 channels at a quarter of the size, one modality at a time
    c = (tau, d, r)          target modality, values, availability                                          Eq. 3
    v(z_t, t, c)             prior: the velocity of a rectified flow, 50 Euler steps (or v of a DDPM, 1000)
    v(z_t, t, c, LLL z)      beyond the paper (`coarse`): the latent's low band is drawn first, by a prior of its own
    v(z_t, t, c, z_known)    adapter: ControlNet with the latents of any subset of the subject's modalities, begun
                             with what every voxel says of the target by itself (`Estimate`)

Stages: `codec` (against a critic), `prior` (codec frozen), `adapter` (both frozen).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...codecs.losses import random_features
from ...codecs.memo import Memo
from ...codecs.wavelet_fusion import WaveletCodec, WaveletConfig
from ...core.contract import Batch, Player, Progress, Stage, share
from ...core.errors import InputError
from ...core.rng import Rng
from ...diffusion.denoiser import Denoise, Denoiser, Norm, Prediction
from ...diffusion.guidance import Other, guided
from ...diffusion.process import DDPM, Process, RectifiedFlow
from ...diffusion.samplers import ddim, heun, multistep
from ...nn.critic import Critic
from ...nn.layout import crop_to, pad_to
from ...nn.unet import UNetConfig
from ...nn.wavelet import low
from . import learning
from .estimate import Estimate
from .learning import Learning
from .network import Adapter, Controlled, Prior, condition, contrary, shown, unconditional
from .normal import Latents, Normal
from .schema import Schema, encode

Data = Callable[[int], Batch]
FITTED, TOGETHER = 1024, 2048  # volumes that the normal law of latents is fitted to, without and with factors
MIDDLE = 0.4, 0.9  # of a draw's time: what a flag does to all of an image is settled before, grain after

# scheme -> the process, what is predicted, and eta of its sampler (section 3.3)
SCHEMES: dict[str, tuple[Process, Prediction, float]] = {
    "rflow": (RectifiedFlow(), "flow", 0.0),
    "ddpm-cosine": (DDPM(1000, "cosine"), "v", 1.0),
    "ddpm-scaled-linear": (DDPM(1000, "scaled_linear", 0.0015, 0.0195), "v", 1.0),
}


@dataclass(frozen=True)
class Config:
    """`size`, `spacing`: of the volumes (voxels, mm). `meta`: width of the metadata's embedding. `norm`: of the prior's
    loss. `shift`: of a rectified flow's times. `steps`: of a draw. `eta`: how much of the noise is new in each (0:
    none, 1: ancestral, None: as the scheme has it; ddim only). `guidance`: how far what is known of the subject is
    stressed (1: as learned); `stress`: how far flags that are set are, against the same subject without, in the MIDDLE
    of a draw. `texture`: spread of the noise that a generated volume begins from, in those channels of the latent that
    move the image least, and in all that a coarse prior leaves to be drawn (1: as it is, less: smoother). `aligned`:
    the prior adds to a regression of latents (`Normal`). `coarse`: widths of a second, smaller prior, of the latents'
    low Haar band; a generated volume's is drawn first, and the prior draws the details (aligned only; (): none).
    `factors`: in how many directions that regression knows latents to vary together, of the coarse prior's if there is
    one (aligned only). `components`: of the mixture whose estimate of a target a completion begins with (0: none).
    `stages`: those that are trained.
    `chunk`: volumes per evaluation.
    """

    modalities: tuple[str, ...]
    codec: WaveletConfig
    net: UNetConfig
    schema: Schema
    size: tuple[int, int, int] = (192, 224, 160)
    spacing: float = 1.0
    meta: int = 128
    scheme: Literal["rflow", "ddpm-cosine", "ddpm-scaled-linear"] = "rflow"
    norm: Norm = "l2"
    shift: float = 1.0
    steps: int = 50
    solver: Literal["ddim", "heun", "multistep"] = "ddim"
    eta: float | None = None
    guidance: float = 1.0
    stress: float = 1.0
    texture: float = 1.0
    aligned: bool = False
    coarse: tuple[int, ...] = ()
    factors: int = 0
    components: int = 0
    stages: tuple[Literal["codec", "prior", "adapter"], ...] = ("codec", "prior", "adapter")
    learning: Learning = field(default_factory=Learning)
    chunk: int = 4

    def __post_init__(self) -> None:
        if self.shift != 1 and self.scheme != "rflow":
            raise InputError(
                f"shift={self.shift:g}: {self.scheme} has fixed times; leave it 1, or choose scheme=rflow."
            )
        if self.eta is not None and not (0 <= self.eta <= 1 and self.solver == "ddim"):
            raise InputError(f"eta={self.eta:g}: choose 0 to 1, with solver=ddim.")
        for name, value in {"coarse": list(self.coarse), "factors": self.factors}.items():
            if value and not self.aligned:
                raise InputError(f"{name}={value}: only for volumes in one space; set aligned=true.")


class WFDM(nn.Module):
    """The method. A sample is a volume [M, X, Y, Z]; its modalities are made one by one, from one noise."""

    dims = 3
    weights: Tensor

    def __init__(self, config: Config):
        super().__init__()
        if (config.net.in_channels, config.net.out_channels) != (config.codec.channels,) * 2:
            raise InputError(
                f"the prior has {config.net.in_channels} channels, the codec's latent {config.codec.channels}; give "
                f"net.in_channels and net.out_channels={config.codec.channels}."
            )
        self.config, self.modalities = config, config.modalities
        m, learn = len(config.modalities), config.learning
        self.codec = WaveletCodec(config.codec)
        self.critic = Critic(config.codec.dims, 1, learn.critic_width, learn.critic_layers, norm="group")
        self.features = random_features(config.codec.dims, widths=learn.features)
        self.memo = Memo()
        size = [-(-n // self.codec.factor) for n in config.size]
        if config.coarse and (odd := [n for n in size if n % 2]):
            raise InputError(
                f"size={list(config.size)}: with a coarse prior every side has to be a multiple of "
                f"{2 * self.codec.factor}; {odd[0]} cells of the latent have no half."
            )
        self.prior = denoiser(config, config.net, size)
        self.coarse = denoiser(config, coarse(config), [n // 2 for n in size], True) if config.coarse else None
        self.estimate = Estimate(m, config.components, config.codec.channels) if config.components else None
        net = shown(config.net, config.aligned)
        self.adapter = Adapter(net, m, config.schema, config.meta, config.components > 0)
        self.register_buffer("weights", torch.ones(m))  # how often a modality that is there is the target, relatively

    @property
    def net(self) -> Prior:
        """The prior's network."""
        return cast(Prior, self.prior.net)

    @property
    def sampler(self) -> str:
        eta = self.config.eta
        return f"{self.config.scheme}-{self.config.solver}" + ("" if eta is None else f"-eta{eta:g}")

    def encode_metadata(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Rows of a table -> `values` and `known` [B, P]."""
        return encode(self.config.schema, rows)

    # training

    def stages(self) -> tuple[Stage, ...]:
        codec = Player("codec", self.codec.parameters, lambda out: learning.codec_loss(self, out))
        critic = Player("critic", self.critic.parameters, lambda out: learning.critic_loss(self, out))
        prior = Player("prior", lambda: [*self.prior.parameters(), *(self.coarse.parameters() if self.coarse else ())])
        adapter = Player("adapter", self.adapter.parameters)
        parts, rates = self.config.learning.shares, self.config.learning.rates
        every = {
            "codec": Stage("codec", self._codec, (codec, critic), parts[0], rates[0], self._begin_codec),
            "prior": Stage("prior", self._prior, (prior,), parts[1], rates[1], self._begin_prior),
            "adapter": Stage("adapter", self._adapter, (adapter,), parts[2], rates[2], self._begin_adapter),
        }
        return tuple(every[name] for name in self.config.stages)

    def _codec(self, batch: Batch, rng: Rng) -> learning.Game:
        x, _ = learning.pick(batch, self.weights, rng)
        x = learning.crop(x, self.config.learning.crop, rng)
        return learning.Game(x, self.codec(x, rng.fork("latent")))

    def _prior(self, batch: Batch, rng: Rng) -> Tensor:
        x, target = learning.pick(batch, self.weights, rng)
        vector, z, where = self._condition(batch, target, rng), self.encode(x), self.codec.influence
        if self.coarse is None:
            return self.prior.loss(z, rng, vector, where=where)
        net, zero = cast(Prior, self.coarse.net), torch.zeros((), device=z.device)
        focus = partial(net.focus, vector=vector, strength=self.config.learning.focus)
        lower = self.coarse.loss(low(z), rng.fork("coarse"), vector, where=lambda z, t: where * focus(z, t))
        left_open = net.open(vector, zero, 1 - zero)
        z, band = learning.given_low(z, left_open, self.config.learning, rng)
        return lower + self.prior.loss(z, rng, vector, *band, where=where)

    def _adapter(self, batch: Batch, rng: Rng) -> Tensor:
        x, target = learning.pick(batch, self.weights, rng)
        known = learning.given(batch, target, self, rng)
        t = self.prior.process.draw(rng.uniform().to(x.device))
        at_once = rng.uniform().to(x.device) < self.config.learning.at_once
        t = torch.where(at_once, torch.full_like(t, self.prior.process.end), t)
        vector = self._condition(batch, target, rng)
        return self._joint().loss(self.encode(x), rng, vector, known, t=t, where=self.codec.influence)

    def encode(self, x: Tensor) -> Tensor:
        """Volumes [N, 1, *spatial] -> scaled latents [N, C, *spatial / 4]; in training those seen before are known."""
        return self._remembered(x) if self.training else self.codec.encode(x)

    def _remembered(self, x: Tensor) -> Tensor:
        return self.memo.each(lambda part: (self.codec.encode(part),), x, of=self.codec)[0]

    def _condition(self, batch: Batch, target: Tensor, rng: Rng) -> Tensor:
        """The vector of conditions, with parts of it dropped in training."""
        values, known = self._metadata(batch.metadata, len(batch))
        known = learning.drop(known, self.config.learning, rng)
        return condition(target, len(self.modalities), values, known)

    def _joint(self) -> Denoiser:
        """Prior and adapter as one denoiser."""
        net = Controlled(self.prior, self.adapter, self.estimate)
        return Denoiser(net, self.prior.process, self.prior.prediction, norm=self.prior.norm).train(self.training)

    def _begin_codec(self, data: Data) -> None:
        """How rare the modalities are."""
        present = torch.cat([batch.present.flatten(2).any(2) for batch in learning.some(data, 128)])
        often = present.float().mean(0).clamp(min=1 / len(present))
        self.weights.copy_((often**-self.config.learning.balance).to(self.weights))

    def _begin_prior(self, data: Data) -> None:
        """The scale of the latents, and what the training set's table is like."""
        self._begin_codec(data)

        def images() -> Iterator[Tensor]:
            for k, batch in enumerate(learning.some(data, 32)):
                yield learning.pick(batch, self.weights, Rng.of(0, len(batch), "scale", k))[0]

        self.codec.calibrate(images())
        tables = [self._metadata(batch.metadata, len(batch)) for batch in learning.some(data, 256)]
        values, known = (torch.cat(parts).cpu() for parts in zip(*tables))
        if self.coarse is None:
            self.net.fit(values, known, self._latents(data))
        else:
            latents = list(self._latents(data))
            self.net.fit(values, known, latents)
            lower = ((low(z), which, told, given) for z, which, told, given in latents)
            cast(Prior, self.coarse.net).fit(values, known, lower)

    def _latents(self, data: Data) -> Iterator[Latents]:
        """Latents of the first of the training set, which modality each is of, and what is known of its subject."""
        for k, batch in enumerate(learning.some(data, TOGETHER if self.config.factors else FITTED)):
            x, target = learning.pick(batch, self.weights, Rng.of(0, len(batch), "normal", k))
            yield (self._remembered(x), target, *self._metadata(batch.metadata, len(batch)))

    def _begin_adapter(self, data: Data) -> None:
        """As the prior, and with what the voxels say by themselves."""
        self.adapter.take(self.net)
        if self.estimate is None:
            return
        self.estimate.begin(data)

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for k, batch in enumerate(learning.some(data, 32)):
                rng = Rng.of(0, len(batch), "estimate", k)
                x, target = learning.pick(batch, self.weights, rng)
                yield self.encode(x), learning.given(batch, target, self, rng)

        self.estimate.measure(pairs())

    def _metadata(self, metadata: Mapping[str, Tensor] | None, count: int) -> tuple[Tensor, Tensor]:
        """values and known [B, P]; nothing is known where no table was given."""
        if metadata is None or "values" not in metadata:
            metadata = self.encode_metadata([{}] * count)
        return metadata["values"].to(self.weights.device), metadata["known"].to(self.weights.device)

    # inference

    def steps_for(self, samples: int) -> int:
        """How many steps unless told: one image is the posterior mean, which is read in one step; several are draws."""
        return 1 if samples == 1 else self.config.steps

    def voxelwise(self, batch: Batch) -> Tensor | None:
        """What each voxel of volumes [B, M, X, Y, Z], of any size, says of all; None without an estimate."""
        shown = batch.present.expand_as(batch.images).flatten(2).all(2)
        return None if self.estimate is None else self.estimate.images(batch.images, shown)[0]

    @torch.inference_mode()
    def complete(self, batch: Batch, rng: Rng, progress: Progress | None = None) -> Tensor:
        """Make what is missing of volumes [B, M, X, Y, Z]; what is present comes back bit for bit."""
        images, present = batch.images, batch.present.expand_as(batch.images)
        there, whole = present.flatten(2).any(2), present.flatten(2).all(2)
        if not there.any(1).all():
            raise InputError("nothing of this subject is there; give at least one modality.")
        wanted = [torch.nonzero(~row).flatten() for row in whole]
        if not any(map(len, wanted)):
            raise InputError(f"nothing is missing of {', '.join(self.modalities)}; hide a modality to have it made.")
        values, known = self._metadata(batch.metadata, len(batch))
        jobs = [(b, part) for b, targets in enumerate(wanted) for part in targets.split(self.config.chunk) if len(part)]
        out = images.clone()
        for number, (b, part) in enumerate(jobs):
            usable = whole[b] if whole[b].any() else there[b]
            own, rows = torch.where(present[b], images[b], -1.0)[None], (len(part), -1)
            vector = condition(
                part, len(self.modalities), values[b : b + 1].expand(rows), known[b : b + 1].expand(rows)
            )
            x = self._completed(own, usable[None], vector, part, rng[b : b + 1], share(progress, number, len(jobs)))
            out[b, part] = torch.where(present[b, part], images[b, part], x.to(images.dtype))
        return out

    def _completed(
        self, own: Tensor, usable: Tensor, vector: Tensor, part: Tensor, rng: Rng, progress: Progress | None
    ) -> Tensor:
        """Some modalities `part` of one subject [1, M, *spatial] -> [n, *spatial]."""
        known, guess = learning.beside(self, own, usable, part)
        x = self._draw(vector, rng, known.shape[2:], progress, known)
        if guess is not None:  # what the codec loses of the estimate is kept
            x = x + pad_to(guess, self.codec.factor) - self.codec.decode(known[:, -self.codec.channels - 1 : -1])
        return crop_to(x, own.shape[2:])[:, 0].clamp(-1, 1)

    @torch.inference_mode()
    def generate(
        self, count: int, spatial: Sequence[int], rng: Rng, conditions: Mapping[str, Tensor] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:  # fmt: skip
        """Volumes of nobody, [count, M, *spatial]. `conditions`: what `encode_metadata` made of `count` rows, and
        `wanted` bool [M], the modalities to make (all, if it is not there; the others are -1)."""
        table = dict(conditions or {})
        values, known = self._metadata(table, count)
        wanted = torch.nonzero(table.get("wanted", torch.ones(len(self.modalities)))).flatten()
        jobs = [(i, part) for i in range(count) for part in wanted.split(self.config.chunk)]
        out = torch.full((count, len(self.modalities), *spatial), -1.0)
        size = [-(-n // self.codec.factor) for n in spatial]
        for number, (i, part) in enumerate(jobs):
            part = part.to(self.weights.device)
            vector = condition(part, len(self.modalities), values[i : i + 1].expand(len(part), -1),
                               known[i : i + 1].expand(len(part), -1))  # fmt: skip
            x = self._draw(vector, rng[i : i + 1], size, share(progress, number, len(jobs)))
            out[i, part.cpu()] = crop_to(x, spatial)[:, 0].clamp(-1, 1).cpu()
        return out

    def _draw(
        self, vector: Tensor, rng: Rng, size: Sequence[int], progress: Progress | None, known: Tensor | None = None
    ) -> Tensor:
        """One volume [n, 1, ...] a row of `vector`, all of one subject and from one noise."""
        noise, later = (Rng(rng.fork(name).seeds * len(vector)) for name in ("latent", "ancestral"))
        z = noise.normal(self.codec.channels, *size).to(vector.device)
        if known is not None:
            return self.codec.decode(self._solve(self._joint(), z, vector, (known,), later, progress))
        weight, parts, spread = self.codec.influence, 1, self.config.texture
        beside: tuple[Tensor, ...] = ()
        begin = z * spread ** (1 - weight / weight.max())
        if self.coarse is not None:  # from the low band of the same noise; all that it leaves is texture
            parts, first = 2, share(progress, 0, 2)
            beside = (self._solve(self.coarse, low(begin), vector, (), later.fork("coarse"), first),)
            begin = z * spread
        last = share(progress, parts - 1, parts)
        return self.codec.decode(self._solve(self.prior, begin, vector, beside, later, last))

    def _solve(
        self, net: Denoiser, z: Tensor, vector: Tensor, beside: tuple[Tensor, ...], later: Rng,
        progress: Progress | None,
    ) -> Tensor:  # fmt: skip
        """From noise z to a latent; `later`: the noise of the steps; `beside`: what the network is given besides."""
        config, process = self.config, self.prior.process
        eta = SCHEMES[config.scheme][2] if config.eta is None else config.eta
        denoise, times = self._denoise(net, vector, beside), process.grid(config.steps)
        solvers: dict[str, Callable[[], Tensor]] = {
            "ddim": lambda: ddim(denoise, process, z, times, later, eta, progress),
            "heun": lambda: heun(denoise, process, z, times, progress),
            "multistep": lambda: multistep(denoise, process, z, times, progress),
        }
        return solvers[config.solver]()

    def _denoise(self, net: Denoiser, vector: Tensor, beside: tuple[Tensor, ...]) -> Denoise:
        """The denoiser of these conditions, as far from others as is asked for."""
        config, m, end = self.config, len(self.modalities), net.process.end
        others = (
            Other(config.guidance, unconditional(vector, m), 0.0, end),
            Other(config.stress, contrary(vector, m, config.schema), *(end * t for t in MIDDLE)),
        )
        return guided(lambda z, t, vector: net(z, t, vector, *beside), vector, others)


def denoiser(config: Config, net: UNetConfig, size: Sequence[int], coarse: bool = False) -> Denoiser:
    """An untrained prior of latents of that size, or of their low band."""
    process, prediction, _ = SCHEMES[config.scheme]
    process = process if config.shift == 1 else RectifiedFlow(config.shift)
    m, normal = len(config.modalities), None
    if config.aligned:
        parted = bool(config.coarse) and not coarse
        factors = 0 if parted else config.factors
        normal = Normal(m, config.schema, config.codec.channels, size, process, prediction, parted, factors)
    prior = Prior(net, m, config.schema, config.meta, normal)
    return Denoiser(prior, process, prediction, norm=config.norm)


def coarse(config: Config) -> UNetConfig:
    """The U-Net of the low band, with attention at all levels but its finest."""
    return replace(config.net, channels=config.coarse, attention=(False, *[True] * (len(config.coarse) - 1)))

"""CoLa-Diff: a latent diffusion of one modality, conditioned on the others and on where the tissues lie.

    x       the image wanted, kappa_0 = E(x) its latent (one codec for all modalities and tissue maps)
    b       what is given: the other modalities, and tissue maps made from one of them
    y       E(b), each condition by itself, joined on the channels
    Eq. 1   kappa_t = alpha_t kappa_0 + sigma_t eps
    Eq. 2   DDIM with the network eps(kappa_t, t, y), over the steps that FastDPM chooses
    Eq. 5   loss: squared error of the noise + divergence of the true from the predicted posterior

Beyond the paper, each a setting: any target from any subset by one network (a target embedding, conditions dropped in
training); v prediction, whose single step from pure noise is the posterior mean; a network that adds to what every
voxel says by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...codecs.kl import KLCodec, KLConfig
from ...core.contract import Batch, Progress, Stage, share
from ...core.errors import InputError
from ...core.rng import Rng, seed_of
from ...diffusion.denoiser import Denoise, Prediction, x0_from
from ...diffusion.process import DDPM
from ...diffusion.samplers import ddim
from ...nn.layout import crop_to
from .conditions import CLASSES, Task, guidance, source_of
from .estimate import FirstGuess
from .fastdpm import Selection, times
from .learning import Learning, stages
from .network import LatentNet, NetConfig


@dataclass(frozen=True)
class Config:
    """`target`: the one modality made (the paper trains a network a target), "" for any. `guidance`: conditions by
    tissue maps. `components`: of the mixture whose estimate of the target, voxel by voxel from what is given, is a
    condition too, and what the network adds to (0: the paper, none). `steps`, `selection`, `kappa`: FastDPM's number of
    steps, their choice, and how random they are (0: Eq. 2, 1: ancestral). `size`: of a slice (0: as it comes), `voxel`:
    the range of its spacing in mm. `chunk`: slices per evaluation.
    """

    modalities: tuple[str, ...]
    codec: KLConfig
    net: NetConfig
    target: str = ""
    guidance: bool = True
    components: int = 0
    timesteps: int = 1000
    prediction: Prediction = "noise"
    steps: int = 50
    selection: Selection = "linear"
    kappa: float = 0.0
    size: tuple[int, int] = (0, 0)
    voxel: tuple[float, float] = (0.7, 1.6)
    chunk: int = 16
    learn: Learning = field(default_factory=Learning)

    def __post_init__(self) -> None:
        if self.target and self.target not in self.modalities:
            raise InputError(f"target={self.target!r}: choose one of {', '.join(self.modalities)}, or none for any.")
        if not 0 <= self.kappa <= 1:
            raise InputError(f"kappa={self.kappa}: choose 0 (deterministic) to 1 (ancestral).")

    @property
    def conditions(self) -> int:
        """Channels of y."""
        estimate = (self.codec.channels + 1) * (self.components > 0)
        return estimate + self.codec.channels * (len(self.modalities) + CLASSES * self.guidance)


class ColaDiff(nn.Module):
    """The codec, the network, and what it makes of slices. A sample is an axial slice [M, X, Y]."""

    dims = 2

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.modalities = config, config.modalities
        self.process = DDPM(config.timesteps, "linear")
        self.codec = KLCodec(config.codec)
        self.first = FirstGuess(config.codec.channels, len(self.modalities), config.components, config.prediction)
        self.net = LatentNet(config.net, config.codec.channels, config.conditions, 2 * len(config.modalities) + 1)
        self.critic = config.learn.critic()

    @property
    def sampler(self) -> str:
        return f"fastdpm-{self.config.selection}-kappa{self.config.kappa:g}"

    def stages(self) -> tuple[Stage, ...]:
        return stages(self)

    def encode_metadata(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor] | None:
        return None

    def steps_for(self, samples: int) -> int:
        """How many steps unless told: one image by v prediction is the posterior mean, in one step; else `steps`."""
        return 1 if samples == 1 and self.config.prediction in ("v", "x0") else self.config.steps

    # conditions

    def conditions(self, batch: Batch, task: Task) -> tuple[Tensor, Tensor]:
        """(y, what the time embedding is told): every condition through the codec by itself, 0 where it is not given.

        batch: images of the N samples of the task. y [N, conditions, X / factor, Y / factor].
        """
        latents = self._encode(batch.images, task.given)
        if self.config.components:
            mean, variance = self.first.estimate(batch.images, task)
            guess = self._encode(mean, torch.ones_like(task.given[:, :1]))
            doubt = self.first.doubts(variance, self.codec.factor)
            latents = torch.cat([guess, doubt.to(latents.dtype), latents], dim=1)
        if not self.config.guidance:
            return latents, task.vector(torch.full_like(task.target, -1))
        known = batch.metadata or {}
        if "tissue" in known:
            source = source_of(task, known, self.modalities)
            maps = guidance(batch, source)
        else:
            source = torch.full_like(task.target, -1)
            maps = batch.images.new_empty(len(source), CLASSES, *batch.images.shape[2:])
        tissue = self._encode(maps, (source >= 0)[:, None].expand(-1, CLASSES))
        return torch.cat([latents, tissue], dim=1), task.vector(source)

    @torch.no_grad()
    def _encode(self, images: Tensor, given: Tensor) -> Tensor:
        """[N, K, X, Y] -> [N, K channels, X / factor, Y / factor]: image by image, 0 where `given` [N, K] says no."""
        factor, channels = self.codec.factor, self.codec.channels
        out = images.new_zeros(*given.shape, channels, *(-(-n // factor) for n in images.shape[2:]))
        if given.any():
            out[given] = self.codec.encode(images[given][:, None]).to(out.dtype)
        return out.flatten(1, 2)

    # inference

    def complete(self, batch: Batch, rng: Rng, progress: Progress | None = None) -> Tensor:
        """Make what is missing of slices [B, M, X, Y]; what is present comes back bit for bit."""
        return self.generations(batch, rng, None, progress)[0]

    def generations(self, batch: Batch, rng: Rng, count: int | None = None, progress: Progress | None = None) -> Tensor:
        """[K, B, M, X, Y]: the completed slices, `count` times (None: once, as `complete` does). The conditions are
        encoded and mapped once for all; the variance over K is the paper's map of uncertainty (it takes 100)."""
        images, present = batch.images, batch.present.expand_as(batch.images)
        if not present.any(dim=1).any():
            raise InputError("nothing of this subject is there; give at least one modality.")
        out = torch.where(present, images, torch.full_like(images, -1.0))
        out = out.expand(count or 1, *images.shape).clone()
        wanted = (~present).flatten(2).any(2).nonzero()  # [N, 2]: slice and modality
        self._refuse(wanted[:, 1].unique())
        parts = wanted.split(self.config.chunk) if len(wanted) else ()
        with torch.inference_mode():
            for i, part in enumerate(parts):
                tick = share(progress, i, len(parts))
                made = self._made(batch, present, part, rng, count, tick)  # [K, N, X, Y]
                row, m = part.T
                out[:, row, m] = torch.where(present[row, m], images[row, m], made.to(out.dtype))
        return out

    def _refuse(self, wanted: Tensor) -> None:
        """A network of one target makes no other."""
        other = [self.modalities[i] for i in wanted.tolist() if self.config.target not in ("", self.modalities[i])]
        if other:
            raise InputError(f"this model makes {self.config.target} only, not {other[0]}; name it with --missing.")

    def _made(
        self, batch: Batch, present: Tensor, part: Tensor, rng: Rng, count: int | None, progress: Progress | None
    ) -> Tensor:
        """Some (slice, modality) pairs [N, 2] -> their images [K, N, X, Y]."""
        row, target = part.T
        given = present[row].flatten(2).all(2)
        task = Task(given, target, torch.ones_like(target, dtype=torch.bool))
        metadata = None if batch.metadata is None else {k: v[row] for k, v in batch.metadata.items()}
        y, known = self.conditions(Batch(batch.images[row], given, metadata), task)
        maps, lost, made = self.net.maps(y), self._lost(batch.images[row], task, y), []
        keys = [(rng.seeds[r], self.modalities[m]) for r, m in part.tolist()]
        draws = [None] if count is None else range(count)
        for i, k in enumerate(draws):
            own = Rng([seed_of(seed, "target", name, *([] if k is None else [k])) for seed, name in keys])
            noise = own.normal(self.codec.channels, *y.shape[2:]).to(y) * (not self._means(count))
            z = self._sample(maps, y, known, noise, own, share(progress, i, len(draws)))
            made.append((self._decode(z, batch.images) + lost(None if self._means(count) else own)).clamp(-1, 1))
        return torch.stack(made)

    def _decode(self, z: Tensor, like: Tensor) -> Tensor:
        """Latents [N, channels, ...] -> images [N, X, Y]."""
        return crop_to(self.codec.decode(z), like.shape[2:])[:, 0]

    def _lost(self, images: Tensor, task: Task, y: Tensor) -> Callable[[Rng | None], Tensor]:
        """What no latent can say, [N, X, Y], and is added: of the estimate or, by random numbers, of a draw of it."""
        if not self.config.components:
            return lambda rng: images.new_zeros(())
        mean, variance = self.first.estimate(images, task)

        def lost(rng: Rng | None) -> Tensor:
            if rng is None:  # the estimate's latent is the first of the conditions
                return mean[:, 0] - self._decode(y[:, : self.codec.channels], images)
            x = mean + variance.sqrt() * rng.fork("voxels").normal(*mean.shape[1:]).to(mean)
            return x[:, 0] - self._decode(self.codec.encode(x), images)

        return lost

    def _means(self, count: int | None) -> bool:
        """Whether one step makes the posterior mean: its start tells nothing of the image, so noise would only show."""
        return count is None and self.config.steps == 1 and self.config.prediction in ("v", "x0")

    def _sample(
        self, maps: list[Tensor], y: Tensor, known: Tensor, noise: Tensor, rng: Rng, progress: Progress | None
    ) -> Tensor:
        config = self.config
        when = times(config.timesteps, config.steps, config.selection)
        return ddim(self._denoise(maps, y, known), self.process, noise, when, rng, config.kappa, progress)

    def _denoise(self, maps: list[Tensor], y: Tensor, known: Tensor) -> Denoise:
        def denoise(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (v[:, None, None, None] for v in self.process.at(t))
            out, _ = self.net.evaluate(x, self.process.label(t), maps, known).chunk(2, dim=1)
            out = out + self.first(x.float(), y, alpha, sigma)
            return x0_from(out, x.float(), alpha, sigma, config.prediction)

        config = self.config
        return denoise

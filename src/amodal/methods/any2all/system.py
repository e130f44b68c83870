"""Any2all: train one prior on stacks x = (x_1 .. x_M) of modalities; at inference y = A x, A block-diagonal (Eq. 2).

    clean      A_m = identity     MDS replaces the prediction (Eq. 6, special case); our priors see it at time 0
    missing    A_m = 0            nothing to do: the prior fills it in
    measured   A_m = physics      MDS: proximal step by conjugate gradients; MPS: gradient through the network

Beyond the paper, each a setting: `times="own"`, one noise level a modality in training, so that the one prior is exact
for every subset of clean modalities and learns from subjects that lack some; a multistep solver of 8 steps in place of
150; noise that is correlated between neighbouring slices, against stripes through the plane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...core.contract import Batch, Player, Progress, Stage, share
from ...core.errors import InputError
from ...core.rng import Rng
from ...diffusion.bends import chunked, clip
from ...diffusion.coupling import correlate
from ...diffusion.denoiser import Denoise, Denoiser, Prediction
from ...diffusion.process import DDPM, Schedule
from ...diffusion.samplers import ddim, heun, multistep, repaint
from ...nn.unet import UNet, UNetConfig
from ...physics.linear import mask
from ...physics.posterior import Observation, gradient, hold, project
from ..stack import StackNet
from .generate import begin_time, draw
from .measured import Measured, decompose, follow, measured
from .slices import smooth

FAST = 20  # steps from k-space, where nothing else is asked for
SETTLING, SETTLED = 4, 0.98  # evaluations, and their alpha, that make one image of a draw


@dataclass(frozen=True)
class Config:
    """`times`: "shared", one time for the stack (the paper); "own", one a modality. `components` of the mixture that
    such a prior estimates each voxel by, before its network does better (0: a learned map, see `methods.stack`).
    `coupling`: how far the starting
    noise of neighbouring slices is alike (standard deviation in slices, 0 independent). `smoothing`: how much a
    prediction is drawn to its neighbours' mean at pure noise (0..1). `chunk`: slices per evaluation. `draws`: noise
    draws that a one-step estimate (the posterior mean) is averaged over, every other one mirrored. `leave_out`: the
    weight of those among them, every other one, that are made without one of three or more inputs, each in turn (0:
    none are): an input unlike those of training then spoils a part of the image only. `alone`: part of the
    training in which nothing is given, for what is generated or reconstructed without any clean modality. `tilt`: times
    are drawn as u ** tilt of the whole, u uniform: below 1 more of the noisy end, where what is made is decided; above
    1 more of the other, where what is drawn loses its last noise. `pulls`: gradients through the network in a step of
    MPS towards k-space (the paper takes 1). `finish`: one image from k-space, not a draw: noise that is left in what
    was measured is removed, and what is missing estimated anew, as the posterior mean given that.
    """

    modalities: tuple[str, ...]
    net: UNetConfig
    timesteps: int = 1000
    schedule: Schedule = "cosine"
    prediction: Prediction = "v"
    snr_limit: float = 0.0
    times: Literal["shared", "own"] = "own"
    components: int = 0
    posterior: Literal["mds", "mps"] = "mds"
    solver: Literal["ddim", "heun", "multistep", "repaint"] = "multistep"
    steps: int = 8
    eta: float = 0.0
    coupling: float = 3.0
    smoothing: float = 0.0
    chunk: int = 16
    draws: int = 1
    leave_out: float = 0.0
    alone: float = 0.0
    tilt: float = 0.6
    pulls: int = 2
    finish: bool = False


class Any2all(nn.Module):
    """The prior and how it is adapted. A sample is an axial slice [M, X, Y]; a batch of `complete` is a volume's slices
    in order, so that neighbours can be coupled."""

    dims = 2

    def __init__(self, config: Config):
        super().__init__()
        n = len(config.modalities)
        if config.net.in_channels != n or config.net.out_channels != n:
            raise InputError(
                f"the network has {config.net.in_channels} input channels for {n} modalities; give net.in_channels={n} "
                f"and net.out_channels={n}."
            )
        self.config = config
        self.modalities = config.modalities
        process = DDPM(config.timesteps, config.schedule)
        own = config.times == "own"
        net = StackNet(config.net, process, config.prediction, config.components) if own else UNet(config.net)
        self.prior = Denoiser(net, process, config.prediction, config.snr_limit)

    @property
    def sampler(self) -> str:
        config = self.config
        mean = config.steps == 1 and config.times == "own"
        return f"posterior mean over {config.draws} noises" if mean else f"{config.posterior}-{config.solver}"

    # training

    def encode_metadata(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The prior knows images alone."""

    def stages(self) -> tuple[Stage, ...]:
        player = Player("prior", self.prior.parameters)
        return (Stage("prior", self._forward, (player,), begin=self._begin),)

    def _begin(self, data: Callable[[int], Batch]) -> None:
        """Fit what a network with a time a modality begins with."""
        if self.config.times == "own":
            cast(StackNet, self.prior.net).begin(data)

    def _forward(self, batch: Batch, rng: Rng) -> Tensor:
        """Modalities a subject lacks are pure noise to the network and do not count in the loss."""
        present = batch.present.flatten(2)[:, :, 0]
        imputed = (batch.metadata or {}).get("imputed", torch.zeros_like(present))  # given, never learned from
        images = torch.where(batch.present, batch.images, torch.zeros_like(batch.images))  # at the end alpha is 0
        if self.config.times == "shared":
            learn = batch.present & ~imputed[..., None, None]
            return self.prior.loss(images, rng, t=self._shared_times(present, rng)[:, 0], where=learn)
        t = self._own_times(present, rng)
        t = torch.where(imputed & present, torch.zeros_like(t), t)
        return self.prior.loss(images, rng, t=t, where=(present & (t > 0))[..., None, None])

    def _shared_times(self, present: Tensor, rng: Rng) -> Tensor:
        u = rng.uniform(1).to(present.device)
        return self.prior.process.draw(u).expand(present.shape)

    def _own_times(self, present: Tensor, rng: Rng) -> Tensor:
        """Times [B, M]. Of what is present, a random subset is clean (time 0) and the rest shares a time: what
        `complete` will meet. One sample in eight has all modalities at independent times; what is absent is at the end
        of time."""
        process, device = self.prior.process, present.device
        order, u, kind = (rng.uniform(n).to(device) for n in (present.shape[1], present.shape[1] + 1, 3))
        rank = torch.where(present, order, torch.full_like(order, 2.0)).argsort(1).argsort(1)
        count = present.sum(1)
        # 0 .. count - 1 modalities are given, many more often than few: studies lack one thing or two
        clean = (kind[:, 1] ** 0.6 * count).floor().clamp(max=count - 1)
        clean = torch.where(kind[:, 2] < self.config.alone, torch.zeros_like(clean), clean)
        given = rank < clean[:, None]
        t = torch.where(given, torch.zeros_like(order), process.draw(u[:, :1] ** self.config.tilt))
        t = torch.where(kind[:, :1] < 0.125, process.draw(u[:, 1:]), t)
        return torch.where(present, t, torch.full_like(t, process.end))

    # inference

    def steps_for(self, samples: int) -> int:
        """How many steps unless told: one image is the posterior mean itself, several are draws from the posterior."""
        config = self.config
        if config.posterior == "mps":
            return max(config.steps, 50)  # the pull towards the known needs room
        return 1 if samples == 1 and config.times == "own" else config.steps

    def measuring(self, steps: int | None = None, samples: int = 1) -> Config:
        """The settings for k-space: stochastic DDIM (eta as set, or 1), 20 steps unless told.

        New noise in every step lets errors that the data cannot see, because of aliasing, die out.
        """
        config, finish = self.config, samples == 1 and self.config.times == "own"
        return replace(config, solver="ddim", eta=config.eta or 1.0, steps=steps or FAST, finish=finish)

    def complete(self, batch: Batch, rng: Rng, progress: Progress | None = None) -> Tensor:
        """Fill in a volume's slices [Z, M, X, Y]; what is present comes back bit for bit."""
        config = self.config
        images, present = batch.images, batch.present.expand_as(batch.images)
        given = measured(batch, self.modalities)
        if not present.any() and not given:
            raise InputError("nothing of this subject is there; give at least one modality.")
        draws = config.draws if config.steps == 1 else 1
        without = config.leave_out if draws > 1 else 0.0
        weights = [without if k % 2 else 1 - without for k in range(draws)] if without else [1.0] * draws
        x0 = torch.zeros_like(images)
        with torch.inference_mode(config.posterior == "mds"):
            for k in range(draws):
                own = rng if draws == 1 else rng.fork("draw", k)
                # every other estimate sees the slices mirrored, left for right (k-space stays as it is)
                pair, second = divmod(k, 2) if without else (k, 0)
                axes = (2,) if pair % 2 and not given else ()
                shown = less(present, pair) if second and not given else present
                noise = correlate(own.normal_like(images), config.coupling)
                denoise = self._denoise(images.flip(axes), shown.flip(axes), given)
                made = self._solve(denoise, noise, own, share(progress, k, draws))
                if config.finish and given:
                    made = self._settle(denoise, made)
                x0 += made.flip(axes) * (weights[k] / sum(weights))
        x0[:, list(given)] = x0[:, list(given)].clamp(min=-1)  # magnitudes
        x0 = torch.where(present, images, x0.to(images.dtype))
        known = present.clone()
        known[:, list(given)] = True  # what was measured is known by now
        if not config.finish or not given or known.all():
            return x0
        last = copy(self)
        last.config = replace(config, steps=1, posterior="mds", solver="multistep", finish=False)
        return last.complete(Batch(x0, known, batch.metadata), rng.fork("finish"))

    @torch.inference_mode()
    def generate(
        self, count: int, spatial: Sequence[int], rng: Rng, conditions: Mapping[str, Tensor] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:  # fmt: skip
        """The slices of one head of nobody, [count, M, *spatial]. `conditions`: an `outline` of that shape in [-1, 1];
        without it each slice is of any place in the head, and a draw as it comes."""
        config, device = self.config, next(self.parameters()).device
        noise = correlate(rng.normal(len(self.modalities), *spatial), config.coupling).to(device)
        outline = (conditions or {}).get("outline")
        outline = None if outline is None else outline.to(noise)
        denoise = chunked(lambda part: clip(self.prior), config.chunk)
        if config.smoothing:
            denoise = smooth(denoise, self.prior.process, config.smoothing)
        own = rng.fork("ancestral")
        args = (config.steps, config.eta, config.coupling)
        made = draw(denoise, self.prior.process, noise, own, *args, outline, progress)
        return (made if outline is None else self._settle(denoise, made)).clamp(-1, 1)

    def _denoise(self, images: Tensor, present: Tensor, given: Measured) -> Denoise:
        """The bent prior of a volume's slices, evaluated in chunks."""
        config, whole = self.config, present.flatten(2)
        hold_them = config.times == "own" and bool(whole.all(2).eq(whole.any(2)).all())  # whole modalities only

        @cache
        def part_of(start: int, stop: int) -> Denoise:
            part = slice(start, stop)
            here = {m: each[part] for m, each in given.items()}
            return self._bent(images[part], present[part], hold_them, here)

        # one slice of all coils fits a processor's cache, and the network takes them one by one there anyway
        size = 1 if given and images.device.type == "cpu" else config.chunk
        denoise = chunked(lambda part: part_of(part.start, part.stop), size)
        return smooth(denoise, self.prior.process, config.smoothing) if config.smoothing else denoise

    def _bent(self, images: Tensor, present: Tensor, hold_them: bool, given: Measured) -> Denoise:
        """The prior of some slices, bent towards what is known of them."""
        process, prior = self.prior.process, clip(self.prior)
        if self.config.posterior == "mps" and not given:
            seen = Observation(mask(present), torch.where(present, images, torch.zeros_like(images)))
            return clip(gradient(self.prior, process, seen))
        if hold_them:
            prior = hold(prior, present[..., :1, :1], images, process.end)
        if self.config.posterior == "mps":
            return follow(prior, process, given, present, images, hold_them, self.config.pulls)
        prior = prior if hold_them else project(prior, present, images)
        return decompose(prior, process, given, (images.shape[-2], images.shape[-1]))

    def _settle(self, denoise: Denoise, x0: Tensor) -> Tensor:
        """What few steps and a small network leave of the noise in a draw, removed: each time the prediction of the
        draw itself, taken for an image with little noise, and none added (a denoiser as a prior, Zhang et al. 2021).
        """
        t = begin_time(self.prior.process, SETTLED)
        alpha = self.prior.process.at(t)[0]
        for _ in range(SETTLING):
            x0 = denoise(alpha * x0, t.to(x0.device).expand(len(x0)))
        return x0

    def _solve(self, denoise: Denoise, x: Tensor, rng: Rng, progress: Progress | None) -> Tensor:
        config, process = self.config, self.prior.process
        times = process.grid(config.steps)
        solvers: dict[str, Callable[[], Tensor]] = {
            "ddim": lambda: ddim(denoise, process, x, times, rng, config.eta, progress),
            "heun": lambda: heun(denoise, process, x, times, progress),
            "multistep": lambda: multistep(denoise, process, x, times, progress),
            "repaint": lambda: repaint(denoise, process, x, times, rng, progress=progress),
        }
        return solvers[config.solver]()


def less(present: Tensor, number: int) -> Tensor:
    """What is present [Z, M, X, Y] without the `number`th (in turn) of three or more modalities that are there."""
    there = present.flatten(2).any(2).any(0).nonzero().flatten().tolist()
    if len(there) < 3:
        return present
    shown = present.clone()
    shown[:, there[number % len(there)]] = False
    return shown

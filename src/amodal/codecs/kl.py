"""KL-regularised autoencoder, 2-D and 3-D (Kingma & Welling 2014; as first stage of a diffusion, Rombach et al. 2022).

    q(z | x) = N(mean, exp(log_variance))        loss: reconstruction + small weight * KL(q || N(0, 1))

Its latents are whitened: `encode` gives zero mean and unit variance a channel once `calibrate` has seen images.
Losses and critic are elsewhere (`losses`, `nn.critic`): the codec knows how to look at an image, not how it learns to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.rng import Rng
from ..nn.attention import Attention
from ..nn.blocks import Down, Residual, Up, conv, zero
from ..nn.layout import channels_last, crop_to, fold, pad_to, unfold
from ..nn.norm import activate, group_norm
from .codec import Whitening

QUIET = -8.0  # log variance of a latent at first, where a linear path makes it useful from the first step


@dataclass(frozen=True)
class KLConfig:
    """`widths`: channels per level, fine to coarse, each level halves the size. `patch`: voxels per axis folded into
    channels before the first convolution (and back after the last). `channels`: of the latent. `inputs`: of the image.
    `blocks`: residual blocks per level and side. `attention`: in the middle, heads of `head_size`. `linear`: a linear
    map of each block of voxels lies beside both networks; it begins as the lowest cosines: a little training goes far.
    """

    channels: int = 4
    widths: tuple[int, ...] = (64, 128, 256)
    blocks: int = 2
    dims: Literal[2, 3] = 2
    inputs: int = 1
    patch: int = 1
    attention: bool = False
    head_size: int = 64
    groups: int = 32
    linear: bool = False

    def __post_init__(self) -> None:
        if not self.widths or min(self.channels, self.blocks, self.inputs, self.patch, *self.widths) < 1:
            raise InputError(
                f"channels={self.channels}, widths={list(self.widths)}, blocks={self.blocks}, patch={self.patch}: give "
                "at least one width, and numbers of 1 or more."
            )

    @property
    def factor(self) -> int:
        """By how much each axis shrinks."""
        return self.patch * 2 ** (len(self.widths) - 1)


class Reconstruction(NamedTuple):
    """What the losses of an autoencoder need: the image made, and the law of the latent it was made from."""

    image: Tensor  # [N, inputs, *spatial]
    mean: Tensor  # [N, channels, *spatial / factor]
    log_variance: Tensor


class Encoder(nn.Module):
    """x [N, inputs, *spatial] -> (mean, log variance), each [N, channels, *spatial / factor]."""

    def __init__(self, config: KLConfig):
        super().__init__()
        self.patch, widths = config.patch, config.widths
        self.stem = conv(config.dims, config.inputs * config.patch**config.dims, widths[0])
        levels: list[nn.Module] = []
        for level, width in enumerate(widths):
            before = widths[max(0, level - 1)]
            levels += [Down(config.dims, before)] if level else []
            levels += _residuals(config, before, width)
        self.levels = nn.Sequential(*levels, *_middle(config))
        self.norm = group_norm(widths[-1], config.groups)
        self.head = conv(config.dims, widths[-1], 2 * config.channels)
        self.linear = Linear(config.factor, config.dims, cosines(config)) if config.linear else None
        if self.linear is not None:
            zero(self.head).get_parameter("bias").data[config.channels :] = QUIET

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.levels(channels_last(self.stem(fold(x, self.patch))))  # (one channel: torch cannot tell the layout)
        mean, log_variance = self.head(activate(h, self.norm)).chunk(2, dim=1)
        if self.linear is not None:
            mean = mean + self.linear(fold(x, self.linear.factor))
        return mean, log_variance.clamp(-30.0, 20.0)


class Decoder(nn.Module):
    """z [N, channels, *spatial / factor] -> x [N, inputs, *spatial]."""

    def __init__(self, config: KLConfig):
        super().__init__()
        self.patch, widths = config.patch, config.widths[::-1]
        self.stem = conv(config.dims, config.channels, widths[0])
        levels = _middle(config)
        for level, width in enumerate(widths):
            before = widths[max(0, level - 1)]
            levels += [Up(config.dims, before)] if level else []
            levels += _residuals(config, before, width)
        self.levels = nn.Sequential(*levels)
        self.norm = group_norm(widths[-1], config.groups)
        self.head = conv(config.dims, widths[-1], config.inputs * config.patch**config.dims)
        self.linear = Linear(config.factor, config.dims, cosines(config).T) if config.linear else None
        if self.linear is not None:
            zero(self.head)

    def forward(self, z: Tensor) -> Tensor:
        x = self.levels(channels_last(self.stem(z)))
        x = unfold(self.head(activate(x, self.norm)), self.patch)
        return x if self.linear is None else x + unfold(self.linear(z), self.linear.factor)


class Linear(nn.Module):
    """A matrix for every block of voxels: [N, inputs, *] -> [N, outputs, *], given how it begins [outputs, inputs]."""

    def __init__(self, factor: int, dims: int, begin: Tensor):
        super().__init__()
        self.factor, self.map = factor, conv(dims, begin.shape[1], begin.shape[0], 1)
        zero(self.map).weight.data += begin.reshape(self.map.weight.shape).to(self.map.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


def cosines(config: KLConfig) -> Tensor:
    """The lowest cosines of a block of `factor` voxels per axis, orthonormal rows: [channels, inputs factor^dims]."""
    n = config.factor
    k, i = torch.arange(n, device="cpu")[:, None], torch.arange(n, device="cpu")[None]
    axis = torch.cos(torch.pi * (i + 0.5) * k / n) * torch.where(k > 0, 2 / n, 1 / n).sqrt()
    whole, frequency = torch.eye(config.inputs, device="cpu"), torch.zeros(config.inputs, device="cpu")
    for _ in range(config.dims):
        whole = torch.kron(whole, axis)
        frequency = (frequency[:, None] + k[:, 0] ** 2).flatten()
    rows = whole[frequency.argsort(stable=True)][: config.channels]
    return torch.cat([rows, rows.new_zeros(config.channels - len(rows), rows.shape[1])])


class KLCodec(nn.Module):
    """The codec. Any size: images are padded to a multiple of `factor`, so `decode` may give a few voxels more.

    Out of training on a CPU samples go through one by one: what a sample becomes does not depend on its batch, to the
    bit, and a batch needs the memory of one sample.
    """

    def __init__(self, config: KLConfig):
        super().__init__()
        self.config, self.channels, self.factor = config, config.channels, config.factor
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.whitening = Whitening(config.channels)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, inputs, *spatial] in [-1, 1] -> (mean, log variance) of the latent, not whitened, float32."""
        x = pad_to(x.to(self.encoder.head.weight.dtype), self.factor)
        mean, log_variance = self.encoder(x)
        return mean.float(), log_variance.float()

    def image(self, latent: Tensor) -> Tensor:
        """A latent that is not whitened -> x [N, inputs, *spatial], float32."""
        return self.decoder(latent.to(self.decoder.head.weight.dtype)).float()

    def reconstruct(self, x: Tensor, rng: Rng) -> Reconstruction:
        """Through a draw of the latent and back, for training."""
        mean, log_variance = self.posterior(x)
        image = self.image(draw(mean, log_variance, rng))
        return Reconstruction(crop_to(image, x.shape[2:]), mean, log_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Through the mean of the latent and back: x [N, inputs, *spatial] -> the same shape."""
        return crop_to(self.decode(self.encode(x)), x.shape[2:])

    def encode(self, x: Tensor) -> Tensor:
        """The whitened mean of the latent: x [N, inputs, *spatial] -> z [N, channels, *ceil(spatial / factor)]."""
        return self.whitening.enter(_each(lambda part: self.posterior(part)[0], x, self.training))

    def decode(self, z: Tensor) -> Tensor:
        """z [N, channels, *spatial] whitened -> x [N, inputs, *spatial * factor]."""
        return _each(self.image, self.whitening.leave(z), self.training)

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Measure the latents of some images, each [N, inputs, *spatial], and whiten all that follow."""
        self.whitening.fit(self.posterior(x)[0] for x in images)


def draw(mean: Tensor, log_variance: Tensor, rng: Rng) -> Tensor:
    """A draw from N(mean, exp(log_variance)) that gradients pass through."""
    return mean + torch.exp(0.5 * log_variance) * rng.normal_like(mean)


def _residuals(config: KLConfig, inputs: int, outputs: int) -> list[nn.Module]:
    widths = [inputs] + [outputs] * config.blocks
    return [Residual(config.dims, a, b, config.groups) for a, b in itertools.pairwise(widths)]


def _middle(config: KLConfig) -> list[nn.Module]:
    """At the coarsest size: attention between two residual blocks, if there is any."""
    width = config.widths[-1]
    if not config.attention:
        return []
    attend = Attention(width, max(1, width // config.head_size), config.groups)
    return [*_residuals(config, width, width)[:1], attend, *_residuals(config, width, width)[:1]]


def _each(function: Callable[[Tensor], Tensor], x: Tensor, together: bool) -> Tensor:
    if together or x.device.type != "cpu" or len(x) <= 1:
        return function(x)
    return torch.cat([function(part) for part in x.split(1)])

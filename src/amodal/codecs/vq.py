"""A vector-quantised autoencoder of single images, 2-D and 3-D: convolutions only, no norms.

van den Oord et al. 2017 (VQ-VAE), Esser et al. 2021 (VQGAN). Every level halves the size by a convolution of kernel 4
and has residual units of one inner width; the decoder mirrors the encoder. Beyond those papers, if asked: codes for
groups of channels, and a linear map of each block of voxels beside the convolutions (as in `kl`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import InputError
from ..nn.blocks import CONV, TRANSPOSED, conv, zero
from ..nn.layout import channels_last, fold, unfold
from ..nn.quantize import Codebook
from ..nn.winograd import convolve
from .kl import KLConfig, Linear, cosines


@dataclass(frozen=True)
class VQConfig:
    """`widths`: channels per level, fine to coarse, each level halves the size. `inner`: width inside residual units,
    `units` of them a level and side. `channels`: of the latent, which are one of `codes` vectors. `decay`: of the
    codes' running means; `commitment`: how much latents are drawn to their codes, in the loss. `groups`: the channels
    are cut into so many parts, each one of `codes` vectors of its own. `linear`: a linear map of each block of voxels
    lies beside encoder and decoder; it begins as the lowest cosines and they as 0."""

    widths: tuple[int, ...] = (256, 384, 512)
    inner: int = 256
    units: int = 3
    channels: int = 8
    codes: int = 8192
    decay: float = 0.99
    commitment: float = 0.25
    dims: Literal[2, 3] = 3
    groups: int = 1
    linear: bool = False

    def __post_init__(self) -> None:
        if not self.widths or min(self.inner, self.channels, self.codes) < 1 or min(self.widths) < 2 or self.units < 0:
            raise InputError(
                f"widths={list(self.widths)}, inner={self.inner}, units={self.units}, channels={self.channels}, "
                f"codes={self.codes}: give at least one width of 2 or more, and numbers of 1 or more."
            )
        if self.groups < 1 or self.channels % self.groups:
            raise InputError(f"groups={self.groups}: choose a number that divides the {self.channels} channels.")

    @property
    def factor(self) -> int:
        """By how much each axis shrinks."""
        return 2 ** len(self.widths)


class Unit(nn.Module):
    """relu(x + conv(relu(conv(x))))."""

    def __init__(self, dims: int, width: int, inner: int):
        super().__init__()
        self.first, self.second = conv(dims, width, inner), conv(dims, inner, width)

    def forward(self, x: Tensor) -> Tensor:
        h = convolve(self.second, relu(convolve(self.first, x)))
        return relu(h + x if torch.is_grad_enabled() else h.add_(x))


class Down(nn.Module):
    """A convolution of kernel 4 and stride 2, and a ReLU."""

    def __init__(self, dims: int, inputs: int, outputs: int):
        super().__init__()
        self.conv = CONV[dims](inputs, outputs, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return relu(channels_last(self.conv(x)))


class Up(nn.Module):
    """The transpose of such a convolution; a ReLU, but not after the last."""

    def __init__(self, dims: int, inputs: int, outputs: int, last: bool):
        super().__init__()
        kind = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
        self.conv, self.dims, self.last = kind(inputs, outputs, 4, 2, 1), dims, last

    def forward(self, x: Tensor) -> Tensor:
        x = TRANSPOSED[self.dims](x, self.conv.weight, self.conv.bias, stride=2, padding=1)
        return x if self.last else relu(x)


class VQ(nn.Module):
    """The codec. Latents are continuous: quantised only on the way to an image. Sizes are multiples of `factor`.

    Out of training on a CPU images go through one by one: what becomes of one does not depend on its batch, to the bit.
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config, self.channels, self.factor = config, config.channels, config.factor
        dims, widths, back = config.dims, config.widths, config.widths[::-1]
        down: list[nn.Module] = []
        for before, width in zip((1, *widths), widths):
            down += [Down(dims, before, width), *(Unit(dims, width, config.inner) for _ in range(config.units))]
        self.encoder = nn.Sequential(*down, conv(dims, widths[-1], config.channels))
        up: list[nn.Module] = [conv(dims, config.channels, back[0])]
        for width, after in zip(back, (*back[1:], 1)):  # (no level has a width of 1)
            up += [Unit(dims, width, config.inner) for _ in range(config.units)]
            up += [Up(dims, width, after, last=after == 1)]
        self.decoder = nn.Sequential(*up)
        self.cosines = _linear(config) if config.linear else None
        if self.cosines is not None:
            zero(self.encoder[-1])
            zero(self.decoder[-1])
        self.embed = Codebook(config.codes, config.channels, config.decay, groups=config.groups)  # (stays in float32)

    @property
    def _type(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    def encode(self, x: Tensor) -> Tensor:
        """x [N, 1, *spatial] -> z [N, channels, *spatial / factor], float32, not quantised."""
        if any(n % self.factor for n in x.shape[2:]):
            raise InputError(f"an image of {list(x.shape[2:])} voxels: each size must be a multiple of {self.factor}.")
        return each(self._latent, x.to(self._type), self.training).float()

    def decode(self, z: Tensor) -> Tensor:
        """z [N, channels, *spatial] -> the image of its nearest codes, [N, 1, *spatial * factor], float32."""
        return self.image(self.embed(z))

    def image(self, codes: Tensor) -> Tensor:
        """Quantised latents -> images."""
        return each(self._image, codes.to(self._type), self.training).float()

    def _latent(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        return z if self.cosines is None else z + self.cosines[0](fold(x, self.factor))

    def _image(self, codes: Tensor) -> Tensor:
        x = self.decoder(codes)
        return x if self.cosines is None else x + unfold(self.cosines[1](codes), self.factor)

    def commitment(self, z: Tensor, codes: Tensor) -> Tensor:
        """How far latents are from their codes (which are held fixed): mean squared, weighted."""
        return self.config.commitment * F.mse_loss(z.float(), codes.detach().float())


def _linear(config: VQConfig) -> nn.ModuleList:
    """The linear maps into the latent and back."""
    begin = cosines(KLConfig(config.channels, (1,) * (len(config.widths) + 1), dims=config.dims))
    return nn.ModuleList(Linear(config.factor, config.dims, matrix) for matrix in (begin, begin.T))


def relu(x: Tensor) -> Tensor:
    """ReLU; overwrites x where no gradient will ask for it."""
    return F.relu(x, inplace=not torch.is_grad_enabled())


def each(net: Callable[[Tensor], Tensor], x: Tensor, together: bool) -> Tensor:
    """net(x [N, ...]), one by one on a CPU unless `together`."""
    if together or x.device.type != "cpu" or len(x) < 2:
        return net(x)
    return torch.cat([net(part) for part in x.split(1)])

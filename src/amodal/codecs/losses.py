"""The losses of autoencoders: absolute error, divergence from the normal law, adversarial, perceptual."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.rng import Rng, seed_of
from ..nn.blocks import CONV

Extract = Callable[[Tensor], Sequence[Tensor]]  # [B, C, *spatial] -> features of several levels [B, F, *spatial / n]
POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}


def l1(x: Tensor, y: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean absolute error, over the voxels `where` (bool, broadcasts) if given."""
    error = (x.float() - y.float()).abs()
    if where is None:
        return error.mean()
    where = where.expand_as(error)
    return torch.where(where, error, 0.0).sum() / where.sum().clamp(min=1)


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of N(mean, variance) from N(0, 1), mean over elements."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()


# adversarial games: name -> (the critic's loss of logits of real and of made images, the maker's loss of the latter)
GAMES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "least_squares": (  # Mao et al. 2017
        lambda real, made: 0.5 * (((real - 1) ** 2).mean() + (made**2).mean()),
        lambda made: ((made - 1) ** 2).mean(),
    ),
    "hinge": (  # Lim & Ye 2017
        lambda real, made: 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean()),
        lambda made: -made.mean(),
    ),
    "log": (  # Goodfellow et al. 2014, the maker's non-saturating
        lambda real, made: 0.5 * (F.softplus(-real).mean() + F.softplus(made).mean()),
        lambda made: F.softplus(-made).mean(),
    ),
}


def critic_loss(game: str, real: Tensor, made: Tensor) -> Tensor:
    """What the critic minimises, given its logits of real images and of (detached) made ones."""
    return GAMES[game][0](real.float(), made.float())


def maker_loss(game: str, made: Tensor) -> Tensor:
    """What the codec minimises, given the logits of what it made (`nn.critic.judged`)."""
    return GAMES[game][1](made.float())


class Features(nn.Module):
    """A fixed stack of convolutions 3^dims with ReLU, levels with a max-pooling by 2 between them; nothing is learned.

    The weights are buffers that no checkpoint holds: they follow from a seed or from a file, see below.
    """

    def __init__(self, levels: Sequence[Sequence[tuple[Tensor, Tensor]]]):
        """`levels[i]`: the (weight, bias) of the convolutions of level i."""
        super().__init__()
        self.dims, self.channels = levels[0][0][0].ndim - 2, levels[0][0][0].shape[1]
        self.names = [[f"{i}_{j}" for j in range(len(level))] for i, level in enumerate(levels)]
        for names, level in zip(self.names, levels):
            for name, (weight, bias) in zip(names, level):
                self.register_buffer(f"weight_{name}", weight, persistent=False)
                self.register_buffer(f"bias_{name}", bias, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [B, 1 or channels, *spatial] -> one feature map a level; a grey image is repeated for colour features."""
        x = x.expand(-1, self.channels, *x.shape[2:])
        convolve = {2: F.conv2d, 3: F.conv3d}[self.dims]
        found: list[Tensor] = []
        for i, names in enumerate(self.names):
            if i and min(x.shape[2:]) < 2:
                break  # the image is too small for more levels
            x = POOL[self.dims](x, 2) if i else x
            for name in names:
                weight, bias = self.get_buffer(f"weight_{name}"), self.get_buffer(f"bias_{name}")
                x = F.relu(convolve(x, weight.to(x.dtype), bias.to(x.dtype), padding=weight.shape[-1] // 2))
            found.append(x)
        return found


def random_features(
    dims: int, channels: int = 1, widths: Sequence[int] = (16, 32, 64), layers: int = 2, seed: int = 0
) -> Features:
    """Features made from a seed alone, the same everywhere: He-normal weights, no download.

    Distances in the normalised features of a random network order distortions much as those of a trained one do
    (Zhang et al. 2018, section 4.2), if less sharply.
    """
    draw = torch.Generator("cpu").manual_seed(seed_of(seed, "features", dims, channels, *widths))
    levels, before = [], channels
    for width in widths:
        level = []
        for _ in range(layers):
            fan = before * 3**dims
            shape = (width, before, *(3,) * dims)
            weight = torch.randn(shape, generator=draw, device="cpu") * (2 / fan) ** 0.5
            level.append((weight, torch.zeros(width, device="cpu")))
            before = width
        levels.append(level)
    return Features(levels)


def read_features(path: str | Path) -> Features:
    """Features from a .safetensors file with tensors `LEVEL.LAYER.weight` and `.bias`, such as those of a VGG network.

    InputError: the file cannot be read, or a convolution does not fit the one before it.
    """
    try:
        found = load_file(str(path))
        keys = sorted({tuple(map(int, key.split(".")[:2])) for key in found})
        levels: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for level, layer in keys:
            pair = found[f"{level}.{layer}.weight"].float(), found[f"{level}.{layer}.bias"].float()
            levels.setdefault(level, []).append(pair)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: no features can be read ({error}); give a .safetensors file with LEVEL.LAYER.weight and .bias."
        ) from error
    chain = [pair for level in levels.values() for pair in level]
    fits = all(a[0].shape[0] == b[0].shape[1] for a, b in itertools.pairwise(chain))
    if not chain or not fits or any(w.ndim - 2 not in CONV or b.shape != w.shape[:1] for w, b in chain):
        raise InputError(f"{path}: its convolutions do not form a chain; give weights [out, in, k, k(, k)] and biases.")
    return Features([levels[i] for i in sorted(levels)])


def perceptual(extract: Extract, x: Tensor, y: Tensor) -> Tensor:
    """Squared distance of x and y [B, C, *spatial] in features of unit length per voxel, mean over voxels and levels.

    Zhang et al. 2018 (LPIPS), with all channel weights equal. y is the target: no gradient reaches it.
    """
    with torch.no_grad():
        target = extract(y)
    distances = [((unit(a) - unit(b)) ** 2).sum(1).mean() for a, b in zip(extract(x), target)]
    return torch.stack(distances).mean()


def unit(x: Tensor) -> Tensor:
    """Features [B, F, *spatial] divided by their length at every voxel, float32."""
    x = x.float()
    return x * torch.rsqrt((x**2).sum(1, keepdim=True) + 1e-6)


def planes(x: Tensor, part: float, rng: Rng, axes: Sequence[int] = (0, 1, 2)) -> list[Tensor]:
    """A random `part` of the slices of volumes [B, C, X, Y, Z] across each of `axes`: one [n, C, a, b] an axis.

    2-D features judge volumes this way. The slices are the same for all samples and for equal streams, so that two
    volumes are cut alike with `rng` and a copy: call it on both, stacked on the channel axis.
    """
    found = []
    for axis in axes:
        size = x.shape[2 + axis]
        count = max(1, round(part * size))
        chosen = rng[:1].fork("planes", axis).uniform(size)[0].argsort()[:count].sort().values.to(x.device)
        found.append(x.index_select(2 + axis, chosen).movedim(2 + axis, 1).flatten(0, 1))
    return found

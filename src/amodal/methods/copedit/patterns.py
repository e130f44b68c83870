"""What there is and what is missing: drawing patterns, labels of the pretext tasks, filling gaps for the encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.contract import Batch
from ...core.errors import InputError
from ...core.rng import Rng
from .config import LENGTHS, Config


def draw(config: Config, present: Tensor, rng: Rng) -> Tensor:
    """What is available of the places [B, places] that are present: a fresh random pattern for every sample.

    At least one present place stays available; something is missing, unless there is but one.
    """
    return (_modalities if config.layout == "modalities" else _slices)(present, rng)


def draw_or_none(config: Config, present: Tensor, rng: Rng) -> Tensor:
    """As `draw`, but for a share of `losses.whole` of the samples nothing that is present is hidden."""
    hide = rng.fork("whole").uniform().to(present.device) >= config.losses.whole
    return torch.where(hide[:, None], draw(config, present, rng), present)


def _modalities(present: Tensor, rng: Rng) -> Tensor:
    """Section 3.2: how many are missing, uniform over 1 .. M - 1 (at least those absent), then which."""
    total = present.shape[1]
    there = present.sum(1).cpu()
    least = (total - there).clamp(min=1)
    missing = least + (rng.uniform() * (total - least)).floor().long().clamp(max=total)
    order = torch.where(present.cpu(), rng.uniform(total), torch.tensor(2.0))
    rank = order.argsort(1).argsort(1)
    return (rank < (total - missing).clamp(min=1)[:, None]).to(present.device) & present


def _slices(present: Tensor, rng: Rng) -> Tensor:
    """Half of the time a gap of a quarter, half or three quarters of the stack (the paper), a quarter of the time a gap
    of any length, else every k-th slice is there (a stack of thick slices): each anywhere."""
    total = present.shape[1]
    z = torch.arange(total)
    kind, u, place, length = rng.uniform(4).T[..., None]
    quarter = ((1 + (u * LENGTHS).floor()) * total / (LENGTHS + 1)).round()
    long = torch.where(kind < 0.5, quarter, 1 + (length * 0.75 * total).floor()).clamp(max=total - 1)
    start = (place * (total - long + 1)).floor()
    gap = (z >= start) & (z < start + long)
    step = 2 + (u * 4).floor()
    comb = (z - (place * step).floor()) % step == 0
    available = torch.where(kind < 0.75, ~gap, comb).to(present.device) & present
    return torch.where(available.any(1, keepdim=True), available, present)


def labels(config: Config, available: Tensor) -> tuple[Tensor, Tensor]:
    """The targets of tasks 1 and 2 for what is available [B, places]: the class of the count [B] (-1: none), what is
    missing."""
    missing = ~available
    number = missing.sum(1).clamp(max=config.places - 1)
    return classes(config).to(number.device)[number], missing


def classes(config: Config) -> Tensor:
    """The class of the count for 0, 1 ... places missing, but not all: [places]. -1: none of them, for 0, and of slices
    for up to an eighth, which is nearer to nothing than to a quarter."""
    number = torch.arange(config.places)
    if config.layout == "slices":
        number = (number * (LENGTHS + 1) / config.places).round().long().clamp(max=LENGTHS)
    return number - 1


def filled(images: Tensor, present: Tensor) -> Tensor:
    """images [N, 1, X, Y, Z] with what is not present interpolated linearly along z, held at the ends; -1 where a
    whole line is missing. What is not present may hold anything finite."""
    if bool((present.all(-1) == present.any(-1)).all()):  # whole images
        return torch.where(present, images, torch.full_like(images, -1.0))
    z = torch.arange(images.shape[-1], device=images.device)
    low, high = neighbours(present)
    a, b = (images.gather(-1, place.expand_as(images)) for place in (low, high))
    weight = (z - low) / (high - low).clamp(min=1)
    made = torch.lerp(a, b, weight.to(images.dtype))
    empty = ~present.any(-1, keepdim=True)
    return torch.where(present, images, torch.where(empty, torch.full_like(made, -1.0), made))


def neighbours(present: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest present place at or below, and at or above, each along the last axis; the only one at the ends."""
    depth = present.shape[-1]
    z = torch.arange(depth, device=present.device)
    below = torch.where(present, z, -1).cummax(-1).values
    above = torch.where(present, z, depth).flip(-1).cummin(-1).values.flip(-1)
    low, high = torch.where(below < 0, above, below), torch.where(above == depth, below, above)
    return low.clamp(max=depth - 1), high.clamp(min=0)


def places(config: Config, present: Tensor) -> Tensor:
    """Which places are there as a whole: present [B, M, X, Y, Z] (broadcast) -> bool [B, places]."""
    if config.layout == "modalities":
        return present.flatten(2).all(2)
    return present.flatten(2, 3).all(2)[:, 0].expand(-1, config.places)


def given(config: Config, present: Tensor) -> Tensor:
    """Which slots the prior is given: present [B, M, X, Y, Z] (full size) -> bool [B, slots].

    A slot is given where all of it was acquired. With a context the prior is shown the rest in another way; without
    one, what is acquired for the greater part counts too, and if there is none, what is acquired most.
    """
    cells = present.movedim(4, 1).reshape(len(present), config.slots, -1) if config.layout == "slices" else present
    share = cells.flatten(2).float().mean(2)
    if config.prior.context:
        return share == 1
    most = share.amax(1, keepdim=True)
    return torch.where(most > 0.5, share > 0.5, (share == most) & (share > 0))


def there(batch: Batch) -> Tensor:
    """Which images are there as a whole [B, M]; InputError if none of the batch is."""
    whole = batch.present.flatten(2).all(2)
    if not whole.any():
        raise InputError("no sample of the batch has a whole image; train on studies that do.")
    return whole


def cut(images: Tensor, crop: Sequence[int], rng: Rng) -> Tensor:
    """A random sub-volume of every sample, `crop` voxels (0: all) along each axis."""
    sizes = [min(c, n) if c else n for c, n in zip(crop, images.shape[2:])]
    parts = []
    for image, u in zip(images, rng.fork("crop").uniform(3)):
        corner = [int(v * (n - c + 1)) for v, n, c in zip(u, images.shape[2:], sizes)]
        x, y, z = (slice(a, a + c) for a, c in zip(corner, sizes))
        parts.append(image[:, x, y, z])
    return torch.stack(parts)


def by_modality(values: Tensor, whole: Tensor) -> Tensor:
    """Values [N, ...] of the N images that are there, whole [B, M] -> [B, M, ...], 0 elsewhere."""
    return values.new_zeros(*whole.shape, *values.shape[1:]).index_put((whole,), values)


def telling(present: Tensor) -> Tensor:
    """Which modalities [B, M] the prompts are averaged over: the whole ones, or where there are none all that show."""
    flat = present.flatten(2)
    whole, some = flat.all(2), flat.any(2)
    return torch.where(whole.any(1, keepdim=True), whole, some)

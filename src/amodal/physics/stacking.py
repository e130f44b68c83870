"""How far a model's image is to be trusted: samples that were kept back decide (stacking, Wolpert 1992).

Between two reconstructions stand their means:
corrected    the model's image, and what of the data it leaves unexplained, sparse in wavelets (PICCS, Chen et al. 2008)
l1_wavelet   without the model
A prior that knows what was scanned wins; one that does not loses its weight, not the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..core.contract import Measurement
from ..core.errors import InputError
from ..core.rng import Rng
from .classic import l1_wavelet
from .linear import mask
from .masks import calibration
from .mri import sense

SHARE = 0.1  # of the samples is kept back
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of `corrected`


def keep_back(measured: Measurement, seed: int = 0) -> tuple[Measurement, Tensor]:
    """The measurement without a tenth of its samples, and where those are, bool [Z or 1, 1, X, Y].

    Whole lines where whole lines were sampled. The calibration centre stays: maps and phase came from it. InputError
    where nothing else was sampled.
    """
    sampled = measured.sampled.bool()
    *_, x, y = sampled.shape
    drawn = Rng.of(seed, 1, "kept back").uniform(x, y)[0].to(sampled.device)
    outside = sampled.any(0)[0] & ~_centre(sampled)
    for axis in _constant(sampled):
        drawn, outside = drawn.narrow(axis, 0, 1), outside.narrow(axis, 0, 1)
    if not outside.any():
        raise InputError("nothing was sampled beside the centre of k-space: nothing to keep back and validate by.")
    count = max(1, round(SHARE * int(outside.sum())))
    held = sampled & outside & (drawn <= drawn[outside].sort().values[count - 1])
    rest = replace(measured, kspace=mask(~held)(measured.kspace), sampled=sampled & ~held)
    return rest, held


def _centre(sampled: Tensor) -> Tensor:
    """The calibration centre of samples [Z, 1, X, Y], and a sample more on each side: bool [X, Y]."""
    *_, x, y = sampled.shape
    boxes = zip((x, y), calibration(sampled.all(0)[0]))
    near = [(torch.arange(n, device=sampled.device) - n // 2).abs() <= (count + 1) // 2 for n, count in boxes]
    return near[0][:, None] & near[1]


def _constant(sampled: Tensor) -> list[int]:
    """The axes of the plane along which samples [..., X, Y] do not change: whole lines."""
    return [axis for axis in (-2, -1) if bool((sampled == sampled.narrow(axis, 0, 1)).all())]


def blends(measured: Measurement, magnitudes: Tensor, alone: Tensor | None = None) -> dict[float, Tensor]:
    """Complex images [Z, X, Y] by the weight of the model's, from its magnitudes [Z, X, Y]; `alone`: the image of
    L1-wavelet, if it is known."""
    made = []
    for z in range(len(measured)):  # slice by slice: the coils of one fit the memory
        one = measured[z : z + 1]
        turned = magnitudes[z : z + 1].to(one.kspace) * (1 if one.phase is None else one.phase)
        rest = replace(one, kspace=mask(one.sampled)(one.kspace - sense(one)(turned)))
        made.append(turned + l1_wavelet(rest))
    corrected, alone = torch.cat(made), l1_wavelet(measured) if alone is None else alone
    return {weight: weight * corrected + (1 - weight) * alone for weight in WEIGHTS}


def misses(measured: Measurement, held: Tensor, image: Tensor) -> Tensor:
    """|y - A x|^2 over the samples `held` of the whole measurement, of each point of the plane or each line, where
    whole lines are: [N]. x complex [Z, X, Y]."""
    total = torch.zeros(held.shape[-2:], dtype=torch.float64, device=image.device)
    for z in range(len(measured)):
        one, here = measured[z : z + 1], mask(held if len(held) == 1 else held[z : z + 1])
        total += here(sense(one)(image[z : z + 1]) - one.kspace).abs().double().square().sum((0, 1))
    plane = held.any(0)[0]
    for axis in _constant(plane):
        total, plane = total.sum(axis, keepdim=True), plane.narrow(axis, 0, 1)
    return total[plane]


def lines(held: Tensor) -> bool:
    """Whether samples [Z or 1, 1, X, Y] are whole lines of the plane."""
    return bool(_constant(held.any(0)[0]))


def errors(measured: Measurement, held: Tensor, images: Mapping[float, Tensor]) -> tuple[dict[float, float], float]:
    """||y - A x|| / ||y|| over the samples `held` by the weight of the model, and the weight to take: the largest that
    is not worse than the best by more than a standard error (Breiman et al. 1984): the model is believed unless the
    data speak against it."""
    found = {weight: misses(measured, held, image) for weight, image in images.items()}
    energy = misses(measured, held, torch.zeros_like(next(iter(images.values())))).sum()
    best = min(found.values(), key=lambda v: float(v.sum()))

    def close(missed: Tensor) -> bool:
        worse = missed - best
        return len(worse) < 2 or bool(worse.mean() <= worse.std() / len(worse) ** 0.5)

    weight = max(weight for weight, missed in found.items() if close(missed))
    return {w: float((missed.sum() / energy).sqrt()) for w, missed in found.items()}, weight

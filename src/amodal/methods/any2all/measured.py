"""Measured modalities: the prior bent towards k-space, beside clean and missing ones.

MDS corrects the prediction of each measured modality by a proximal step; A is block-diagonal, so one after the other.
MPS follows the gradient of all that is known; where the prior sees clean modalities at time 0, of the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...core.contract import Batch, Measurement
from ...core.errors import InputError
from ...diffusion.bends import clip
from ...diffusion.denoiser import Denoise
from ...diffusion.process import Process
from ...physics.linear import Linear, mask
from ...physics.mri import check, observe
from ...physics.posterior import Observation, channel, gradient, project, proximal, trust, white

SPARE = 1e-3  # of the coils' sensitivity, for fewer of them to compute
ITERATIONS, TOLERANCE = 10, 1e-3  # of the conjugate gradients in a step; more change no image by more than its noise
EARLY = 0.7  # alpha below which the Jacobian is not trusted
BRIGHTEST = 1.5  # of a measured image, whose window ends at 1
Measured = Mapping[int, Measurement]  # by the index of the modality


def measured(batch: Batch, modalities: Sequence[str]) -> Measured:
    """The measurements of a batch by index; InputError where one does not fit."""
    found = dict(batch.measurement or {})
    if foreign := [name for name in found if name not in modalities]:
        raise InputError(f"{foreign[0]} was measured, and the model knows {', '.join(modalities)}; name one of them.")
    present = batch.present.expand_as(batch.images)
    for name, given in found.items():
        check(given, name)
        if len(given) != len(batch):
            raise InputError(
                f"{name} was measured in {len(given)} slices of {len(batch)}; give k-space of every slice."
            )
        if any(c + n > w for c, n, w in zip(given.corner, given.kspace.shape[-2:], batch.images.shape[-2:])):
            raise InputError(f"{name} was measured on a larger matrix than the images have; pad the images.")
        if present[:, modalities.index(name)].any():
            raise InputError(f"{name} is given both as an image and as k-space; give one of them.")
    return {modalities.index(name): given for name, given in found.items()}


def decompose(denoise: Denoise, process: Process, given: Measured, whole: tuple[int, int]) -> Denoise:
    """MDS: the proximal correction of each measured modality."""
    for m, measurement in given.items():
        seen = observe(measurement, whole, SPARE)

        def bend(one: Denoise, seen: Observation = seen) -> Denoise:
            return proximal(one, process, seen, trust(process), ITERATIONS, TOLERANCE)

        denoise = channel(bend, m)(denoise)
    return denoise


def follow(
    denoise: Denoise, process: Process, given: Measured, present: Tensor, images: Tensor, held: bool,
    iterations: int = 2,
) -> Denoise:  # fmt: skip
    """MPS: the gradient of the misfit of all measurements, and of the clean modalities unless they are `held`.

    While there is little signal in x_t the Jacobian of a trained network says nothing, and the covariance of the
    prediction is taken as white: there MPS is MDS.
    """
    plain = [observe(each, (images.shape[-2], images.shape[-1]), SPARE) for each in given.values()]
    parts = [_of_modality(seen, m, images.shape[1]) for m, seen in zip(given, plain)]
    known = not held and bool(present.any())
    if known:
        parts.append(Observation(mask(present), torch.where(present, images, torch.zeros_like(images))))
    whole = stacked(parts)

    def near(residual: Tensor, t: Tensor) -> Callable[[Tensor], Tensor]:
        pieces = split(parts, residual)
        solvers = [
            white(seen, trust(process)(seen, piece, t), ITERATIONS, TOLERANCE) for seen, piece in zip(plain, pieces)
        ]
        alpha, sigma = process.at(t)
        clean = (sigma**2 / (alpha**2 + sigma**2)).reshape(-1, *[1] * (images.ndim - 1)) + 1e-8
        solvers += [lambda r: r / clean] if known else []
        return lambda r: torch.cat([_real(solve(piece)) for solve, piece in zip(solvers, split(parts, r))], 1)

    pulled = clip(gradient(denoise, process, whole, iterations, near), high=BRIGHTEST)
    first = denoise if held else project(denoise, present, images)
    corrected = decompose(first, process, given, (images.shape[-2], images.shape[-1]))

    def bent(x: Tensor, t: Tensor) -> Tensor:
        alpha = process.at(t.reshape(-1)[0])[0]
        return corrected(x, t) if alpha < EARLY else pulled(x, t)

    return bent


def _of_modality(seen: Observation, m: int, modalities: int) -> Observation:
    """An observation of modality m of stacks [B, M, X, Y]."""

    def adjoint(y: Tensor) -> Tensor:
        image = seen.A.H(y)
        out = image.new_zeros(len(image), modalities, *image.shape[1:])
        out[:, m] = image
        return out

    return Observation(Linear(lambda x: seen.A(x[:, m]), adjoint, seen.A.name), seen.y, seen.noise)


def stacked(parts: Sequence[Observation]) -> Observation:
    """Several observations as one, of real numbers [B, N]; each keeps its own noise."""
    flat = [_real(part.y) for part in parts]
    noise = torch.cat([torch.full_like(y[0], float(part.noise)) for part, y in zip(parts, flat)])

    def adjoint(u: Tensor) -> Tensor:
        return sum(part.A.H(piece) for part, piece in zip(parts, split(parts, u)))  # type: ignore[return-value]

    A = Linear(lambda x: torch.cat([_real(part.A(x)) for part in parts], 1), adjoint, "stacked")
    return Observation(A, torch.cat(flat, 1), noise)


def split(parts: Sequence[Observation], flat: Tensor) -> list[Tensor]:
    """What is stacked as real numbers [B, N], each part again in the shape of its data."""
    sizes = [_real(part.y).shape[1] for part in parts]
    return [_like(piece, part.y) for piece, part in zip(flat.split(sizes, dim=1), parts)]


def _real(y: Tensor) -> Tensor:
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


def _like(flat: Tensor, y: Tensor) -> Tensor:
    if y.is_complex():
        return torch.view_as_complex(flat.reshape(*y.shape, 2).contiguous())
    return flat.reshape(y.shape)

"""The MR scanner as operators: y = M F S P m + n for a slice.

m    the magnitude image, real                   F    the centred, orthonormal Fourier transform
P    the phase of the image (modulus 1)          M    the sampling mask
S    the coils' sensitivities                    n    white complex noise

`observe` turns a measurement into an observation of an image in [-1, 1], whose windowing is affine:
m = mid + gain x, so y - A mid = gain A x + n.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.contract import Measurement
from ..core.errors import InputError
from .linear import Linear, mask
from .posterior import Observation

PLANE = (-2, -1)


def centred(x: Tensor, axes: tuple[int, ...] = PLANE, inverse: bool = False) -> Tensor:
    """The orthonormal Fourier transform with position and frequency 0 at N // 2, complex."""
    transform = torch.fft.ifftn if inverse else torch.fft.fftn
    return torch.fft.fftshift(transform(torch.fft.ifftshift(x, dim=axes), dim=axes, norm="ortho"), dim=axes)


def fourier(axes: tuple[int, ...] = PLANE) -> Linear:
    """Image to k-space, centred and orthonormal: its adjoint is its inverse."""
    return Linear(lambda x: centred(x, axes), lambda y: centred(y, axes, inverse=True), "fourier")


def coils(maps: Tensor) -> Linear:
    """One image [B, X, Y] seen by the coils [B, C, X, Y]; `maps` [B or 1, C, X, Y]."""
    return Linear(lambda x: maps * x[:, None], lambda y: (maps.conj() * y).sum(1), "coils")


def magnitude(maps: Tensor) -> Linear:
    """A real image [B, X, Y] seen by coils [B, C, X, Y]: `coils(maps) @ real()` in half the work."""
    conj = maps.conj().resolve_conj()
    return Linear(lambda x: maps * x[:, None], lambda y: (conj * y).sum(1).real.contiguous(), "magnitude")


def real() -> Linear:
    """Real images among the complex ones; the adjoint, with the inner product Re <a, b>, is the real part."""
    return Linear(lambda x: torch.complex(x, torch.zeros_like(x)), lambda y: y.real, "real")


def window(corner: tuple[int, int], size: tuple[int, int], whole: tuple[int, int]) -> Linear:
    """The part [B, *size] at `corner` of images [B, *whole]."""
    (i, j), (a, b) = corner, size
    if corner == (0, 0) and size == whole:
        return Linear(lambda x: x, lambda y: y, "window")
    padding = (j, whole[1] - j - b, i, whole[0] - i - a)
    return Linear(lambda x: x[..., i : i + a, j : j + b], lambda y: torch.nn.functional.pad(y, padding), "window")


def observe(measured: Measurement, whole: tuple[int, int], spare: float = 0.0) -> Observation:
    """What a measurement says of the image [B, *whole] in [-1, 1] of its modality.

    Along an axis that is fully sampled the data are taken to image space, where the transform of the operator cancels
    (it is orthonormal, so that noise stays white and residuals keep their length): phase-encoding lines cost one
    transform a slice, not two. Along the others the origin is moved from the centre to the corner, where the plain FFT
    has it: multiplications by phases of modulus 1. `spare`: see `_compressed`.
    """
    size = (measured.kspace.shape[-2], measured.kspace.shape[-1])
    axes = tuple(axis for axis in PLANE if _varies(measured.sampled, axis))
    y = centred(mask(measured.sampled)(measured.kspace), PLANE, inverse=True)
    sampled = measured.sampled
    if axes:
        y, sampled = torch.fft.fftn(y, dim=axes, norm="ortho"), torch.fft.ifftshift(sampled, dim=axes)
    maps, y = _compressed(_sensitivities(measured), y, axes, spare)
    place = window(measured.corner, size, whole)
    A, B = (_scan(turn * maps, sampled, axes, place) for turn in (1, 1j))
    lo, hi = measured.window
    middle = torch.full((1, *whole), (lo + hi) / 2, device=y.device, dtype=maps.real.dtype)
    gain = (hi - lo) / 2
    y = mask(sampled)(y)
    y = (y - A(middle.expand(len(y), -1, -1))) / gain
    count, trace = _extent(y, sampled, maps)
    beside = B if measured.quadrature else None
    return Observation(A, y, measured.noise / gain, count, trace, beside, measured.quadrature / gain)


def _scan(maps: Tensor, sampled: Tensor, axes: tuple[int, ...], place: Linear) -> Linear:
    """Magnitudes to samples along `axes`; A^H A with one mask and one scaling, in place."""
    one = mask(sampled) @ _cut(axes) @ magnitude(maps) @ place
    weight = sampled.to(maps.real.dtype) / math.prod(maps.shape[axis] for axis in axes)
    back = magnitude(maps).H

    def gram(x: Tensor) -> Tensor:
        seen = maps * place(x)[:, None]
        if axes:
            seen = torch.fft.ifftn(torch.fft.fftn(seen, dim=axes).mul_(weight), dim=axes, norm="forward")
        return place.H(back(seen if axes else seen.mul_(weight)))

    return Linear(one.forward, one.adjoint, one.name, gram)


def _compressed(maps: Tensor, y: Tensor, axes: tuple[int, ...], spare: float) -> tuple[Tensor, Tensor]:
    """Fewer, virtual coils: maps [B or 1, C', X, Y] and data [B, C', X, Y] (Zhang et al. 2013, geometric compression).

    At each place along a fully sampled axis the coils are turned (white noise stays white) so that few of them see
    nearly all; those that hold at most the part `spare` of the sensitivity there are left out. What is left is still
    exactly the scan's, only less of it. With 8 coils around a head 5 do, and a correction costs less.
    """
    place = {(-1,): "bx", (-2,): "by", PLANE: "b"}.get(axes)
    if place is None or not spare or maps.shape[1] == 1:
        return maps, y
    size, turn = torch.linalg.eigh(torch.einsum(f"bcxy,bdxy->{place}cd", maps, maps.conj()))  # the weakest first
    share = size.clamp(min=0).cumsum(-1) / size.clamp(min=0).sum(-1, keepdim=True).clamp(min=1e-30)
    left_out = min(int((share <= spare).flatten(0, -2).sum(1).min()), maps.shape[1] - 1)
    few = turn[..., left_out:].conj()
    turned = [torch.einsum(f"bcxy,{place}ck->bkxy", t, few).contiguous() for t in (maps, y)]
    return turned[0], turned[1]


def _extent(y: Tensor, sampled: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Of every slice: how many real numbers were measured, and tr(A^H A); [B] float64.

    White noise of an image is white in k-space, so the trace is the energy of the maps times the share sampled.
    """
    share = sampled.expand(len(sampled), 1, *y.shape[-2:]).double().mean((1, 2, 3))
    energy = (torch.view_as_real(maps).double() ** 2).sum((1, 2, 3, 4))
    count = 2.0 * share * y[0].numel()
    return count.expand(len(y)), (share * energy).expand(len(y))


def _cut(axes: tuple[int, ...]) -> Linear:
    """The Fourier transform with its origin in the corner."""
    if not axes:
        return Linear(lambda x: x, lambda y: y, "fft")
    return Linear(
        lambda x: torch.fft.fftn(x, dim=axes, norm="ortho"), lambda y: torch.fft.ifftn(y, dim=axes, norm="ortho"), "fft"
    )


def _varies(sampled: Tensor, axis: int) -> bool:
    first = sampled.narrow(axis, 0, 1)
    return bool((sampled != first).any())


def _sensitivities(measured: Measurement) -> Tensor:
    """Maps times phase, [B or 1, C, X, Y]."""
    size = measured.kspace.shape[-2:]
    maps = measured.maps
    if maps is None:
        maps = torch.ones(
            1, measured.kspace.shape[1], *size, dtype=measured.kspace.dtype, device=measured.kspace.device
        )
    return maps if measured.phase is None else maps * measured.phase[:, None]


def sense(measured: Measurement) -> Linear:
    """The complex operator image [B, X, Y] -> k-space [B, C, X, Y] of a measurement, without phase or window."""
    maps = _sensitivities(Measurement(measured.kspace, measured.sampled, measured.maps))
    return mask(measured.sampled) @ fourier() @ coils(maps)


def simulate(images: Tensor, maps: Tensor | None, sampled: Tensor, noise: float, eps: Tensor) -> Tensor:
    """K-space [B, C, X, Y] of complex or real images [B, X, Y]; `eps` [B, C, X, Y, 2] is standard normal."""
    images = images if images.is_complex() else real()(images)
    seen = images[:, None] if maps is None else coils(maps)(images)
    return mask(sampled)(centred(seen) + noise * torch.view_as_complex(eps.contiguous()))


def check(measured: Measurement, name: str = "the measurement") -> None:
    """InputError where k-space, maps and mask do not fit each other, are not numbers, or nothing was sampled."""
    kspace, maps, sampled = measured.kspace, measured.maps, measured.sampled
    if not kspace.is_complex():
        raise InputError(f"k-space of {name} is {str(kspace.dtype)[6:]}; it must be complex, give complex64 numbers.")
    if maps is not None and (maps.shape[1:] != kspace.shape[1:] or len(maps) not in (1, len(kspace))):
        raise InputError(
            f"{name} has k-space of {_said(kspace)} and coil maps of {_said(maps)} (slices x coils x matrix); they "
            "must have the same coils and matrix, give the maps of this scan."
        )
    try:
        broadcast = torch.broadcast_shapes(sampled.shape, kspace.shape)
    except RuntimeError:
        broadcast = torch.Size()
    if broadcast != kspace.shape:
        raise InputError(
            f"{name} has k-space of {_said(kspace)} and a mask of {_said(sampled)}; give the mask of this scan."
        )
    if not sampled.any():
        raise InputError(f"the mask of {name} samples nothing; give one with at least one line.")
    if not torch.isfinite(torch.view_as_real(kspace)).all():
        raise InputError(f"k-space of {name} holds NaN or infinite numbers; export it again.")


def _said(x: Tensor) -> str:
    return "x".join(map(str, x.shape))

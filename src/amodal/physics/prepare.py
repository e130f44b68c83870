"""From k-space as it was read to a measurement: white noise, coils, phase, orientation; and how well an image fits.

settle     whitening, coil maps, noise level, phase: what a `Measurement` needs and the file may not hold
oriented   the same scan with its image transposed or flipped, exactly
misfit     ||y - A m|| against what noise alone would leave         phased  magnitudes as complex images
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..core.contract import Measurement
from ..core.errors import InputError
from .coils import SMALLEST, espirit, noise_level, phase, whiten, whitening
from .linear import conjugate_gradients, inner, mask, solve
from .masks import calibration
from .mri import PLANE, centred, observe, sense


def settle(
    kspace: Tensor, sampled: Tensor, maps: Tensor | None = None, scan: Tensor | None = None, noise: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Measurement, tuple[str, ...]]:  # fmt: skip
    """A measurement from k-space [Z, C, X, Y], `sampled` [Z or 1, 1, X, Y]; and sentences on what was done.

    `scan` [C, N]: samples of noise alone, by which the coils are whitened; `noise`: its SD in each part, if known.
    Maps are brought to sum |S|^2 = 1, so that the image is the square root of the sum of squares of the coils' images.
    """
    notes: list[str] = []
    if scan is not None:
        W = whitening(scan)
        kspace, maps = whiten(kspace, W), None if maps is None else whiten(maps, W)
        noise = 0.5**0.5
        notes.append("Coils whitened by the scan of noise.")
    elif noise is None:
        noise = noise_level(kspace, sampled)
        notes.append(f"Noise level estimated from the k-space: {noise:.3g}.")
    sampled = sampled.expand(len(sampled), 1, *kspace.shape[-2:])
    box = calibration(sampled.all(0)[0])
    if maps is None:
        found = []
        for z, one in enumerate(kspace):
            found.append(espirit(one, box))
            if progress is not None:
                progress(z + 1, len(kspace))
        maps = torch.stack(found)
        if kspace.shape[1] > 1:
            notes.append(f"Coil maps estimated from a centre of {box[0]} x {box[1]} samples (ESPIRiT).")
    size = (maps.abs() ** 2).sum(1, keepdim=True).sqrt()
    maps = torch.where(size > 1e-6 * size.max(), maps / size.clamp(min=1e-30), torch.zeros_like(maps))
    if min(box) < SMALLEST:
        raise InputError(
            f"the sampled centre of k-space has {box[0]} x {box[1]} samples, too few to tell the phase of the image; "
            f"measure {SMALLEST} or more lines there."
        )
    angle = torch.cat([phase(k[None], m[None], box) for k, m in zip(kspace, maps.expand(len(kspace), -1, -1, -1))])
    measured = Measurement(kspace, sampled, maps, noise, angle)
    loose = wandering(measured)
    if loose:
        notes.append(f"The phase of the calibration centre leaves {loose:.2g} of the image unexplained.")
    return replace(measured, quadrature=loose), tuple(notes)


def wandering(measured: Measurement) -> float:
    """SD of the image at right angles to its phase, from what the best image of exactly that phase leaves unexplained.

    White quadrature of variance q^2 adds q^2 tr(A^H A) to ||y - A m||^2; 0 where noise alone explains the residual.
    """
    energy, trace = 0.0, 0.0
    for z in range(len(measured)):
        seen = observe(measured[z : z + 1], (measured.kspace.shape[-2], measured.kspace.shape[-1]))
        assert seen.count is not None and seen.trace is not None  # `observe` gives both
        best = solve(seen.A, seen.y, None, 1e-3, 30, 1e-3)
        residual = seen.y - seen.A(best)
        energy += float((inner(residual, residual) - seen.count * seen.noise**2).sum())
        trace += float(seen.trace.sum())
    gain = (measured.window[1] - measured.window[0]) / 2
    return gain * max(energy / trace, 0.0) ** 0.5


def oriented(measured: Measurement, swap: bool, flips: tuple[bool, bool], backwards: bool = False) -> Measurement:
    """The measurement of the image transposed (if `swap`), then flipped along X, Y and the order of slices.

    A flip is a shift in phase and the opposite frequency, so what was sampled stays what was sampled.
    """
    axes = [axis for axis, flip in zip(PLANE, flips) if flip]

    def turned(x: Tensor) -> Tensor:
        x = x.transpose(-1, -2) if swap else x
        x = x.flip(axes) if axes else x
        return x.flip(0) if backwards and len(x) > 1 else x

    def mirrored(kept: Tensor) -> Tensor:
        kept = kept.transpose(-1, -2) if swap else kept
        for axis in axes:
            kept = kept.flip(axis) if kept.shape[axis] % 2 else kept.flip(axis).roll(1, axis)
        return kept.flip(0) if backwards and len(kept) > 1 else kept

    if not (swap or axes or backwards):
        return measured
    x, y = measured.kspace.shape[-2:]
    sampled = mirrored(measured.sampled.expand(len(measured.sampled), 1, x, y)).contiguous()
    kspace = mask(sampled)(centred(turned(centred(measured.kspace, inverse=True))))
    maps, angle = (None if v is None else turned(v).contiguous() for v in (measured.maps, measured.phase))
    return replace(measured, kspace=kspace, sampled=sampled, maps=maps, phase=angle)


def misfit(measured: Measurement, images: Tensor) -> Tensor:
    """||y - A m|| of each slice over what white noise leaves on average, [Z]; 1: down to the noise.

    `images` [Z, X, Y]: complex, or magnitudes, which take the phase of the measurement (see `phased`).
    """
    out = []
    for z in range(len(images)):
        one, image = measured[z : z + 1], images[z : z + 1].to(measured.kspace.device)
        whole = image if image.is_complex() else phased(one, image)
        residual = one.kspace - sense(one)(whole.to(one.kspace))
        count = 2 * one.sampled.expand(1, *one.kspace.shape[1:]).sum()
        level = measured.noise * count.double().sqrt()
        out.append(torch.linalg.vector_norm(mask(one.sampled)(residual)).double() / level.clamp(min=1e-30))
    return torch.cat([v.reshape(1) for v in out])


def phased(measured: Measurement, images: Tensor) -> Tensor:
    """Magnitudes [Z, X, Y] with the phase of the measurement, and what else at right angles to it the data ask for
    within its `quadrature`: complex images."""
    angle = torch.ones_like(images) + 0j if measured.phase is None else measured.phase
    whole = images * angle
    if not measured.quadrature:
        return whole
    A, weight = sense(measured), measured.noise**2 / measured.quadrature**2

    def across(y: Tensor) -> Tensor:
        return (A.H(y) * angle.conj()).imag

    def system(q: Tensor) -> Tensor:
        return across(A(1j * q * angle)) + weight * q

    residual = mask(measured.sampled)(measured.kspace) - A(whole)
    return whole + 1j * conjugate_gradients(system, across(residual), None, 30, 1e-3) * angle

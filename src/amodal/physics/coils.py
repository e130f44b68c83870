"""The receiver coils: sensitivities, simulated or estimated, their noise, and the phase of the image they see.

birdcage      sensitivities of an ideal array (SigPy)         whiten        makes the coils' noise white, variance 1
espirit       sensitivities from the calibration centre       noise_level   where there is no scan of noise
phase         of the image, from the calibration centre       compress      many coils into few (Buehrer et al. 2007)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError
from .mri import centred

SMALLEST = 8  # lines of calibration below which neither coils nor phase can be told


def birdcage(shape: tuple[int, int], coils: int = 8, radius: float = 1.5) -> Tensor:
    """Sensitivities of coils on a circle of `radius` (1: the edge of the image), [C, X, Y] complex64, sum |S|^2 = 1."""
    if coils < 1:
        raise InputError(f"coils={coils}: choose at least 1.")
    maps = _sigpy().birdcage_maps((coils, *shape), r=radius, dtype=np.complex64)
    return torch.from_numpy(np.ascontiguousarray(maps))


def espirit(kspace: Tensor, box: tuple[int, int], crop: float = 0.0) -> Tensor:
    """Sensitivities [C, X, Y] from k-space [C, X, Y] with a sampled centre `box` (ESPIRiT, Uecker et al. 2014; SigPy).

    They have sum |S|^2 = 1 at every voxel; `crop`: where the eigenvalue is below, there is no object and they are 0.
    """
    width = min(*box, 32)
    if width < SMALLEST:
        raise InputError(
            f"the calibration centre of k-space has {box[0]} x {box[1]} samples; coil maps need {SMALLEST} or more "
            "each way, give the maps of this scan."
        )
    if len(kspace) == 1:
        return torch.ones_like(kspace)
    app = _sigpy().app
    data = np.ascontiguousarray(kspace.cpu().numpy())
    maps = app.EspiritCalib(data, calib_width=width, crop=crop, max_iter=30, show_pbar=False).run()
    return torch.from_numpy(np.asarray(maps)).to(kspace)


def phase(kspace: Tensor, maps: Tensor | None, box: tuple[int, int], widest: int = 32) -> Tensor:
    """The phase of the image the coils see, [Z, X, Y] complex of modulus 1, from the centre of k-space [Z, C, X, Y].

    A window (Hann) over the calibration centre, at most `widest` samples each way; coils are combined by their maps.
    """
    centre = kspace * _hann(kspace.shape[-2:], (min(box[0], widest), min(box[1], widest))).to(kspace.device)
    image = centred(centre, inverse=True)
    image = image.sum(1) if maps is None else (maps.conj() * image).sum(1)
    size = image.abs()
    return torch.where(size > 0, image / size.clamp(min=1e-30), torch.ones_like(image))


def whitening(noise: Tensor) -> Tensor:
    """W [C, C] such that W n is white with variance 1 (SD 1/sqrt 2 of each part), from samples of noise [C, N]."""
    coils, samples = noise.shape
    if samples < 2 * coils:
        raise InputError(
            f"{samples} noise samples cannot tell the covariance of {coils} coils; give {2 * coils} or more."
        )
    wide = noise.to(torch.complex128)
    covariance = wide @ wide.mH / samples
    floor = 1e-9 * covariance.diagonal().real.mean() * torch.eye(coils, dtype=covariance.dtype, device=noise.device)
    return torch.linalg.inv(torch.linalg.cholesky(covariance + floor)).to(noise.dtype)


def whiten(x: Tensor, W: Tensor) -> Tensor:
    """Whitened k-space or maps [Z, C, X, Y]."""
    return torch.einsum("cd,zdxy->zcxy", W, x)


def noise_level(kspace: Tensor, sampled: Tensor) -> float:
    """SD of the real and imaginary part of noise, from k-space [Z, C, X, Y] itself: the smaller of two estimates.

    The median of |k|^2 over the outermost tenth of what was sampled, where there is least signal; and, where the
    readout X is complete, over the quietest tenth of its positions, which lie beside the head. The median of complex
    noise is 2 ln 2 times the variance of a part; what signal is left in both makes it too large, never too small.
    """
    kept = sampled.expand(len(kspace), 1, *kspace.shape[-2:])[:, 0]
    found = [_median(_outermost(kspace, kept))]
    if (kept == kept[:, :1]).all():
        rows = (centred(kspace, (-2,), inverse=True).abs() ** 2).movedim(1, -1)  # [Z, X, Y, C]
        energy = torch.stack([_median(rows[:, x][kept[:, 0]]) for x in range(rows.shape[1])])
        count = max(2, len(energy) // 10)
        found.append(energy.sort().values[:count].mean())
    return float((torch.stack(found).min() / (2 * np.log(2))).sqrt())


def _outermost(kspace: Tensor, kept: Tensor) -> Tensor:
    """|k|^2 over the outermost tenth of what was sampled."""
    distance = _distance((kspace.shape[-2], kspace.shape[-1])).to(kspace.device)
    edge = torch.quantile(distance[kept.any(0)][:1_000_000], 0.9)
    return (kspace.abs() ** 2).movedim(1, -1)[kept & (distance >= edge)]


def _median(energy: Tensor) -> Tensor:
    values = energy.flatten()[:4_000_000]
    return values.median() if len(values) else torch.zeros((), device=energy.device)


def compress(kspace: Tensor, coils: int) -> Tensor:
    """A matrix [coils, C] with orthonormal rows that keeps most of the energy of k-space [Z, C, X, Y]."""
    flat = kspace.movedim(1, 0).flatten(1).to(torch.complex128)
    _, vectors = torch.linalg.eigh(flat @ flat.mH)
    return vectors.flip(1)[:, :coils].mH.to(kspace.dtype)


def _hann(shape: tuple[int, ...], width: tuple[int, int]) -> Tensor:
    """A window of `width` around the centre of [X, Y], 0 outside."""
    parts = []
    for n, w in zip(shape, width):
        at = torch.arange(n) - n // 2
        bell = 0.5 + 0.5 * torch.cos(2 * torch.pi * at / max(w, 1))
        parts.append(torch.where(2 * at.abs() < w, bell, torch.zeros(n)))
    return parts[0][:, None] * parts[1][None]


def _distance(shape: tuple[int, int]) -> Tensor:
    """From the centre of k-space, 1 at the middle of every edge, [X, Y]."""
    x, y = ((torch.arange(n) - n // 2).abs() / (n / 2) for n in shape)
    return torch.maximum(x[:, None], y[None])


def _sigpy():
    """SigPy's MRI functions, or a sentence that says how to have them."""
    try:
        import sigpy.mri
        import sigpy.mri.app
    except ImportError as error:
        raise InputError(
            'coil maps are made with SigPy, which is not installed; run pip install "amodal[kspace]".'
        ) from error
    return sigpy.mri

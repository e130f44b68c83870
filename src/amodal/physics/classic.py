"""Reconstructions without a learned prior, to stand beside the model's: complex images [Z, X, Y] of k-space.

zero_filled   adjoint coil combination of what was sampled
cg_sense      argmin 1/2 ||y - A x||^2 + weight/2 ||x||^2 (Pruessmann et al. 2001), by conjugate gradients
l1_wavelet    argmin 1/2 ||y - A x||^2 + weight ||W x||_1 (Lustig et al. 2007; SigPy)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..core.contract import Measurement
from .coils import _sigpy
from .linear import solve
from .mri import sense

SENSE_WEIGHT = 1e-2  # relative to A^H A, whose eigenvalues reach 1 with normalised maps
WAVELET_WEIGHT = 0.15  # times the noise


def zero_filled(measured: Measurement) -> Tensor:
    return sense(measured).H(measured.kspace)


def cg_sense(measured: Measurement, weight: float = SENSE_WEIGHT, iterations: int = 30) -> Tensor:
    A = sense(measured)
    return solve(A, measured.kspace, None, weight, iterations, 1e-4)


def l1_wavelet(measured: Measurement, weight: float | None = None, iterations: int = 100) -> Tensor:
    """`weight`: in units of k-space, by default `WAVELET_WEIGHT` times the noise."""
    app = _sigpy().app
    weight = WAVELET_WEIGHT * measured.noise if weight is None else weight
    size = measured.kspace.shape
    maps = torch.ones(1, *size[1:], dtype=measured.kspace.dtype) if measured.maps is None else measured.maps
    sampled = measured.sampled.expand(len(measured.sampled), 1, *size[-2:]).float()
    out = []
    for z in range(len(measured)):
        y = measured.kspace[z].cpu().numpy()
        s = maps[z % len(maps)].cpu().numpy()
        w = sampled[z % len(sampled), 0].cpu().numpy()
        # a matter of scale: SigPy steps by the largest eigenvalue, which it finds by power iteration
        x = app.L1WaveletRecon(y, s, lamda=weight, weights=w, max_iter=iterations, show_pbar=False).run()
        out.append(torch.from_numpy(np.asarray(x)))
    return torch.stack(out).to(measured.kspace.device)


ALL: dict[str, Callable[[Measurement], Tensor]] = {
    "zero-filled": zero_filled,
    "CG-SENSE": cg_sense,
    "L1-wavelet": l1_wavelet,
}

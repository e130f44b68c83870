"""Bends that make a prior look at data: functions from a denoiser to a denoiser (samplers stay as they are).

y = A x + n    what was seen, an Observation
project        x0 <- y where a voxel is known (MDS, clean modalities)
hold           known modalities are shown to the network clean, at time 0
proximal       x0 <- argmin 1/2 ||y - A z||^2 + gamma/2 ||z - x0||^2 (MDS; Chung et al. 2024, decomposed sampling)
gradient       x0 <- x0 + (s^2/a) grad log p(y | x_t), through the network (MPS; Chung et al. 2023, posterior sampling)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoise, expand
from ..diffusion.process import Process
from .linear import Linear, conjugate_gradients, solve


@dataclass(frozen=True)
class Observation:
    """y = A x + n with white noise of standard deviation `noise`."""

    A: Linear
    y: Tensor
    noise: float = 0.0


def project(denoise: Denoise, present: Tensor, images: Tensor) -> Denoise:
    """Replace the prediction by `images` where `present` (bool, broadcasting) is true."""
    return lambda x, t: torch.where(present, images, denoise(x, t))


def hold(denoise: Denoise, present: Tensor, images: Tensor, end: float) -> Denoise:
    """Show known modalities to the network as they are, at time 0, and the others at time t; then project.

    For a prior trained with one time a modality this makes the prediction E[x0 | x_t of the missing, the known]: the
    exact conditional, where projection alone conditions on noisy copies of the known. `present` is [B, M, 1, ...].
    `end` is the process' last time; a modality nobody asks for can be left there.
    """
    known = present.flatten(2)[:, :, 0]

    def bent(x: Tensor, t: Tensor) -> Tensor:
        each = t if t.ndim == 2 else t[:, None].expand(-1, x.shape[1])
        each = torch.where(known, torch.zeros_like(each), each.clamp(max=end))
        return torch.where(present, images, denoise(torch.where(present, images.to(x.dtype), x), each))

    return bent


def proximal(denoise: Denoise, process: Process, seen: Observation, gamma: float = 1.0, iterations: int = 5) -> Denoise:
    """The decomposed-diffusion correction of the prediction by conjugate gradients (MDS)."""
    return lambda x, t: solve(seen.A, seen.y, denoise(x, t), gamma, iterations)


def gradient(denoise: Denoise, process: Process, seen: Observation, iterations: int = 1) -> Denoise:
    """Posterior sampling by the gradient through the network (MPS), with a step that needs no tuning.

    Tweedie: E[x0 | x_t, y] = x0 + (s^2/a) grad log p(y | x_t). With p(y | x_t) = N(A x0, A C A^H + noise^2) and
    C = (s^2/a) J, J the Jacobian of the denoiser (Boys et al. 2024, moment projection), the correction is
        C A^H u,   (A C A^H + noise^2) u = y - A x0.
    The system is solved by `iterations` of conjugate gradients, each one backward pass; one iteration is the steepest
    descent of posterior sampling with the exact line search in place of a step size. Exact for a Gaussian prior.
    """

    def bent(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0 = denoise(x, t)
            scale = _gain(process, t, x)

            def covariance(v: Tensor) -> Tensor:  # C v; J is symmetric for the optimal denoiser
                (g,) = torch.autograd.grad(x0, x, v, retain_graph=True)
                return scale * g

            def system(u: Tensor) -> Tensor:
                return seen.A(covariance(seen.A.H(u))) + (seen.noise**2 + 1e-8) * u

            residual = (seen.y - seen.A(x0)).detach()
            u = conjugate_gradients(system, residual, torch.zeros_like(residual), iterations)
            shift = covariance(seen.A.H(u))
        return (x0 + shift).detach()

    return bent


def _gain(process: Process, t: Tensor, x: Tensor) -> Tensor:
    alpha, sigma = process.at(t)
    return expand(sigma**2 / alpha.clamp(min=1e-3), x)  # at pure noise J vanishes faster than alpha

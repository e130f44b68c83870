"""Bends that make a prior look at data: functions from a denoiser to a denoiser (samplers stay as they are).

y = A x + n    what was seen, an Observation
project        x0 <- y where a voxel is known (MDS, clean modalities)
hold           known modalities are shown to the network clean, at time 0
proximal       x0 <- argmin 1/2 ||y - A z||^2 + gamma/2 ||z - x0||^2 (MDS; Chung et al. 2024, decomposed sampling)
channel        a bend of one modality as a bend of the stack
gradient       x0 <- x0 + (s^2/a) grad log p(y | x_t), through the network (MPS; Chung et al. 2023, posterior sampling)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoise, expand
from ..diffusion.process import Process
from .linear import Linear, conjugate_gradients, inner, solve


@dataclass(frozen=True)
class Observation:
    """y = A x + n with white noise of standard deviation `noise` (of each real number; a tensor broadcasts to y).

    For the rule of `trust`, of every sample: `count` of real numbers measured, and the `trace` of A^H A; [B].
    `beside`: an operator B with y = A x + B q + n, and `loose` the SD of the nuisance q, which is shaped as x.
    """

    A: Linear
    y: Tensor
    noise: float | Tensor = 0.0
    count: Tensor | None = None
    trace: Tensor | None = None
    beside: Linear | None = None
    loose: float = 0.0


Rule = Callable[[Observation, Tensor, Tensor], Tensor]  # (seen, y - A x0, t) -> gamma [B]
Weight = float | Rule
LEAST, MOST = 1e-5, 10.0  # the range of gamma that float32 and a few iterations can solve


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


def proximal(
    denoise: Denoise, process: Process, seen: Observation, gamma: Weight = 1.0, iterations: int = 5,
    tolerance: float = 1e-6,
) -> Denoise:  # fmt: skip
    """The decomposed-diffusion correction of the prediction by conjugate gradients (MDS).

    Solved for the correction z - x0, whose right-hand side is A^H (y - A x0): `tolerance` is relative to that, and
    float32 suffices however near the prediction is.
    """

    def bent(x: Tensor, t: Tensor) -> Tensor:
        x0 = denoise(x, t)
        residual = seen.y - seen.A(x0)
        weight = expand(gamma(seen, residual, t), x0) if callable(gamma) else gamma
        if seen.beside is None:
            return x0 + solve(seen.A, residual, None, weight, iterations, tolerance)
        both, weights = _pair(seen.A, seen.beside), _pair_weights(weight, seen, x0)
        return x0 + solve(both, residual, None, weights, iterations, tolerance)[:, 0]

    return bent


def _pair(A: Linear, B: Linear) -> Linear:
    """[B, 2, X, Y] -> A of the first plus B of the second."""
    return Linear(lambda z: A(z[:, 0]) + B(z[:, 1]), lambda y: torch.stack([A.H(y), B.H(y)], 1), f"{A.name}, {B.name}")


def _pair_weights(weight: float | Tensor, seen: Observation, x0: Tensor) -> Tensor:
    """gamma of the image, and of what is beside it noise^2 / loose^2, [B or 1, 2, 1, 1]."""
    first = torch.as_tensor(weight, dtype=x0.dtype, device=x0.device).reshape(-1, 1, 1, 1)
    return torch.cat([first, torch.full_like(first, float(seen.noise**2 / seen.loose**2))], 1)


def trust(process: Process, variance: float = 1.0) -> Rule:
    """gamma = noise^2 / r^2, with r^2 the variance of the prediction's error: the larger of two estimates.

    r^2 = v s^2 / (a^2 v + s^2) is what a white Gaussian prior of that variance leaves at alpha = a, sigma = s; with it
    the proximal step is the posterior mean (Song et al. 2023, pseudo-inverse guidance, take v = 1). It is right where
    the data say little, which is where gamma matters. A prior that does not fit the subject shows in the residual:
    ||y - A x0||^2 is count noise^2 + (r^2 + loose^2) tr(A^H A) on average (the discrepancy principle turned round).
    """

    def rule(seen: Observation, residual: Tensor, t: Tensor) -> Tensor:
        if seen.count is None or seen.trace is None:
            raise ValueError("the rule needs an observation with its count and trace")
        alpha, sigma = (v.double() for v in process.at(t))
        scheduled = variance * sigma**2 / (alpha**2 * variance + sigma**2)
        noise = torch.as_tensor(seen.noise, dtype=torch.float64, device=residual.device)
        found = (inner(residual, residual) - seen.count * noise**2) / seen.trace - seen.loose**2
        gamma = noise**2 / torch.maximum(scheduled, found).clamp(min=1e-12)
        return gamma.clamp(LEAST, MOST).to(residual.real.dtype)

    return rule


def channel(bend: Callable[[Denoise], Denoise], m: int) -> Callable[[Denoise], Denoise]:
    """A bend of images [B, X, Y] as a bend of modality `m` of stacks [B, M, X, Y]."""

    def bent_stack(denoise: Denoise) -> Denoise:
        def bent(x: Tensor, t: Tensor) -> Tensor:
            x0 = denoise(x, t)
            one = bend(lambda *_: x0[:, m])(x[:, m], t)
            return torch.cat([x0[:, :m], one[:, None], x0[:, m + 1 :]], dim=1)

        return bent

    return bent_stack


def gradient(
    denoise: Denoise, process: Process, seen: Observation, iterations: int = 1, near: Near | None = None
) -> Denoise:
    """Posterior sampling by the gradient through the network (MPS), with a step that needs no tuning.

    Tweedie: E[x0 | x_t, y] = x0 + (s^2/a) grad log p(y | x_t). With p(y | x_t) = N(A x0, A C A^H + noise^2) and
    C = (s^2/a) J, J the Jacobian of the denoiser (Boys et al. 2024, moment projection), the correction is
        C A^H u,   (A C A^H + noise^2) u = y - A x0.
    The system is solved by `iterations` of conjugate gradients, each one backward pass; one iteration is the steepest
    descent of posterior sampling with the exact line search in place of a step size. Exact for a Gaussian prior.

    `near(y - A x0, t)` gives a preconditioner r -> u, the inverse of nearly this system: without the network, in which
    C is white (see `white`). One iteration then carries the proximal correction of MDS through the Jacobian.
    """

    def bent(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0 = denoise(x, t)
            scale = _gain(process, t, x)

            def covariance(v: Tensor) -> Tensor:  # C v; J is symmetric for the optimal denoiser
                (g,) = torch.autograd.grad(x0, x, v, retain_graph=True)
                return scale * g

            residual = (seen.y - seen.A(x0)).detach()
            inverse = (lambda r: r) if near is None else near(residual, t)
            return (x0 + _shift(seen, covariance, residual, iterations, inverse)).detach()

    return bent


Near = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]  # (y - A x0, t) -> (r -> u)


def white(seen: Observation, gamma: Tensor, iterations: int, tolerance: float) -> Callable[[Tensor], Tensor]:
    """r -> (r^2 A A^H + noise^2)^-1 r with r^2 = noise^2 / gamma: (r - A z) / noise^2, (A^H A + gamma) z = A^H r."""

    def inverse(r: Tensor) -> Tensor:
        b = seen.A.H(r)
        weight = expand(gamma, b)
        z = conjugate_gradients(lambda v: seen.A.normal(v) + weight * v, b, None, iterations, tolerance)
        return (r - seen.A(z)) / (seen.noise**2 + 1e-8)

    return inverse


def _shift(
    seen: Observation, covariance: Callable[[Tensor], Tensor], r: Tensor, iterations: int,
    near: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """C A^H u by preconditioned conjugate gradients, gathered on the way: one backward pass an iteration."""
    p = z = near(r)
    rz = inner(r, z)
    shift: Tensor | float = 0.0
    for k in range(iterations):
        step = covariance(seen.A.H(p))
        image = seen.A(step) + (seen.noise**2 + 1e-8) * p
        curvature = inner(p, image)
        a = torch.where(curvature > 0, rz / curvature.clamp(min=1e-300), torch.zeros_like(rz))
        shift = shift + expand(a.to(step.dtype), step) * step
        if k + 1 < iterations:
            r = r - expand(a.to(step.dtype), r) * image
            z = near(r)
            new = inner(r, z)
            p = z + expand(torch.where(rz > 0, new / rz.clamp(min=1e-300), torch.zeros_like(rz)).to(step.dtype), p) * p
            rz = new
    return torch.as_tensor(shift)


def _gain(process: Process, t: Tensor, x: Tensor) -> Tensor:
    alpha, sigma = process.at(t)
    return expand(sigma**2 / alpha.clamp(min=1e-3), x)  # at pure noise J vanishes faster than alpha

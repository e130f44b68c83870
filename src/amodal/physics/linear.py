"""Physics is algebra: a Linear operator carries its adjoint, operators compose with @, and A.H is the adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """A linear map by its two actions. A(x), A.H, A @ B. The batch axis is the first; samples never mix.

    `gram`: A^H A in one, where that is faster than one after the other.
    """

    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    name: str = "A"
    gram: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    @property
    def H(self) -> Linear:
        return Linear(self.adjoint, self.forward, f"{self.name}.H")

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x."""
        return self.adjoint(self.forward(x)) if self.gram is None else self.gram(x)

    def __matmul__(self, other: Linear) -> Linear:
        return Linear(
            lambda x: self.forward(other.forward(x)),
            lambda y: other.adjoint(self.adjoint(y)),
            f"{self.name} @ {other.name}",
        )


def identity() -> Linear:
    return Linear(lambda x: x, lambda y: y, "identity")


def mask(kept: Tensor) -> Linear:
    """Keeps the entries where `kept` (bool, broadcasting) is true and zeroes the others; its own adjoint."""

    def keep(x: Tensor) -> Tensor:
        return torch.where(kept, x, torch.zeros((), dtype=x.dtype, device=x.device))

    return Linear(keep, keep, "mask")


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Re <a, b> of every sample, [B]."""
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.flatten(1).sum(1, dtype=torch.float64)


def conjugate_gradients(
    A: Callable[[Tensor], Tensor], b: Tensor, x: Tensor | None = None, iterations: int = 20, tolerance: float = 1e-6
) -> Tensor:
    """Solve A x = b for a Hermitian positive A, a whole batch at once (Hestenes & Stiefel 1952); x: where to start.

    Stops when every sample's residual is below `tolerance` times its ||b||; samples that are done stand still, so a
    sample's solution does not depend on its neighbours.
    """

    def over(v: Tensor, x: Tensor) -> Tensor:
        return v.to(x.real.dtype).reshape(-1, *[1] * (x.ndim - 1))

    x, r = (torch.zeros_like(b), b) if x is None else (x, b - A(x))
    p, rr = r, inner(r, r)
    goal = (tolerance**2) * inner(b, b)
    for _ in range(iterations):
        active = rr > goal
        if not active.any():
            break
        Ap = A(p)
        curvature = inner(p, Ap)
        active &= curvature > 0
        a = torch.where(active, rr / curvature.where(active, torch.ones_like(curvature)), torch.zeros_like(rr))
        x, r = torch.addcmul(x, over(a, x), p), torch.addcmul(r, over(a, r), Ap, value=-1)
        new = torch.where(active, inner(r, r), rr)
        turn = torch.where(active, new / rr.clamp(min=1e-300), torch.zeros_like(rr))
        p = torch.addcmul(r, over(turn, p), p)
        rr = torch.where(active, new, torch.zeros_like(rr))  # at rest from now on
    return x


def solve(
    A: Linear, y: Tensor, x: Tensor | None, weight: float | Tensor, iterations: int = 20, tolerance: float = 1e-6
) -> Tensor:
    """argmin_z 1/2 ||A z - y||^2 + weight/2 ||z - x||^2 by conjugate gradients, started at x (None: 0)."""
    b = A.H(y) if x is None else A.H(y) + weight * x
    return conjugate_gradients(lambda z: A.normal(z) + weight * z, b, x, iterations, tolerance)

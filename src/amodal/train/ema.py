"""The exponential moving average of the weights, in float32: what is validated, and what is kept at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Module, Parameter


class Ema:
    """`shadow <- d shadow + (1 - d) weight` once per optimisation step, with d = min(decay, (1 + n) / (10 + n)).

    The ramp (n counts the updates) lets early averages forget the random start.
    """

    def __init__(self, parameters: Mapping[str, Parameter], decay: float):
        self.decay = decay
        self._parameters = {n: p for n, p in parameters.items() if p.is_floating_point()}
        self.shadow = {n: p.detach().to(torch.float32, copy=True) for n, p in self._parameters.items()}

    def update(self, n: int) -> None:
        """Take in the weights after the n-th update, n counted from 0."""
        decay = min(self.decay, (1 + n) / (10 + n))
        weights = [p.detach().float() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1.0 - decay)

    def load(self, saved: Mapping[str, Tensor]) -> None:
        for name, shadow in self.shadow.items():
            shadow.copy_(saved[name])

    @contextmanager
    def swapped(self, method: Module) -> Iterator[Module]:
        """The method with the averaged weights and in evaluation mode; as it was before once the block is left."""
        kept = {n: p.data for n, p in self._parameters.items()}
        modes = [(m, m.training) for m in method.modules()]
        try:
            for name, p in self._parameters.items():
                p.data = self.shadow[name].to(p.dtype)
            yield method.eval()
        finally:
            for name, p in self._parameters.items():
                p.data = kept[name]
            for module, training in modes:
                module.training = training

    def apply(self) -> None:
        """Write the averages into the weights, for good."""
        with torch.no_grad():
            for name, p in self._parameters.items():
                p.copy_(self.shadow[name])

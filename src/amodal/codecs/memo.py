"""Latents of volumes that were seen before: a frozen codec need not encode them again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

LIMIT = 1 << 30  # bytes


class Memo:
    """A function of single volumes that remembers, by their content, what it made of those seen last.

    It changes nothing but the time: what is remembered is what would be computed. On a GPU it is not used, since
    looking at the content would take longer there.
    """

    def __init__(self, limit: int = LIMIT):
        self.limit, self.bytes, self.state = limit, 0, b""
        self.known: OrderedDict[bytes, tuple[Tensor, ...]] = OrderedDict()

    def each(self, function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, of: nn.Module) -> tuple[Tensor, ...]:
        """function(x [N, ...]) row by row, each [N, ...]; `of`: the module whose weights the result depends on."""
        if x.device.type != "cpu":
            return function(x)
        if (state := fingerprint(of)) != self.state:
            self.known.clear()
            self.state, self.bytes = state, 0
        found = [self._one(function, row) for row in x.split(1)]
        return tuple(torch.cat(parts) for parts in zip(*found))

    def _one(self, function: Callable[[Tensor], tuple[Tensor, ...]], row: Tensor) -> tuple[Tensor, ...]:
        key = hashlib.blake2b(row.contiguous().numpy().tobytes(), digest_size=16).digest()
        if key in self.known:
            self.known.move_to_end(key)
            return self.known[key]
        made = self.known[key] = function(row)
        self.bytes += sum(v.numel() * v.element_size() for v in made)
        while self.bytes > self.limit and len(self.known) > 1:
            _, old = self.known.popitem(last=False)
            self.bytes -= sum(v.numel() * v.element_size() for v in old)
        return made


def fingerprint(module: nn.Module) -> bytes:
    """What changes when a weight or buffer of the module does."""
    state = [(v.data_ptr(), v._version) for v in (*module.parameters(), *module.buffers())]
    return hashlib.blake2b(repr(state).encode(), digest_size=16).digest()

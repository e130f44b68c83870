"""One random stream per sample, so that an image depends on its own seed and on nothing it shares a batch with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*keys: object) -> int:
    """A 63-bit seed from any printable keys, the same on every machine and in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, keys)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Rng:
    """Independent random streams, one a sample. Drawn on the CPU, so that a GPU gives the same image.

    `Rng.of(seed, n, "subject")` makes n streams keyed by seed, subject and index; `rng[10:20]` are the very same
    streams of samples 10 to 19, which is what makes chunking invisible.
    """

    def __init__(self, seeds: Sequence[int]):
        self.seeds = tuple(seeds)
        self._generators = [torch.Generator().manual_seed(s) for s in self.seeds]

    @classmethod
    def of(cls, seed: int, samples: int, *keys: object) -> Rng:
        """`samples` streams keyed by (seed, keys, index of the sample)."""
        return cls([seed_of(seed, *keys, index) for index in range(samples)])

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice) -> Rng:
        """The streams of some samples; they share state with this one."""
        out = Rng(())
        out.seeds, out._generators = self.seeds[part], self._generators[part]
        return out

    def fork(self, *keys: object) -> Rng:
        """New streams derived from these seeds and keys (not from what has been drawn so far)."""
        return Rng([seed_of(s, *keys) for s in self.seeds])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers [B, *shape], float32 on the CPU."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators])

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers with the shape [B, ...], type and device of x."""
        if len(x) != len(self):
            raise ValueError(f"{len(x)} samples need {len(x)} random streams, found {len(self)}")
        return self.normal(*x.shape[1:]).to(x)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), [B, *shape], float32 on the CPU."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators])

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers in [0, high), [B, *shape], int64 on the CPU."""
        return torch.stack([torch.randint(high, shape, generator=g) for g in self._generators])

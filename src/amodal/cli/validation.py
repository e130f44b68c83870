"""How training is watched: some slices of held-out studies, each modality hidden in turn, a number and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.contract import Batch
from ..core.rng import Rng
from ..data.dataset import Cache
from ..metrics.image import psnr

SLICES = 8  # of the middle of a study, neighbours of each other


@dataclass(frozen=True)
class Validation:
    """Called with (method, step, folder): PSNR by hidden modality, and `validation.png` in the folder."""

    cache: Cache
    seed: int

    def __call__(self, method: Any, step: int, folder: Path) -> Mapping[str, float]:
        images, present = self.cache.stack(self.cache.labels[0])
        truth = _part(images, method.dims)  # [B, M, *spatial]
        known = self.cache.guidance(self.cache.labels[0])
        maps = {"tissue": _part(known["tissue"], method.dims)} if known else {}
        if known:
            maps["density"] = torch.from_numpy(known["density"]).expand(len(truth), *known["density"].shape)
        device = next(method.parameters()).device
        scores: dict[str, float] = {}
        rows = []
        for m in np.flatnonzero(present) if present.sum() > 1 else ():
            there = torch.from_numpy(present & (np.arange(len(present)) != m))
            mask = there.reshape(1, -1, *(1,) * (truth.ndim - 2)).expand(len(truth), *(-1,) * (truth.ndim - 1))
            rng = Rng.of(self.seed, len(truth), "validation")
            made = method.complete(Batch(truth, mask, maps or None).to(device), rng).float().cpu()
            a, b = ((x[:, m].numpy() + 1) / 2 for x in (made, truth))
            scores[f"psnr {self.cache.modalities[m]}"] = psnr(*((a[0], b[0]) if a.ndim == 4 else (a, b)), 1.0)
            rows.append((a, b))
        if rows:
            _picture(folder / "validation.png", rows)
        return scores


def _part(images: np.ndarray, dims: int) -> torch.Tensor:
    """What is completed: neighbouring axial slices [SLICES, M, X, Y], or the whole volume [1, M, X, Y, Z]."""
    if dims == 3:
        return torch.from_numpy(images)[None]
    middle = images.shape[-1] // 2
    part = images[..., max(0, middle - SLICES // 2) : middle + SLICES // 2]
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(part, -1, 0)))


def _picture(path: Path, rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """One row a modality: made, truth, and their difference (grey is none)."""
    from PIL import Image

    lines = []
    for made, truth in rows:
        a, b = (x[len(x) // 2] if x.ndim == 3 else x[0, ..., x.shape[-1] // 2] for x in (made, truth))
        lines.append(np.concatenate([a, b, 0.5 + (a - b)], axis=0))
    picture = np.flipud(np.concatenate([line.T[::-1] for line in lines[::-1]], axis=0)[::-1])
    Image.fromarray((255 * np.clip(picture, 0, 1)).astype(np.uint8)).save(path)

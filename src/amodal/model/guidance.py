"""The tissue maps of a study as the method of a model takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.frame import Frame
from ..data.guidance import densities, on_grid
from ..data.volume import Study


def guidance(
    study: Study, frame: Frame, modalities: Sequence[str], stack: np.ndarray, part: tuple[slice, ...], dims: int
) -> dict[str, Tensor]:
    """What goes into a batch's metadata: "tissue" uint8 [N, M, *spatial] of the `part` that is completed, "density" [N,
    M, classes, 2] of the whole stack [M, X, Y, Z]; empty for a study without tissue maps."""
    if not any(name in study.tissue for name in modalities):
        return {}
    maps = on_grid(study, frame, modalities)
    density = torch.from_numpy(densities(stack, maps))
    tissue = torch.from_numpy(np.ascontiguousarray(maps[part]))
    tissue = tissue.movedim(-1, 0).contiguous() if dims == 2 else tissue[None]
    return {"tissue": tissue, "density": density.expand(len(tissue), *density.shape)}

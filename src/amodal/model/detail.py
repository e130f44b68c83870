"""What a network's grid loses: a method that draws sketches voxel by voxel draws them at an image's own size, too.

What is lost of a sketch on the way to a coarse grid and back is known; it is added to what was made there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..core.contract import Batch

SKETCHING = ("copedit", "wfdm")  # methods with `voxelwise`: what each voxel says of the others' images by itself


def lost(
    method: Any, here: np.ndarray, coarse: np.ndarray, there: np.ndarray, leave: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    """Of each image, in units of [0, 1]: [M, *spatial] as `here`, the stack at its own size in [-1, 1]; `coarse`: on
    the network's grid, from which `leave` takes an image; `there` [M]: what is given. None without sketches.
    """
    fine, rough = (_sketch(method, stack, there) for stack in (here, coarse))
    if fine is None or rough is None:
        return None
    return np.stack([a - leave(b) for a, b in zip(fine, rough)])


def _sketch(method: Any, stack: np.ndarray, there: np.ndarray) -> np.ndarray | None:
    """[M, X, Y, Z] in [-1, 1] -> the sketches of what is not there, in [0, 1]."""
    device = next(method.parameters()).device
    batch = Batch(torch.from_numpy(stack)[None], torch.from_numpy(there).reshape(1, -1, 1, 1, 1)).to(device)
    made = method.voxelwise(batch)
    return None if made is None else (made[0].float().cpu().numpy() + 1) / 2

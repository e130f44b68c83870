"""Tissue maps as a network takes them: on its grid, one per modality, with the intensities of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .frame import Frame
from .volume import Study

CLASSES = 4  # fluid, grey matter, white matter, tumour: 1 to 4 in a map, 0 is outside the brain
FEWEST = 20  # voxels of a class that make a density


def on_grid(study: Study, frame: Frame, modalities: Sequence[str]) -> np.ndarray:
    """The tissue seen in each modality, uint8 [M, X, Y, Z] on the network's grid; 0 where there is no map."""
    layers = np.zeros((len(modalities), *frame.shape), np.uint8)
    for i, name in enumerate(modalities):
        if name in study.tissue:
            layers[i] = frame.enter_mask(study.tissue[name])
    return layers


def densities(stack: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Mean and SD of the intensities of each class in each modality: float32 [M, CLASSES, 2], 0 where there are none.

    stack [M, X, Y, Z] in [-1, 1], tissue uint8 of the same shape. By median and quartiles, as classes have tails.
    """
    out = np.zeros((len(stack), CLASSES, 2), np.float32)
    for m, (image, labels) in enumerate(zip(stack, tissue)):
        for k in range(CLASSES if labels.any() else 0):
            values = image[labels == k + 1].astype(np.float32)
            if values.size >= FEWEST:
                low, middle, high = np.percentile(values, (25, 50, 75))
                out[m, k] = middle, max((high - low) / 1.349, 1e-2)
    return out

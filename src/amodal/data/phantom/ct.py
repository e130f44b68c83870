"""Computed tomography of a virtual head, in Hounsfield units: water 0, air -1000.

The table holds values within the usual clinical ranges (white matter 20 to 30, grey matter 34 to 42, fluid 0 to 15,
flowing blood 40 to 60, fat -100 to -60, compact bone above 1000); they, the skull's layers and the hardening of the
beam are assumptions of the phantom.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from . import warp
from .config import PhantomConfig

AIR = -1000.0
UNITS: dict[str, float] = {
    "white": 26.0, "cortex": 37.0, "thalamus": 35.0, "striatum": 36.5, "pallidum": 36.0, "ventricle": 5.0, "csf": 7.0,
    "choroid": 38.0, "vessel": 48.0, "dura": 55.0, "wmh": 21.0, "lesion": 22.0, "active": 24.0, "oedema": 19.0,
    "core": 33.0, "necrosis": 14.0, "rim": 42.0, "skull": 900.0, "scalp": 15.0,
}  # fmt: skip
CALCIUM = 260.0  # HU where all is calcified
NOISE = 3.5  # HU, standard deviation in the brain with the noise setting at 0.02
Streams = Callable[[str], np.random.Generator]


def image(
    stream: Streams, fractions: dict[str, np.ndarray], lime: np.ndarray, age: float, config: PhantomConfig
) -> tuple[np.ndarray, dict[str, Any]]:
    """Attenuation [X, Y, Z] in HU without noise, and what was set. `lime`: share of calcium."""
    rng = stream("ct")
    shift = float(np.clip(rng.normal(), -2, 2)) * 10 * config.protocol_jitter  # calibration and haematocrit
    texture = warp.noise_field(rng, config.shape, config.spacing, 20.0)
    total = np.clip(sum(fractions.values()), 0, 1)
    out = AIR * (1 - total)
    for name, share in fractions.items():
        out += share * np.float32(UNITS[name])
    soft = np.clip(total - fractions.get("skull", 0) - fractions.get("scalp", 0), 0, 1)
    out += soft * (np.float32(shift) + 1.2 * texture) + CALCIUM * lime
    if "skull" in fractions:
        out += _head(rng, fractions, config)
        # beams that cross bone are hardened: what lies just inside the vault looks a little denser
        out += 14 * soft * ndimage.gaussian_filter(fractions["skull"], 7.0 / config.spacing)
    return out.astype(np.float32), {"sequence": "helical CT", "kilovolts": 120, "noise": noise_of(config)}


def noise_of(config: PhantomConfig) -> float:
    """Standard deviation of the noise in HU."""
    return NOISE * config.noise / 0.02


def speckle(rng: np.random.Generator, shape: tuple[int, ...], config: PhantomConfig) -> np.ndarray:
    """Noise [X, Y, Z] in HU, neighbours in the plane alike as a smooth kernel makes them."""
    white = rng.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, (0.7, 0.7, 0.0))
    return smooth * np.float32(noise_of(config) / max(float(smooth.std()), 1e-6))


def _head(rng: np.random.Generator, fractions: dict[str, np.ndarray], config: PhantomConfig) -> np.ndarray:
    """What bone and scalp differ from their mean: dense tables around spongy bone, fat and muscle in patches."""
    shape, spacing = config.shape, config.spacing
    depth = ndimage.distance_transform_edt(fractions["skull"] > 0.5).astype(np.float32) * np.float32(spacing)
    table = np.exp(-np.maximum(depth - 0.5 * spacing, 0) / 1.2)  # 1 at either surface, less inside
    dense = 1 + 0.15 * warp.noise_field(rng, shape, spacing, 35.0)
    bone = fractions["skull"] * (1150 * (table - 0.35) + 900 * (dense - 1))
    fat = np.clip(0.55 + 0.45 * warp.noise_field(rng, shape, spacing, 18.0), 0, 1)
    return bone + fractions["scalp"] * (45 - 130 * fat - 15)

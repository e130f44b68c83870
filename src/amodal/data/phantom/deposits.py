"""What age lays down in the brain: iron and calcium, seen in T2* and CT and hardly anywhere else.

Non-haem iron by age (mg per 100 g, t in years), in post-mortem brains: Hallgren & Sourander, J Neurochem 3:41 (1958).
The rates are assumptions of the phantom, of the size seen at 3 T; they are left out of the other contrasts, whose echo
times (below 5 ms, or refocused) make less than 3 % of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from . import warp
from .config import PhantomConfig

# tissue -> (a, b, c): iron = a (1 - exp(-b t)) + c
IRON: dict[str, tuple[float, float, float]] = {
    "pallidum": (21.41, 0.09, 0.37),
    "striatum": (14.62, 0.04, 0.46),
}
RATE_OF_IRON = 0.75  # 1/s of R2* per mg / 100 g, beside what the table of tissues holds
RATE_OF_CALCIUM = 90.0  # 1/s where all is calcified
RATE_OF_BLOOD = 28.0  # 1/s in veins, from deoxyhaemoglobin
CALCIFIED = {"choroid": 0.9, "pallidum": 0.5, "dura": 0.7}  # tissue -> how often and densely it calcifies with age


def iron(tissue: str, age: float) -> float:
    """Iron (mg / 100 g) of a deep nucleus at this age (years)."""
    a, b, c = IRON[tissue]
    return a * (1 - float(np.exp(-b * age))) + c


def calcium(
    rng: np.random.Generator, fractions: dict[str, np.ndarray], age: float, config: PhantomConfig
) -> np.ndarray:
    """Share of each voxel that is calcified [X, Y, Z], 0..1: specks in choroid plexus, falx and pallidum, after 30."""
    field = warp.noise_field(rng, config.shape, config.spacing, 5.0)
    grown = np.clip((age - 30) / 50, 0, 1)
    out = np.zeros(config.shape, np.float32)
    for name, often in CALCIFIED.items():
        specks = np.clip((field - (2.2 - 1.6 * often * float(rng.uniform(0.4, 1.0)) * grown)) / 0.5, 0, 1)
        out += fractions[name] * specks * np.float32(grown > 0)
    return np.clip(out, 0, 1)


def susceptibility(
    stream: Callable[[str], np.random.Generator],
    fractions: dict[str, np.ndarray],
    lime: np.ndarray,
    age: float,
    config: PhantomConfig,
) -> np.ndarray:
    """What is added to R2* (1/ms) [X, Y, Z]: iron, calcium, venous blood, and the field of the air below the brain.

    The field of the air spaces falls off with the cube of the distance to them, as that of a dipole; they lie below
    the frontal lobes and beside the temporal ones.
    """
    rng = stream("susceptibility")
    own = {name: float(np.exp(0.15 * rng.normal())) for name in IRON}
    rate = RATE_OF_CALCIUM * lime + RATE_OF_BLOOD * fractions["vessel"]
    for name in IRON:
        rate += np.float32(RATE_OF_IRON * own[name] * iron(name, age)) * fractions[name]
    rate = ndimage.gaussian_filter(rate.astype(np.float32), 0.8 / config.spacing)  # the field of a speck reaches out
    return (rate + _air(rng, fractions, config)) / 1000


def _air(rng: np.random.Generator, fractions: dict[str, np.ndarray], config: PhantomConfig) -> np.ndarray:
    """Dephasing (1/s) near the frontal sinus and the two ears, each a dipole whose place and strength are drawn."""
    inside = np.argwhere(sum(fractions.values()) > 0.5)
    low, high = inside.min(0), inside.max(0)
    grid, size = warp.voxel_grid(config.shape), (high - low).astype(np.float32)
    rate = np.zeros(config.shape, np.float32)
    for place in ((0.5, 0.90, 0.22), (0.12, 0.55, 0.12), (0.88, 0.55, 0.12)):  # of the brain's box, RAS
        centre = low + size * (np.array(place) + 0.02 * rng.normal(size=3)).astype(np.float32)
        distance = np.sqrt((((grid - centre) * np.float32(config.spacing)) ** 2).sum(-1))
        radius = float(rng.uniform(8, 14))  # mm
        rate += 60 * np.clip(radius / np.maximum(distance, radius), 0, 1) ** 3
    return np.where(rate > 1, rate, 0).astype(np.float32)

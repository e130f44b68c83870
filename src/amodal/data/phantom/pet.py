"""FDG PET of a virtual head in standardised uptake values (SUV, g/ml), 45 min or more after injection.

Grey matter takes up about four times what white matter does (so the brain phantom of Hoffman et al., IEEE Trans Nucl
Sci 37:616 (1990) is filled); cerebral glucose metabolism at 78 years is 26 % below that at 18: Kuhl et al., J Cereb
Blood Flow Metab 2:163 (1982). Other rows, and the differences between people and regions, are assumptions of the
phantom.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from . import warp
from .config import PhantomConfig

UPTAKE: dict[str, float] = {
    "white": 2.2, "cortex": 8.6, "thalamus": 8.2, "striatum": 9.4, "pallidum": 5.2, "ventricle": 0.4, "csf": 0.6,
    "choroid": 1.5, "vessel": 1.6, "dura": 1.2, "wmh": 1.7, "lesion": 1.8, "active": 3.6, "oedema": 1.5, "core": 6.5,
    "necrosis": 0.9, "rim": 10.5, "skull": 0.9, "scalp": 0.7,
}  # fmt: skip
DECLINE = 0.26 / 60  # of grey matter's uptake, per year after 18
GREY = ("cortex", "thalamus", "striatum")
FWHM, FILTER = 3.9, 2.5  # mm: of the scanner, and of the filter after reconstruction; 4.6 together
COUNTS = 38.0  # events per SUV in a voxel of 1.5 mm, with the noise setting at 0.02
Streams = Callable[[str], np.random.Generator]


def uptake(
    stream: Streams, fractions: dict[str, np.ndarray], age: float, config: PhantomConfig
) -> tuple[np.ndarray, dict[str, Any]]:
    """The tracer [X, Y, Z] in SUV as the scanner resolves it, noise-free, and what was set."""
    rng = stream("pet")
    person = float(np.exp(config.protocol_jitter * np.clip(rng.normal(), -2, 2)))  # blood sugar, body build
    aged = 1 - DECLINE * max(age - 18.0, 0.0)
    region = 1 + 0.09 * np.clip(warp.noise_field(rng, config.shape, config.spacing, 32.0), -2.5, 2.5)
    out = np.zeros(config.shape, np.float32)
    for name, share in fractions.items():
        level = UPTAKE[name] * (aged * person if name in GREY else person)
        out += share * np.float32(level) * (region if name in (*GREY, "white") else np.float32(1))
    settings = {
        "sequence": "FDG PET", "fwhm_mm": round(float(np.hypot(FWHM, FILTER)), 3), "uptake_factor": round(person, 4),
        "age_factor": round(aged, 4),
    }  # fmt: skip
    return ndimage.gaussian_filter(out, _sigma(FWHM, config)), settings


def count(rng: np.random.Generator, activity: np.ndarray, config: PhantomConfig, thickness: float) -> np.ndarray:
    """Poisson noise, then the filter: SUV in, SUV out [X, Y, Z']. `thickness` of the slices in mm."""
    if config.noise > 0:
        volume = config.spacing**2 * thickness / 1.5**3
        events = COUNTS * volume * (0.02 / config.noise) ** 2
        activity = rng.poisson(np.maximum(activity, 0).astype(np.float64) * events).astype(np.float32) / events
    sigma = _sigma(FILTER, config)
    return ndimage.gaussian_filter(activity, (sigma, sigma, sigma * config.spacing / thickness)).astype(np.float32)


def _sigma(fwhm: float, config: PhantomConfig) -> float:
    """A width at half maximum (mm) as a standard deviation in voxels."""
    return fwhm / config.spacing / float(np.sqrt(8 * np.log(2)))

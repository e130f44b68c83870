"""What disease and age add to a brain: white-matter hyperintensities, MS-like lesions, a tumour.

All work on the subject's own grid: `fractions` is a table of tissue shares [X, Y, Z], `ventricles` the distance to them
(mm), `cerebrum` where lesions may lie; shares of the new tissues are taken from those that were there.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from .warp import noise_field

Fractions = dict[str, np.ndarray]


def hyperintensity_volume(age: float, factor: float = 1.0) -> float:
    """White-matter hyperintensities (ml) at an age: 0.35 ml at 50, twice that 8 years later; `factor` is personal."""
    return 0.35 * float(np.exp((age - 50.0) / 11.0)) * factor


def take(fractions: Fractions, into: str, share: np.ndarray, of: Iterable[str]) -> None:
    """Move the share [X, Y, Z] in [0, 1] of every tissue `of` into another, in place: the sum stays what it was."""
    moved = np.zeros_like(share)
    for name in of:
        part = fractions[name] * share
        fractions[name] = fractions[name] - part
        moved += part
    fractions[into] = fractions[into] + moved


def deep_white(fractions: Fractions, cerebrum: np.ndarray, spacing: float) -> np.ndarray:
    """White matter that lies away from cortex, in [0, 1]: where lesions of white matter grow."""
    near = ndimage.gaussian_filter(fractions["cortex"], 1.5 / spacing) + ndimage.gaussian_filter(
        fractions["csf"], 1.5 / spacing
    )
    nuclei = ndimage.gaussian_filter(
        fractions["thalamus"] + fractions["striatum"] + fractions["pallidum"], 2.5 / spacing
    )
    return fractions["white"] * np.clip(1.3 - 4 * near, 0, 1) * np.clip(1.2 - 5 * nuclei, 0, 1) * cerebrum


def hyperintensities(
    rng: np.random.Generator,
    fractions: Fractions,
    ventricles: np.ndarray,
    cerebrum: np.ndarray,
    spacing: float,
    volume: float,
) -> np.ndarray:
    """Share of white matter [X, Y, Z] that is hyperintense: caps at the ventricles, then spots; `volume` in ml.

    One score field is thresholded where it gives the volume, so that more volume means the same places, grown.
    """
    shape = ventricles.shape
    score = 1.7 * np.exp(-np.maximum(ventricles, 0) / 6.0)
    score += 0.26 * noise_field(rng, shape, spacing, 18.0) + 0.20 * noise_field(rng, shape, spacing, 7.0)
    where = deep_white(fractions, cerebrum, spacing)
    inside = where > 0.2
    amount, height = where[inside].astype(np.float64), score[inside].astype(np.float64)
    share = np.zeros(shape, np.float32)
    voxel = spacing**3 / 1000.0
    if not amount.size or volume <= 0:
        return share
    low, high = height.min() - 1, height.max() + 1
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if (amount * _edge(height - middle, 0.06)).sum() * voxel > volume else (low, middle)
    share[inside] = _edge(height - high, 0.06) * np.minimum(
        where[inside] / np.maximum(fractions["white"][inside], 1e-3), 1
    )
    return share


def ms_lesions(
    rng: np.random.Generator, fractions: Fractions, ventricles: np.ndarray, cerebrum: np.ndarray, spacing: float
) -> tuple[np.ndarray, np.ndarray, list[dict[str, float]]]:
    """Ovoids that stand on the ventricles (Dawson's fingers): share that is lesion, share that enhances, and a list."""
    where = deep_white(fractions, cerebrum, spacing) * (np.exp(-np.maximum(ventricles, 0) / 7.0) + 0.08)
    lesion, active = np.zeros_like(where), np.zeros_like(where)
    rows: list[dict[str, float]] = []
    candidates = np.flatnonzero(where > 0.02)
    count = 3 + int(rng.poisson(12))
    if not candidates.size:
        return lesion, active, rows
    rough = noise_field(rng, where.shape, spacing, 5.0)
    chance = where.ravel()[candidates].astype(np.float64)
    for centre in rng.choice(candidates, count, p=chance / chance.sum()):
        at = np.array(np.unravel_index(int(centre), where.shape))
        radius, length = float(np.clip(np.exp(rng.normal(0.9, 0.35)), 1.2, 6.5)), float(rng.uniform(1.1, 2.0))
        kind = float(rng.random())
        box, r = _ovoid(at, radius, length, ventricles, spacing)
        r = r + 0.16 * rough[box]
        shape = _edge(1 - r, 0.12)
        lesion[box] = np.maximum(lesion[box], shape)
        ring = shape if kind < 0.07 else shape * _edge(r - 0.55, 0.08)
        if kind < 0.15:
            active[box] = np.maximum(active[box], ring)
        rows.append(
            {"x": int(at[0]), "y": int(at[1]), "z": int(at[2]), "radius_mm": radius, "enhancing": float(kind < 0.15)}
        )
    return lesion, active, rows


def _ovoid(
    at: np.ndarray, radius: float, length: float, ventricles: np.ndarray, spacing: float
) -> tuple[tuple[slice, ...], np.ndarray]:
    """A box around a point and, in it, the radius relative to an ovoid that points away from the ventricles."""
    reach = int(np.ceil(1.6 * radius * length / spacing)) + 1
    box = tuple(slice(max(int(a) - reach, 0), min(int(a) + reach + 1, n)) for a, n in zip(at, ventricles.shape))
    axes = np.meshgrid(*[np.arange(s.start, s.stop) - a for s, a in zip(box, at)], indexing="ij")
    offset = np.stack(axes, -1) * spacing
    step = [
        ventricles[tuple(np.clip(at + d, 0, np.array(ventricles.shape) - 1))]
        for d in (*np.eye(3, dtype=int), *-np.eye(3, dtype=int))
    ]
    direction = np.array(step[:3]) - np.array(step[3:])
    direction = direction / max(float(np.linalg.norm(direction)), 1e-6)
    along = offset @ direction
    across = np.maximum((offset**2).sum(-1) - along**2, 0)
    return box, (np.sqrt(across + (along / length) ** 2) / radius).astype(np.float32)


def draw_tumour(rng: np.random.Generator, radius: tuple[float, float]) -> dict[str, float]:
    """What a tumour is like: `radius` of its core in mm, in a range; `high_grade` has an enhancing rim around necrosis;
    widths in radii."""
    return {
        "radius": float(rng.uniform(*radius)),
        "high_grade": float(rng.random() < 0.75),
        "necrosis": float(rng.uniform(0.3, 0.62)),
        "rim": float(rng.uniform(0.12, 0.35)),
        "oedema": float(rng.uniform(0.25, 1.1)),
        "mass": float(rng.uniform(0.12, 0.3)),
    }


def mass_effect(coordinates: np.ndarray, centre: np.ndarray, kind: dict[str, float]) -> np.ndarray:
    """Velocity [3, X, Y, Z] (mm) that pushes tissue away from a tumour; `coordinates` [X, Y, Z, 3] in mm."""
    offset = coordinates - np.asarray(centre, np.float32)
    distance = np.sqrt((offset**2).sum(-1)) / np.float32(kind["radius"])
    push = kind["mass"] * np.exp(1 - distance)  # times the offset: 0 at the centre, mass * radius at the border
    return np.moveaxis(offset * push[..., None].astype(np.float32), -1, 0)


def tumour(
    rng: np.random.Generator,
    fractions: Fractions,
    distance: np.ndarray,
    cerebrum: np.ndarray,
    spacing: float,
    kind: dict[str, float],
) -> dict[str, np.ndarray]:
    """Shares of oedema, core, rim, necrosis [X, Y, Z], in the order to take them; `distance` to its centre (mm)."""
    shape = distance.shape
    d = distance / np.float32(kind["radius"]) + 0.14 * noise_field(rng, shape, spacing, 14.0)
    d = d + 0.05 * noise_field(rng, shape, spacing, 6.0)
    white = ndimage.gaussian_filter(fractions["white"], 1.0 / spacing)
    spread = d + 0.8 * (1 - white) + 0.12 * noise_field(rng, shape, spacing, 9.0)
    oedema = _edge(1 + kind["oedema"] - spread, 0.08) * np.clip(2 * white, 0, 1) * cerebrum
    core = _edge(1 - d, 0.04)
    if not kind["high_grade"]:
        return {"oedema": oedema * (1 - core) * 0.5, "core": core}
    width = kind["rim"] * np.clip(1 + 0.45 * noise_field(rng, shape, spacing, 12.0), 0.15, 2)
    outer = _edge(np.minimum(kind["necrosis"] + width, 1) - d, 0.04)
    necrosis = _edge(kind["necrosis"] - d, 0.04)
    return {"oedema": oedema, "core": core, "rim": outer, "necrosis": necrosis}


def _edge(x: np.ndarray, width: float) -> np.ndarray:
    """A soft step from 0 to 1 at x = 0."""
    return np.clip(0.5 + x / (2 * width), 0, 1).astype(np.float32)

"""The body of a virtual subject: who it is, the shape of its brain, its age and its diseases; as tissue fractions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from ...core.rng import seed_of
from . import lesions, warp
from .anatomy import PARTS, Anatomy, label_files
from .config import PhantomConfig
from .tissue import HEAD, NAMES, PATHOLOGY, TUMOUR

Streams = Callable[[str], np.random.Generator]
WARP_SPACING = 2.5  # mm, the grid velocities live on


def streams(index: int, seed: int, *what: str) -> Streams:
    """Random streams by name; each is keyed by (seed, index, what, name), so none depends on another."""
    return lambda name: np.random.default_rng(seed_of(seed, index, *what, name))


def draw_person(index: int, seed: int, config: PhantomConfig) -> dict[str, Any]:
    """Who it is. Each property has its own stream: changing one setting leaves the others as they were."""
    stream = streams(index, seed, "person")
    files = label_files(str(config.labelmap)) if config.labelmap else [None]
    age = float(stream("age").uniform(*config.age))
    sex = "MF"[int(stream("sex").integers(2))]
    build = stream("build")
    return {
        "age": round(age, 1),
        "sex": sex,
        "head_scale": round(1.0 + (0.015 if sex == "M" else -0.015) + 0.03 * float(np.clip(build.normal(), -2, 2)), 4),
        "proportions": [round(1 + 0.02 * float(v), 4) for v in build.normal(size=3).clip(-2, 2)],
        "ventricle_factor": round(float(np.clip(stream("ventricles").normal(), -2, 2)), 4),
        "wmh_factor": round(float(np.exp(0.6 * np.clip(stream("wmh").normal(), -2.5, 2.5))), 4),
        "has_tumour": bool(stream("tumour").random() < config.tumour),
        "has_ms": bool(stream("ms").random() < config.lesions),
        "anatomy_index": int(stream("anatomy").integers(len(files))),
    }


def image_grid(config: PhantomConfig) -> np.ndarray:
    """Voxels to mm, RAS+, the field of view centred on the brain."""
    affine = np.diag([config.spacing] * 3 + [1.0])
    affine[:3, 3] = [-(n - 1) / 2 * config.spacing for n in config.shape]
    return affine


def make_body(
    index: int, seed: int, config: PhantomConfig, anatomy: Anatomy, affine: np.ndarray, person: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tissue fractions of the subject on its grid, and what was drawn for it."""
    stream = streams(index, seed, "body")
    growth = (person["age"] - 38.0) / 12.0 + 0.5 * person["ventricle_factor"]  # mm that the ventricles' wall moves
    tumour = lesions.draw_tumour(stream("tumour"), config.tumour_radius) if person["has_tumour"] else None
    if tumour is not None:
        centre = _tumour_centre(stream("tumour place"), anatomy)
        tumour |= {f"atlas_{axis}": float(c) for axis, c in zip("xyz", centre)}
    velocity, origin = velocity_field(stream("shape"), anatomy, config.warp, growth, tumour)
    displacement = warp.exponentiate(-velocity, WARP_SPACING)
    pose = _pose(stream("pose"), config, anatomy, person)
    there = warp.voxel_grid(config.shape) @ (pose @ affine)[:3, :3].T.astype(np.float32)
    there += (pose @ affine)[:3, 3].astype(np.float32)
    there += np.moveaxis(warp.sample(displacement, (there - origin) / np.float32(WARP_SPACING), border=True), 0, -1)
    inverse = np.linalg.inv(anatomy.affine)
    voxels = (there @ inverse[:3, :3].T.astype(np.float32)) + inverse[:3, 3].astype(np.float32)
    channels = _folded(stream("folds"), anatomy)
    sampled = warp.sample(channels, voxels)
    sampled[-2] = warp.sample(channels[-2:-1], voxels, border=True)[0]
    fractions = dict.fromkeys(NAMES, np.zeros(config.shape, np.float32)) | dict(zip(PARTS, sampled))
    _age(fractions, person["age"], config.spacing)
    _veins(stream("veins"), fractions, config.spacing)
    found = _disease(stream, fractions, sampled[-2], sampled[-1], there, config, person, tumour)
    names = NAMES if config.head else tuple(n for n in NAMES if n not in HEAD)
    if config.head:
        _head(stream("head"), fractions, config.spacing)
    return {name: np.clip(fractions[name], 0, 1) for name in names}, {"ventricle_growth_mm": round(growth, 4), **found}


def velocity_field(
    rng: np.random.Generator, anatomy: Anatomy, strength: float, growth: float, tumour: dict[str, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The velocity field [3, x, y, z] (mm) that makes the brain individual, and its grid's origin (mm)."""
    size = (np.array(anatomy.fractions.shape[1:]) - 1) * anatomy.spacing
    shape = tuple(int(n) for n in size // WARP_SPACING + 2)
    origin = anatomy.affine[:3, 3].astype(np.float32)
    velocity = warp.random_velocity(rng, shape, WARP_SPACING, strength)  # type: ignore[arg-type]
    # the wall of the ventricles moves along the gradient of the distance to them
    grid = warp.voxel_grid(shape) * np.float32(WARP_SPACING)
    distance = warp.sample(anatomy.ventricles[None], grid / np.float32(anatomy.spacing), border=True)[0]
    smooth = ndimage.gaussian_filter(distance, 1.0)
    wall = np.stack(np.gradient(smooth, WARP_SPACING)) * np.exp(-((np.maximum(distance, 0) / 14.0) ** 2))
    nuclei = anatomy.fractions[PARTS.index("thalamus") : PARTS.index("pallidum") + 1].astype(np.float32)
    firm = warp.sample(nuclei, grid / np.float32(anatomy.spacing), border=True).sum(0)  # nuclei give way less
    velocity += np.float32(growth) * (wall * (1 - 0.6 * ndimage.gaussian_filter(firm, 1.0))).astype(np.float32)
    if tumour is not None:
        velocity += lesions.mass_effect(grid + origin, np.array([tumour[f"atlas_{axis}"] for axis in "xyz"]), tumour)
    return velocity.astype(np.float32), origin


def _tumour_centre(rng: np.random.Generator, anatomy: Anatomy) -> np.ndarray:
    solid = (anatomy.fractions[:2].sum(0) > 0.8) & (anatomy.cerebrum > 0.5) & (anatomy.ventricles > 8)
    choices = np.argwhere(solid)
    voxel = choices[rng.integers(len(choices))] if len(choices) else np.array(solid.shape) / 2
    return anatomy.affine[:3, :3] @ voxel + anatomy.affine[:3, 3]


def _pose(rng: np.random.Generator, config: PhantomConfig, anatomy: Anatomy, person: dict[str, Any]) -> np.ndarray:
    """World mm of the image to mm of the anatomy: rigid pose, then head size and proportions (fitting the image)."""
    scale = anatomy.size * person["head_scale"] * np.array(person["proportions"])
    room = np.array(config.shape) * config.spacing - (36 if config.head else 14)
    fits = room / anatomy.extent
    scale = np.where(fits > 0.75, np.minimum(scale, fits), scale)
    return np.diag([*(1 / scale), 1.0]) @ warp.rigid(rng, 2.5, 1.5)


def _folded(rng: np.random.Generator, anatomy: Anatomy) -> np.ndarray:
    """The anatomy's channels [P + 2, X, Y, Z]: fractions, distance to ventricles, cerebrum.

    An average of many brains has no folds of its own: random ones come from noise on the odds of white matter, cortex
    and fluid, and a sharper decision between them.
    """
    extra = np.stack([anatomy.ventricles, anatomy.cerebrum])
    if not anatomy.folds:
        return np.concatenate([anatomy.fractions, extra], dtype=np.float32)
    stack = anatomy.fractions.astype(np.float32)
    rows = [PARTS.index(name) for name in ("white", "cortex", "csf")]
    total = stack[rows].sum(0)
    busy = total > 0.02
    odds = []
    for row, amount in zip(rows, (1.0, 0.6, 1.0)):
        ripple = _ripple(rng, anatomy)
        share = stack[row][busy] / total[busy]
        odds.append((share + 0.01) ** 2.0 * np.exp(np.float32(amount * anatomy.folds) * ripple[busy]) * (share > 0.02))
    norm = total[busy] / np.maximum(sum(odds), 1e-6)
    for row, odd in zip(rows, odds):
        stack[row][busy] = odd * norm
    return np.concatenate([stack, extra])


def _ripple(rng: np.random.Generator, anatomy: Anatomy) -> np.ndarray:
    shape = anatomy.fractions.shape[1:]
    return 0.8 * warp.noise_field(rng, shape, anatomy.spacing, 6.5) + 0.5 * warp.noise_field(
        rng, shape, anatomy.spacing, 13.0
    )


def _age(fractions: dict[str, np.ndarray], age: float, spacing: float) -> None:
    """Sulci widen with age: cortex next to fluid turns into fluid."""
    fluid = ndimage.gaussian_filter(fractions["csf"], 1.2 / spacing)
    share = np.clip((age - 20) / 65 * 1.1 * fluid, 0, 0.8).astype(np.float32)
    lesions.take(fractions, "csf", share, ("cortex",))


def _veins(rng: np.random.Generator, fractions: dict[str, np.ndarray], spacing: float) -> None:
    """Vessels in the sulci: lines where two noise fields are 0 at once."""
    shape = fractions["csf"].shape
    one, two = (warp.noise_field(rng, shape, spacing, 9.0) for _ in range(2))
    lines = np.exp(-(one**2 + two**2) / 0.025)
    lesions.take(fractions, "vessel", np.clip(1.2 * lines * (fractions["csf"] > 0.15), 0, 0.9), ("csf", "cortex"))


def _disease(
    stream: Streams, fractions: dict[str, np.ndarray], ventricles: np.ndarray, cerebrum: np.ndarray, there: np.ndarray,
    config: PhantomConfig, person: dict[str, Any], tumour: dict[str, float] | None,
) -> dict[str, Any]:  # fmt: skip
    volume = lesions.hyperintensity_volume(person["age"], person["wmh_factor"])
    share = lesions.hyperintensities(stream("wmh"), fractions, ventricles, cerebrum, config.spacing, volume)
    lesions.take(fractions, "wmh", share, ("white",))
    found: dict[str, Any] = {"ms_lesions": [], "tumour": tumour}
    if person["has_ms"]:
        lesion, active, rows = lesions.ms_lesions(stream("ms"), fractions, ventricles, cerebrum, config.spacing)
        lesions.take(fractions, "lesion", lesion, ("white", "wmh", "cortex"))
        lesions.take(fractions, "active", active, ("lesion",))
        found["ms_lesions"] = rows
    if tumour is not None:
        centre = np.array([tumour[f"atlas_{axis}"] for axis in "xyz"], np.float32)
        nearest = np.unravel_index(int(((there - centre) ** 2).sum(-1).argmin()), config.shape)
        offset = (warp.voxel_grid(config.shape) - np.array(nearest, np.float32)) * np.float32(config.spacing)
        distance = np.sqrt((offset**2).sum(-1))
        solid = ("white", "cortex", "thalamus", "striatum", "pallidum", "choroid", *PATHOLOGY)
        for name, part in lesions.tumour(
            stream("tumour shape"), fractions, distance, cerebrum, config.spacing, tumour
        ).items():
            lesions.take(
                fractions,
                name,
                part,
                [n for n in solid if n != name] + (["csf"] if name in TUMOUR and name != "oedema" else []),
            )
    return found


def _head(rng: np.random.Generator, fractions: dict[str, np.ndarray], spacing: float) -> None:
    """Skull and scalp: layers outside the brain whose thickness varies smoothly."""
    shape = fractions["csf"].shape
    inside = sum(fractions.values())
    distance = ndimage.distance_transform_edt(inside < 0.5).astype(np.float32) * np.float32(spacing)
    bone = 5.5 + 1.3 * warp.noise_field(rng, shape, spacing, 40.0)
    skin = bone + 5.0 + 1.0 * warp.noise_field(rng, shape, spacing, 40.0)
    edges = [np.clip(0.5 + (limit - distance) / spacing, 0, 1) for limit in (1.5, bone, skin)]
    free = 1 - np.clip(inside, 0, 1)
    for name, outer, inner in (("csf", edges[0], 0), ("skull", edges[1], edges[0]), ("scalp", edges[2], edges[1])):
        fractions[name] = fractions[name] + (free * np.clip(outer - inner, 0, 1)).astype(np.float32)

"""Short-axis cine stacks of virtual hearts: balanced SSFP at end-diastole and end-systole, with their truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..volume import Study, Volume
from . import heart, warp
from .body import Streams, streams
from .heart import PARTS, PHASES, HeartConfig
from .scanner import through_plane
from .sequences import Matter, Protocol, balanced_ssfp

PROTOCOL = Protocol("balanced SSFP", tr=3.2, te=1.6, flip=55.0)
FINE = 1.8  # mm, the slices are averaged from planes about this far apart
BLOOD_LEVEL = 800.0  # stored value of blood, before the gain of the scanner


@dataclass(frozen=True, eq=False)
class VirtualHeart:
    """A scanned virtual heart, all on one grid [X, Y, Z] (slices from apex to base; voxels to RAS+ mm by `affine`).

    `images`: by phase (ED, ES), float32 of whole numbers. `labels` uint8: `PARTS[name].label`, 0 is air. `parameters`:
    what was drawn, and volumes in ml by phase: plain JSON values.
    """

    label: str
    images: Mapping[str, np.ndarray]
    affine: np.ndarray
    labels: Mapping[str, np.ndarray]
    parameters: Mapping[str, Any]


def heart_subject(index: int, seed: int = 0, config: HeartConfig | None = None) -> VirtualHeart:
    """The index-th heart (from 0) of the cohort `seed`; the same bytes whatever the cohort's size or workers."""
    config = config or HeartConfig()
    stream = streams(index, seed, "heart")
    person = heart.draw_person(stream, config)
    beats = heart.beat(person)
    affine = image_grid(stream, config)
    points, weights, fine = _planes(stream("breath"), config)
    parts, p, offset, texture = _tissues(stream, config, points.shape[:3], fine)
    gain = BLOOD_LEVEL * float(np.exp(2 * config.jitter * np.clip(stream("gain").normal(), -2, 2)))
    unit = Matter(*(np.array([x]) for x in (parts["left"].t1, parts["left"].t2, 1.0, parts["left"].pd)))
    gain /= float(balanced_ssfp(unit, p)[0])
    coil = np.exp(config.bias * warp.noise_field(stream("bias"), points.shape[:3], fine, 110.0))
    images, labels, volumes = {}, {}, {}
    voxel = config.spacing**2 * (config.thickness + config.gap) / 1000
    for phase in PHASES:
        fractions = heart.chest(stream, person, beats[phase], beats["ED"], points, fine)
        signal = np.zeros(points.shape[:3], np.float32)
        for name, share in fractions.items():
            signal += share * balanced_ssfp(_matter(parts[name], texture), p, offset).astype(np.float32)
        signal = through_plane(signal * coil * np.float32(gain), weights)
        images[phase] = _noisy(stream(f"noise {phase}"), signal, config.noise * BLOOD_LEVEL)
        shares = np.stack([through_plane(share, weights) for share in fractions.values()])
        labels[phase] = _label(shares)
        volumes[phase] = {k: round(float(v.sum(dtype=np.float64)) * voxel, 3) for k, v in zip(PARTS, shares)}
    parameters = person | {
        "phases": {k: {n: round(float(x), 3) for n, x in asdict(v).items()} for k, v in beats.items()},
        "volumes_ml": volumes, "sequence": asdict(p), "tissues": {k: v._asdict() for k, v in parts.items()},
    }  # fmt: skip
    return VirtualHeart(f"sub-{index + 1:03d}", images, affine, labels, parameters)


def heart_studies(virtual: VirtualHeart) -> tuple[Study, ...]:
    """The stacks of a virtual heart as studies, a session for each phase, as if they had been scanned."""
    metadata = {name: virtual.parameters[name] for name in ("age", "sex", "group")}
    note = ("Simulated by the virtual cohort, not acquired.",)
    return tuple(
        Study(virtual.label, {"cine": Volume(image, virtual.affine)}, phase, {**metadata, "phase": phase}, notes=note)
        for phase, image in virtual.images.items()
    )


def image_grid(stream: Streams, config: HeartConfig) -> np.ndarray:
    """Voxels to mm: along the scanner's axes, or where the long axis points in the body: left, forward and down."""
    step = np.diag([config.spacing, config.spacing, config.thickness + config.gap])
    axes = np.eye(3)
    if config.oblique:
        normal = np.array([0.62, -0.55, 0.56]) + 0.08 * stream("oblique").normal(size=3)  # from apex to base, RAS
        normal /= np.linalg.norm(normal)
        up = np.array([0.25, 0.75, 0.6])
        up -= normal * (up @ normal)
        up /= np.linalg.norm(up)
        axes = np.stack([np.cross(up, normal), up, normal], axis=1)
    affine = np.eye(4)
    affine[:3, :3] = axes @ step
    affine[:3, 3] = -affine[:3, :3] @ ((np.array([*config.size, config.count]) - 1) / 2)
    return affine


def _planes(rng: np.random.Generator, config: HeartConfig) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Image points [X, Y, F, 3] (mm) of fine planes, how slices average them [Z, F], and the spacing of the points."""
    each = max(round(config.thickness / FINE), 1)
    height = (np.arange(config.count) - (config.count - 1) / 2) * (config.thickness + config.gap)
    within = ((np.arange(each) + 0.5) / each - 0.5) * config.thickness
    x, y = ((np.arange(n) - (n - 1) / 2) * config.spacing for n in config.size)
    z = (height[:, None] + within).ravel()
    points = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1).astype(np.float32)
    if config.breath > 0:
        shift = np.repeat(config.breath * rng.normal(size=(config.count, 2)).clip(-2.5, 2.5), each, 0)
        points[..., :2] += shift.astype(np.float32)
    weights = np.kron(np.eye(config.count), np.full((1, each), 1 / each)).astype(np.float32)
    return points, weights, (config.spacing, config.spacing, (config.thickness + config.gap) / each)


def _tissues(
    stream: Streams, config: HeartConfig, shape: tuple[int, ...], fine: tuple[float, float, float]
) -> tuple[dict[str, heart.Part], Protocol, np.ndarray, list[np.ndarray]]:
    """What this subject's tissues and sequence are, the field offset (Hz), and the texture of T1, T2 and PD."""
    rng, parts = stream("tissues"), {}
    for name, part in PARTS.items():
        a, b, c = np.exp(config.jitter * np.array([0.4, 0.6, 0.15]) * rng.normal(size=3).clip(-2, 2))
        lung = float(np.exp(1.5 * config.jitter * rng.normal())) if name == "lung" else 1.0  # inflation
        parts[name] = part._replace(
            t1=round(part.t1 * float(a), 3), t2=round(part.t2 * float(b), 3),
            pd=round(min(part.pd * float(c) * lung, 1.0), 4),
        )  # fmt: skip
    scale = np.exp(config.jitter * stream("protocol").normal(size=2).clip(-2, 2))
    tr = PROTOCOL.tr * float(scale[0])
    p = replace(PROTOCOL, tr=tr, te=tr / 2, flip=PROTOCOL.flip * float(scale[1]))
    size: Any = shape
    offset = 28 * warp.noise_field(stream("offset"), size, fine, 70.0)
    fields = [warp.noise_field(stream(f"texture {k}"), size, fine, 7.0).clip(-3, 3) for k in range(3)]
    return parts, p, offset, fields


def _matter(part: heart.Part, texture: list[np.ndarray]) -> Matter:
    t1, t2, pd = (1 + np.float32(a) * field for a, field in zip((0.03, 0.05, 0.02), texture))
    return Matter(np.float32(part.t1) * t1, np.float32(part.t2) * t2, np.ones_like(t2), np.float32(part.pd) * pd)


def _noisy(rng: np.random.Generator, signal: np.ndarray, sigma: float) -> np.ndarray:
    """Rician noise, and whole numbers as a scanner stores."""
    if sigma > 0:
        noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(sigma)
        signal = np.sqrt((signal + noise[0]) ** 2 + noise[1] ** 2)
    return np.clip(np.rint(signal), 0, 32767).astype(np.float32)


def _label(shares: np.ndarray) -> np.ndarray:
    """The tissue that has most of each voxel, 0 where that is air."""
    numbers = np.array([0] + [part.label for part in PARTS.values()], np.uint8)
    return numbers[np.concatenate([1 - shares.sum(0, keepdims=True), shares]).argmax(0)]

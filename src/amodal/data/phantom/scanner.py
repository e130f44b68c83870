"""The scanner: tissue fractions in, images out. Contrast, bias field, thick slices, misregistration and noise."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ..intensity import QUANTITIES
from . import ct, deposits, pet, sequences, warp
from .body import Streams
from .config import PhantomConfig
from .sequences import SAME_AS, Matter, Protocol
from .tissue import R1, R2, TISSUES, Tissue

WHITE_LEVEL = 1000.0  # stored value of white matter, before the gain of the scanner


def acquire(
    stream: Streams, fractions: dict[str, np.ndarray], config: PhantomConfig, affine: np.ndarray, age: float
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scan the subject in every modality; images [X, Y, Z'] float32 (whole numbers, but PET), and what was set."""
    tissues = draw_tissues(stream("tissues"), config.protocol_jitter)
    texture = [0.035 * t for t in _textures(stream("texture"), config)]
    common = _bias(stream("bias"), config)
    inside = np.clip(sum(fractions.values()), 0, 1)
    lime = deposits.calcium(stream("calcium"), fractions, age, config)
    images: dict[str, np.ndarray] = {}
    protocols, poses = {}, {}
    for number, modality in enumerate(config.modalities):
        pose = np.eye(4)
        if number > 0:
            pose = warp.rigid(stream(f"pose {modality}"), config.misregistration, config.misregistration)
        poses[modality] = np.round(pose, 6).tolist()
        if modality in QUANTITIES:
            images[modality], protocols[modality] = _measure(
                modality, stream, fractions, lime, age, pose, affine, config
            )
            continue
        base = SAME_AS.get(modality, modality)
        p = sequences.draw(base, stream(f"protocol {base}"), config.protocol_jitter, tissues["csf"].t1)
        gadolinium = modality == "T1Gd"
        rate = deposits.susceptibility(stream, fractions, lime, age, config) if modality == "T2starw" else None
        signal, white = contrast(fractions, tissues, p, texture, gadolinium, rate)
        own = _bias(stream(f"bias {modality}"), config)
        gain = (
            WHITE_LEVEL
            * float(np.exp(2 * config.protocol_jitter * np.clip(stream(f"gain {base}").normal(), -2, 2)))
            / white
        )
        signal *= np.float32(gain) * np.exp(np.float32(config.bias) * (0.8 * common + 0.6 * own))
        images[modality] = _store(
            stream(f"noise {modality}"), signal, inside, pose, affine, config, config.noise * gain * white
        )
        protocols[modality] = {**asdict(p), "gadolinium": gadolinium, "relaxivity": [R1, R2] if gadolinium else None}
    table = {name: asdict(tissue) for name, tissue in tissues.items() if name in fractions}
    return images, {"sequences": protocols, "tissues": table, "misregistration": poses}


def contrast(
    fractions: dict[str, np.ndarray],
    tissues: dict[str, Tissue],
    p: Protocol,
    texture: list[np.ndarray],
    gadolinium: bool,
    rate: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """The signal [X, Y, Z], tissue by tissue and mixed by fractions; and that of pure white matter.

    `texture`: relative smooth variation of T1, T2 and PD [X, Y, Z] each, the same in every contrast of a subject.
    `rate`: added to R2* (1/ms) [X, Y, Z].
    """
    equation = sequences.SEQUENCES[p.sequence]
    signal = np.zeros(texture[0].shape, np.float32)
    for name, share in fractions.items():
        where = np.flatnonzero(share > 1e-3)
        t1, t2, pd = (1 + np.float32(tissues[name].texture) * field.ravel()[where] for field in texture)
        one = matter(tissues[name], t1, t2, pd, gadolinium)
        if rate is not None:
            one = replace(one, t2star=1 / (1 / one.t2star + rate.ravel()[where]))
        signal.ravel()[where] += share.ravel()[where] * equation(one, p)
    unit = np.ones(1, np.float32)
    return signal, float(equation(matter(tissues["white"], unit, unit, unit, False), p)[0])


def matter(tissue: Tissue, t1: np.ndarray, t2: np.ndarray, pd: np.ndarray, gadolinium: bool) -> Matter:
    """Relaxation times of some voxels: the tissue's, times t1, t2, pd; shortened by the contrast agent: 1/T + r C."""
    agent = tissue.gd / 1000.0 if gadolinium else 0.0
    return Matter(
        1 / (1 / (np.float32(tissue.t1) * t1) + np.float32(R1 * agent)),
        1 / (1 / (np.float32(tissue.t2) * t2) + np.float32(R2 * agent)),
        1 / (1 / (np.float32(tissue.t2star) * t2) + np.float32(R2 * agent)),
        np.float32(tissue.pd) * pd,
    )


def draw_tissues(rng: np.random.Generator, jitter: float) -> dict[str, Tissue]:
    """The tissues of one subject: all T1 and all T2 scaled together, and each tissue a little on its own."""
    out, (all_t1, all_t2) = {}, np.exp(0.4 * jitter * rng.normal(size=2).clip(-2, 2))
    for name, t in TISSUES.items():
        a, b, c, d = (
            float(v) for v in np.exp(jitter * np.array([0.3, 0.3, 0.08, 3.0]) * rng.normal(size=4).clip(-2, 2))
        )
        out[name] = replace(
            t,
            t1=round(t.t1 * float(all_t1) * a, 4),
            t2=round(t.t2 * float(all_t2) * b, 4),
            t2star=round(t.t2star * float(all_t2) * b, 4),
            pd=round(min(t.pd * c, 1.0), 4),
            gd=round(t.gd * d, 5),
        )
    return out


def _textures(rng: np.random.Generator, config: PhantomConfig) -> list[np.ndarray]:
    """Variation of T1, T2 and PD within tissues, about unit variance, at 28 and 6 mm; T2 follows T1 in part."""
    fields = [
        0.8 * warp.noise_field(rng, config.shape, config.spacing, 28.0)
        + 0.6 * warp.noise_field(rng, config.shape, config.spacing, 6.0)
        for _ in range(3)
    ]
    t1, own, pd = (np.clip(field, -3, 3) for field in fields)
    return [t1, 0.5 * t1 + 0.85 * own, 0.35 * pd]


def _bias(rng: np.random.Generator, config: PhantomConfig) -> np.ndarray:
    """A smooth field over the whole image, about unit variance."""
    return warp.noise_field(rng, config.shape, config.spacing, 0.55 * config.spacing * max(config.shape))


def _measure(
    modality: str, stream: Streams, fractions: dict[str, np.ndarray], lime: np.ndarray, age: float, pose: np.ndarray,
    affine: np.ndarray, config: PhantomConfig,
) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
    """CT in whole HU or PET in SUV [X, Y, Z'], and what was set; outside a stripped brain it is air, or nothing."""
    total = np.clip(sum(fractions.values()), 0, 1)
    rng = stream(f"noise {modality}")
    if modality == "CT":
        scene, settings = ct.image(stream, fractions, lime, age, config)
        scene, inside = _place(scene, total, pose, affine, config, ct.AIR)
        scene += ct.speckle(rng, scene.shape, config)
        out, empty = np.clip(np.rint(scene), -1024, 3071), ct.AIR
    else:
        scene, settings = pet.uptake(stream, fractions, age, config)
        scene, inside = _place(scene, total, pose, affine, config, 0.0)
        out, empty = pet.count(rng, scene, config, config.slice_thickness or config.spacing), 0.0
    return (np.where(inside > 0.5, out, empty) if config.stripped else out).astype(np.float32), settings


def _place(
    signal: np.ndarray, inside: np.ndarray, pose: np.ndarray, affine: np.ndarray, config: PhantomConfig, empty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Move by `pose` and average over thick slices, the signal and the share that is tissue; `empty` comes in from
    outside the image."""
    if config.misregistration > 0 and not np.array_equal(pose, np.eye(4)):
        voxels = np.linalg.inv(affine) @ pose @ affine
        there = warp.voxel_grid(signal.shape) @ voxels[:3, :3].T.astype(np.float32) + voxels[:3, 3].astype(np.float32)
        signal, inside = warp.sample(np.stack([signal - np.float32(empty), inside]), there)
        signal = signal + np.float32(empty)
    if config.slice_thickness > 0:
        weights, _ = slabs(config.shape[2], config.spacing, config.slice_thickness, affine)
        signal, inside = through_plane(signal, weights), through_plane(inside, weights)
    return signal, inside


def _store(
    rng: np.random.Generator,
    signal: np.ndarray,
    inside: np.ndarray,
    pose: np.ndarray,
    affine: np.ndarray,
    config: PhantomConfig,
    sigma: float,
) -> np.ndarray:
    """Move, average over the slice, add Rician noise, strip the background, round as a scanner does."""
    signal, inside = _place(signal, inside, pose, affine, config, 0.0)
    if sigma > 0:
        noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(sigma)
        signal = np.sqrt((signal + noise[0]) ** 2 + noise[1] ** 2)
    if config.stripped:
        signal = np.where(inside > 0.5, np.maximum(signal, 1), 0)
    return np.clip(np.rint(signal), 0, 32767).astype(np.float32)


def slabs(count: int, spacing: float, thickness: float, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How thick slices average thin ones [slices, count] (rows sum to 1), and the affine of the thick grid."""
    slices = max(int(count * spacing / thickness), 1)
    start = (count * spacing - slices * thickness) / 2
    low = np.maximum(start + np.arange(slices)[:, None] * thickness, np.arange(count) * spacing)
    high = np.minimum(start + np.arange(1, slices + 1)[:, None] * thickness, np.arange(1, count + 1) * spacing)
    weights = np.clip(high - low, 0, None)
    out = affine.copy()
    out[:3, 2] *= thickness / spacing
    out[:3, 3] += affine[:3, 2] / spacing * (start + thickness / 2 - spacing / 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32), out


def through_plane(volume: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average [X, Y, Z] along z by `slabs` weights, in a fixed order of sums."""
    out = np.zeros((*volume.shape[:2], len(weights)), np.float32)
    for k, row in enumerate(weights):
        for z in np.flatnonzero(row):
            out[..., k] += row[z] * volume[..., z]
    return out

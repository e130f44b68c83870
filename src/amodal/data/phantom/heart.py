"""A virtual heart: both ventricles with papillary muscles at end-diastole and end-systole, and what lies around them.

Long-axis coordinates in mm: w from the apex (0) to the base, u from the septum to the free wall of the left ventricle,
v to the front. Volumes follow adult reference ranges (left ventricle at end-diastole 100 to 200 ml, ejection fraction
55 to 70 %); the muscle keeps its volume when it contracts. Tissues at 1.5 T (ms):
- heart T1 1030, T2 40, blood 1441, 290, skeletal muscle 1008, 44, liver 576, 46: Stanisz et al., Magn Reson Med 54:507
  (2005); subcutaneous fat 343, 58: de Bazelaire et al., Radiology 230:652 (2004).
Lung, bone, proton densities and shapes are assumptions of the phantom.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import InputError
from . import warp

Streams = Callable[[str], np.random.Generator]
PHASES = ("ED", "ES")
EXTENT = 112.0  # mm from below the apex to above the base


class Part(NamedTuple):
    """A tissue of the chest: its label, T1, T2 (ms), proton density."""

    label: int
    t1: float
    t2: float
    pd: float


# fmt: off
PARTS: dict[str, Part] = {
    "right":      Part(1, 1441.0, 260.0, 0.95),  # blood of the right ventricle; the labels 1 to 3 are those of ACDC
    "myocardium": Part(2, 1030.0, 42.0, 0.80),
    "left":       Part(3, 1441.0, 290.0, 0.95),
    "papillary":  Part(4, 1030.0, 42.0, 0.80),
    "right wall": Part(5, 1030.0, 42.0, 0.80),
    "atrium":     Part(6, 1441.0, 280.0, 0.95),
    "vessel":     Part(7, 1441.0, 290.0, 0.95),
    "fat":        Part(8, 343.0, 58.0, 0.90),
    "muscle":     Part(9, 1008.0, 44.0, 0.80),
    "liver":      Part(10, 576.0, 46.0, 0.78),
    "bone":       Part(11, 550.0, 49.0, 0.45),
    "lung":       Part(12, 1200.0, 40.0, 0.14),
}
# fmt: on
# group -> change of the left ventricle's (volume, wall, septum, ejection fraction in points), of the right one's
# (volume, ejection fraction in points)
GROUPS: dict[str, tuple[float, float, float, float, float, float]] = {
    "normal": (1.0, 1.0, 1.0, 0.0, 1.0, 0.0),
    "dilated": (1.6, 0.95, 1.0, -32.0, 1.15, -15.0),
    "hypertrophic": (0.9, 1.45, 1.45, 6.0, 0.95, 2.0),
    "right": (1.0, 1.0, 1.0, -2.0, 1.6, -18.0),
}


@dataclass(frozen=True)
class HeartConfig:
    """Short-axis stacks. `size`: voxels in the plane, `spacing` (mm) there. `thickness` of the slices (mm), `gap`
    between them, `slices`: how many; 0: as many as reach from apex to base. `disease`: probability of a dilated,
    hypertrophic or right ventricular heart. `breath`: standard deviation of each slice's shift in the plane (mm),
    for breath-holds that differ. `oblique`: the affine says where a scanner puts such a stack in the body; else the
    voxel axes are those of the scanner. `noise` is Rician, relative to blood; `bias`, `jitter`: relative."""

    size: tuple[int, int] = (128, 128)
    spacing: float = 1.5
    thickness: float = 3.5
    gap: float = 0.0
    slices: int = 0
    disease: float = 0.35
    breath: float = 0.0
    oblique: bool = False
    noise: float = 0.025
    bias: float = 0.15
    jitter: float = 0.1
    age: tuple[float, float] = (20.0, 85.0)

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 16 or not self.spacing > 0 or self.slices < 0:
            raise InputError(
                f"size={self.size}, spacing={self.spacing}: choose two sizes of 16 or more and a spacing above 0."
            )
        if not (0.5 <= self.thickness <= 20 and 0 <= self.gap <= 20):
            raise InputError(f"thickness={self.thickness}, gap={self.gap}: choose 0.5 to 20 mm, and a gap of 0 to 20.")
        if not 0 <= self.disease <= 1:
            raise InputError(f"disease={self.disease}: a probability lies between 0 and 1.")
        if not all(math.isfinite(v) and v >= 0 for v in (self.breath, self.noise, self.bias, self.jitter)):
            raise InputError("breath, noise, bias and jitter of a heart are 0 or more.")

    @property
    def count(self) -> int:
        """How many slices."""
        return self.slices or max(round(EXTENT / (self.thickness + self.gap)), 1)


@dataclass(frozen=True)
class Ventricles:
    """The ventricles at one moment: `base` (w of the valves), `inner` (w of the cavity's apex), radii at the widest
    of cavity and epicardium (mm), `right`: scale of the right ventricle's section, `papillary`: their radius."""

    base: float
    inner: float
    cavity: float
    outer: float
    right: float
    papillary: float

    @property
    def widest(self) -> float:
        return 0.82 * self.base


def draw_person(stream: Streams, config: HeartConfig) -> dict[str, Any]:
    """Who it is: age, sex, disease, volumes and angles; plain JSON values."""
    build, pose = stream("build"), stream("pose")
    male = bool(stream("sex").integers(2))
    sick, kind = stream("disease").random(), stream("disease kind").integers(1, len(GROUPS))
    group = list(GROUPS)[int(kind)] if sick < config.disease else "normal"
    volume, wall, septum, points, right, right_points = GROUPS[group]
    one, usual = build.normal(size=8).clip(-2, 2), 158 if male else 124
    size = float(np.exp(0.14 * one[0]))
    return {
        "age": round(float(stream("age").uniform(*config.age)), 1),
        "sex": "FM"[male],
        "group": group,
        "end_diastolic_ml": round(usual * volume * size, 2),
        "ejection_percent": round(float(np.clip(62 + points + 4 * one[1], 15, 78)), 2),
        "length_mm": round((94 if male else 86) * volume**0.2 * float(np.exp(0.04 * one[2])), 2),
        "wall_mm": round((8.6 if male else 7.4) * wall * float(np.exp(0.09 * one[3])), 2),
        "septum": round(septum * float(np.exp(0.06 * one[4])), 3),
        "right_end_diastolic_ml": round(1.04 * usual * right * size * float(np.exp(0.10 * one[5])), 2),
        "right_ejection_percent": round(float(np.clip(57 + right_points + 4 * one[7], 15, 75)), 2),
        "fat_mm": round(float(np.clip(3.0 + 1.2 * one[6], 0.8, 6)), 2),
        "turn_degrees": round(18 * float(np.clip(pose.normal(), -2, 2)), 2),
        "tilt_degrees": [round(5 * float(t), 2) for t in pose.normal(size=2).clip(-2, 2)],
        "shift_mm": [round(6 * float(t), 2) for t in pose.normal(size=3).clip(-2, 2)],
    }


def profile(w: np.ndarray, apex: float, widest: float) -> np.ndarray:
    """Radius along the long axis relative to the widest: an ellipse below it, one of twice the length above."""
    x = (w - widest) / np.where(w < widest, widest - apex, 2.0 * (widest - apex))
    return np.sqrt(np.clip(1 - x**2, 0, None))


def shape_factor(apex: float, widest: float, base: float) -> float:
    """The volume (ml) below the base of a body of that profile with a radius of 1 mm at its widest."""
    w = np.linspace(apex, base, 401)
    return float(np.trapezoid(np.pi * profile(w, apex, widest) ** 2, w)) / 1000


def beat(person: dict[str, Any]) -> dict[str, Ventricles]:
    """The ventricles at end-diastole and end-systole: the cavity shrinks by the ejection fraction, the base comes down,
    and the muscle keeps its volume."""
    ejected = person["ejection_percent"] / 100
    base, thin = person["length_mm"], 0.75 * person["wall_mm"]
    inner = thin
    cavity = math.sqrt(person["end_diastolic_ml"] / shape_factor(inner, 0.82 * base, base))
    outer = cavity + person["wall_mm"]
    muscle = outer**2 * shape_factor(0, 0.82 * base, base) - person["end_diastolic_ml"]
    first = Ventricles(base, inner, cavity, outer, 0.0, 0.5 * min(person["wall_mm"], 10.0))
    short, left = base * (1 - 0.24 * ejected), person["end_diastolic_ml"] * (1 - ejected)
    deep = inner * (1 + 0.5 * ejected)
    small = math.sqrt(left / shape_factor(deep, 0.82 * short, short))
    thick = math.sqrt((left + muscle) / shape_factor(0, 0.82 * short, short))
    last = Ventricles(short, deep, small, thick, 0.0, first.papillary * 1.15)
    full = person["right_end_diastolic_ml"]
    volumes = {"ED": full, "ES": full * (1 - person["right_ejection_percent"] / 100)}
    return {k: replace(one, right=_right_scale(one, volumes[k])) for k, one in (("ED", first), ("ES", last))}


def right_section(now: Ventricles, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance in the plane (mm, negative inside) to the right ventricle's ellipse, which the left one lies in front
    of, and whether there is one at this height."""
    scale = np.maximum(now.right * profile(w, 0.16 * now.base, 0.90 * now.base), 1e-3)
    centre = -0.96 * now.outer * np.maximum(profile(w, 0.0, now.widest), 0.3)
    # 1.05 wide and 1.5 high; the gradient brings the implicit function back to mm
    du, dv = (u - centre) / 1.05, (v - 0.12 * now.outer) / 1.50
    implicit = np.sqrt(du**2 + dv**2)
    slope = np.sqrt((du / 1.05) ** 2 + (dv / 1.50) ** 2) / np.maximum(implicit, 1e-3)
    return (implicit - scale) / np.maximum(slope, 0.3), scale > 2


def _right_scale(now: Ventricles, volume: float) -> float:
    """The scale at which the right ventricle holds `volume` ml beside the left one, by bisection on a grid of 3 mm."""
    axis = np.arange(-120.0, 61.0, 3.0)
    u, v, w = np.meshgrid(axis, np.arange(-90.0, 91.0, 3.0), np.arange(1.5, now.base, 3.0), indexing="ij")
    beside = np.hypot(u, v) > now.outer * profile(w, 0.0, now.widest)
    low, high = 2.0, 80.0
    for _ in range(24):
        middle = (low + high) / 2
        distance, there = right_section(replace(now, right=middle), u, v, w)
        held = float((np.clip(0.5 - distance / 3, 0, 1) * there * beside).sum()) * 27 / 1000
        low, high = (middle, high) if held < volume else (low, middle)
    return middle


def coordinates(person: dict[str, Any], points: np.ndarray, middle: float) -> tuple[np.ndarray, ...]:
    """u, v, w of image points [..., 3] in mm (z from apex to base, 0 in the middle of the stack)."""
    turn, (tx, ty) = math.radians(person["turn_degrees"]), map(math.radians, person["tilt_degrees"])
    spin = np.array([[math.cos(turn), math.sin(turn), 0], [-math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, math.cos(tx), -math.sin(tx)], [0, math.sin(tx), math.cos(tx)]])
    lean = np.array([[math.cos(ty), 0, math.sin(ty)], [0, 1, 0], [-math.sin(ty), 0, math.cos(ty)]])
    # the left ventricle lies right of the middle, so that both ventricles are in view
    moved = points - np.array([14.0, 0, 0], np.float32) - np.array(person["shift_mm"], np.float32) * [1, 1, 0.5]
    u, v, w = np.moveaxis(moved @ (spin @ tip @ lean).T.astype(np.float32), -1, 0)
    return u, v, w + np.float32(middle)


def chest(stream: Streams, person: dict[str, Any], now: Ventricles, first: Ventricles, points: np.ndarray,
          spacing: tuple[float, float, float]) -> dict[str, np.ndarray]:  # fmt: skip
    """Tissue fractions [X, Y, Z] at image points [X, Y, Z, 3] (mm). `first`: the heart at end-diastole, which the
    surroundings are made for. Random fields are drawn anew from the same streams for each phase."""
    u, v, w = coordinates(person, points, first.base / 2 + 2)
    shape = u.shape
    field = _fields(stream, shape, spacing)
    h = spacing[0]

    def inside(distance: np.ndarray, width: float = h) -> np.ndarray:
        return np.clip(0.5 - distance / np.float32(width), 0, 1)

    masks = dict.fromkeys(PARTS, np.zeros(shape, np.float32))
    left, outer, right, free = _ventricles(stream("shape"), person, now, u, v, w, field("trabeculae", 5.0))
    below = inside(w - now.base, 2.0)
    masks["papillary"] = _papillary(stream("papillary"), now, u, v, w, inside) * inside(left) * below
    masks["left"] = inside(left) * below
    masks["myocardium"] = inside(outer) * below
    masks["right"] = inside(right) * below
    masks["right wall"] = inside(free) * below
    atria = np.minimum(np.hypot(u - 4, v + 6) - 0.95 * first.cavity, np.hypot(u + 1.45 * first.outer, v - 2) - 25)
    root = np.hypot(u + 0.45 * first.outer, v - 0.55 * first.outer) - 13
    masks["atrium"] = inside(np.minimum(atria, root)) * (1 - below)
    walls = inside(np.minimum(atria, root) - 2.5) * (1 - below)
    masks["right wall"] = np.maximum(masks["right wall"], walls)
    padding = person["fat_mm"] * np.clip(1.0 + 0.9 * field("padding", 22.0) + 0.05 * (w - 0.6 * first.base), 0.1, 3.5)
    sac = np.minimum(np.minimum(outer, free), np.where(w > now.base, np.minimum(atria, root), 1e3))
    masks["fat"] = inside(sac - padding) * inside(w - first.base - 25, 4.0)
    masks |= _surroundings(stream("chest"), masks, person, first, u, v, w, field, inside)
    return _paint(masks)


def _ventricles(
    rng: np.random.Generator, person: dict[str, Any], now: Ventricles, u: np.ndarray, v: np.ndarray, w: np.ndarray,
    rough: np.ndarray,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Distances in the plane (mm, negative inside) to cavity, epicardium, right cavity and right free wall."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    waves = rng.normal(size=(2, 3)).clip(-2, 2) * [[0.030], [0.018]]
    phases = rng.uniform(0, 2 * np.pi, (2, 3))
    wobble = [
        sum(a * np.cos(k * angle + p + w / 60) for k, a, p in zip((2, 3, 4), row, shift))
        for row, shift in zip(waves, phases)
    ]
    low = np.clip(1 - w / now.base, 0, 1)
    cavity = now.cavity * profile(w, now.inner, now.widest) * (1 + wobble[0])
    # trabeculae line the lower half of the cavity
    left = np.where(w > now.inner, radius - cavity - rough * (0.35 + 0.9 * low), 1e3)
    septal = np.clip(-np.cos(angle), 0, 1) ** 2 * (person["septum"] - 1) * (now.outer - now.cavity)
    outer = radius - (now.outer * (1 + wobble[1]) + septal) * profile(w, 0.0, now.widest)
    outer = np.where(w > 0, np.minimum(outer, left - 2.0), 1e3)
    beyond, there = right_section(now, u, v, w)
    right = np.where(there, beyond - 1.5 * rough, 1e3)
    return left, outer, right, np.where(there, beyond - 3.2, 1e3)


def _papillary(
    rng: np.random.Generator, now: Ventricles, u: np.ndarray, v: np.ndarray, w: np.ndarray, inside: Callable
) -> np.ndarray:
    """Two muscles on the free wall, in front and behind, from a third to two thirds of the way up."""
    out = np.zeros_like(u)
    for degrees in (52.0, -74.0):
        turn = math.radians(degrees + 9 * float(np.clip(rng.normal(), -2, 2)))
        low, high = (float(x) + 0.03 * float(rng.normal()) for x in (0.30, 0.70))
        thick = now.papillary * float(np.exp(0.15 * rng.normal()))
        along = np.clip((w / now.base - low) / (high - low), 0, 1)
        reach = now.cavity * profile(w, now.inner, now.widest) - thick * (0.35 + 0.75 * along)
        distance = np.hypot(u - reach * math.cos(turn), v - reach * math.sin(turn)) - thick * (1 - 0.35 * along)
        ends = inside(low * now.base - w, 3.0) * inside(w - high * now.base, 3.0)
        out = np.maximum(out, inside(distance) * ends)
    return out


def _surroundings(
    rng: np.random.Generator, masks: dict[str, np.ndarray], person: dict[str, Any], first: Ventricles, u: np.ndarray,
    v: np.ndarray, w: np.ndarray, field: Callable, inside: Callable,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Liver under the diaphragm, chest wall in front, spine, aorta and vessels of the lung."""
    a, b, c, d = (float(x) for x in rng.normal(size=4).clip(-2, 2))
    below = first.outer + 10 + 4 * a
    dome = np.hypot(u + 45, v + below + 110 + 0.5 * (w - 40)) - 110 - 3 * field("dome", 30.0)
    spine = np.hypot(u - 5 - 4 * b, v + 112) - 20
    aorta = np.hypot(u - 32 - 4 * b, v + 80 + 3 * c) - (11.5 + c)
    front = np.hypot(u + 20, v + 170 - first.outer - 26 - 4 * d) - 170 - 3 * field("front", 40.0)
    inner_fat, muscle = inside(-front) * inside(front - 6), inside(6 - front) * inside(front - 19)
    ribs = np.clip(field("ribs", 16.0) * 2 - 1.4, 0, 1) * muscle
    one, two = field("branches", 9.0), field("twigs", 9.0)
    branches = np.clip(1.3 * np.exp(-(one**2 + two**2) / 0.03), 0, 0.9)
    skin = inside(19 - front) * inside(front - 19 - person["fat_mm"] * 4)
    air = inside(19 + person["fat_mm"] * 4 - front)
    return {
        "liver": inside(dome), "bone": np.maximum(inside(spine), ribs), "vessel": np.maximum(inside(aorta), branches),
        "muscle": np.maximum(muscle, inside(spine - 6)), "fat": np.maximum(masks["fat"], np.maximum(inner_fat, skin)),
        "lung": 1 - air,
    }  # fmt: skip


def _paint(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each tissue takes what those before it left of a voxel."""
    rest, out = np.ones_like(masks["left"]), {}
    order = ("papillary", "left", "myocardium", "right", "atrium", "right wall", "fat", "liver", "bone", "muscle",
             "vessel", "lung")  # fmt: skip
    for name in order:
        out[name] = (masks[name] * rest).astype(np.float32)
        rest = rest - out[name]
    return {name: out[name] for name in PARTS}


def _fields(stream: Streams, shape: tuple[int, ...], spacing: tuple[float, float, float]) -> Callable:
    """Random fields by name: the same for both phases."""
    x, y, z = shape
    return lambda name, knots: warp.noise_field(stream(f"field {name}"), (x, y, z), spacing, knots).clip(-2.5, 2.5)

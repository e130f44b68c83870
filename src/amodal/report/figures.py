"""Pictures for reports, self-contained: image planes as JPEG data, plots as inline SVG that takes the page's colours.

Volumes are [X, Y, Z] in RAS+. Planes are shown in radiological convention: the patient's right is on the left, anterior
and superior are up, and a sagittal view looks to the left.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import nibabel as nib
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from ..data.intensity import Window

PLANES: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
LETTERS = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
SLICES = {"axial": 21, "coronal": 11, "sagittal": 11}  # in a tile one can leaf through
ERROR_LIMIT, SPREAD_LIMIT = 0.3, 0.15  # fixed colour scales, fractions of the image's intensity range
LONGEST = 256  # pixels of a tile's longer side
QUALITY = 82
MADE = (255, 176, 32)  # the colour that marks what is synthetic

Colour = Callable[[np.ndarray], np.ndarray]  # a plane of intensities -> uint8 grey [h, w] or colour [h, w, 3]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Tile:
    """`count` slices of one plane below each other in one JPEG; `aspect` is the width over the height of one, in mm."""

    plane: str
    data: str
    count: int
    start: int
    aspect: float


def ras(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A volume on any grid by flips and swaps alone to the nearest RAS+ axes, and its spacing in mm on them."""
    orientation = nib.io_orientation(affine)
    norms = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    x, y, z = (float(norms[int(np.flatnonzero(orientation[:, 0] == axis)[0])]) for axis in range(3))
    return nib.apply_orientation(data, orientation), (x, y, z)


def window(volume: np.ndarray) -> tuple[float, float]:
    """The intensities shown as black and white: those that become -1 and 1 for a network."""
    low = float(volume.min())
    if float(volume.max()) == low:
        return low, low + 1
    found = Window.of(volume)
    return found.lo, found.hi


def grey(low: float, high: float) -> Colour:
    """Intensities between two bounds as shades of grey."""
    return lambda x: _bytes((x - low) / (high - low))


def signed(limit: float = ERROR_LIMIT) -> Colour:
    """Errors on a fixed scale: 0 black, too bright orange, too dark blue."""
    over, under = np.array([1.0, 0.55, 0.12]), np.array([0.25, 0.62, 1.0])
    return lambda x: _bytes(np.clip(x / limit, 0, 1)[..., None] * over + np.clip(-x / limit, 0, 1)[..., None] * under)


def warm(limit: float = SPREAD_LIMIT) -> Colour:
    """Standard deviations on a fixed scale: 0 black, `limit` and above pale yellow."""
    table = (matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
    return lambda x: table[_bytes(x / limit)]


def classes() -> Colour:
    """Tissue classes: outside black, fluid blue, grey matter grey, white matter white, tumour red."""
    table = np.array([(0, 0, 0), (46, 110, 190), (128, 128, 128), (235, 235, 235), (214, 60, 50)], np.uint8)
    return lambda x: table[np.clip(np.rint(x), 0, len(table) - 1).astype(np.intp)]


def bounds(mask: np.ndarray, margin: int = 4) -> Box:
    """The box of a mask and a margin of voxels around it: what is worth showing."""
    ranges = []
    for axis, n in enumerate(mask.shape):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        lo, hi = (hit[0], hit[-1] + 1) if len(hit) else (0, n)
        ranges.append(slice(max(int(lo) - margin, 0), min(int(hi) + margin, n)))
    return ranges[0], ranges[1], ranges[2]


def plane(volume: np.ndarray, name: str, index: int) -> np.ndarray:
    """One slice [rows, columns] as it is looked at: rows go down, radiological convention."""
    return np.take(volume, index, PLANES[name]).T[::-1, ::-1]


def indices(box: Box, name: str, count: int, rim: float = 0.08) -> list[int]:
    """`count` slice numbers evenly through a box, without its rims."""
    part = box[PLANES[name]]
    n = part.stop - part.start
    return sorted({part.start + int(i) for i in np.linspace(rim * n, (1 - rim) * n, count)})


def tile(
    volume: np.ndarray, name: str, spacing: Sequence[float], colour: Colour, box: Box, where: Sequence[int]
) -> Tile:
    """Some slices of one plane through the box, stacked in one picture."""
    pictures = [_fit(colour(_cut(volume, name, i, box))) for i in where]
    data = data_address(_encode(np.concatenate(pictures)))
    return Tile(name, data, len(where), len(where) // 2, _aspect(name, spacing, box))


def strip(truth: np.ndarray, made: np.ndarray, spacing: Sequence[float], mask: np.ndarray) -> bytes:
    """Truth, synthetic and error (images in [0, 1]) side by side, an axial and a coronal slice, as JPEG bytes."""
    box = bounds(mask)
    rows = []
    for name in ("axial", "coronal"):
        i = indices(box, name, 3)[1]
        shown = ((truth, grey(0, 1)), (made, grey(0, 1)), (made - truth, signed()))
        cells = [_colours(colour(_cut(v, name, i, box))) for v, colour in shown]
        height = max(round(240 / _aspect(name, spacing, box)), 8)
        sized = [_resize(c, 240, height) for c in cells]
        rows.append(np.concatenate([sized[0], _frame(sized[1]), sized[2]], axis=1))
    return _encode(np.concatenate(rows))


def data_address(content: bytes) -> str:
    """JPEG bytes as an address that needs no file."""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def histogram(curves: Mapping[str, tuple[str, np.ndarray]], low: float, high: float, bins: int = 64) -> Markup:
    """Densities of intensities as SVG; `curves`: legend -> (css class, values)."""
    width, height, paths = 420, 150, []
    edges = np.linspace(low, high, bins + 1)
    density = {k: np.histogram(np.clip(v, low, high), edges)[0] / max(v.size, 1) for k, (_, v) in curves.items()}
    # the outermost bins hold what the window clips; they would dwarf the rest
    top = max((float(d[1:-1].max()) for d in density.values()), default=0.0) or 1.0
    for label, (kind, _) in curves.items():
        y = height - np.clip(density[label] / top, 0, 1) * (height - 12)
        points = " ".join(f"{(i + 0.5) / bins * width:.1f},{v:.1f}" for i, v in enumerate(y))
        paths.append(
            f'<polyline class="curve {escape(kind)}" points="{points}"><title>{escape(label)}</title></polyline>'
        )
    axis = f'<line class="axis" x1="0" x2="{width}" y1="{height}" y2="{height}"/>'
    return _svg(width, height + 2, "".join(paths) + axis, "intensity histograms: " + ", ".join(curves))


def strips(groups: Mapping[str, tuple[str, Sequence[float]]], unit: str) -> Markup:
    """Every subject a dot, a box from quartile to quartile with the median; `groups`: legend -> (css class, values)."""
    values = np.array([v for _, numbers in groups.values() for v in numbers if np.isfinite(v)])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    pad = 0.06 * (high - low) or 0.5
    ticks = _ticks(low - pad, high + pad)
    left, width, row = 120, 460, 34
    height = row * len(groups)
    at = lambda v: left + (v - low + pad) / (high - low + 2 * pad) * (width - left - 8)  # noqa: E731
    parts = [f'<line class="grid" x1="{at(t):.1f}" x2="{at(t):.1f}" y1="0" y2="{height}"/>' for t in ticks]
    parts += [f'<text class="tick" x="{at(t):.1f}" y="{height + 14}" text-anchor="middle">{t:g}</text>' for t in ticks]
    for k, (label, (kind, numbers)) in enumerate(groups.items()):
        parts.append(
            f'<text class="label" x="{left - 10}" y="{row * k + row / 2 + 4}" text-anchor="end">{escape(label)}</text>'
        )
        parts.append(_strip(kind, [v for v in numbers if np.isfinite(v)], row * k + row / 2, at))
    parts.append(f'<text class="tick" x="{width - 8}" y="{height + 28}" text-anchor="end">{escape(unit)}</text>')
    return _svg(width, height + 32, "".join(parts), f"{unit} by method")


def _strip(kind: str, numbers: list[float], y: float, at: Callable[[float], float]) -> str:
    if not numbers:
        return ""
    q1, median, q3 = (at(float(q)) for q in np.percentile(numbers, (25, 50, 75)))
    box = (
        f'<rect class="box {escape(kind)}" x="{q1:.1f}" y="{y - 9}" width="{max(q3 - q1, 1):.1f}" height="18" rx="3"/>'
    )
    jitter = (np.arange(len(numbers)) * 0.618034) % 1 - 0.5  # golden ratio: even, and the same every time
    dots = "".join(
        f'<circle class="dot {escape(kind)}" cx="{at(v):.1f}" cy="{y + 14 * j:.1f}" r="2.6"/>'
        for v, j in zip(numbers, jitter)
    )
    ends = f'x1="{median:.1f}" x2="{median:.1f}" y1="{y - 11}" y2="{y + 11}"'
    return f'{box}{dots}<line class="median {escape(kind)}" {ends}/>'


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** np.floor(np.log10((high - low) / 3))
    step *= next((m for m in (5, 2, 1) if (high - low) / (step * m) >= 3), 1)
    return [round(float(t), 10) for t in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def _svg(width: int, height: int, content: str, title: str) -> Markup:
    label = escape(title)
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{content}</svg>')  # noqa: S704


def _cut(volume: np.ndarray, name: str, index: int, box: Box) -> np.ndarray:
    part = list(box)
    part[PLANES[name]] = slice(index, index + 1)
    return plane(volume[tuple(part)], name, 0)


def _aspect(name: str, spacing: Sequence[float], box: Box) -> float:
    across, up = [a for a in range(3) if a != PLANES[name]]
    size = [(b.stop - b.start) * s for b, s in zip(box, spacing)]
    return size[across] / size[up]


def _fit(picture: np.ndarray) -> np.ndarray:
    """No larger than a tile needs to be (pixels keep the voxels' shape; the page stretches them)."""
    h, w = picture.shape[:2]
    return picture if max(h, w) <= LONGEST else _resize(picture, min(w, LONGEST), min(h, LONGEST))


def _resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _frame(picture: np.ndarray, width: int = 2) -> np.ndarray:
    """The mark of a synthetic image, kept when the picture is copied out of the page."""
    framed = np.broadcast_to(np.array(MADE, np.uint8), picture.shape).copy()
    framed[width:-width, width:-width] = picture[width:-width, width:-width]
    return framed


def _colours(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def _encode(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def _bytes(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)

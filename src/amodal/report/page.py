"""One self-contained HTML page: what was there, what was made, how good it is, and how to say so in a paper.

Pages need no server, no network and no other file. `subject_page` is for one completed study; the page of an evaluation
over many is in `report.evaluation`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np

from .. import __version__
from ..core.errors import InputError
from ..metrics.image import STRIPES_WARN, head_mask, stripe_ratio
from . import figures

Status = Literal["acquired", "tissue", "synthetic", "classic", "truth", "error", "spread"]
IMAGES: tuple[Status, ...] = ("acquired", "synthetic", "classic", "truth")
SHEET: tuple[Status, ...] = ("synthetic", "truth", "error", "spread")  # side by side, in this order
CITATIONS = {
    "cola_diff": (
        "Jiang L, Mao Y, Wang X, Chen X, Li C. CoLa-Diff: Conditional Latent Diffusion Model for Multi-modal MRI "
        "Synthesis. MICCAI 2023, LNCS 14229:398-408."
    ),
    "copedit": (
        "Liu J, Aung N, Arvanitis TN, Lima JAC, Petersen SE, Zhang L. Exploiting Completeness Perception with "
        "Diffusion Transformer for Unified 3D MRI Synthesis. arXiv:2602.18400, 2026."
    ),
    "any2all": (
        "Gan W, Wang X, Wang T, Wang W, Ying C, Hu Y, Chen Y, An H, Kamilov US. A Unified Framework for Multimodal "
        "Image Reconstruction and Synthesis using Denoising Diffusion Models. arXiv:2602.08249, 2026."
    ),
}
METHODS = {
    "model": "this model",
    "regression": "regression",
    "single": "best single",
}  # columns of scores, as they are read
METRICS = {"psnr": "PSNR (dB) ↑", "ssim": "SSIM ↑", "mae": "MAE ↓", "stripes": "stripes → 1"}
CAPTIONS: dict[Status, str] = {
    "acquired": "from the scanner",
    "tissue": "guides the model: fluid blue, grey matter grey, white matter white, tumour red",
    "synthetic": "made by the model",
    "classic": "reconstructed without the model",
    "truth": "acquired, hidden from the model",
    "error": f"synthetic − truth, ± {figures.ERROR_LIMIT:g} of the range",
    "spread": f"SD over samples, 0 – {figures.SPREAD_LIMIT:g} of the range",
}


@dataclass(frozen=True)
class Panel:
    """A volume [X, Y, Z] in RAS+ to be shown; all panels of a page lie on one grid.

    The synthetic and the truth of one name share one intensity scale (best: both in [0, 1]). `error` and `spread` are
    fractions of that scale's range. An `error` panel is made by the page where both synthetic and truth are given.
    """

    name: str
    volume: np.ndarray
    status: Status


@dataclass(frozen=True)
class Item:
    """A line of the table of what was there and what was made: voxels, millimetres, `LAS`, and the file's name."""

    name: str
    status: Status
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str = ""
    file: str = ""


@dataclass(frozen=True)
class Page:
    """What a subject's page says.

    `scores`: modality -> method -> metric -> value, and `protocol` how they were measured. `checks`: what was checked
    -> "pass" or "warn", then ": " and words. `provenance`: tables in tables, as in the sidecar. `measured`: what was
    made from k-space.
    """

    title: str
    panels: tuple[Panel, ...]
    spacing: tuple[float, float, float]
    items: tuple[Item, ...] = ()
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    protocol: str = ""
    checks: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: tuple[str, ...] = ()

    @property
    def given(self) -> str:
        """What all was made from, in words."""
        acquired = [p.name for p in self.panels if p.status == "acquired"]
        return _names([*(f"k-space of {name}" for name in self.measured), *acquired])


def subject_page(path: Path, page: Page) -> Path:
    """Write the page of one completed study; replaces what stood there, atomically."""
    windows = _windows(page.panels)
    panels = (*page.panels, *_errors(page.panels, windows))
    images = [p for p in panels if p.status in ("acquired", "tissue", "synthetic", "classic")]
    mask = _mask(page.panels, windows)
    box = figures.bounds(mask)
    tiles = {id(p): _tiles(p, page.spacing, windows, box) for p in panels}
    made = [p for p in panels if p.status == "synthetic"]
    sheets = [
        (m, sorted((p for p in panels if p.name == m.name and p.status in SHEET), key=lambda p: SHEET.index(p.status)))
        for m in made
    ]
    text = render(
        "subject.html",
        page=page,
        made=_names(p.name for p in made),
        plural=len(made) > 1,
        given=page.given,
        images=[(p, tiles[id(p)]) for p in images],
        sheets=[(m.name, [(p, tiles[id(p)]) for p in group]) for m, group in sheets if len(group) > 1],
        mosaics=[(m.name, _mosaic(m, page.spacing, windows, box)) for m in made],
        histograms=[(m.name, _histogram(m, panels, windows, mask)) for m in made],
        checks={**{k: _check(v) for k, v in page.checks.items()}, **_stripes(made, panels, mask)},
        metrics=_columns(page.scores),
        labels=METRICS,
        methods=METHODS,
        provenance=flatten(page.provenance),
        method=methods_text(page),
        citation=CITATIONS.get(_facts(page.provenance).get("method", "").lower(), ""),
        captions=CAPTIONS,
        letters=figures.LETTERS,
        slices=figures.SLICES,
        spread_limit=figures.SPREAD_LIMIT,
    )
    return write(path, text)


def methods_text(page: Page) -> str:
    """Three sentences for a paper's methods section, from what is known."""
    made = _names(p.name for p in page.panels if p.status == "synthetic")
    facts = _facts(page.provenance)
    tool = [f"amodal {facts.get('version', __version__)}"]
    tool += [
        text.format(facts[k])
        for k, text in (("method", "method {}"), ("sha256", "weights SHA-256 {:.12}"))
        if k in facts
    ]
    words = (("sampler", "sampler {}"), ("steps", "{} steps"), ("seed", "seed {}"), ("samples", "samples averaged: {}"))
    drawn = ", ".join(text.format(facts[k]) for k, text in words if k in facts)
    return (
        f"{'' if page.measured else 'Missing '}{made} images were synthesised from the acquired {page.given} "
        f"{'data' if page.measured else 'images'} with {', '.join(tool)}"
        f"{f' ({drawn})' if drawn else ''}. "
        "Synthetic images are estimates, not measurements, and are marked as synthetic wherever they are shown."
    )


def _facts(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The lines by the last part of their names, in small letters (`Sampler · Name` is `sampler`); the first counts."""
    facts: dict[str, str] = {}
    for key, value in flatten(provenance):
        parts = [part.lower() for part in key.split(" · ")]
        facts.setdefault(parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1], value)
    return facts


def flatten(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tables in tables as one list of lines, (`Weights · SHA256`, `9f2b…`), without what is None."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [(f"{key} · {rest}", text) for rest, text in flatten(value)]
        elif value is not None:
            lines.append((str(key), _words(value, (", ", " + "))))
    return lines


def _words(value: Any, between: tuple[str, ...]) -> str:
    """A value as people write it; what stands `between` the members of a list, and of a list in it."""
    if between and isinstance(value, (list, tuple)):
        return between[0].join(_words(one, between[1:]) for one in value)
    return str(value)


def write(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all; InputError if it cannot be."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to.") from error
    return path


def render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("amodal.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    environment.globals |= {"version": __version__, "zip": zip, "error_limit": figures.ERROR_LIMIT}
    return environment.get_template(template).render(**values)


def number(value: Any, digits: int = 3) -> str:
    """A number as it is read: three figures, a dash for what is unknown."""
    if value is None or value != value:
        return "–"
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.{max(digits - 1, 0)}f}"


def _names(names: Any) -> str:
    listed = list(dict.fromkeys(names))
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed) or "nothing"


def _windows(panels: Sequence[Panel]) -> dict[str, tuple[float, float]]:
    """Black and white for every name; the truth's, where there is one, for the synthetic too."""
    ordered = sorted((p for p in panels if p.status in IMAGES), key=lambda p: p.status == "truth")
    return {p.name: figures.window(p.volume) for p in ordered}


def _errors(panels: Sequence[Panel], windows: Mapping[str, tuple[float, float]]) -> list[Panel]:
    truths = {p.name: p.volume for p in panels if p.status == "truth"}
    there = {p.name for p in panels if p.status == "error"}
    out = []
    for p in panels:
        if p.status == "synthetic" and p.name in truths and p.name not in there:
            low, high = windows[p.name]
            out.append(Panel(p.name, (p.volume - truths[p.name]) / (high - low), "error"))
    return out


def _mask(panels: Sequence[Panel], windows: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """The head, from what was acquired (from the synthetic images where nothing was)."""
    images = [p for p in panels if p.status == "acquired"] or [p for p in panels if p.status in IMAGES]
    return head_mask(np.stack([(p.volume - windows[p.name][0]) / np.ptp(windows[p.name]) for p in images]))


def _colour(panel: Panel, windows: Mapping[str, tuple[float, float]]) -> figures.Colour:
    special = {"error": figures.signed(), "spread": figures.warm(), "tissue": figures.classes()}
    return special.get(panel.status) or figures.grey(*windows[panel.name])


def _tiles(
    panel: Panel, spacing: tuple[float, float, float], windows: Mapping[str, tuple[float, float]], box: figures.Box
) -> dict[str, figures.Tile]:
    colour = _colour(panel, windows)
    places = {name: figures.indices(box, name, figures.SLICES[name]) for name in figures.PLANES}
    return {name: figures.tile(panel.volume, name, spacing, colour, box, where) for name, where in places.items()}


def _mosaic(
    panel: Panel, spacing: tuple[float, float, float], windows: Mapping[str, tuple[float, float]], box: figures.Box
) -> list[tuple[str, list[figures.Tile]]]:
    """Through-plane views side by side, where stripes between axial slices would show."""
    colour, shown = _colour(panel, windows), []
    for name in ("coronal", "sagittal"):
        where = figures.indices(box, name, 5, 0.2)
        shown.append((name, [figures.tile(panel.volume, name, spacing, colour, box, [i]) for i in where]))
    return shown


def _histogram(
    made: Panel, panels: Sequence[Panel], windows: Mapping[str, tuple[float, float]], mask: np.ndarray
) -> Any:
    low, high = windows[made.name]
    group = [p for p in panels if p.name == made.name and p.status in ("synthetic", "truth")]
    curves: dict[str, tuple[str, np.ndarray]] = {p.status: (p.status, p.volume[mask]) for p in group}
    return list(curves), figures.histogram(curves, low, high)


def _check(text: str) -> tuple[str, str]:
    state, _, words = str(text).partition(":")
    return ("pass" if state.strip() == "pass" else "warn"), (
        words.strip() if words else "" if state == "pass" else text
    )


def _stripes(made: Sequence[Panel], panels: Sequence[Panel], mask: np.ndarray) -> dict[str, tuple[str, str]]:
    """The stripes check of every synthetic volume, beside its truth or else beside what was acquired."""
    out = {}
    for m in made:
        truth = [p.volume for p in panels if p.name == m.name and p.status == "truth"]
        real = truth or [p.volume for p in panels if p.status == "acquired"]
        if real:
            ratio = stripe_ratio(m.volume, real, mask)
            beside = "its truth's" if truth else "the median of the acquired images'"
            state = "pass" if ratio <= STRIPES_WARN else "warn"
            words = f"through-plane gradient energy is {ratio:.2f} times {beside} (above {STRIPES_WARN:g} is striped)"
            out[f"{m.name}: stripes"] = (state, words)
    return out


def _columns(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    return list(dict.fromkeys(metric for methods in scores.values() for row in methods.values() for metric in row))

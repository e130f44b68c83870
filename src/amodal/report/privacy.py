"""One page on whether a model gives its training set away: what was found, in words, numbers and pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from ..core.errors import InputError
from ..metrics.privacy import Audit, Space
from . import figures
from .page import flatten, render, write

BADGES = {True: "well", False: "look at it", None: "open"}
GAP = 4  # pixels between the planes of a picture
ROWS = 200  # generated volumes listed; the rest is in the JSON


def privacy_page(path: Path, audits: Mapping[str, Audit], protocol: Mapping[str, Any] | None = None) -> Path:
    """Write the page of the audits of each modality; replaces what stood there, atomically.

    InputError if there is none.
    """
    if not audits:
        raise InputError("there is no audit to write a page of; audit one modality at least.")
    text = render(
        "privacy.html",
        audits=audits,
        badges=BADGES,
        alarms=[(m, v) for m, a in audits.items() for v in a.verdicts if v.good is False],
        said=any(v.good is not None for a in audits.values() for v in a.verdicts),
        plots={m: [(s.name, _distances(s), _ratios(s)) for s in a.spaces] for m, a in audits.items()},
        pictures={m: [(s.neighbour, _picture(s.generated), _picture(s.training)) for s in a.shown]
                  for m, a in audits.items()},
        attacks={m: _attacks(a) for m, a in audits.items()},
        rows=ROWS,
        protocol=flatten(protocol or {}),
    )  # fmt: skip
    return write(path, text)


def _distances(space: Space) -> Markup:
    groups = {"generated": ("model", [n.distance for n in space.neighbours]), "real people": ("regression", space.real)}
    return figures.strips(groups, "distance to the nearest training volume")


def _ratios(space: Space) -> Markup:
    groups = {"generated": ("model", [n.ratio for n in space.neighbours]), "real people": ("regression", space.ratios)}
    return figures.strips(groups, "nearest over second nearest")


def _attacks(audit: Audit) -> list[tuple[str, Any]]:
    found = [(f"distance, {s.name}", s.attack) for s in audit.spaces if s.attack is not None]
    return found + ([("loss", audit.losses)] if audit.losses is not None else [])


def _picture(planes: tuple[np.ndarray, ...]) -> str:
    """The planes side by side, as they are looked at, as an address that needs no file."""
    shown = [p.T[::-1, ::-1] for p in planes]
    height = max(p.shape[0] for p in shown)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, GAP))) for p in shown]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.concatenate(padded, axis=1))).save(buffer, "JPEG", quality=figures.QUALITY)
    return figures.data_address(buffer.getvalue())

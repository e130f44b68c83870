"""A completed study in words and pictures: sidecars, scores, and the page of its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.bids import Derivatives
from ..data.intensity import QUANTITIES, Window
from ..data.nifti import sha256
from ..data.volume import Source, Study
from ..evaluate import MODEL, measure, slice_axis
from ..metrics.baselines import KINDS, Baselines
from ..metrics.image import head_mask
from ..model import Completion, Model
from ..report import figures
from ..report.page import Item, Page, Panel, Status
from . import console
from .plan import Row

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]  # modality -> method -> metric -> value
PROTOCOL = (
    "PSNR (dB), SSIM and mean absolute error against the acquired image that was hidden, inside the head, both scaled "
    "to [0, 1] by the truth's own window; data range 1. Beside it: voxelwise regression and the best single modality, "
    "both fitted on the model's training set."
)
LARGEST_BRAIN = 1900.0  # ml: what is larger still has its skull


def scores(model: Model, study: Study, full: Completion, hidden: tuple[str, ...]) -> Scores:
    """How near the images came to what was hidden, beside the baselines; empty where nothing was."""
    if not hidden:
        return {}
    stack, there = model.enter(study)
    seen = there & ~np.isin(model.modalities, hidden)
    mask = head_mask((stack[[name in study for name in model.modalities]] + 1) / 2)
    baselines = Baselines.from_dict(model.card["baselines"]) if model.card.get("baselines") else None
    given = [name for name, flag in zip(model.modalities, seen) if flag]
    axis = slice_axis(study[study.reference].affine)
    out: dict[str, dict[str, dict[str, float]]] = {}
    for name in hidden:
        truth = (stack[model.modalities.index(name)] + 1) / 2
        out[name] = {MODEL: measure(full.scaled[name], truth, mask, axis)}
        for kind in KINDS:
            if baselines is not None and baselines.available(kind, name, given):
                out[name][kind] = measure((baselines.predict(stack, seen, name, kind) + 1) / 2, truth, mask, axis)
    return out


def sidecar(source: Source, name: str, full: Completion, out: Derivatives, desc: str) -> dict[str, Any]:
    """The JSON beside an image: what it is, what it was made from, and how (BIDS keys, then our own)."""
    samples = full.provenance["Sampler"]["Samples"]
    what = {
        "synth": f"SYNTHETIC {name}, not acquired." + (f" Mean of {samples} samples." if samples > 1 else ""),
        "synthstd": f"SYNTHETIC {name}: voxelwise standard deviation over {samples} samples.",
    }
    return {
        "Description": what[desc],
        "SkullStripped": _stripped(full),
        "Sources": [out.uri(source.files[m]) for m in full.inputs],
        "SpatialReference": out.uri(source.files[full.inputs[0]]),
        "Synthetic": {
            **full.provenance,
            "Units": QUANTITIES[name].unit
            if name in QUANTITIES
            else "arbitrary: the median range of this contrast in the training data",
            "InputSHA256": {m: sha256(source.files[m]) for m in full.inputs},
            "Preprocessing": list(full.notes),
            "CommandLine": shlex.join(["amodal", *sys.argv[1:]]),
            "Checks": checks(full),
            "RuntimeSeconds": round(full.seconds, 2),
        },
    }


def checks(full: Completion) -> dict[str, str]:
    """What was looked at before trusting the inputs, each "pass" or "warn: why"."""
    moved = [note for note in full.notes if any(note.startswith(f"{m}:") for m in full.inputs)]
    resampled = [note for note in full.notes if note.startswith("Resampled")]
    return {
        "one grid": f"warn: {' '.join(moved)}" if moved else "pass",
        "voxel size": f"warn: outside the range trained on. {resampled[0]}" if resampled else "pass",
    }


def _stripped(full: Completion) -> bool:
    """Whether the head ends at the brain: a whole head is larger than any brain."""
    volume = full.study[full.inputs[0]]
    head = head_mask((Window.of(volume.data).enter(volume.data)[None] + 1) / 2)
    return bool(head.sum() * abs(np.linalg.det(volume.affine[:3, :3])) / 1000 < LARGEST_BRAIN)


def page(model: Model, row: Row, study: Study, full: Completion, found: Scores, files: Mapping[str, Path]) -> Page:
    """What the report of a subject shows; images in [0, 1] by their own windows."""
    affine = full.study[full.inputs[0]].affine
    panels, items = [], []

    def show(name: str, data: np.ndarray, status: Status) -> None:
        panels.append(Panel(name, figures.ras(np.asarray(data, np.float32), affine)[0], status))

    def scaled(name: str) -> np.ndarray:
        window = model.window(name, study[name])
        return (window.enter(study[name].data) + 1) / 2

    for name in full.inputs:
        show(name, scaled(name), "acquired")
        items.append(_item(name, "acquired", study, row.source.files[name].name))
    for name in [m for m in full.inputs if m in full.study.tissue][:1]:
        show(f"tissue in {name}", full.study.tissue[name], "tissue")
    for name in full.made:
        show(name, full.scaled[name], "synthetic")
        items.append(_item(name, "synthetic", full.study, files[name].name))
        if name in row.hidden:
            show(name, scaled(name), "truth")
            items.append(_item(name, "truth", study, row.source.files[name].name))
        if name in full.scaled_spread:
            show(name, full.scaled_spread[name], "spread")
    spacing = figures.ras(np.empty((1, 1, 1), np.float32), affine)[1]
    return Page(
        title=study.label,
        panels=tuple(panels),
        spacing=spacing,
        items=tuple(items),
        scores=found,
        protocol=PROTOCOL,
        checks=checks(full),
        notes=full.notes,
        provenance={"Subject": study.label, **full.provenance, "Seconds": round(full.seconds, 1)},
    )


def _item(name: str, status: Status, study: Study, file: str) -> Item:
    volume = study[name]
    return Item(name, status, volume.shape, volume.spacing, volume.orientation, file)


def show_scores(title: str, found: Scores, quiet: bool = False) -> None:
    """The scores as a table on stdout."""
    metrics = list(dict.fromkeys(m for methods in found.values() for row in methods.values() for m in row))
    rows = [
        [name, method, *(f"{row[m]:.3f}" if m in row else "-" for m in metrics)]
        for name, methods in found.items()
        for method, row in methods.items()
    ]
    if rows:
        console.table(title, ["contrast", "made by", *metrics], rows, quiet)

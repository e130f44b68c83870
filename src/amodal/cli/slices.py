"""The work behind `complete STACK.nii.gz`: one stack in, the same stack with all its slices out, or a denser one."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..data import layouts, nifti
from ..data.bids import Derivatives
from ..data.volume import Source, Volume
from ..metrics.image import mae, psnr, ssim
from ..model import Model, load
from ..model.slices import Stack, complete_slices, empty_slices, interpolated, parse_slices, slice_axis
from ..report import figures
from ..report.page import Item, Page, Panel, subject_page
from . import console
from .present import Scores, show_scores
from .record import Entry, Record, writable

PROTOCOL = (
    "PSNR (dB), SSIM and mean absolute error of the slices that were hidden, against what was acquired there; scaled "
    "to [0, 1] by the stack's own window; data range 1. Beside them linear and cubic interpolation of the neighbours."
)


@dataclass(frozen=True)
class Job:
    """What was asked for; the fields are flags of `amodal complete`."""

    file: Path
    out: Path
    slices: str | None = None
    spacing_z: float | None = None
    model: str = "default"
    samples: int = 1
    steps: int | None = None
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    overwrite: bool = False
    dry_run: bool = False
    quiet: bool = False
    report: Path | None = None


def is_stack(path: Path) -> bool:
    """Whether an input is one file rather than a study."""
    return path.name.lower().endswith(nifti.SUFFIXES) and not path.is_dir()


def run(job: Job) -> Record:
    """Complete the stack, write it with its sidecar and a report; hidden slices are compared with what was made."""
    model = load(job.model, device=job.device, precision=job.precision)
    source = layouts.plain({model.modalities[0]: job.file}, subject=job.file.name.split(".")[0])
    out = Derivatives.of(job.out, source)
    out.refuse_raw()
    writable(job.out)
    if not job.overwrite:
        out.refuse_existing(source, model.modalities[:1])
    volume = nifti.read(job.file, gaps=True)
    missing = parse_slices(job.slices, volume.shape[slice_axis(volume)]) if job.slices else ()
    asked = {key: value for key, value in vars(job).items() if key not in ("report", "quiet")}
    with Record(None if job.dry_run else job.report, asked) as record:
        if job.dry_run:
            gone = sorted({*missing, *empty_slices(volume)})
            console.say(f"{job.file.name}: would make {_ranges(gone) or 'the slices between those there'}", job.quiet)
            return record
        with record.subject(source.label, [job.file], alone=True) as entry:
            with console.progress(f"{source.label}: slices", job.quiet) as tick:
                done = complete_slices(
                    model, volume, missing, spacing_z=job.spacing_z, samples=job.samples, seed=job.seed,
                    steps=job.steps, progress=tick,
                )  # fmt: skip
            entry.warnings += done.notes
            entry.scores = scores(volume, missing, done)
            entry.outputs += _write(job, source, out, model, volume, missing, done, entry.scores)
    return record


def _write(
    job: Job, source: Source, out: Derivatives, model: Model, volume: Volume, hidden: tuple[int, ...], done: Stack,
    found: Scores,
) -> list[str]:  # fmt: skip
    name = model.modalities[0]
    out.prepare(job.overwrite)
    images = {"synth": done.volume} | ({"synthstd": done.spread} if done.spread is not None else {})
    written = []
    for desc, image in images.items():
        path = out.write_image(source, name, image.data, image, sidecar(source, out, done, desc), desc, job.overwrite)
        written.append(str(path))
        console.say(f"{source.label}: slices {_ranges(done.made)} -> {path}", job.quiet)
    about = page(source.label, name, volume, hidden, done, found, Path(written[0]).name)
    written.append(str(subject_page(out.report_path(source), about)))
    console.say(f"{source.label}: report -> {written[-1]}", job.quiet)
    return written


def sidecar(source: Source, out: Derivatives, done: Stack, desc: str) -> dict[str, Any]:
    """The JSON beside the stack: which of its slices are synthetic, and how they were made."""
    samples, (name, path) = done.provenance["Sampler"]["Samples"], next(iter(source.files.items()))
    what = f"{_ranges(done.made)} of {done.volume.shape[done.axis]} slices (from 0, along voxel axis {done.axis})"
    words = {
        "synth": f"SYNTHETIC slices in an acquired {name} stack: {what}. The others are as acquired.",
        "synthstd": f"SYNTHETIC {name}: standard deviation over {samples} samples; 0 in acquired slices.",
    }
    return {
        "Description": words[desc],
        "SkullStripped": False,
        "Sources": [out.uri(path)],
        "SpatialReference": out.uri(path),
        "Synthetic": {
            **done.provenance,
            "Slices": list(done.made),
            "SliceAxis": done.axis,
            "InputSHA256": {name: nifti.sha256(path)},
            "Preprocessing": list(done.notes),
            "CommandLine": shlex.join(["amodal", *sys.argv[1:]]),
            "RuntimeSeconds": round(done.seconds, 2),
        },
    }


def scores(volume: Volume, hidden: tuple[int, ...], done: Stack) -> Scores:
    """How near the hidden slices came to what was acquired there, beside interpolation; empty where none was."""
    known = [k for k in hidden if k not in empty_slices(volume)]
    if not known or done.volume.shape != volume.shape:
        return {}
    truth, made = (np.moveaxis(v.data, done.axis, -1) for v in (volume, done.volume))
    there = np.setdiff1d(np.arange(truth.shape[-1]), done.made)
    low, high = figures.window(truth[..., there])
    guesses = {"model": made[..., known]}
    for kind, cubic in (("linear", False), ("cubic", True)):
        guesses[kind] = interpolated(truth[..., there], there, np.array(known), cubic)
    return {"slices": {kind: measured(guess, truth[..., known], low, high) for kind, guess in guesses.items()}}


def measured(guess: np.ndarray, truth: np.ndarray, low: float, high: float) -> dict[str, float]:
    """PSNR, SSIM (mean over slices) and mean absolute error of slices [X, Y, N], scaled by a window."""
    a, b = (np.clip((v - low) / (high - low), 0, 1) for v in (guess, truth))
    similar = np.mean([ssim(a[..., k], b[..., k], 1.0) for k in range(a.shape[-1])])
    return {"psnr": psnr(a, b, 1.0), "ssim": float(similar), "mae": mae(a, b, 1.0)}


def page(title: str, name: str, volume: Volume, hidden: tuple[int, ...], done: Stack, found: Scores, file: str) -> Page:
    """What the report shows: the completed stack, where it is synthetic, and what came in."""

    def upright(v: Volume, data: np.ndarray) -> np.ndarray:
        return figures.ras(np.asarray(np.nan_to_num(data), np.float32), v.affine)[0]

    given = np.moveaxis(np.array(done.volume.data), done.axis, -1)
    given[..., list(done.made)] = 0
    panels = [
        Panel(name, upright(done.volume, np.moveaxis(given, -1, done.axis)), "acquired"),
        Panel(name, upright(done.volume, done.volume.data), "synthetic"),
    ]
    items = [
        Item(name, "acquired", volume.shape, volume.spacing, volume.orientation, volume.name),
        Item(name, "synthetic", done.volume.shape, done.volume.spacing, done.volume.orientation, file),
    ]
    if found:
        panels.append(Panel(name, upright(volume, volume.data), "truth"))
    if done.spread is not None:
        low, high = figures.window(np.nan_to_num(volume.data))
        panels.append(Panel(name, upright(done.volume, done.spread.data / (high - low)), "spread"))
    spacing = figures.ras(np.empty((1, 1, 1), np.float32), done.volume.affine)[1]
    notes = (f"Synthetic slices: {_ranges(done.made)}, from 0, along voxel axis {done.axis}.", *done.notes)
    return Page(
        title=title, panels=tuple(panels), spacing=spacing, items=tuple(items), scores=found, protocol=PROTOCOL,
        notes=notes, provenance={"Subject": title, **done.provenance, "Seconds": round(done.seconds, 1)},
    )  # fmt: skip


def _ranges(numbers: Any) -> str:
    """1, 2, 3, 7 -> `1-3, 7`."""
    groups: list[list[int]] = []
    for n in sorted(numbers):
        if groups and n == groups[-1][-1] + 1:
            groups[-1].append(n)
        else:
            groups.append([n])
    return ", ".join(f"{g[0]}-{g[-1]}" if len(g) > 1 else str(g[0]) for g in groups)


def show(entry: Entry, quiet: bool) -> None:
    """The scores of hidden slices, on stdout."""
    show_scores(f"{entry.subject}: made without seeing it, against what was acquired", entry.scores, quiet)


def refuse(file: Path, flags: dict[str, Any]) -> None:
    """InputError where slices are asked of something that is no single file."""
    if named := [flag for flag, value in flags.items() if value is not None]:
        raise InputError(f"{named[0]} with {file}: slices are those of one file, give a .nii.gz stack as INPUT.")

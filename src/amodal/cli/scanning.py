"""The work behind `reconstruct` and `complete --measured`: from k-space to images, sidecars and a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..core.modality import canonical
from ..data.bids import Derivatives, label
from ..data.kspace import KSpace, read
from ..data.nifti import sha256
from ..data.volume import Source, Study, Volume
from ..model import Model, load
from ..model import reconstruct as making
from ..preprocess.align import prepare
from ..report import figures
from ..report.page import Item, Page, Panel, Status, subject_page
from . import console
from .record import Record, writable

FAR = 1.5  # times the noise: a residual above says that the image does not explain the data
NAMES = {"zero_filled": "zero-filled", "cg_sense": "CG-SENSE", "l1_wavelet": "L1-wavelet", "model": "the model"}


@dataclass(frozen=True)
class Job:
    """What `amodal reconstruct` was asked for; the fields are its flags. `measured`: modality -> file of k-space."""

    measured: Mapping[str, Path]
    out: Path
    source: Source | None = None
    missing: tuple[str, ...] = ()
    model: str = "default"
    sampler: str | None = None
    samples: int = 1
    steps: int | None = None
    validate: bool = False
    voxel: Sequence[float] | None = None
    orientation: str | None = None
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    overwrite: bool = False
    quiet: bool = False
    report: Path | None = None


@dataclass(frozen=True)
class Ready:
    """A job whose input was looked at."""

    job: Job
    model: Model
    source: Source
    out: Derivatives
    files: Mapping[str, Path]
    missing: tuple[str, ...]


def pairs(texts: Sequence[str]) -> dict[str, Path]:
    """`FLAIR=kspace.h5` as modality -> file; InputError where it is not written so."""
    found: dict[str, Path] = {}
    for text in texts:
        name, given, path = text.partition("=")
        if not (given and name and path):
            raise InputError(f"--measured {text}: write it as NAME=FILE, for example FLAIR=kspace.h5.")
        if canonical(name) in found:
            raise InputError(f"--measured {canonical(name)} was given twice; keep one of them.")
        found[canonical(name)] = Path(path)
    return found


def check(job: Job) -> Ready:
    """All that can be known before the k-space is read; InputError if there is nothing sensible to do."""
    files = {canonical(name): path for name, path in job.measured.items()}
    missing = tuple(name for name in dict.fromkeys(map(canonical, job.missing)) if name not in files)
    for path in files.values():
        if not path.is_file():
            raise InputError(f"{path}: no such file; give k-space as .h5, .npy or .npz.")
    if job.voxel is not None and not min(job.voxel) > 0:
        raise InputError(f"--voxel {job.voxel}: choose three sizes in mm above 0.")
    model = load(job.model, device=job.device, precision=job.precision)
    making.check(model, tuple(files), missing)
    first = next(iter(files.values()))
    source = job.source or Source(f"sub-{label(first.stem)}", None, {}, {}, first.absolute().parent, "files")
    if source.problem:
        raise InputError(source.problem)
    out = Derivatives.of(job.out, source)
    out.refuse_raw()
    writable(job.out)
    if not job.overwrite:
        out.refuse_existing(source, (*files, *missing))
    return Ready(job, model, source, out, files, missing)


def intent(ready: Ready) -> str:
    """What would be done, in a sentence."""
    beside = [m for m in ready.source.files if m in ready.model.modalities and m not in ready.files]
    helped = f" with {', '.join(beside)}" if beside else ""
    return f"would make {', '.join((*ready.files, *ready.missing))} from k-space{helped} into {ready.out.root}"


def run(job: Job) -> Record:
    """Reconstruct, write images, sidecars and the report."""
    ready = check(job)
    asked = {k: v for k, v in vars(job).items() if k not in ("source", "report", "quiet")}
    asked["measured"] = {k: str(v) for k, v in job.measured.items()}
    inputs = [*ready.files.values(), *ready.source.files.values()]
    with Record(job.report, asked) as record, record.subject(ready.source.label, inputs, alone=True) as entry:
        scans = {name: read(path) for name, path in ready.files.items()}
        study, reference = _place(ready, scans)
        with console.progress(f"{ready.source.label}: {', '.join(scans)}", job.quiet) as tick:
            done = making.reconstruct(
                ready.model, scans, reference, study, ready.missing, job.samples, job.seed,
                steps=job.steps, sampler=job.sampler, validate=job.validate, progress=tick,
            )  # fmt: skip
        entry.warnings += done.full.notes
        entry.outputs += map(str, _write(ready, done, reference))
    return record


def _place(ready: Ready, scans: Mapping[str, KSpace]) -> tuple[Study | None, Volume]:
    """The clean images, and the grid on which all will lie."""
    known = {m: p for m, p in ready.source.files.items() if m in ready.model.modalities and m not in scans}
    study = prepare(ready.source).only(*[m for m in known if m not in ready.missing]) if known else None
    grids = [making.home(scan, study, ready.job.voxel, ready.job.orientation) for scan in scans.values()]
    return study, grids[0]


def _write(ready: Ready, done: making.Reconstruction, reference: Volume) -> list[Path]:
    job, full, out, source = ready.job, done.full, ready.out, ready.source
    out.prepare(job.overwrite)
    paths: list[Path] = []
    files: dict[str, Path] = {}
    for name in full.made:
        images = {"synth": full[name]} | ({"synthstd": full.spread[name]} if name in full.spread else {})
        for desc, volume in images.items():
            path = out.write_image(source, name, volume.data, volume, _sidecar(ready, done, name), desc, job.overwrite)
            files.setdefault(name, path)
            paths.append(path)
            console.say(f"{source.label}: {name} -> {path}", job.quiet)
    page = subject_page(out.report_path(source), _page(ready, done, files, reference))
    console.say(f"{source.label}: report -> {page}", job.quiet)
    return [*paths, page]


def _sidecar(ready: Ready, done: making.Reconstruction, name: str) -> dict[str, Any]:
    full, files, source = done.full, ready.files, ready.source
    measured = name in files
    how = "reconstructed from undersampled k-space with a learned prior" if measured else "not acquired"
    inputs = {f"{m} k-space": path for m, path in files.items()} | {m: source.files[m] for m in full.inputs}
    return {
        "Description": f"SYNTHETIC {name}, {how}.",
        "Sources": [ready.out.uri(path) for path in inputs.values()],
        "Synthetic": {
            **full.provenance,
            "Units": "those of the k-space" if measured else "see the model",
            "Residual": {NAMES.get(k, k): round(v, 3) for k, v in done.misfits.get(name, {}).items()},
            **({"KeptBack": _kept(done, name)} if name in done.kept else {}),
            "InputSHA256": {m: sha256(path) for m, path in inputs.items()},
            "Preprocessing": list(full.notes),
            "CommandLine": shlex.join(["amodal", *sys.argv[1:]]),
            "Checks": checks(done),
            "RuntimeSeconds": round(full.seconds, 2),
        },
    }


def checks(done: making.Reconstruction) -> dict[str, str]:
    """Whether each image explains its data: ||A x - y|| over the noise, 1 if only noise is left."""
    out = {}
    for name, found in done.misfits.items():
        others = ", ".join(f"{NAMES.get(k, k)} {v:.2f}" for k, v in found.items() if k != "model")
        state = "pass" if found["model"] <= FAR else "warn"
        out[f"{name}: residual"] = f"{state}: {found['model']:.2f} times the noise, best is 1 ({others})"
    for name in done.kept:
        found = _kept(done, name)
        words = f"predicted with an error of {found['Error']:.3f} (L1-wavelet alone {found['L1Wavelet']:.3f})"
        state = "pass" if found["WeightOfModel"] else "warn"
        out[f"{name}: samples kept back"] = f"{state}: {words}, by a weight of {found['WeightOfModel']:g} of the model"
    return out


def _kept(done: making.Reconstruction, name: str) -> dict[str, float]:
    """Relative errors of the samples kept back, and the weight of the model's image that they led to."""
    errors, weight = done.kept[name]
    return {"WeightOfModel": weight, "Error": round(errors[weight], 4), "L1Wavelet": round(errors[0.0], 4),
            "Model": round(errors[1.0], 4)}  # fmt: skip


def _page(ready: Ready, done: making.Reconstruction, files: Mapping[str, Path], reference: Volume) -> Page:
    """Inputs, what the model made, and beside it what is made without a model, on one scale."""
    full, affine = done.full, reference.affine
    panels: list[Panel] = []
    items: list[Item] = []

    def show(name: str, data: np.ndarray, status: Status, file: str) -> None:
        panels.append(Panel(name, figures.ras(np.asarray(data, np.float32), affine)[0], status))
        if file:
            items.append(Item(name, status, reference.shape, reference.spacing, reference.orientation, file))

    for name in full.inputs:
        volume = full.study[name]
        unit = (ready.model.window(name, volume).enter(volume.data) + 1) / 2
        show(name, unit, "acquired", ready.source.files[name].name)
    for name in full.made:
        show(name, full.scaled[name], "synthetic", files[name].name)
        for kind, image in done.beside.get(name, {}).items():
            scale = done.scans[name].window[1]
            show(f"{name}, {NAMES.get(kind, kind)}", np.clip(image / scale, 0, 1), "classic", "")
        if name in full.scaled_spread:
            show(name, full.scaled_spread[name], "spread", "")
    return Page(
        title=ready.source.label,
        panels=tuple(panels),
        spacing=figures.ras(np.empty((1, 1, 1), np.float32), affine)[1],
        items=tuple(items),
        checks=checks(done),
        measured=tuple(done.scans),
        notes=full.notes,
        provenance={"Subject": ready.source.label, **full.provenance, "Seconds": round(full.seconds, 1)},
    )

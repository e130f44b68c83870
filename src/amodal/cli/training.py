"""The work behind `train`: from a dataset to a cache, from a cache to weights, from weights to a model's folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.config import override
from ..core.contract import Grid
from ..core.errors import InputError
from ..core.modality import MODALITIES, canonical
from ..core.rng import seed_of
from ..data import layouts
from ..data.bids import read_description
from ..data.dataset import INDEX, Cache, prefetch
from ..data.volume import Source, Study
from ..methods import METHODS
from ..metrics.baselines import Baselines
from ..model import Model
from ..preprocess.align import prepare
from ..train.engine import FitResult, fit, holds_run
from ..train.plan import Plan
from . import console
from .record import Entry, Record, writable
from .validation import Validation


@dataclass(frozen=True)
class Job:
    """What `amodal train` was asked for; the fields are its flags."""

    method: str
    dataset: Path
    out: Path
    plan: Plan
    preset: str = "small"
    settings: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    crop: int = 128
    hold_out: int = 1
    resume: bool = False
    device: str = "auto"
    overwrite: bool = False
    quiet: bool = False
    report: Path | None = None


def check(job: Job) -> tuple[list[Source], Any]:
    """The studies and the method's config, before anything is read or written; InputError if something is wrong."""
    method = _pick(METHODS, job.method, "method")
    base = _pick(method.PRESETS, job.preset, f"preset of {job.method}")()
    sources = layouts.find(job.dataset)
    there = {name for source in sources for name in source.files}
    names = tuple(canonical(name) for name in job.modalities) or tuple(m for m in MODALITIES if m in there)
    if absent := [name for name in names if name not in there]:
        raise InputError(f"no study of {job.dataset} has {absent[0]}; choose among {', '.join(sorted(there))}.")
    writable(job.out)
    if _first() and holds_run(job.out) and not (job.resume or job.overwrite):
        raise InputError(f"{job.out}: holds a run already; pass --resume to go on with it, --overwrite to begin anew.")
    return sources, override(for_modalities(base, names), job.settings)


def run(job: Job) -> FitResult:
    """Train, and write the model into the run's folder."""
    sources, config = check(job)
    torch.manual_seed(seed_of(job.plan.seed, "weights"))
    net = METHODS[job.method].build(config)
    asked = {k: v for k, v in vars(job).items() if k not in ("plan", "report", "quiet")}
    record = Record(job.report, {**asked, **vars(job.plan)})
    with record, record.subject("training", [job.dataset], alone=True) as entry:
        grid = Grid()
        cache = _cache(sources, grid, config.modalities, job, entry)
        held = cache.labels[-job.hold_out :] if 0 < job.hold_out < len(cache) else ()
        learn = cache.without(*held)
        done = fit(
            net,
            prefetch(lambda k: learn.batch(k, job.plan.batch, job.plan.seed, (job.crop,) * net.dims)),
            job.out,
            job.plan,
            device=job.device,
            resume=job.resume,
            overwrite=job.overwrite,
            validate=Validation(cache.only(*held), job.plan.seed) if held else None,
            quiet=job.quiet,
        )
        Model(job.method, net, grid, learn.windows(), _card(job.dataset, learn, held, done)).save(job.out)
        entry.outputs.append(str(job.out))
    return done


def for_modalities(config: Any, names: Sequence[str]) -> Any:
    """A preset for other modalities than its own: the same network, with as many channels and times as modalities."""
    n = len(names)
    times = n if config.net.times > 1 else 1
    return replace(config, modalities=tuple(names), net=replace(config.net, in_channels=n, out_channels=n, times=times))


def _pick(table: Any, name: str, what: str) -> Any:
    if name not in table:
        raise InputError(f"{what} {name!r} is unknown; choose one of {', '.join(table)}.")
    return table[name]


def _first() -> bool:
    """Whether this is the process that was called; on several GPUs it starts the others with the same command."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _cache(sources: Sequence[Source], grid: Grid, names: tuple[str, ...], job: Job, entry: Entry) -> Cache:
    """The training cache of a run: made at its start, opened again on --resume and by the processes of other GPUs."""
    folder = job.out / "cache"
    if (job.resume or not _first()) and (folder / INDEX).is_file():
        return Cache.open(folder)
    with console.progress("reading the data set", job.quiet) as tick:
        return Cache.build(_studies(sources, tick, entry.warnings), grid, names, folder, overwrite=True)


def _studies(sources: Sequence[Source], tick: console.Tick, notes: list[str]) -> Iterator[Study]:
    """The studies one by one, each on one grid; a damaged one is named and left out."""
    for done, source in enumerate(sources, 1):
        try:
            study = prepare(source)
        except InputError as error:
            notes.append(f"left out: {error}")
            print(f"warning: {source.label} is left out: {error}", file=sys.stderr)
        else:
            yield study
        tick(done, len(sources))


def _card(dataset: Path, learn: Cache, held: Sequence[str], done: FitResult) -> dict[str, Any]:
    """What the model's card says of its training, with the baselines that it must beat."""
    about = read_description(dataset)
    return {
        "training": {
            "data": about.get("Name", dataset.resolve().name),
            "studies": len(learn),
            "held_out": list(held),
            "steps": done.steps,
            "seconds": round(done.seconds),
        },
        "licence": about.get("License", "unknown: that of the training data"),
        "baselines": Baselines.fit((learn.stack(label) for label in learn.labels), learn.modalities).to_dict(),
    }

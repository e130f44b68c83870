"""The work behind `train`: from a dataset to a cache, from a cache to weights, from weights to a model's folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
from ..methods import ABOUT, ASKING, METHODS
from ..metrics.baselines import Baselines
from ..model import Model
from ..model.outline import Outlines
from ..model.slices import knows_stacks, upright
from ..train.engine import FitResult, fit, holds_run
from ..train.plan import Plan
from . import console, guides
from .conditions import sidecar
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
    return sources, override(method.for_modalities(base, names), job.settings)


def run(job: Job) -> FitResult:
    """Train, and write the model into the run's folder."""
    sources, config = check(job)
    torch.manual_seed(seed_of(job.plan.seed, "weights"))
    net = METHODS[job.method].build(config)
    asked = {k: v for k, v in vars(job).items() if k not in ("plan", "report", "quiet")}
    record = Record(job.report if _first() else None, {**asked, **vars(job.plan)})
    with record, record.subject("training", [job.dataset], alone=True) as entry:
        grid = METHODS[job.method].grid(config)
        cache = _cache(sources, grid, config, job, entry)
        held = cache.labels[-job.hold_out :] if 0 < job.hold_out < len(cache) else ()
        learn = cache.without(*held)
        crop = tuple(grid.size[: net.dims]) if any(grid.size) else (job.crop,) * net.dims
        encode = _encode(job, net)
        done = fit(
            net,
            prefetch(lambda k: learn.batch(k, job.plan.batch, job.plan.seed, crop, encode=encode)),
            job.out,
            job.plan,
            device=job.device,
            resume=job.resume,
            overwrite=job.overwrite,
            validate=Validation(cache.only(*held), job.plan.seed) if held else None,
            quiet=job.quiet,
        )
        if _first():  # the others of several processes hold the same weights
            card = _card(job.dataset, learn, held, done) | ABOUT.get(job.method, lambda net: {})(net)
            outlines = Outlines.of(learn) if net.dims == 2 else None
            model = Model(job.method, net, grid, learn.windows(), card, quantities=learn.quantities, outlines=outlines)
            model.save(job.out)
            entry.outputs.append(str(job.out))
    return done


def _pick(table: Any, name: str, what: str) -> Any:
    if name not in table:
        raise InputError(f"{what} {name!r} is unknown; choose one of {', '.join(table)}.")
    return table[name]


def _encode(job: Job, net: Any) -> Any:
    """What makes tensors of the subjects' metadata, which are first read as the data set's participants.json says."""
    explained, asking = sidecar(job.dataset / "participants.json"), ASKING.get(job.method)
    if asking is None or not explained:
        return net.encode_metadata
    return lambda rows: net.encode_metadata(asking.translate(net, rows, explained))


def _first() -> bool:
    """Whether this is the process that was called; on several GPUs it starts the others with the same command."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _cache(sources: Sequence[Source], grid: Grid, config: Any, job: Job, entry: Entry) -> Cache:
    """The training cache of a run: made at its start, opened again on --resume and by the processes of other GPUs."""
    folder = job.out / "cache"
    if (job.resume or not _first()) and (folder / INDEX).is_file():
        return Cache.open(folder)
    with console.progress("reading the data set", job.quiet) as tick:
        read = partial(guides.read, method=job.method, config=config, folder=job.out / "tissue")
        stacks = knows_stacks(config)
        studies = _studies(sources, (lambda s: upright(read(s))) if stacks else read, tick, entry.warnings)
        return Cache.build(studies, grid, config.modalities, folder, overwrite=True)


def _studies(
    sources: Sequence[Source], read: Callable[[Source], Study], tick: console.Tick, notes: list[str]
) -> Iterator[Study]:
    """The studies one by one, each on one grid; a damaged one is named and left out."""
    for done, source in enumerate(sources, 1):
        try:
            study = read(source)
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

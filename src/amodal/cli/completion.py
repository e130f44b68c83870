"""The work behind `complete` and `demo`: from sources to images, sidecars and reports, one subject after the other."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..core.errors import InputError
from ..data.bids import Derivatives
from ..data.volume import Source, Study
from ..model import Model, load
from ..report.page import subject_page
from . import console, guides, present
from .plan import Row, plan
from .record import Entry, Record, writable


@dataclass(frozen=True)
class Job:
    """What `amodal complete` was asked for; the fields are its flags."""

    sources: Sequence[Source]
    out: Path
    missing: tuple[str, ...] = ()
    model: str = "default"
    samples: int = 1
    steps: int | None = None
    sampler: str | None = None
    batch: int | None = None
    workers: int = 1
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    overwrite: bool = False
    quiet: bool = False
    report: Path | None = None


def check(job: Job) -> tuple[list[Row], Model, Derivatives]:
    """All that can be known before anything is read or written; InputError if there is nothing sensible to do."""
    model = load(job.model, device=job.device, precision=job.precision)
    rows = plan(job.sources, model.modalities, job.missing)
    if len(rows) == 1 and rows[0].trouble:
        raise InputError(rows[0].trouble)
    out = Derivatives.of(job.out, job.sources[0])
    out.refuse_raw()
    writable(job.out)
    if not job.overwrite:
        for row in rows:
            out.refuse_existing(row.source, row.make)
    return rows, model, out


def run(job: Job) -> Record:
    """Complete every subject; one that fails is named, noted, and does not stop the others."""
    rows, model, out = check(job)
    if out.root.exists():
        out.prepare(job.overwrite)
    asked = {key: value for key, value in vars(job).items() if key not in ("sources", "report", "quiet")}
    with Record(job.report, asked) as record:
        for row in (row for row in rows if not row.make):
            with record.subject(row.source.label, _files(row)) as entry:
                entry.status = "unchanged"
            console.say(f"{row.source.label}: nothing is missing, {', '.join(row.inputs)} are there", job.quiet)
        for row, study in _ahead([row for row in rows if row.make], job.workers, partial(_prepare, model, out)):
            with record.subject(row.source.label, _files(row), alone=len(rows) == 1) as entry:
                _complete(job, row, study.result(), model, out, entry)
            if entry.error:
                print(f"error: {row.source.label}: {entry.error}", file=sys.stderr)
    if record.failed:
        done = len(rows) - len(record.failed)
        names = ", ".join(entry.subject for entry in record.failed)
        console.say(f"{done} of {len(rows)} subjects done; failed: {names}", job.quiet)
    return record


def _files(row: Row) -> list[Path]:
    return list(row.source.files.values())


def _ahead(rows: Sequence[Row], workers: int, read: Callable[[Row], Study]) -> Iterator[tuple[Row, Future[Study]]]:
    """Each row with its study, read and brought to one grid; the next `workers` are made ready meanwhile."""
    with ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
        waiting: deque[tuple[Row, Future[Study]]] = deque()
        for row in rows:
            waiting.append((row, pool.submit(read, row)))
            if len(waiting) > workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def _prepare(model: Model, out: Derivatives, row: Row) -> Study:
    """Tissue maps, where the method takes them, are kept among the outputs."""
    if row.trouble:
        raise InputError(row.trouble)
    folder = out.image_path(row.source, row.inputs[0]).parent
    return guides.read(row.source, model.name, model.method.config, folder, row.inputs)


def _complete(job: Job, row: Row, study: Study, model: Model, out: Derivatives, entry: Entry) -> None:
    """One subject: make, compare with what was hidden, write images, sidecars and the report."""
    label = row.source.label
    with console.progress(f"{label}: {', '.join(row.make)}", job.quiet) as tick:
        settings = {"steps": job.steps, "chunk": job.batch, "sampler": job.sampler}
        full = model.complete(study, row.make, job.samples, job.seed, **settings, progress=tick)  # type: ignore[arg-type]
    entry.warnings += full.notes
    entry.scores = present.scores(model, study, full, row.hidden)
    out.prepare(job.overwrite)
    files: dict[str, Path] = {}
    for name in row.make:
        images = {"synth": full[name]} | ({"synthstd": full.spread[name]} if name in full.spread else {})
        for desc, volume in images.items():
            sidecar = present.sidecar(row.source, name, full, out, desc)
            path = out.write_image(row.source, name, volume.data, volume, sidecar, desc, job.overwrite)
            files.setdefault(name, path)
            entry.outputs.append(str(path))
            console.say(f"{label}: {name} -> {path}", job.quiet)
    page = subject_page(out.report_path(row.source), present.page(model, row, study, full, entry.scores, files))
    entry.outputs.append(str(page))
    console.say(f"{label}: report -> {page}", job.quiet)

"""The run of an evaluation: subject after subject, several at a time, each kept when it is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..core.contract import Progress
from ..core.errors import InputError
from ..data.nifti import sha256
from ..data.volume import Source, Study
from ..metrics.baselines import Baselines
from ..report.page import write
from . import calibrate, results, stacks, store, subject
from .patterns import Patterns, Sets, hidden_sets, parse_patterns
from .plan import Plan, Table
from .protocols import TRUST, Protocol, about
from .subject import MODEL, Trial

if TYPE_CHECKING:
    from ..model import Model


def evaluate(
    sources: Sequence[Source],
    model: Model,
    out: str | Path,
    *,
    prepare: Callable[[Source], Study],
    patterns: Patterns | None = None,
    steps: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    plan: Plan | None = None,
) -> Table:
    """Evaluate a model on complete subjects; writes results.csv, results.json and report.html into `out`.

    `patterns` are the modalities hidden together: "all" hides every set that leaves one, "each" one at a time,
    "random:N" N sets a subject, or a list such as ["FLAIR", "T2w+FLAIR"]; by default what the protocol says. A subject
    is measured on the modalities it has. What a subject fails on is recorded and the others go on. Finished subjects
    are kept in `out/subjects` and not done again. What a `plan` says goes before the arguments of the same name.
    InputError if there is no subject, a pattern is unknown, or `out` holds an evaluation made otherwise.
    """
    plan = plan or Plan(steps=steps, seed=seed, overwrite=overwrite, workers=workers)
    if plan.calibrate and 0 < len(sources) < calibrate.FEWEST:
        raise InputError(
            f"{len(sources)} subjects are too few to calibrate with; give at least {calibrate.FEWEST}, better 20."
        )
    start = time.perf_counter()
    found, about_run = each(sources, model, out, prepare=prepare, patterns=patterns, plan=plan, progress=progress)
    models = {MODEL: model, **plan.beside}
    return results.write_all(found, sources, Path(out), about_run, models, plan, time.perf_counter() - start)


def each(
    sources: Sequence[Source], model: Model, out: str | Path, *, prepare: Callable[[Source], Study],
    patterns: Patterns | None, plan: Plan, progress: Progress | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """The subjects' part of `evaluate`: each is kept in `out/subjects`; what was found, and what decided it.

    Several processes may do parts of the same evaluation in one folder.
    """
    models = {MODEL: model, **plan.beside}
    trial = Trial(models, _baselines(model), prepare, plan.protocol.ruler, plan.steps, plan.samples, plan.seed)
    protocol = replace(plan.protocol, patterns=_sets(plan.protocol, patterns, trial.modalities))
    folder, about_run = Path(out), _about(protocol, models, plan)
    _check(sources, folder, about_run, plan)
    by_slices = stacks.pattern if stacks.lengths(protocol.patterns) else None
    trial = replace(trial, prepare=_prepared(trial, protocol), pattern=by_slices)
    return _all(sources, trial, protocol, about_run, folder, plan, progress), about_run


def _all(
    sources: Sequence[Source], trial: Trial, protocol: Protocol, about_run: Mapping[str, Any], folder: Path, plan: Plan,
    progress: Progress | None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The findings of every subject, by its name; those that lie in the folder are taken from there."""
    hidden = {s.label: _hidden(protocol, [m for m in s.files if m in trial.modalities], s.label) for s in sources}
    stop = threading.Event()
    tick = _ticker(sum(map(len, hidden.values())), progress, stop)

    def one(source: Source) -> dict[str, Any]:
        kept = folder / "subjects" / store.safe(source.label) / "scores.json"
        found = None if plan.overwrite else _finished(kept, source, about_run, plan)
        if found is not None:
            tick(len(hidden[source.label]))
            return found
        inputs = store.inputs(source)  # before they are read
        found = subject.run(trial, source, hidden[source.label], kept.parent, tick)
        if "scores" in found:
            found["sha256"] = {name: sha256(path) for name, path in source.files.items() if path.exists()}
            write(kept, store.to_json({"run": about_run, "inputs": inputs, **found}))
        return found

    if plan.workers == 1:  # in this thread, so that an interrupt stops it at once
        return {s.label: one(s) for s in sources}
    share = max(1, torch.get_num_threads() // plan.workers)
    with ThreadPoolExecutor(plan.workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
        try:
            return dict(zip([s.label for s in sources], pool.map(one, sources)))
        except BaseException:
            stop.set()  # subjects begun end after their pattern, the others are not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _baselines(model: Model) -> Baselines | None:
    return Baselines.from_dict(model.card["baselines"]) if model.card.get("baselines") else None


def _sets(protocol: Protocol, asked: Patterns | None, modalities: Sequence[str]) -> Sets:
    """What is hidden: what was asked for; a named protocol says so itself."""
    if absent := [m for m in protocol.modalities if m not in modalities]:
        raise InputError(
            f"{protocol.name} needs a model of {', '.join(protocol.modalities)} and this one knows "
            f"{', '.join(modalities)}; give another than {absent[0]} lacks, or another protocol."
        )
    if asked is not None and protocol.name != TRUST.name:
        raise InputError(f"{protocol.name} says itself what is hidden; leave --patterns out.")
    for rule in (asked, protocol.patterns if asked is None else None):
        if type(rule) is str and stacks.lengths(rule):
            return rule
    return parse_patterns(protocol.patterns if asked is None else asked, modalities)


def _hidden(protocol: Protocol, there: Sequence[str], label: str) -> list[tuple[str, ...]]:
    """What is hidden from one subject, one after the other."""
    if gaps := stacks.lengths(protocol.patterns):
        return [(f"{length} slices",) for length in gaps if there]
    return hidden_sets(protocol.patterns, there, label)


def _prepared(trial: Trial, protocol: Protocol) -> Callable[[Source], Study]:
    return lambda source: protocol.prepare(trial.prepare(source))


def _about(protocol: Protocol, models: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """All that decides the numbers. Two runs compare where `protocol` is the same; a subject is kept where all is."""
    return {
        "protocol": about(protocol),
        "models": {
            name: {
                "id": m.id,
                "method": m.name,
                "sha256": m.sha256,
                "precision": m.precision,
                "modalities": list(m.modalities),
                "steps": m.method.steps_for(plan.samples) if plan.steps is None else plan.steps,
            }
            for name, m in models.items()
        },
        "samples": plan.samples,
        "seed": plan.seed,
        "version": __version__,
    }


def _check(sources: Sequence[Source], folder: Path, about_run: Mapping[str, Any], plan: Plan) -> None:
    if not sources:
        raise InputError("there is no subject to evaluate; give a dataset with at least one complete subject.")
    if plan.workers < 1:
        raise InputError(f"workers={plan.workers}: choose 1 or more.")
    if plan.samples < 1 or (plan.calibrate and plan.samples < 2):
        raise InputError(f"samples={plan.samples}: choose 1 or more, to calibrate SD maps 2 or more, better 8.")
    labels = [s.label for s in sources]
    if twice := next((name for name in labels if labels.count(name) > 1), None):
        raise InputError(f"two subjects are called {twice}; rename one of them.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the results.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose a folder you may write to.") from error
    there = folder / "results.json"
    if plan.overwrite:
        there.unlink(missing_ok=True)  # so that an interrupted run can be gone on with
    elif there.exists() and not _same(store.read(there).get("run", {}), about_run):
        raise InputError(f"{folder} holds an evaluation made otherwise; choose another folder or give --overwrite.")


def _finished(kept: Path, source: Source, about_run: Mapping[str, Any], plan: Plan) -> dict[str, Any] | None:
    """The stored findings of a subject, if they were made in the same way from the same files."""
    found = store.read(kept) if kept.exists() else {}
    same = _same(found.get("run", {}), about_run) and found.get("inputs") == store.plain(store.inputs(source))
    whole = plan.samples == 1 or (kept.parent / calibrate.FILE).is_file()
    return found if same and whole else None


def _same(kept: Mapping[str, Any], about_run: Mapping[str, Any]) -> bool:
    """Whether two runs give the same numbers; where a model lies, and so its id, does not matter, its weights do."""

    def decides(run: Mapping[str, Any]) -> dict[str, Any]:
        models = {name: {**m, "id": ""} for name, m in run.get("models", {}).items()}
        return {**run, "models": models}

    return decides(kept) == decides(store.plain(about_run))


def _ticker(total: int, progress: Progress | None, stop: threading.Event) -> Callable[[int], None]:
    """Counts finished patterns over all workers and reports them one call at a time."""
    lock, done = threading.Lock(), [0]

    def tick(count: int) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        with lock:
            done[0] += count
            if progress is not None and count:
                progress(done[0], total)

    return tick

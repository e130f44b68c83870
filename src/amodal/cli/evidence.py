"""The work behind `evaluate`: the trust test and named protocols, factors for SD maps, and runs compared."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..core.errors import AmodalError, InputError
from ..data import layouts
from ..data.bids import read_description
from ..data.volume import Source, Study
from ..evaluate import TRUST, Plan, Protocol, Table, parse_patterns
from ..evaluate import evaluate as trust_test
from ..evaluate.audit import generated_in, of_nobody
from ..evaluate.generation import GENERATE
from ..evaluate.paired import Paired
from ..evaluate.protocols import chosen, named
from ..evaluate.results import compare_files
from ..evaluate.run import each
from ..evaluate.stacks import lengths
from ..metrics.statistics import ALL, summarise
from ..model import Model, describe, into_card, is_model, load
from ..report.evaluation import Coverage
from . import console, guides, trials
from .present import show_scores
from .record import Record, writable

DRAWN = 8  # samples for SD maps, unless told


@dataclass(frozen=True)
class Job:
    """What `amodal evaluate` was asked for; the fields are its flags."""

    dataset: Path
    models: tuple[str, ...]
    out: Path
    patterns: str | None = None
    steps: int | None = None
    samples: int | None = None
    calibrate: bool = False
    protocol: str | None = None
    subjects: int | None = None
    other_data: bool = False
    downstream: str | None = None
    labels: str | None = None
    audit: Path | None = None
    features: str | None = None
    iterations: int | None = None
    workers: int = 1
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    overwrite: bool = False
    quiet: bool = False
    report: Path | None = None


def usual(dataset: Path, audit: Path | None) -> tuple[str, ...]:
    """The model that is evaluated unless one is named: of subjects of nobody that of the run that made them."""
    own = audit is not None and is_model(audit) and generated_in(dataset)
    return (str(audit),) if own else ("default",)


def check(job: Job) -> tuple[list[Source], Model, Plan]:
    """All that can be known before anything is read: the subjects, the model, and how it is run."""
    if sum(map(bool, (job.downstream, job.audit, job.protocol))) > 1:
        raise InputError("--downstream, --audit and --protocol are evaluations of their own; ask for one at a time.")
    if len(set(job.models)) < len(job.models):
        raise InputError(f"--model {job.models[0]} was given twice; name each model once.")
    sources = (generated_in(job.dataset) if job.audit else []) or layouts.find(job.dataset)
    model, *others = (load(name, device=job.device, precision=job.precision) for name in job.models)
    protocol = TRUST
    if job.protocol:
        protocol, sources = chosen(named(job.protocol), sources, job.subjects, job.other_data)
    elif job.other_data or job.subjects:
        raise InputError("--subjects and --allow-other-data belong to a --protocol; name one, or leave them out.")
    elif job.patterns and not lengths(job.patterns):
        parse_patterns(job.patterns, model.modalities)
    _usable(job, sources, model)
    writable(job.out)
    return sources, model, _plan(job, protocol, dict(zip(job.models[1:], others)))


def _plan(job: Job, protocol: Protocol, beside: dict[str, Model]) -> Plan:
    about = read_description(job.dataset)
    return Plan(
        protocol=protocol,
        steps=job.steps,
        samples=job.samples or (DRAWN if job.calibrate else 1),
        seed=job.seed,
        workers=job.workers,
        overwrite=job.overwrite,
        calibrate=job.calibrate,
        beside=beside,
        data=str(about.get("Name", job.dataset.resolve().name)),
    )


def _usable(job: Job, sources: Sequence[Source], model: Model) -> list[Source]:
    """The subjects with something to hide and something to start from; all, if they are nobody."""
    if of_nobody(sources):
        return list(sources)
    alone = tuple(model.modalities) == ("cine",)  # of one stack slices are hidden
    useful = [s for s in sources if s.problem or len(set(s.files) & set(model.modalities)) > (0 if alone else 1)]
    if not useful:
        raise InputError(
            f"{job.dataset}: no subject has two of {', '.join(model.modalities)}; one to hide and one to start "
            "from are needed, give such subjects."
        )
    return useful


def describe_job(job: Job) -> int:
    """What would be done, and nothing is."""
    sources, model, plan = check(job)
    useful = _usable(job, sources, model)
    what = f" by {plan.protocol.id}" if job.protocol else ""
    console.say(
        f"would evaluate {', '.join(job.models)} on {len(useful)} of {len(sources)} subjects{what} into {job.out}",
        job.quiet,
    )
    if job.protocol:
        console.say(f"tested: {', '.join(s.label for s in sources)}", job.quiet)
    return 0


def run(job: Job) -> int:
    """The evaluation that was asked for; 1 where a subject failed."""
    sources, model, plan = check(job)
    if job.downstream:
        return trials.downstream(job, sources, model, plan.data)
    if job.audit:
        examine = trials.audit_generated if of_nobody(sources) else trials.audit
        return examine(job, sources, model, plan.data)
    if plan.protocol.patterns == GENERATE:
        return trials.generation(job, sources, model, plan)
    asked = {"dataset": str(job.dataset), "models": job.models, "patterns": job.patterns, "seed": job.seed}
    with Record(job.report, {**asked, "protocol": plan.protocol.id}) as record:
        with console.progress(f"evaluating {len(sources)} subjects", job.quiet) as tick:
            if job.workers > 1 and next(model.method.parameters()).device.type == "cpu":
                plan = _several(job, sources, plan, tick)
            found = trust_test(
                sources, model, job.out, prepare=_reader(job, model), patterns=job.patterns, plan=plan, progress=tick
            )
        for source in _usable(job, sources, model):
            with record.subject(source.label, list(source.files.values())) as entry:
                if source.label in found.failed:
                    raise AmodalError(found.failed[source.label])
            if entry.error:
                print(f"error: {source.label}: {entry.error}", file=sys.stderr)
    show(found, job)
    if found.calibration is not None:
        folder = into_card(_own(job), found.calibration).parent
        console.say(f"factors for the SD maps are kept in {folder / 'model.json'}", job.quiet)
    console.say(f"results and report: {job.out}", job.quiet)
    return 1 if found.failed else 0


def _several(job: Job, sources: Sequence[Source], plan: Plan, tick: console.Tick) -> Plan:
    """Do the subjects in as many processes as there are workers (threads would wait for each other between kernels);
    what is left to do: nothing but to put together what they kept, and to say why a subject failed."""
    folder, began = job.out / "subjects", time.time_ns()
    with ProcessPoolExecutor(job.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(_part, replace(job, quiet=True), k, os.getpid()) for k in range(job.workers)]
        try:
            while wait(parts, timeout=1).not_done:
                tick(sum(p.stat().st_mtime_ns > began for p in folder.glob("*/scores.json")), len(sources))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        for part in parts:
            part.result()
    return replace(plan, workers=1, overwrite=False)


def _reader(job: Job, model: Model) -> Callable[[Source], Study]:
    """How a subject is read for the model."""
    return partial(guides.read, method=model.name, config=model.method.config, folder=job.out / "tissue")


def _part(job: Job, number: int, parent: int) -> None:
    """Every so manieth subject, in a process of its own, which ends when its parent was killed."""
    import torch

    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // job.workers))
    sources, model, plan = check(job)
    mine = sources[number :: job.workers]
    if mine:
        each(mine, model, job.out, prepare=_reader(job, model), patterns=job.patterns, plan=replace(plan, workers=1))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)  # what was finished is kept


def _own(job: Job) -> Path:
    """The folder whose card may be written: the model's own; of the default or a hub's, a copy beside the results."""
    given = Path(job.models[0])
    if is_model(given):
        return given
    source = Path(describe(job.models[0])["folder"])
    copy = job.out / "model"
    copy.mkdir(parents=True, exist_ok=True)
    for name in ("weights.safetensors", "model.json"):
        shutil.copyfile(source / name, copy / name)
    return copy


def show(found: Table, job: Job) -> None:
    """Means, what SD maps cover, models compared, and the verdicts, on stdout."""
    means: dict[str, dict[str, dict[str, float]]] = {}
    rows = summarise(found.scores)
    pooled = {row.modality for row in rows if row.pattern == ALL}  # set by set they are in the report
    for row in rows:
        if row.pattern == ALL or row.modality not in pooled:
            means.setdefault(row.modality, {}).setdefault(row.method, {})[row.metric] = row.mean
    show_scores(f"Means over {len({s.subject for s in found.scores})} subjects", means, job.quiet)
    if found.beside:
        columns = ["hidden", "contrast", "metric", "paper", "here", "source"]
        lines = [[b.pattern, b.modality, b.metric, f"{b.theirs:g}", _given(b.mine), b.source] for b in found.beside]
        console.table(f"Beside the paper ({found.protocol['id']})", columns, lines, job.quiet)
    if found.coverage:
        _show_coverage(found.coverage, job.quiet)
    show_comparisons(found.comparisons, job.quiet)
    for verdict in found.verdicts:
        console.say(f"{verdict.modality}: {verdict.text}", job.quiet)


def _show_coverage(coverage: Sequence[Coverage], quiet: bool) -> None:
    columns = ["contrast", "should cover", "SD at its word", "as the card says", "left out", "95 %", ""]
    rows = [
        [c.modality, *map(_percent, (c.level, c.raw, c.stated, c.left_out)), _span(c.low, c.high), c.words]
        for c in coverage
    ]
    console.table("What the intervals of the SD maps cover", columns, rows, quiet)


def show_comparisons(found: Sequence[Paired], quiet: bool) -> None:
    """Paired differences as a table, in words."""
    columns = ["contrast", "metric", "difference", "95 %", "p adjusted", "in words"]
    rows = [
        [
            c.difference.modality,
            c.difference.metric,
            f"{c.difference.mean:+.4g}",
            f"{c.difference.low:+.3g} to {c.difference.high:+.3g}",
            f"{c.adjusted:.3g}",
            c.words,
        ]
        for c in found
    ]
    if rows:
        console.table("Compared, paired by subject", columns, rows, quiet)


def compare(paths: Sequence[Path], dataset: Path | None, quiet: bool) -> int:
    """Two results.json of one protocol, beside each other."""
    if len(paths) != 2 or dataset is not None:
        raise InputError(f"--compare takes two results.json and nothing else, {len(paths)} were given; give A and B.")
    about, found = compare_files(*paths)
    console.say(f"{about['first']} minus {about['second']}, {about['protocol']}, {about['subjects']} subjects", quiet)
    if about["left_out"]:
        console.say(f"left out, not in both: {', '.join(about['left_out'])}", quiet)
    show_comparisons(found, quiet)
    return 0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _span(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def _given(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

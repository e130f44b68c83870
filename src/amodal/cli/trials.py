"""The other evidence of `evaluate`: what completed images are worth, generated cohorts, the privacy audit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import InputError
from ..data.dataset import INDEX, Cache
from ..data.volume import Source, Study
from ..evaluate.audit import audit as examine
from ..evaluate.audit import audit_generated as examine_generated
from ..evaluate.downstream import Task
from ..evaluate.downstream import downstream as train_arms
from ..evaluate.generation import generation as compare_cohorts
from ..evaluate.labels import find_labels, parse_regions, read_labels, same_kind
from ..evaluate.patterns import parse_patterns
from ..evaluate.plan import Plan
from ..metrics.extractors import TABLE, Extractor, load
from ..metrics.privacy import Audit
from ..metrics.statistics import summarise
from ..model import Model
from ..preprocess.align import prepare
from . import console

if TYPE_CHECKING:
    from .evidence import Job


def downstream(job: Job, sources: list[Source], model: Model, data: str) -> int:
    """Three segmentation networks, Dice beside each other."""
    regions = parse_regions(job.downstream or "")
    usual = "T1Gd" if "T1Gd" in model.modalities else model.modalities[-1]
    sets = parse_patterns(job.patterns or usual, model.modalities)
    if isinstance(sets, str) or len(sets) != 1:
        raise InputError("--downstream takes one set away; name it by --patterns, for example --patterns T1Gd.")

    same_kind(sources, job.dataset, job.labels)

    def regions_of(source: Source, study: Study):
        return read_labels(find_labels(source, source.root or job.dataset, job.labels), study, regions)

    task = Task(regions, sets[0], seed=job.seed, iterations=job.iterations or Task.iterations)
    with console.progress("completing, then training three networks", job.quiet) as tick:
        found = train_arms(
            sources, model, job.out, task, prepare=prepare, regions_of=regions_of, steps=job.steps, data=data,
            progress=tick,
        )  # fmt: skip
    rows = [
        [s.modality, s.method, str(s.n), f"{s.mean:.3f}", "-" if s.n < 2 else f"{s.low:.3f} to {s.high:.3f}"]
        for s in summarise(found.scores)
    ]
    console.table(
        f"Dice, without and with {'+'.join(sets[0])}", ["region", "trained on", "n", "Dice", "95 %"], rows, job.quiet
    )
    for pair in found.comparisons:
        console.say(f"{pair.difference.modality}: {pair.words}", job.quiet)
    return _end(found.failed, job)


def generation(job: Job, sources: list[Source], model: Model, plan: Plan) -> int:
    """A generated cohort beside the real one."""
    with console.progress(f"generating beside {len(sources)} subjects", job.quiet) as tick:
        found = compare_cohorts(
            sources, model, job.out, prepare=prepare, plan=plan, extractor=extractor(job.features), progress=tick
        )
    for modality, row in found.measures.items():
        for measure in row.values():
            console.say(f"{modality}: {measure}", job.quiet)
    return _end(found.failed, job)


def audit(job: Job, sources: list[Source], model: Model, data: str) -> int:
    """Whether training images are given back, by modality, in words."""
    assert job.audit is not None
    training, _ = _trained(job.audit, model, job)
    with console.progress(f"auditing {len(sources)} subjects", job.quiet) as tick:
        found, failed = examine(
            sources, model, training, job.out, prepare=prepare, extractor=extractor(job.features), steps=job.steps,
            seed=job.seed, data=data, progress=tick,
        )  # fmt: skip
    return _audited(found, failed, job)


def audit_generated(job: Job, sources: list[Source], model: Model, data: str) -> int:
    """Whether subjects of nobody are somebody, by modality, in words."""
    assert job.audit is not None
    training, unseen = _trained(job.audit, model, job)
    with console.progress(f"auditing {len(sources)} generated subjects", job.quiet) as tick:
        found, failed = examine_generated(
            sources, training, job.out, unseen=unseen, prepare=prepare, extractor=extractor(job.features),
            seed=job.seed, data=data, progress=tick,
        )  # fmt: skip
    return _audited(found, failed, job)


def _audited(found: Mapping[str, Audit], failed: Mapping[str, str], job: Job) -> int:
    for name, one in found.items():
        alarms = [v for v in one.verdicts if v.good is False]
        unsaid = sum(v.good is None for v in one.verdicts)
        of_few = f", {unsaid} cannot be answered by so few volumes" if unsaid else ""
        console.say(f"{name}: {len(one.verdicts)} checks, {len(alarms) or 'none'} to look at{of_few}", job.quiet)
        for verdict in alarms:
            console.say(f"  {verdict.name}: {verdict.words}", job.quiet)
    console.say(f"one page: {job.out / 'privacy.html'}", job.quiet)
    return _end(failed, job)


def extractor(given: str | None) -> Extractor:
    """The feature network: the one that needs no download, or `NAME=WEIGHTS`."""
    if given is None:
        return load()
    name, found, path = given.partition("=")
    if name not in TABLE or (found and not Path(path).is_file()):
        raise InputError(
            f"--features {given}: write NAME=WEIGHTS, NAME one of {', '.join(TABLE)}, WEIGHTS the file you downloaded."
        )
    return load(name, path if found else None)


def _trained(place: Path, model: Model, job: Job) -> tuple[Cache, Cache | None]:
    """The volumes trained on, of a run's folder as they were, or read again from a data set; and those of the run that
    were held out, if there are any."""
    from ..data import layouts

    if (place / "cache" / INDEX).is_file():
        training = Cache.open(place / "cache")
        held = [name for name in model.card.get("training", {}).get("held_out", ()) if name in training.labels]
        return training.without(*held), training.only(*held) if held else None
    studies = (prepare(source) for source in layouts.find(place))
    return Cache.build(studies, model.grid, model.modalities, job.out / "training", overwrite=True), None


def _end(failed: Mapping[str, str], job: Job) -> int:
    for name, why in failed.items():
        print(f"error: {name}: {why}", file=sys.stderr)
    console.say(f"results and report: {job.out}", job.quiet)
    return 1 if failed else 0

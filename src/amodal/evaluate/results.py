"""What an evaluation leaves behind: results.csv, results.json with all that produced it, and one page with figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ..core.config import to_dict
from ..core.errors import InputError
from ..data.volume import Source
from ..metrics.baselines import KINDS
from ..metrics.statistics import Score, interval, summarise, verdict
from ..model.intervals import Calibration, Intervals, key_of, of_card
from ..report.evaluation import Beside, Coverage, Evaluation, evaluation_page
from ..report.page import write
from . import calibrate, stacks, store
from .paired import Paired, compare_all
from .plan import Plan, Table, environment
from .protocols import Protocol, published
from .subject import MODEL, picture

FILES = ("results.csv", "results.json", "report.html")


def write_all(
    found: Mapping[str, dict[str, Any]],
    sources: Sequence[Source],
    folder: Path,
    about: Mapping[str, Any],
    models: Mapping[str, Any],
    plan: Plan,
    seconds: float,
) -> Table:
    """Put together what was found of every subject, write it, and say it."""
    scores = tuple(store.score(row) for r in found.values() for row in r.get("scores", ()))
    failed = {label: r["failed"] for label, r in found.items() if "failed" in r}
    skipped = {label: r["skipped"] for label, r in found.items() if "skipped" in r}
    modalities = [m for m in models[MODEL].modalities if any(s.modality == m for s in scores)]
    verdicts = tuple(verdict(scores, m, MODEL, (*KINDS, *stacks.KINDS)) for m in modalities)
    comparisons = tuple(
        pair for name in plan.beside for pair in compare_all(scores, MODEL, name, {MODEL: "this model"})
    )
    beside = next_to(plan.protocol, scores)
    fitted, covered = _covered(folder, about, models[MODEL], plan, [s.subject for s in scores])
    content = {
        "run": about,
        "protocol": about["protocol"],
        "models": {
            name: {**about["models"][name], "training": m.card.get("training", {})} for name, m in models.items()
        },
        "data": plan.data,
        "n": len({s.subject for s in scores}),
        "subjects": {label: r["sha256"] for label, r in found.items() if "scores" in r},
        "failed": failed,
        "skipped": skipped,
        "summary": [asdict(s) for s in summarise(scores)],
        "verdicts": [asdict(v) for v in verdicts],
        "comparisons": [asdict(c) for c in comparisons],
        "published": [asdict(b) for b in beside],
        "coverage": [asdict(c) for c in covered],
        "calibration": None if fitted is None else to_dict(fitted),
        "environment": environment(),
        "workers": plan.workers,
        "seconds": round(seconds, 2),
        "seconds_by_subject": {label: r["seconds"] for label, r in found.items() if "seconds" in r},
    }
    files = {name: folder / name for name in FILES}
    write(files["results.csv"], store.to_csv(scores))
    write(files["results.json"], store.with_scores(content, scores))
    pictures = {
        (s.subject, s.pattern, s.modality): picture(folder / "subjects" / store.safe(s.subject), s.pattern, s.modality)
        for s in scores
    }
    page = Evaluation(
        scores, verdicts, failed, skipped, {k: content[k] for k in ("protocol", "models", "environment", "seconds")},
        pictures, comparisons, beside, covered, tuple(plan.beside),
    )  # fmt: skip
    evaluation_page(files["report.html"], page)
    return Table(scores, verdicts, failed, skipped, about["protocol"], files, comparisons, beside, covered, fitted)


def next_to(protocol: Protocol, scores: Sequence[Score]) -> tuple[Beside, ...]:
    """The paper's numbers with those of this run beside them, pooled as the protocol says."""
    out = []
    for p in published(protocol.name):
        mine: dict[str, list[float]] = {}
        for s in scores:
            there = f"{s.pattern.count('+') + 1} missing" if protocol.pool == "count" else s.pattern
            if (s.method, s.metric, there) == (MODEL, p.metric, p.pattern) and p.modality in ("all", s.modality):
                mine.setdefault(s.subject, []).append(s.value)
        values = [float(np.mean(v)) for v in mine.values()]
        mean = float(np.mean(values)) if values else None
        low, high = interval(values) if len(values) > 1 else (None, None)
        source = f"{protocol.paper}, {p.source}"
        out.append(Beside(p.pattern, p.modality, p.metric, p.mean, p.sd, source, mean, low, high, len(values)))
    return tuple(out)


def _covered(
    folder: Path, about: Mapping[str, Any], model: Any, plan: Plan, labels: Sequence[str]
) -> tuple[Calibration | None, tuple[Coverage, ...]]:
    """What the intervals of the SD maps cover, and the calibration fitted here if that was asked for."""
    if plan.samples < 2:
        return None, ()
    counts = {
        name: kept
        for name in dict.fromkeys(labels)
        if (kept := calibrate.kept(folder / "subjects" / store.safe(name) / calibrate.FILE))
    }
    known = of_card(model.card, model.sha256)
    fitted = None
    if plan.calibrate:
        fitted = Calibration(
            samples=plan.samples,
            steps=about["models"][MODEL]["steps"],
            weights=model.sha256,
            data=plan.data,
            patterns=str(about["protocol"]["patterns"]),
            protocol=about["protocol"]["id"],
            modalities=calibrate.fit(counts),
        )
    names = sorted({key.split("|")[1] for images in counts.values() for key in images})
    return fitted, tuple(c for name in names for c in _coverage(name, counts, known, fitted, plan.samples))


def _coverage(
    name: str, counts: calibrate.Counts, known: Calibration | None, fitted: Calibration | None, samples: int
) -> list[Coverage]:
    """One line a level: the SD maps at their word, as the model states them, and as they will from now on."""
    out = []
    mine: Intervals | None = fitted.modalities.get(name) if fitted else None
    for level in calibrate.LEVELS:
        raw = by_subject(name, counts, lambda c, level=level: calibrate.before(c, level))
        stated: list[float] = []
        if known is not None and level in known.levels(name):
            factor, floor = known.factor(name, level, samples), known.modalities[name].floor
            stated = by_subject(
                name, counts, lambda c, factor=factor, floor=floor: calibrate.coverage(c, factor, floor)
            )
        left_out = mine.left_out.get(key_of(level)) if mine else None
        low, high = interval(stated or raw) if mine is None or left_out is None else _around(mine, level)
        out.append(
            Coverage(
                modality=name,
                level=level,
                n=len(raw),
                raw=float(np.mean(raw)),
                stated=float(np.mean(stated)) if stated else None,
                least=float(np.min(stated)) if stated else None,
                left_out=left_out,
                factor=mine.factors[key_of(level)] if mine else None,
                floor=mine.floor if mine else None,
                low=None if np.isnan(low) else low,
                high=None if np.isnan(high) else high,
            )
        )
    return out


def _around(found: Intervals, level: float) -> tuple[float, float]:
    """The 95 % interval of what new subjects are covered on average: the factor is known no better than the mean."""
    mean, sd = found.left_out[key_of(level)], found.spread[key_of(level)]
    half = float(stats.t.ppf(0.975, found.subjects - 1)) * sd / math.sqrt(found.subjects)
    return mean - half, mean + half


def by_subject(name: str, counts: calibrate.Counts, value: Any) -> list[float]:
    """A number of every image of a modality, averaged over a subject's images."""
    found = [[value(c) for key, c in images.items() if key.split("|")[1] == name] for images in counts.values()]
    return [float(np.mean(v)) for v in found if v]


def compare_files(first: Path, second: Path) -> tuple[dict[str, Any], list[Paired]]:
    """Two runs of one protocol on the same subjects, paired; InputError if they are of different protocols or data."""
    runs = [store.read(path) for path in (first, second)]
    for path, run in zip((first, second), runs):
        if "protocol" not in run or "scores" not in run:
            raise InputError(f"{path} is no result of an evaluation; give the results.json of one.")
    if differ := different(runs[0]["protocol"], runs[1]["protocol"]):
        raise InputError(
            f"{first} and {second} were measured by different protocols ({differ}); their numbers do not compare, "
            "run one of them again by the other's."
        )
    same = [s for s, files in runs[0]["subjects"].items() if runs[1]["subjects"].get(s) == files]
    if not same:
        raise InputError(f"{first} and {second} share no subject of the same files; evaluate both on the same data.")
    names = [_name(run, path) for run, path in zip(runs, (first, second))]
    if names[0] == names[1]:
        names = [str(first), str(second)]
    scores = [
        replace(s, method=name)
        for run, path, name in zip(runs, (first, second), names)
        for s in store.scores_of(run, path)
        if s.method == run.get("tested_method", MODEL) and s.subject in same
    ]
    about = {
        "protocol": runs[0]["protocol"]["id"],
        "first": names[0],
        "second": names[1],
        "subjects": len(same),
        "left_out": sorted((set(runs[0]["subjects"]) | set(runs[1]["subjects"])) - set(same)),
    }
    return about, compare_all(scores, names[0], names[1])


def different(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The first entries in which two protocols differ, in words; empty if they do not."""
    keys = [k for k in dict.fromkeys((*a, *b)) if a.get(k) != b.get(k)]
    return "; ".join(f"{k}: {a.get(k)} and {b.get(k)}" for k in keys[:2])


def _name(run: Mapping[str, Any], path: Path) -> str:
    return str(run.get("models", {}).get(MODEL, {}).get("id") or path)

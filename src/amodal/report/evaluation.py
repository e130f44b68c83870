"""The page of an evaluation: a verdict in plain words, scores beside baselines, worst cases, what SD maps are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..metrics.statistics import ALL, Difference, Score, Summary, Verdict, summarise
from . import figures
from .page import METHODS, METRICS, flatten, render, write

LABELS = {
    **METRICS,
    "dice": "Dice ↑",
    "msssim": "MS-SSIM ↑",
    "nmse": "NMSE ↓",
    "fid": "FID ↓",
    "fvd": "FVD ↓",
    "mmd": "MMD ↓",
}
STACKS = {"linear": "linear interpolation", "cubic": "cubic interpolation"}  # what stacks of slices have beside
HELD = 0.03  # coverage this near to its level holds


class Comparison(Protocol):
    """A paired test, as `evaluate.paired` makes it."""

    @property
    def difference(self) -> Difference: ...
    @property
    def p(self) -> float: ...
    @property
    def adjusted(self) -> float: ...
    @property
    def words(self) -> str: ...


@dataclass(frozen=True)
class Beside:
    """A number of a paper and ours beside it; `mine` over n subjects with its 95 % interval, None if not measured."""

    pattern: str
    modality: str
    metric: str
    theirs: float
    sd: float | None
    source: str
    mine: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Coverage:
    """What intervals of one level cover of a modality, mean over subjects: `raw`, the SD maps at their word; `stated`,
    as the model's card says, and `least` of a subject; `left_out`, by the factor fitted here on the other subjects.
    [low, high] is the 95 % interval of the last of these that is there."""

    modality: str
    level: float
    n: int
    raw: float
    stated: float | None
    least: float | None
    left_out: float | None
    factor: float | None
    floor: float | None
    low: float | None = None
    high: float | None = None

    @property
    def best(self) -> float:
        """The coverage of the intervals that count from now on."""
        return next(v for v in (self.left_out, self.stated, self.raw) if v is not None)

    @property
    def holds(self) -> bool:
        return abs(self.best - self.level) <= HELD

    @property
    def settled(self) -> bool:
        """Whether there are subjects enough to say so."""
        if self.low is None or self.high is None:
            return True
        return self.high - self.low <= 2 * HELD if self.holds else not self.low <= self.level <= self.high

    @property
    def words(self) -> str:
        return ("holds" if self.holds else "does not hold") if self.settled else "too few subjects to say"


@dataclass(frozen=True)
class Evaluation:
    """What the page of an evaluation says; `pictures`: (subject, pattern, modality) -> JPEG of truth, made, error;
    `others`: the names of models beside the tested one; `kind`, `title`, `lead`: what the page is of, unless the trust
    test; `part`, `who`: what a row is of, and by; `notes`: lines below the verdict."""

    scores: Sequence[Score]
    verdicts: Sequence[Verdict] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[tuple[str, str, str], Path] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()
    beside: Sequence[Beside] = ()
    coverage: Sequence[Coverage] = ()
    others: Sequence[str] = ()
    kind: str = "trust test"
    title: str = "How near does it come?"
    lead: str = ""
    part: str = "Modality"
    who: str = "Made by"
    notes: Sequence[str] = ()


def evaluation_page(path: Path, evaluation: Evaluation) -> Path:
    """Write the page of an evaluation; replaces what stood there, atomically."""
    scores, rows = evaluation.scores, _rows(summarise(evaluation.scores))
    modalities = list(dict.fromkeys(s.modality for s in scores))
    patterns = {m: list(dict.fromkeys(s.pattern for s in scores if s.modality == m)) for m in modalities}
    pooled = [(m, rows[ALL if len(patterns[m]) > 1 else patterns[m][0], m]) for m in modalities]
    methods = {"model": METHODS["model"], **{name: name for name in evaluation.others}, **METHODS, **STACKS}
    metrics = [metric for metric in LABELS if any(s.metric == metric for s in scores)]
    text = render(
        "evaluation.html",
        evaluation=evaluation,
        summary=in_a_sentence(evaluation),
        subjects=len({s.subject for s in scores}),
        metrics=metrics,
        labels=LABELS,
        methods=methods,
        pooled=pooled,
        single=[(p, m, rows[p, m]) for m in modalities for p in patterns[m] if len(patterns[m]) > 1],
        plots=[(m, [_plot(scores, m, metric, methods) for metric in metrics[:2]]) for m in modalities],
        worst=_worst(evaluation),
        each=_each(scores),
        short=_in_short(evaluation.protocol),
        protocol=[(key, value) for key, value in flatten(evaluation.protocol) if value],
    )
    return write(path, text)


def in_a_sentence(evaluation: Evaluation) -> str:
    """The verdict over all modalities, in plain words."""
    by = {state: [v.modality for v in evaluation.verdicts if v.good is state] for state in (True, False, None)}
    parts = []
    if by[True]:
        parts.append(f"On these data the model adds something for {_names(by[True])}")
    if by[False]:
        parts.append(f"it earns no trust for {_names(by[False])}: a baseline does as well or better")
    if by[None]:
        parts.append(f"nothing can be said yet of {_names(by[None])}")
    if evaluation.coverage:
        parts.append(_intervals(evaluation.coverage))
    said = "; ".join(parts)
    return said[:1].upper() + said[1:] + "." if said else "" if evaluation.scores else "Nothing could be measured."


def _intervals(coverage: Sequence[Coverage]) -> str:
    if any(c.settled and not c.holds for c in coverage):
        return "its intervals do not hold, so read its SD maps with care"
    if all(c.settled for c in coverage):
        return "its intervals hold"
    return "there are too few subjects to say whether its intervals hold"


def _in_short(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader must know of how it was measured; all settings stand below it."""
    protocol, ruler = about.get("protocol", {}), about.get("protocol", {}).get("ruler", {})
    lines = [("Protocol", protocol.get("id", ""))]
    if paper := protocol.get("paper"):
        lines.append(("Paper", str(paper)))
    if ruler:
        ends = ruler.get("scale")
        scale = "intensity window" if type(ends) is str else f"percentiles {' and '.join(f'{x:g}' for x in ends)}"
        where = "the head" if ruler.get("mask") == "head" else "the whole image"
        lines.append(("Scale", f"0 to 1 by the acquired image's {scale}; data range 1"))
        lines.append(("Where", f"{where}, {'in 3-D' if ruler.get('dims') == 3 else 'mean over axial slices'}"))
    for name, model in about.get("models", {}).items():
        says = [str(model.get(k, "")) for k in ("id", "method")]
        says += [f"weights {model['sha256'][:12]}"] if model.get("sha256") else []
        says += [f"{model['steps']} step{'' if model['steps'] == 1 else 's'}"] if "steps" in model else []
        lines.append(("Model" if name == "model" else name, ", ".join(filter(None, says))))
    lines += [("Assumed", str(line)) for line in protocol.get("assumed") or ()]
    return [(key, value) for key, value in lines if value]


def _names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _rows(summaries: Sequence[Summary]) -> dict[tuple[str, str], dict[str, dict[str, Summary]]]:
    """(pattern, modality) -> method -> metric -> summary."""
    rows: dict[tuple[str, str], dict[str, dict[str, Summary]]] = {}
    for s in summaries:
        rows.setdefault((s.pattern, s.modality), {}).setdefault(s.method, {})[s.metric] = s
    return rows


def _plot(scores: Sequence[Score], modality: str, metric: str, methods: Mapping[str, str]) -> Any:
    groups = {
        words: (method, [s.value for s in scores if (s.modality, s.metric, s.method) == (modality, metric, method)])
        for method, words in methods.items()
    }
    return figures.strips({k: v for k, v in groups.items() if v[1]}, LABELS[metric])


def _each(scores: Sequence[Score]) -> list[tuple[str, str, str, dict[tuple[str, str], float]]]:
    """One line a subject, pattern and modality, with the tested model's values by (method, metric)."""
    lines: dict[tuple[str, str, str], dict[tuple[str, str], float]] = {}
    for s in (s for s in scores if s.method == "model"):
        lines.setdefault((s.subject, s.pattern, s.modality), {})[s.method, s.metric] = s.value
    return [(*key, values) for key, values in lines.items()]


def _worst(evaluation: Evaluation) -> list[tuple[str, str, str, float, str]]:
    """For each modality where the model did worst: subject, pattern, modality, PSNR, picture."""
    mine = [s for s in evaluation.scores if (s.method, s.metric) == ("model", "psnr")]
    out = []
    for modality in dict.fromkeys(s.modality for s in mine):
        s = min((s for s in mine if s.modality == modality), key=lambda s: s.value)
        picture = evaluation.pictures.get((s.subject, s.pattern, s.modality))
        if picture is not None and picture.exists():
            out.append((s.subject, s.pattern, s.modality, s.value, figures.data_address(picture.read_bytes())))
    return out

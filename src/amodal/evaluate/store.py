"""Results on disk: strict JSON, CSV, what a finished subject left behind, and what tells that a file has changed."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..data.volume import Source
from ..metrics.statistics import Score

COLUMNS = ("subject", "pattern", "modality", "metric", "method", "value")


def row(score: Score) -> dict[str, Any]:
    """A score as JSON can hold it."""
    return {**asdict(score), "value": _finite(score.value)}


def score(values: Mapping[str, Any]) -> Score:
    """The inverse of `row`."""
    value = values["value"]
    return Score(**{**values, "value": math.nan if value is None else float(value)})


def scores_of(results: Mapping[str, Any], path: Path) -> tuple[Score, ...]:
    """The scores in a results.json; InputError if it holds none."""
    try:
        return tuple(score(dict(zip(COLUMNS, line))) for line in results["scores"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no scores; give the results.json of an evaluation.") from error


def to_csv(scores: Iterable[Score]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows([getattr(s, c) if c != "value" else f"{s.value:.6g}" for c in COLUMNS] for s in scores)
    return text.getvalue()


def to_json(value: Any) -> str:
    return json.dumps(strict(value), indent=1, allow_nan=False) + "\n"


def with_scores(content: Mapping[str, Any], scores: Iterable[Score]) -> str:
    """JSON whose last entry is the scores, one a line, in the order of `COLUMNS`."""
    lines = (json.dumps(strict([getattr(s, c) for c in COLUMNS]), allow_nan=False) for s in scores)
    head = to_json(content).rstrip().removesuffix("}").rstrip()
    return head + ',\n "scores": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def plain(value: Any) -> Any:
    """As it comes back from JSON, for comparing."""
    return json.loads(to_json(value))


def strict(value: Any) -> Any:
    """As JSON allows it: infinity becomes "inf", nan null."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    return _finite(value) if isinstance(value, float) else value


def read(path: Path) -> dict[str, Any]:
    """A JSON file of ours; empty if it is none (then it is made again)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def inputs(source: Source) -> dict[str, list[Any]]:
    """What tells whether a file has changed: its path, size and time."""
    stats = {name: (str(path), path.stat()) for name, path in source.files.items() if path.exists()}
    return {name: [path, stat.st_size, stat.st_mtime_ns] for name, (path, stat) in stats.items()}


def safe(label: str) -> str:
    """A label as a folder's name."""
    return re.sub(r"[^\w.-]", "_", label)


def _finite(value: float) -> float | str | None:
    return value if math.isfinite(value) else None if math.isnan(value) else "inf"

"""What a run says: metrics.jsonl, one line a step, and one line of progress on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

METRICS = "metrics.jsonl"


def append(stream: TextIO, values: Mapping[str, Any]) -> None:
    """Write one line of metrics; what is not finite becomes null (JSON has no NaN)."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    stream.write(json.dumps(clean) + "\n")
    stream.flush()


def truncate(path: Path, stages: Sequence[str], stage: int, step: int) -> None:
    """Drop the lines after `step` of stage number `stage`: those steps are about to be made again."""
    kept: list[str] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found = json.loads(line)
            where = (stages.index(found["stage"]), int(found["step"]))
        except (ValueError, KeyError, TypeError):
            break  # the line that the kill cut in two
        if where <= (stage, step):
            kept.append(line + "\n")
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)


def clock(seconds: float) -> str:
    """`1:02:03`, or `-:--` when unknown."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class Line:
    """The progress line: live on a terminal, one line every 30 s in a file, nothing when `quiet`."""

    quiet: bool = False
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _last: float = field(default_factory=time.monotonic)
    _began: float = field(default_factory=time.monotonic)
    _steps: int = 0
    _live: bool = False

    def note(self, text: str) -> None:
        """Say something once, on a line of its own."""
        if not self.quiet:
            self.stream.write("\n" * self._live + text + "\n")
            self.stream.flush()
        self._live = False

    def step(self, stage: str, step: int, of: int | None, loss: float, left: float | None) -> None:
        """Count one step; `left` is the time left in seconds, None to take it from the speed."""
        self._steps += 1
        now, terminal = time.monotonic(), self.stream.isatty()
        if self.quiet or now - self._last < (0.2 if terminal else 30.0):
            return
        self._last, speed = now, self._steps / max(1e-9, now - self._began)
        ahead = math.inf if of is None else (of - step) / speed
        eta = clock(min(ahead, math.inf if left is None else left))
        text = f"{stage} {step}{f'/{of}' if of else ''}  loss {loss:.4f}  {speed:.2f} steps/s  ETA {eta}"
        self.stream.write(f"\r{text}\x1b[K" if terminal else text + "\n")
        self.stream.flush()
        self._live = terminal

"""What a run did, subject by subject: the file behind `--report`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import AmodalError, InputError


@dataclass
class Entry:
    """One subject. `status`: done, unchanged or failed; `peak_memory_mib`: the most the process has held so far."""

    subject: str
    status: str = "planned"
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)


class Record:
    """Collects the entries of a run and writes them when its block ends, however it ends."""

    def __init__(self, path: Path | None, arguments: Mapping[str, Any]):
        self.path, self.arguments = path, {k: v for k, v in arguments.items() if v not in (None, False, [], ())}
        self.entries: list[Entry] = []
        self._began = time.time()

    @contextmanager
    def subject(self, label: str, inputs: Sequence[Path], alone: bool = False) -> Iterator[Entry]:
        """Time one subject. Its failure is noted and does not stop the others, unless it is `alone`."""
        entry = Entry(label, inputs=[str(p) for p in inputs])
        self.entries.append(entry)
        began = time.perf_counter()
        try:
            yield entry
            entry.status = "done" if entry.status == "planned" else entry.status
        except KeyboardInterrupt:
            entry.status, entry.error = "failed", "interrupted"
            raise
        except Exception as error:
            entry.status, entry.error = "failed", _sentence(error)
            if alone:
                raise
        finally:
            entry.seconds = round(time.perf_counter() - began, 3)
            entry.peak_memory_mib = peak_memory()

    @property
    def failed(self) -> list[Entry]:
        return [e for e in self.entries if e.status == "failed"]

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self.path is not None and (kind is None or not issubclass(kind, InputError)):  # then nothing is written
            self._write(self.path)

    def _write(self, path: Path) -> None:
        from ..data.bids import write_text

        when = datetime.fromtimestamp(self._began, UTC).isoformat(timespec="seconds")
        text = {
            "tool": f"amodal {__version__}",
            "started": when,
            "seconds": round(time.time() - self._began, 3),
            "status": "failed" if self.failed else "done",
            "arguments": self.arguments,
            "subjects": [vars(entry) for entry in self.entries],
        }
        write_text(path, json.dumps(text, indent=2, default=str) + "\n")


def writable(folder: Path) -> None:
    """InputError unless a folder could be made here and written to; leaves nothing behind."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not place.is_dir():
        raise InputError(f"{folder}: {place} is a file; choose a folder to write to.")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose a folder you may write to.") from None


def peak_memory() -> float:
    """The most memory this process has held so far, in MiB; 0 where the platform does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, AmodalError) else f"{type(error).__name__}: {error}"

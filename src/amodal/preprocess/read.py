"""One subject from disk, ready to be completed."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import InputError
from ..data import layouts
from ..data.volume import Study
from .align import prepare


def read(path: str | Path) -> Study:
    """The study at `path` (a subject's or session's folder), its volumes on one grid; InputError if not exactly one."""
    sources = layouts.find(Path(path))
    if len(sources) != 1:
        names = ", ".join(s.label for s in sources[:5])
        raise InputError(f"{path} holds {len(sources)} studies ({names}); give the folder of one of them.")
    return prepare(sources[0])

"""Studies listed in a table (.csv or .tsv): one row a study, a column `subject`, perhaps `session`, one a modality."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from ..core.errors import InputError
from ..core.modality import ALIASES, canonical
from . import bids
from .volume import Source

SUFFIXES = {".csv": ",", ".tsv": "\t"}
_SUBJECT = ("subject", "subject_id", "participant_id", "id", "case")
_SESSION = ("session", "session_id", "visit")


def read(path: Path) -> list[Source]:
    """The studies of a table; file names are taken relative to the table's folder, empty cells are missing modalities,
    columns that are no modality become metadata. InputError: no subject or no modality column, or one given twice."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=SUFFIXES[path.suffix.lower()]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable table ({error}); save it as UTF-8 with a line of names.") from None
    columns = [c for c in (rows[0] if rows else ()) if c]
    subject = next((c for c in columns if c.strip().lower() in _SUBJECT), None)
    session = next((c for c in columns if c.strip().lower() in _SESSION), None)
    images = {c: canonical(c) for c in columns if c.strip().lower() in ALIASES}
    if subject is None or not images:
        raise InputError(
            f"{path}: has the columns {', '.join(columns) or 'none'}; give `subject` and one column of file names for "
            "each modality, such as t1w and flair."
        )
    if len(set(images.values())) < len(images):
        raise InputError(f"{path}: two columns name one modality ({', '.join(images)}); keep one of them.")
    return [_source(path, row, subject, session, images) for row in rows]


def _source(path: Path, row: Mapping[str, str], subject: str, session: str | None, images: Mapping[str, str]) -> Source:
    """One row; a file that is not there is the study's own problem, told when it is read."""
    root = path.absolute().parent
    files = {name: root / row[c].strip() for c, name in images.items() if (row[c] or "").strip()}
    taken = {subject, session, *images}
    known = {c: v.strip() for c, v in row.items() if c and c not in taken and v and v.strip()}
    gone = next((file for file in files.values() if not file.is_file()), None)
    problem = f"{gone}: no such file, named in {path.name}; check the path." if gone else None
    if not files:
        problem = f"{path.name}: no file is named for {row[subject]}; give at least one."
    visit = (row[session] or "").strip() if session else ""
    who = f"sub-{bids.label(row[subject].removeprefix('sub-'))}"
    return Source(who, bids.label(visit.removeprefix("ses-")) if visit else None, files, known, root, "table", problem)

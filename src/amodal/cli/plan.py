"""What `complete` will do, decided before anything is read or written: a row for each subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import InputError
from ..core.modality import MODALITIES, canonical
from .console import Cell

if TYPE_CHECKING:  # it brings numpy and nibabel, which --help need not wait for
    from ..data.volume import Source


@dataclass(frozen=True)
class Row:
    """One subject: what the network starts from, what is made, what of this was acquired and is hidden for comparison.

    `trouble`: why nothing can be made, a sentence.
    """

    source: Source
    inputs: tuple[str, ...]
    make: tuple[str, ...]
    hidden: tuple[str, ...]
    trouble: str | None = None


def plan(sources: Sequence[Source], known: Sequence[str], wanted: Sequence[str]) -> list[Row]:
    """`known`: what the model can make; `wanted`: what was asked for, nothing for all that a subject lacks."""
    names = tuple(dict.fromkeys(canonical(name) for name in wanted))
    if foreign := [name for name in names if name not in known]:
        raise InputError(
            f"--missing {foreign[0]}: this model makes {', '.join(known)}; choose one of them or another model."
        )
    return [_row(source, tuple(known), names) for source in sources]


def _row(source: Source, known: tuple[str, ...], wanted: tuple[str, ...]) -> Row:
    there = tuple(source.files)
    make = tuple(name for name in known if (name in wanted if wanted else name not in there))
    inputs = tuple(name for name in known if name in there and name not in make)
    hidden = tuple(name for name in make if name in there)
    trouble = source.problem
    if trouble is None and not inputs:
        seen = f"holds {', '.join(there)}" + (f", of which {', '.join(hidden)} is to be hidden" if hidden else "")
        trouble = f"{source.label}: {seen}; the model starts from an acquired image of {', '.join(known)}, give one."
    return Row(source, inputs, make, hidden, trouble)


def matrix(rows: Sequence[Row]) -> tuple[list[str], list[list[Cell]]]:
    """Header and cells of the table subjects x contrasts."""
    used = {name for row in rows for name in (*row.source.files, *row.make)}
    names = [name for name in MODALITIES if name in used]
    troubled = any(row.trouble for row in rows)
    cells: list[list[Cell]] = [[row.source.label, *(_cell(row, name) for name in names)] for row in rows]
    if troubled:
        cells = [[*line, row.trouble or ""] for line, row in zip(cells, rows)]
    return ["subject", *names, *(["trouble"] if troubled else [])], cells


def _cell(row: Row, name: str) -> Cell:
    if row.trouble and name in row.make:
        return "cannot", "red"
    if name in row.hidden:
        return "hidden, will be made", "yellow"
    if name in row.make:
        return "will be made", "yellow"
    if name in row.inputs:
        return "there", "green"
    return "there, not used" if name in row.source.files else "-"

"""What a command says: results on stdout, progress on stderr, and none where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Tick = Callable[[int, int], None]  # (done, of)
Cell = str | tuple[str, str]  # text, or (text, style)
_WIDE = 160  # columns of a table that goes to a file


def say(text: str, quiet: bool = False) -> None:
    """One line of result."""
    if not quiet:
        print(text, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], quiet: bool = False) -> None:
    """A table on stdout."""
    if quiet:
        return
    out = Table(title=escape(title), title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        out.add_column(escape(column), overflow="fold")
    for row in rows:
        out.add_row(*(Text(cell) if isinstance(cell, str) else Text(*cell) for cell in row))
    _console(sys.stdout).print(out)


@contextmanager
def progress(text: str, quiet: bool = False) -> Iterator[Tick]:
    """A bar on stderr while the block runs; it is gone afterwards."""
    console = _console(sys.stderr)
    text_column, percent = TextColumn("{task.description}"), TextColumn("{task.percentage:3.0f}%")
    columns = (text_column, BarColumn(), percent, TimeRemainingColumn())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(escape(text), total=None)

        def tick(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        yield tick


def _console(stream: TextIO) -> Console:
    return Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False)

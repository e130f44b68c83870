"""The commands in one table, and what happens when one of them fails."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer

from .. import __version__
from ..core.errors import AmodalError, InputError
from ..core.modality import ALIASES
from .complete import complete
from .demo import demo
from .evaluate import evaluate
from .generate import generate
from .inspect import inspect
from .methods import methods
from .phantom import phantom
from .reconstruct import reconstruct
from .train import train

# typer carries its own copy of click or uses the installed one, according to its version: ask it for the class.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]  # type: ignore[assignment]

# Flags that take several values in a row, and which words still belong to them.
_SEVERAL: Mapping[str, Callable[[str], object]] = {
    "--modality": lambda word: word.lower() in ALIASES,
    "--modalities": lambda word: word.lower() in ALIASES,
    "--meta": re.compile(r"[A-Za-z_][\w.]*=").match,
    "--measured": re.compile(r"[A-Za-z_]\w*=").match,
    "--missing": lambda word: word.lower() in ALIASES,
    "--set": re.compile(r"[A-Za-z_][\w.]*=").match,
    "--compare": re.compile(r"[^-]").match,
}

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="For research only: what amodal makes is synthetic, and no basis for a diagnosis.",
)
for command in (demo, inspect, complete, reconstruct, generate, evaluate, train, phantom, methods):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"amodal {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Complete multi-modal MRI with diffusion models."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code: 0, 1, 2, or 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors in huge pages (Linux); torch asks at its first
    try:
        code = app(spread(words), prog_name="amodal", standalone_mode=False) or 0
        if code == INTERRUPTED:  # how newer versions of typer pass a KeyboardInterrupt on
            raise KeyboardInterrupt
        return code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; what was finished before is kept.", INTERRUPTED, words)
    except InputError as error:
        return _fail(str(error), 2, words)
    except AmodalError as error:
        return _fail(str(error), 1, words)
    except _UsageError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        return _fail(f"{message.rstrip('.')}; see --help.", 2, words)
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        sys.stderr.close()
        return 0
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error} (run again with --debug to see where)", 1, words)


def spread(words: Sequence[str]) -> list[str]:
    """`--missing FLAIR T1Gd` becomes `--missing FLAIR --missing T1Gd`, and likewise for `--set a=1 b=2`."""
    out: list[str] = []
    flag = ""
    for word in words:
        if flag and out[-1] != flag and _SEVERAL[flag](word):
            out += [flag, word]
            continue
        if out[-1:] != [flag]:
            flag = word if word in _SEVERAL else ""
        out.append(word)
    return out


def _fail(message: str, code: int, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exc()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code

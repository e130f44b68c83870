"""The flags that several commands share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_COMMON = "Common flags"


def _flag(*names: str, help: str, metavar: str | None = None):
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=_COMMON)


Device = Annotated[
    str, _flag("--device", help="Where the network runs; auto: a GPU if there is one.", metavar="auto|cpu|cuda[:N]|mps")
]
Precision = Annotated[
    str, _flag("--precision", help="Numbers of the network; auto: bf16 where it is fast.", metavar="auto|bf16|fp32")
]
Seed = Annotated[int, _flag("--seed", help="The same seed gives the same images.")]
Overwrite = Annotated[bool, _flag("--overwrite", help="Replace outputs that are already there.")]
DryRun = Annotated[bool, _flag("--dry-run", help="Say what would be done, and do nothing.")]
Quiet = Annotated[bool, _flag("--quiet", "-q", help="Print errors only.")]
Report = Annotated[
    Path | None, _flag("--report", help="Write what was done as JSON, subject by subject.", metavar="run.json")
]
Debug = Annotated[bool, _flag("--debug", help="Show the stack trace of an error.")]

ModelName = Annotated[
    str, typer.Option("--model", help="default, five-contrasts, a model's folder, or a Hugging Face id.")
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Sampling steps; default: the model's own number.")]
Sampler = Annotated[
    str | None, typer.Option("--sampler", metavar="mds|mps", help="Keep what is known in place, or pull towards it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

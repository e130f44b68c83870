"""amodal generate: subjects of nobody, as a BIDS dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import InputError
from . import console, options


def generate(
    out: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder of the new BIDS dataset.")],
    model: options.ModelName = "default",
    modality: Annotated[
        list[str] | None, typer.Option(metavar="NAME ...", help="Which modalities; default: all that the model makes.")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--subjects", min=1, help="How many subjects.")] = 1,
    meta: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE ...", help="What is asked of them, such as age=60 sex=F."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="A participants.tsv; each subject is asked as a row of it.")
    ] = None,
    steps: options.Steps = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    report: options.Report = None,
    debug: options.Debug = False,
) -> int:
    """Make subjects of nobody: complete, co-registered and synthetic throughout."""
    row = metadata(meta or ())

    from ..model import generate as making
    from ..model import load
    from . import conditions
    from .record import Record
    from .synthetic import Dataset

    made = load(model, device=device, precision=precision)
    names = making.check(made, modality or (), [row])
    rows, warnings = conditions.rows(made, n, seed, row, like)
    data = Dataset(out, made, names, seed, steps)
    data.refuse(overwrite)
    for sentence in warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    if dry_run:
        console.say(f"would make {n} subjects with {', '.join(names)} in {out}", quiet)
        return 0
    asked = {"out": str(out), "model": model, "n": n, "seed": seed, "modalities": names, "steps": steps, "meta": row}
    asked |= {"like": like and str(like)}
    with Record(report, asked) as record, console.progress(f"making {n}", quiet) as tick, data.write(n) as add:
        studies = making.generate(made, n, seed, modalities=names, metadata=rows, steps=steps, progress=tick)
        for number in range(1, n + 1):
            with record.subject(f"sub-synth{number:04d}", [], alone=True) as entry:
                entry.warnings += warnings
                entry.outputs += map(str, add(next(studies)))
    console.say(f"{n} subjects: {out}", quiet)
    return 0


def metadata(pairs: Sequence[str]) -> dict[str, Any]:
    """`age=60 sex=F` as a row of a table; InputError where a pair is none."""
    row: dict[str, Any] = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not (key and found and value):
            raise InputError(f"--meta {pair}: write it as key=value, for example age=60.")
        try:
            row[key] = float(value) if "." in value else int(value)
        except ValueError:
            row[key] = value
    return row

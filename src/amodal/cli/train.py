"""amodal train: a dataset in, a model's folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console, options


def train(
    method: Annotated[str, typer.Argument(help="A method, see amodal methods.")],
    dataset: Annotated[Path, typer.Argument(help="A BIDS dataset, BraTS or IXI folder, or folders of named files.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the run; the model lies in it at the end.")],
    preset: Annotated[str, typer.Option(help="tiny, small or published.")] = "small",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value ...", help="Change settings of the preset.")
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option("--modality", help="Train on this one (repeat); default: all there are.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train so many steps.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Train so long.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples per step and device.")] = 16,
    crop: Annotated[int, typer.Option(min=16, help="Voxels of the square that is cut from a slice.")] = 128,
    rate: Annotated[float | None, typer.Option(help="Learning rate; default: that of each stage.")] = None,
    hold_out: Annotated[int, typer.Option(min=0, help="Studies kept aside for validation.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    report: options.Report = None,
    debug: options.Debug = False,
) -> int:
    """Train a method on a dataset; subjects that lack contrasts are used as well."""
    from ..train.plan import Plan
    from . import training

    job = training.Job(
        method=method,
        dataset=dataset,
        out=out,
        plan=Plan(steps, minutes, batch, rate, precision=precision, seed=seed),  # type: ignore[arg-type]
        preset=preset,
        settings=tuple(settings or ()),
        modalities=tuple(modality or ()),
        crop=crop,
        hold_out=hold_out,
        resume=resume,
        device=device,
        overwrite=overwrite,
        quiet=quiet,
        report=report,
    )
    if dry_run:
        sources, config = training.check(job)
        names = ", ".join(config.modalities)
        console.say(f"would train {method} {preset} on {len(sources)} studies, {names}, into {out}", quiet)
        return 0
    done = training.run(job)
    console.say(f"{done.steps} steps in {done.seconds:.0f} s, loss {done.loss:.4f}: {out}", quiet)
    return 0

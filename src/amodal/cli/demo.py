"""amodal demo: complete the built-in study and compare it with its truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import InputError
from . import console, options

SEED, HIDDEN = 20260, "FLAIR"  # a virtual subject that no model was trained on
STUDY, RESULT = "study", "completed"


def demo(
    out: Annotated[Path, typer.Option(help="The folder for the study, the result and the report.")] = Path("demo"),
    model: options.ModelName = "default",
    size: Annotated[int, typer.Option(min=32, max=256, help="Voxels along each side of the study.")] = 128,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    report: options.Report = None,
    debug: options.Debug = False,
) -> int:
    """Complete the built-in study, whose FLAIR is hidden, and compare with its truth."""
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists; pass --overwrite to make the demo anew, or --out another folder.")
    if dry_run:
        console.say(f"would make a virtual study in {out / STUDY} and its {HIDDEN} again in {out / RESULT}", quiet)
        return 0
    from ..data import layouts
    from ..data.phantom import PhantomConfig, make_cohort
    from . import completion
    from .present import show_scores
    from .record import writable

    writable(out)
    spacing = 192 / size  # mm: the same field of view, whatever the size
    config = PhantomConfig(shape=(size,) * 3, spacing=spacing, lesions=1.0)  # type: ignore[arg-type]
    with console.progress("making the study", quiet) as tick:
        make_cohort(out / STUDY, 1, SEED, config, workers=1, overwrite=overwrite, progress=tick)
    job = completion.Job(
        sources=layouts.find(out / STUDY),
        out=out / RESULT,
        missing=(HIDDEN,),
        model=model,
        device=device,
        precision=precision,
        seed=seed,
        overwrite=overwrite,
        quiet=quiet,
        report=report,
    )
    done = completion.run(job)
    show_scores(f"{HIDDEN}, made without seeing it, against its truth", done.entries[0].scores, quiet)
    return 0

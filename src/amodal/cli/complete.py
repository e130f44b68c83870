"""amodal complete: fill in the contrasts that studies lack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import InputError
from . import console, options

_FILES = "Plain files, in place of INPUT"


def _file(name: str):
    return typer.Option(f"--{name}", metavar="FILE", help="", rich_help_panel=_FILES)


def complete(
    first: Annotated[Path, typer.Argument(metavar="INPUT", help="A BIDS dataset, or a folder that holds a study.")],
    second: Annotated[
        Path | None, typer.Argument(metavar="OUTPUT", help="Where results go; the only argument with plain files.")
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME ...",
            help="What to make. One that was acquired is hidden, made, and compared with the truth. "
            "Default: all that the model makes and the subject lacks.",
        ),
    ] = None,
    model: options.ModelName = "default",
    samples: Annotated[int, typer.Option(min=1, help="Samples to draw; above 1 also their voxelwise SD.")] = 1,
    steps: options.Steps = None,
    sampler: options.Sampler = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Slices per network call; images stay the same.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Subjects read and aligned ahead while the network runs.")] = 1,
    measured: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE ...", help="K-space of a contrast, reconstructed with what else is there."),
    ] = None,
    missing_slices: Annotated[
        str | None,
        typer.Option(
            metavar="8:16",
            help="With a single stack as INPUT: the slices to make, from 0, ends excluded; those that are all zero or "
            "NaN are made anyway. Acquired ones that are named are hidden and compared.",
        ),
    ] = None,
    spacing_z: Annotated[
        float | None, typer.Option(metavar="MM", help="With a single stack: make slices so near to each other.")
    ] = None,
    t1w: Annotated[Path | None, _file("t1w")] = None,
    t1gd: Annotated[Path | None, _file("t1gd")] = None,
    t2w: Annotated[Path | None, _file("t2w")] = None,
    flair: Annotated[Path | None, _file("flair")] = None,
    pdw: Annotated[Path | None, _file("pdw")] = None,
    t2starw: Annotated[Path | None, _file("t2starw")] = None,
    ct: Annotated[Path | None, _file("ct")] = None,
    pet: Annotated[Path | None, _file("pet")] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    report: options.Report = None,
    debug: options.Debug = False,
) -> int:
    """Make the contrasts that a study lacks, on its own voxel grid.

    amodal complete INPUT OUTPUT --missing FLAIR

    amodal complete OUTPUT --t1w a.nii.gz --t2w b.nii.gz --missing FLAIR

    amodal complete stack.nii.gz OUTPUT --model RUN --missing-slices 8:16
    """
    given = {"T1w": t1w, "T1Gd": t1gd, "T2w": t2w, "FLAIR": flair, "PDw": pdw, "T2starw": t2starw, "CT": ct, "PET": pet}
    files = {name: path for name, path in given.items() if path is not None}
    if files and second is not None:
        raise InputError(f"both a folder ({first}) and files were given; give INPUT OUTPUT, or OUTPUT and the files.")
    if not files and second is None:
        raise InputError(f"OUTPUT is missing after {first}; give a folder for the results, outside the input.")

    from . import slices

    if slices.is_stack(first):
        stack = slices.Job(
            file=first, out=second or first, slices=missing_slices, spacing_z=spacing_z, model=model, samples=samples,
            steps=steps, device=device, precision=precision, seed=seed, overwrite=overwrite, dry_run=dry_run,
            quiet=quiet, report=report,
        )  # fmt: skip
        for entry in slices.run(stack).entries:
            slices.show(entry, quiet)
        return 0
    slices.refuse(first, {"--missing-slices": missing_slices, "--spacing-z": spacing_z})

    from ..data import layouts
    from . import completion
    from .plan import matrix
    from .present import show_scores

    sources = [layouts.plain(files)] if files else layouts.find(first)
    if measured:
        from . import scanning

        if len(sources) > 1:
            raise InputError(f"{first} holds {len(sources)} studies; with --measured give the folder of one.")
        scan = scanning.Job(
            measured=scanning.pairs(measured), out=second or first, source=sources[0], missing=tuple(missing or ()),
            model=model, sampler=sampler, samples=samples, steps=steps, device=device, precision=precision, seed=seed,
            overwrite=overwrite, quiet=quiet, report=report,
        )  # fmt: skip
        if dry_run:
            console.say(scanning.intent(scanning.check(scan)), quiet)
            return 0
        scanning.run(scan)
        return 0
    job = completion.Job(
        sources=sources,
        out=second or first,
        missing=tuple(missing or ()),
        model=model,
        samples=samples,
        steps=steps,
        sampler=sampler,
        batch=batch,
        workers=workers,
        device=device,
        precision=precision,
        seed=seed,
        overwrite=overwrite,
        quiet=quiet,
        report=report,
    )
    if dry_run:
        console.table("What would be done", *matrix(completion.check(job)[0]), quiet)
        return 0
    done = completion.run(job)
    for entry in done.entries:
        show_scores(f"{entry.subject}: made without seeing it, against what was acquired", entry.scores, quiet)
    return 1 if done.failed else 0

"""amodal reconstruct: an image from undersampled k-space, helped by clean images of the same subject."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import InputError
from . import console, options


def reconstruct(
    kspace: Annotated[Path, typer.Argument(help="K-space: ISMRMRD or fastMRI .h5, .npy or .npz.")],
    out: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Where results go.")],
    modality: Annotated[list[str], typer.Option(metavar="NAME", help="What was measured, such as FLAIR.")],
    model: options.ModelName = "default",
    study: Annotated[
        Path | None, typer.Option("--with", metavar="STUDY", help="Clean images of the subject, on the same grid.")
    ] = None,
    missing: Annotated[list[str] | None, typer.Option(metavar="NAME ...", help="Make these as well.")] = None,
    sampler: options.Sampler = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to draw; above 1 also their voxelwise SD.")] = 1,
    steps: options.Steps = None,
    validate: Annotated[
        bool,
        typer.Option(help="Trust the model as far as it predicts samples kept back; twice the time."),
    ] = False,
    voxel: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="X Y Z", help="Voxel size in mm, where neither file nor study says it."),
    ] = None,
    orientation: Annotated[
        str | None, typer.Option(help="Where x, y and the slices point, likewise; default RAS.")
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    report: options.Report = None,
    debug: options.Debug = False,
) -> int:
    """Reconstruct undersampled k-space with a model's prior.

    amodal reconstruct FLAIR.h5 OUTPUT --modality FLAIR --with my_study
    """
    if len(modality) != 1:
        raise InputError(f"--modality was given {len(modality)} times; a k-space file holds one contrast, name that.")

    from ..data import layouts
    from . import scanning

    sources = layouts.find(study) if study is not None else []
    if len(sources) > 1:
        raise InputError(f"{study} holds {len(sources)} studies; give the folder of the one that was scanned.")
    job = scanning.Job(
        measured={modality[0]: kspace},
        out=out,
        source=sources[0] if sources else None,
        missing=tuple(missing or ()),
        model=model,
        sampler=sampler,
        samples=samples,
        steps=steps,
        validate=validate,
        voxel=voxel,
        orientation=orientation,
        device=device,
        precision=precision,
        seed=seed,
        overwrite=overwrite,
        quiet=quiet,
        report=report,
    )
    if dry_run:
        console.say(scanning.intent(scanning.check(job)), quiet)
        return 0
    scanning.run(job)
    return 0

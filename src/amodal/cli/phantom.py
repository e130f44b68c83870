"""amodal phantom: a virtual cohort with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import InputError
from ..core.modality import canonical
from . import console, options
from .record import Record, writable

THICK = 5.0  # mm; slices of the heart as thick as this are scanned with a gap of a quarter, as is usual


def phantom(
    out: Annotated[Path, typer.Argument(help="The folder of the new BIDS dataset.")],
    n: Annotated[int, typer.Option("-n", "--subjects", min=1, help="How many subjects.")],
    size: Annotated[str, typer.Option(help="Voxels: one number, or three such as 128x128x96.")] = "128",
    spacing: Annotated[float, typer.Option(help="Millimetres between voxels.")] = 1.5,
    modalities: Annotated[
        list[str] | None,
        typer.Option(
            "--modality",
            "--modalities",
            metavar="NAME ...",
            help="Which contrasts, also parted by commas: T1w T1Gd T2w FLAIR (the default), PDw, T2starw, CT, PET.",
        ),
    ] = None,
    tumour: Annotated[float, typer.Option(help="Probability of a tumour.")] = 0.2,
    tumour_radius: Annotated[
        tuple[float, float], typer.Option(help="Smallest and largest radius of a tumour's core, mm.")
    ] = (9.0, 21.0),
    lesions: Annotated[float, typer.Option(help="Probability of MS-like lesions.")] = 0.4,
    noise: Annotated[float, typer.Option(help="Rician noise, relative to white matter.")] = 0.02,
    bias: Annotated[float, typer.Option(help="Strength of the bias field.")] = 0.15,
    slice_thickness: Annotated[
        float, typer.Option(help="Thick slices, in mm; 0: as spacing (hearts: 32 of 3.5 mm).")
    ] = 0.0,
    misregistration: Annotated[float, typer.Option(help="Shift (mm) and turn (degrees) between contrasts.")] = 0.0,
    head: Annotated[bool, typer.Option("--head", help="With skull and scalp.")] = False,
    heart: Annotated[
        bool, typer.Option("--heart", help="Short-axis cine stacks of hearts, at end-diastole and end-systole.")
    ] = False,
    labelmap: Annotated[
        Path | None, typer.Option(help="A label map, or a folder of them, in place of the MNI152 template.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as many as there are cores.")] = 0,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    report: options.Report = None,
    debug: options.Debug = False,
) -> int:
    """Make a virtual cohort: subjects with known truth, as a BIDS dataset."""
    from ..data.phantom import HeartConfig, PhantomConfig, make_cohort, make_hearts

    if heart and (head or labelmap is not None):
        raise InputError("--heart makes hearts, which have no head and no brain's label map; leave those flags out.")
    config = PhantomConfig(
        shape=_size(size),
        spacing=spacing,
        modalities=tuple(
            canonical(name) for name in " ".join(modalities or ("T1w,T1Gd,T2w,FLAIR",)).replace(",", " ").split()
        ),
        tumour=tumour,
        tumour_radius=tumour_radius,
        lesions=lesions,
        noise=noise,
        bias=bias,
        slice_thickness=slice_thickness,
        misregistration=misregistration,
        head=head,
        stripped=not head,
        labelmap=labelmap,
    )
    cine = HeartConfig(
        size=config.shape[:2],
        spacing=spacing,
        thickness=slice_thickness or HeartConfig.thickness,
        gap=0.25 * slice_thickness if slice_thickness >= THICK else 0.0,
        noise=noise,
        bias=bias,
        breath=misregistration,
    )
    made: Any = cine if heart else config
    writable(out)
    if dry_run:
        shape = "x".join(map(str, (*cine.size, cine.count) if heart else config.shape))
        what = "short-axis cine" if heart else ", ".join(config.modalities)
        console.say(f"would make {n} subjects of {shape} voxels with {what} in {out}", quiet)
        return 0
    record = Record(report, {"out": str(out), "n": n, "seed": seed, **vars(made)})
    make = make_hearts if heart else make_cohort
    with record, record.subject("cohort", [], alone=True) as entry, console.progress(f"making {n}", quiet) as tick:
        make(out, n, seed, made, workers=workers or None, overwrite=overwrite, progress=tick)
        entry.outputs.append(str(out))
    console.say(f"{n} subjects: {out}", quiet)
    return 0


def _size(text: str) -> tuple[int, int, int]:
    words = text.lower().split("x")
    if not all(word.isdigit() for word in words) or len(words) not in (1, 3):
        raise InputError(f"--size {text}: expected one number of voxels, or three such as 128x128x96.")
    x, y, z = map(int, words * (3 // len(words)))
    return x, y, z

"""amodal evaluate: the trust test, on the user's own complete subjects; named protocols; two runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import InputError
from . import options

_PROTOCOL = "A paper's protocol"
_MORE = "More evidence"


def evaluate(
    dataset: Annotated[
        Path | None, typer.Argument(help="A dataset with subjects that have several contrasts.", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="default, a model's folder, or a Hugging Face id. Given again: other models, measured on the same and "
            "compared with the first.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the tables and the report.")] = Path("evaluation"),
    patterns: Annotated[
        str | None,
        typer.Option(
            help="What is hidden: all sets (the default), each contrast alone, random:N sets a subject, or a list such "
            "as FLAIR,T2w+FLAIR; of stacks, slices:8,16,24 in a row.",
            show_default=False,
        ),
    ] = None,
    steps: options.Steps = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Above 1: SD maps are drawn too, and their intervals measured."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Find the factors that make the intervals hold; keep them in the model.")
    ] = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="copedit-brats, copedit-ixi, copedit-cardiac, apt-brats, apt-adni, cola-brats2018, cola-ixi, any2all, "
            "wfdm-brainscape.",
            rich_help_panel=_PROTOCOL,
        ),
    ] = None,
    subjects: Annotated[
        int | None, typer.Option(min=1, help="Only so many subjects; stands in the id.", rich_help_panel=_PROTOCOL)
    ] = None,
    allow_other_data: Annotated[
        bool,
        typer.Option("--allow-other-data", help="On data of your own; stands in the id.", rich_help_panel=_PROTOCOL),
    ] = False,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="A.json B.json", help="Compare two runs of one protocol.", rich_help_panel=_MORE),
    ] = None,
    downstream: Annotated[
        str | None,
        typer.Option(
            metavar="WT,TC,ET | NAME=1+2,...",
            help="Train a small segmentation network on real data, without --patterns, and with them completed: Dice.",
            rich_help_panel=_MORE,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Where the label maps are, below DATASET: derivatives/x/{subject}/anat/{subject}_dseg.nii.gz.",
            rich_help_panel=_MORE,
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            metavar="TRAINING",
            help="Are training images given back? The data the model was trained on, or its run folder. DATASET: "
            "subjects it never saw, which are completed, or a dataset that `amodal generate` made.",
            rich_help_panel=_MORE,
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each segmentation network.", rich_help_panel=_MORE)
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=WEIGHTS",
            help="Feature network of --audit and wfdm-brainscape, such as medicalnet-resnet50=FILE; default: one that "
            "needs no download.",
            rich_help_panel=_MORE,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Subjects at a time.")] = 1,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    report: options.Report = None,
    debug: options.Debug = False,
) -> int:
    """Hide what is there, make it, measure it: beside two baselines, with a verdict in plain words.

    amodal evaluate DATASET --model RUN

    amodal evaluate DATASET --model RUN --protocol copedit-brats

    amodal evaluate --compare A.json B.json
    """
    from . import evidence

    if compare:
        return evidence.compare(compare, dataset, quiet)
    if dataset is None:
        raise InputError("DATASET is missing; give a dataset with complete subjects, or --compare two results.json.")
    job = evidence.Job(
        dataset=dataset, models=tuple(model or evidence.usual(dataset, audit)), out=out, patterns=patterns,
        steps=steps, samples=samples, calibrate=calibrate, protocol=protocol, subjects=subjects,
        other_data=allow_other_data, downstream=downstream, labels=labels, iterations=iterations, audit=audit,
        features=features, workers=workers, device=device, precision=precision, seed=seed, overwrite=overwrite,
        quiet=quiet, report=report,
    )  # fmt: skip
    return evidence.describe_job(job) if dry_run else evidence.run(job)

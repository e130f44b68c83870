"""amodal evaluate: the trust test, on the user's own complete subjects."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import AmodalError, InputError
from . import console, options
from .record import Record, writable


def evaluate(
    dataset: Annotated[Path, typer.Argument(help="A dataset with subjects that have several contrasts.")],
    model: options.ModelName = "default",
    out: Annotated[Path, typer.Option(help="The folder for the tables and the report.")] = Path("evaluation"),
    patterns: Annotated[
        str, typer.Option(help="What is hidden: each contrast alone, all sets, or a list such as FLAIR,T2w+FLAIR.")
    ] = "each",
    steps: options.Steps = None,
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
    """Hide what is there, make it, measure it: PSNR, SSIM and MAE beside two baselines."""
    from ..data import layouts
    from ..evaluate import evaluate as run
    from ..evaluate import parse_patterns
    from ..metrics.statistics import ALL, summarise
    from ..model import load
    from ..preprocess.align import prepare
    from .present import show_scores

    sources = layouts.find(dataset)
    loaded = load(model, device=device, precision=precision)
    parse_patterns(patterns, loaded.modalities)
    useful = [s for s in sources if s.problem or len(set(s.files) & set(loaded.modalities)) > 1]
    if not useful:
        raise InputError(
            f"{dataset}: no subject has two of {', '.join(loaded.modalities)}; one to hide and one to start "
            "from are needed, give such subjects."
        )
    writable(out)
    if dry_run:
        console.say(f"would evaluate {model} on {len(useful)} of {len(sources)} subjects into {out}", quiet)
        return 0
    with Record(report, {"dataset": str(dataset), "model": model, "patterns": patterns, "seed": seed}) as record:
        with console.progress(f"evaluating {len(sources)} subjects", quiet) as tick:
            found = run(
                sources,
                loaded,
                out,
                prepare=prepare,
                patterns=patterns,
                steps=steps,
                seed=seed,
                overwrite=overwrite,
                workers=workers,
                progress=tick,
            )
        for source in useful:
            with record.subject(source.label, list(source.files.values())) as entry:
                if source.label in found.failed:
                    raise AmodalError(found.failed[source.label])
            if entry.error:
                print(f"error: {source.label}: {entry.error}", file=sys.stderr)
    means: dict[str, dict[str, dict[str, float]]] = {}
    for row in summarise(found.scores):
        name = row.modality if row.pattern in (row.modality, ALL) else f"{row.modality} (hidden: {row.pattern})"
        means.setdefault(name, {}).setdefault(row.method, {})[row.metric] = row.mean
    show_scores(f"Means over {len({s.subject for s in found.scores})} subjects", means, quiet)
    console.say(f"results and report: {out}", quiet)
    return 1 if found.failed else 0

"""Makes the default model again: `python tools/default_model.py --out runs/default --minutes 95`.

Trained on virtual subjects (MNI152 anatomy; with `--labelmaps` also individual anatomies) and, with `--real`, on T1w,
T2w and FLAIR of open-ms-raw (CC BY 4.0, doi 10.1007/s12021-016-9301-1), with head and stripped. Never on sub-07 of
open-ms-mni. Goes on where it stopped if it is called again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from amodal.core.config import to_dict
from amodal.core.contract import Grid
from amodal.data import layouts
from amodal.data.dataset import Cache, prefetch
from amodal.data.phantom import PhantomConfig, subject, to_study
from amodal.data.volume import Study
from amodal.methods import any2all
from amodal.metrics.baselines import Baselines
from amodal.model import Model
from amodal.preprocess.align import prepare
from amodal.preprocess.brain import brain_mask
from amodal.train.engine import fit, holds_run
from amodal.train.plan import Plan

CROP, SEED = (96, 96), 0


def cohorts(labelmaps: Path | None) -> dict[str, tuple[int, int, PhantomConfig]]:
    """name -> (subjects, seed, config)."""
    found = {
        "mni": (30, 11, PhantomConfig(protocol_jitter=0.15)),
        "wide": (14, 13, PhantomConfig(protocol_jitter=0.35, misregistration=0.3, lesions=0.6, noise=0.03)),
        "head": (5, 14, PhantomConfig(head=True, stripped=False, protocol_jitter=0.15)),
        "fine": (5, 15, PhantomConfig(spacing=1.0, shape=(160, 192, 152), protocol_jitter=0.2, lesions=0.6)),
    }
    if labelmaps is not None:
        shape = {"spacing": 1.0, "shape": (152, 192, 144), "labelmap": labelmaps}
        found["individual"] = (12, 12, PhantomConfig(**shape, protocol_jitter=0.2, misregistration=0.2, noise=0.03))
    return found


def virtual(labelmaps: Path | None, workers: int) -> Iterator[Study]:
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for name, (n, seed, config) in cohorts(labelmaps).items():
            for i, one in enumerate(pool.map(subject, range(n), [seed] * n, [config] * n)):
                print(f"{name} {i + 1} of {n}", flush=True)
                yield dataclasses.replace(to_study(one), subject=f"sub-{name}{i:03d}", session=None)


def real(folder: Path | None) -> Iterator[Study]:
    """Each real session twice: as it is, and with the brain alone."""
    for source in layouts.find(folder) if folder is not None else ():
        study = prepare(source)
        name = study.label.replace("_", "").replace("sub-", "").replace("ses-", "x")
        mask = brain_mask(study["T1w"])
        bare = {m: v.like(v.data * mask) for m, v in study.volumes.items()}
        print(f"real {study.label}", flush=True)
        yield dataclasses.replace(study, subject=f"sub-real{name}", session=None)
        yield dataclasses.replace(study, subject=f"sub-bare{name}", session=None, volumes=bare)


def studies(labelmaps: Path | None, folder: Path | None, workers: int) -> Iterator[Study]:
    yield from virtual(labelmaps, workers)
    yield from real(folder)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--minutes", type=float, default=95)
    options.add_argument("--labelmaps", type=Path)
    options.add_argument("--real", type=Path)
    options.add_argument("--workers", type=int, default=2)
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    grid, place = Grid(), args.out / "cache"
    made = (args.labelmaps, args.real, args.workers)
    cache = Cache.open(place) if place.exists() else Cache.build(studies(*made), grid, any2all.BRAIN, place)
    config = dataclasses.replace(any2all.small(), components=0)  # as the model that comes along was trained
    method = any2all.build(config)
    # the few real studies, brain alone, are drawn more often than they are many: users' scans look like them
    bare = tuple(e for e in cache.entries if e.label.startswith("sub-bare"))
    mixed = dataclasses.replace(cache, entries=cache.entries + bare * 4)
    plan = Plan(
        minutes=args.minutes, batch=16, rate=1e-3, warmup=200, ema=0.999, seed=SEED, save_every=500, log_every=10
    )
    run = args.out / "run"
    done = fit(method, prefetch(lambda k: mixed.batch(k, plan.batch, SEED, CROP)), run, plan, resume=holds_run(run))

    stacks = (cache.stack(label) for label in cache.labels)
    card = {
        "name": "amodal default",
        "training": {
            "cohorts": {
                name: {"n": n, "seed": seed, "config": {**to_dict(c), "labelmap": c.labelmap and Path(c.labelmap).name}}
                for name, (n, seed, c) in cohorts(args.labelmaps).items()
            },
            "real": "open-ms-raw (CC BY 4.0), with head and stripped" if args.real else None,
            "studies": len(cache),
            "steps": done.steps,
            "seconds": done.seconds,
            "crop": CROP,
            "plan": to_dict(plan),
        },
        "licence": "Apache-2.0",
        "baselines": Baselines.fit(stacks, config.modalities).to_dict(),
    }  # fmt: skip
    folder = Model("any2all", method.eval(), grid, cache.windows(), json.loads(json.dumps(card, default=str))).save(
        args.out / "model", half=True
    )
    print(f"{done.steps} steps, loss {done.loss:.4f}: {folder}")


if __name__ == "__main__":
    main()

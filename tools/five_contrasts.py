"""Makes the prior of T1w, FLAIR, T2starw, CT and PET: `python tools/five_contrasts.py --out runs/five --minutes 70`.

Trained on virtual subjects: half of them with skull and scalp (CT needs the skull, the scanner's k-space the head),
half with the brain alone. Goes on where it stopped if it is called again; the model so far, of averaged weights, is
written to `--out`/model every quarter of an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from amodal.core.config import to_dict
from amodal.core.contract import Grid
from amodal.data.dataset import Cache, prefetch
from amodal.data.phantom import PhantomConfig, subject, to_study
from amodal.data.volume import Study
from amodal.methods import any2all
from amodal.metrics.baselines import Baselines
from amodal.model import Model
from amodal.model.outline import Outlines
from amodal.train.engine import fit, holds_run
from amodal.train.plan import Plan

CROP, SEED, EVERY, ALONE, TILT = (96, 96), 0, 15 * 60, 0.4, 1.3
FIVE = ("T1w", "FLAIR", "T2starw", "CT", "PET")
_HEAD = {"modalities": FIVE, "shape": (128, 144, 120), "head": True, "stripped": False}
_BRAIN = {"modalities": FIVE, "shape": (112, 128, 104)}
COHORTS: dict[str, tuple[int, int, PhantomConfig]] = {  # name -> (subjects, seed, config)
    "brain": (20, 31, PhantomConfig(**_BRAIN, protocol_jitter=0.15)),
    "head": (24, 32, PhantomConfig(**_HEAD, protocol_jitter=0.15)),
    "wide": (10, 33, PhantomConfig(**_BRAIN, protocol_jitter=0.3, misregistration=0.3, lesions=0.6, noise=0.03)),
    "widehead": (6, 34, PhantomConfig(**_HEAD, protocol_jitter=0.3, misregistration=0.3, noise=0.03)),
}


def config() -> any2all.Config:
    """The default model's network, with five channels and times."""
    small, n = any2all.small(), len(FIVE)
    net = dataclasses.replace(small.net, in_channels=n, out_channels=n, times=n)
    return dataclasses.replace(small, modalities=FIVE, net=net)


def virtual(workers: int) -> Iterator[Study]:
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for name, (n, seed, settings) in COHORTS.items():
            for i, one in enumerate(pool.map(subject, range(n), [seed] * n, [settings] * n)):
                print(f"{name} {i + 1} of {n}", flush=True)
                yield dataclasses.replace(to_study(one), subject=f"sub-{name}{i:03d}")


def card(cache: Cache, plan: Plan, steps: int, seconds: float, baselines: dict) -> dict:
    training = {
        "cohorts": {name: {"n": n, "seed": seed, "config": to_dict(c)} for name, (n, seed, c) in COHORTS.items()},
        "studies": len(cache), "steps": steps, "seconds": round(seconds), "crop": CROP, "plan": to_dict(plan),
    }  # fmt: skip
    made = {"name": "five contrasts", "training": training, "licence": "Apache-2.0", "baselines": baselines}
    return json.loads(json.dumps(made, default=str))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--minutes", type=float, default=70)
    options.add_argument("--tune", type=float, default=45, help="minutes with nothing given more often, at the end")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--device", default="auto")
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    grid, place, run = Grid(), args.out / "cache", args.out / "run"
    cache = Cache.open(place) if place.exists() else Cache.build(virtual(args.workers), grid, FIVE, place)
    torch.manual_seed(SEED)
    method = any2all.build(config())
    plan = Plan(
        minutes=args.minutes, batch=16, rate=1e-3, warmup=200, ema=0.999, seed=SEED, save_every=250, validate_every=250,
        log_every=10,
    )  # fmt: skip
    baselines = Baselines.fit((cache.stack(label) for label in cache.labels), FIVE).to_dict()
    outlines = Outlines.of(cache)
    begun = last = time.monotonic()

    def export(steps: int) -> Path:
        about = card(cache, plan, steps, time.monotonic() - begun, baselines)
        made = Model(
            "any2all", method, grid, cache.windows(), card=about, quantities=cache.quantities, outlines=outlines
        )
        return made.save(args.out / "model", half=True)

    def so_far(_: torch.nn.Module, step: int, __: Path) -> Mapping[str, float]:
        nonlocal last
        if time.monotonic() - last > EVERY or step == plan.validate_every:
            last = time.monotonic()
            export(step)
        return {}

    batches = prefetch(lambda k: cache.batch(k, plan.batch, SEED, CROP))
    done = fit(method, batches, run, plan, device=args.device, resume=holds_run(run), validate=so_far)
    print(f"{done.steps} steps, loss {done.loss:.4f}: {export(done.steps)}")
    if args.tune:
        # the mix of training favours subjects that lack little, and much noise; what is generated, or measured alone,
        # has nothing given, and has to lose its last noise too
        method.config = dataclasses.replace(method.config, alone=ALONE, tilt=TILT)
        tuning = dataclasses.replace(plan, minutes=args.tune, rate=5e-4, warmup=50, seed=SEED + 1)
        run = args.out / "tune"
        batches = prefetch(lambda k: cache.batch(k, plan.batch, SEED + 1, CROP))
        tuned = fit(method, batches, run, tuning, device=args.device, resume=holds_run(run), validate=so_far)
        print(f"{tuned.steps} steps of tuning, loss {tuned.loss:.4f}: {export(done.steps + tuned.steps)}")


if __name__ == "__main__":
    main()

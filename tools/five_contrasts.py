"""Makes the prior of T1w, FLAIR, T2starw, CT and PET: `python tools/five_contrasts.py --out runs/five`.

Trained on virtual subjects: half of them with skull and scalp (CT needs the skull, the scanner's k-space the head),
half with the brain alone. In three stages: crops; crops with every amount of noise alike, for what is drawn has to lose
its last noise; whole slices, for what is made from nothing has to be a head. Goes on where it stopped if it is called
again; the model so far, of averaged weights, is written to `--out`/model every quarter of an hour.
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
from amodal.core.contract import Batch, Grid
from amodal.data.dataset import Cache, prefetch
from amodal.data.phantom import PhantomConfig, subject, to_study
from amodal.data.volume import Study
from amodal.methods import any2all
from amodal.metrics.baselines import Baselines
from amodal.model import Model
from amodal.model.outline import Outlines
from amodal.train.engine import fit, holds_run
from amodal.train.plan import Plan

SEED, EVERY, DRAWS = 0, 15 * 60, 2
FIVE = ("T1w", "FLAIR", "T2starw", "CT", "PET")
_HEAD = {"modalities": FIVE, "shape": (128, 144, 120), "head": True, "stripped": False}
_BRAIN = {"modalities": FIVE, "shape": (112, 128, 104)}
COHORTS: dict[str, tuple[int, int, PhantomConfig]] = {  # name -> (subjects, seed, config)
    "brain": (20, 31, PhantomConfig(**_BRAIN, protocol_jitter=0.15)),
    "head": (24, 32, PhantomConfig(**_HEAD, protocol_jitter=0.15)),
    "wide": (10, 33, PhantomConfig(**_BRAIN, protocol_jitter=0.3, misregistration=0.3, lesions=0.6, noise=0.03)),
    "widehead": (6, 34, PhantomConfig(**_HEAD, protocol_jitter=0.3, misregistration=0.3, noise=0.03)),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A stage: minutes, crop, batch, learning rate, and what `any2all.Config` calls `alone` and `tilt`."""

    minutes: float
    crop: tuple[int, int]
    batch: int
    rate: float
    warmup: int
    ema: float
    alone: float
    tilt: float


PARTS = {
    "crops": Part(70, (96, 96), 16, 1e-3, 200, 0.999, 0.0, 0.6),
    "low-noise": Part(60, (96, 96), 16, 7e-4, 50, 0.998, 0.3, 1.0),
    "whole": Part(32, (128, 144), 8, 6e-4, 50, 0.998, 0.35, 0.6),
}


def config() -> any2all.Config:
    """The default model's network, with five channels and times."""
    small, n = any2all.small(), len(FIVE)
    net = dataclasses.replace(small.net, in_channels=n, out_channels=n, times=n)
    return dataclasses.replace(small, modalities=FIVE, net=net, components=0)  # as the model that comes along


def virtual(workers: int) -> Iterator[Study]:
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for name, (n, seed, settings) in COHORTS.items():
            for i, one in enumerate(pool.map(subject, range(n), [seed] * n, [settings] * n)):
                print(f"{name} {i + 1} of {n}", flush=True)
                yield dataclasses.replace(to_study(one), subject=f"sub-{name}{i:03d}")


def card(cache: Cache, done: dict[str, int], seconds: float, baselines: dict) -> dict:
    training = {
        "cohorts": {name: {"n": n, "seed": seed, "config": to_dict(c)} for name, (n, seed, c) in COHORTS.items()},
        "studies": len(cache), "seconds": round(seconds), "steps": done,
        "stages": {name: to_dict(part) for name, part in PARTS.items()},
    }  # fmt: skip
    made = {"name": "five contrasts", "training": training, "licence": "Apache-2.0", "baselines": baselines}
    return json.loads(json.dumps(made, default=str))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--share", type=float, default=1.0, help="of the minutes of each stage")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--device", default="auto")
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    grid, place = Grid(), args.out / "cache"
    cache = Cache.open(place) if place.exists() else Cache.build(virtual(args.workers), grid, FIVE, place)
    torch.manual_seed(SEED)
    method = any2all.build(config())
    baselines = Baselines.fit((cache.stack(label) for label in cache.labels), FIVE).to_dict()
    outlines, done = Outlines.of(cache), {}
    begun = last = time.monotonic()

    def export() -> Path:
        about = card(cache, done, time.monotonic() - begun, baselines)
        made = Model(
            "any2all", method, grid, cache.windows(), card=about, quantities=cache.quantities, outlines=outlines
        )
        return made.save(args.out / "model", half=True)

    for number, (name, part) in enumerate(PARTS.items()):
        method.config = dataclasses.replace(method.config, alone=part.alone, tilt=part.tilt, draws=DRAWS)
        plan = Plan(
            minutes=args.share * part.minutes, batch=part.batch, rate=part.rate, warmup=part.warmup, ema=part.ema,
            seed=SEED + number, save_every=250, validate_every=250, log_every=10,
        )  # fmt: skip

        def so_far(_: torch.nn.Module, step: int, __: Path, name: str = name) -> Mapping[str, float]:
            nonlocal last
            done[name] = step
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                export()
            return {}

        def drawn(k: int, part: Part = part, seed: int = plan.seed) -> Batch:
            return cache.batch(k, part.batch, seed, part.crop)

        run = args.out / name
        made = fit(method, prefetch(drawn), run, plan, device=args.device, resume=holds_run(run), validate=so_far)
        done[name] = made.steps
        print(f"{name}: {made.steps} steps, loss {made.loss:.4f}: {export()}")


if __name__ == "__main__":
    main()

"""The comparisons of the APT paper on unseen virtual subjects: `python benchmarks/apt.py WHAT --model RUN`.

    guess      the guesses themselves, no network: which ranking, retrieval, random
    start      the start step M (Table 5)
    steps      the number of steps S
    prior      what stage 1 begins with: zero, noise, random or adaptive prior; which ranking, retrieval (Table 3)
    unroll     iterations N of stage 2 (Table 4)
    parts      U, U+A, U+A+I (Table 2)
    patterns   every missing pattern, beside both baselines (Tables 6 and 7)
    guidance   the strength of the gradient step, no step, and the step without a strength (known modalities noised)
    features   what the prior makes of the anatomical features: those of the slice, of another one
    cost       network evaluations and seconds a slice, beside plain DDIM and DDIM from the guess
    stripes    one whole volume: through-plane gradient energy over the truth's, seconds

Slices are taken at even distances from each subject; PSNR (data range 1, pooled over a subject's slices) and SSIM (mean
over slices) inside the head; means over subjects, then mean and SD over seeds. `--known noised` is the paper's way,
`--known held` shows what is known clean; a model that was trained with `given` can do both.
Results: `benchmarks/results/apt.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amodal.core.contract import Batch
from amodal.core.rng import Rng
from amodal.data.dataset import Cache
from amodal.data.intensity import Window
from amodal.data.phantom import PhantomConfig, subject, to_study
from amodal.diffusion.samplers import ddim
from amodal.methods.apt import APT
from amodal.methods.apt.inference import falling, noised
from amodal.metrics.baselines import KINDS, Baselines
from amodal.metrics.image import psnr, ssim, stripe_ratio
from amodal.model import Model, load

SEED = 7000  # never trained on
HEAD = -0.9
Settings = dict[str, Any]
Made = Callable[[Batch, int], Tensor]  # (slices with some hidden, seed) -> completed slices

BOTH: Settings = {"guess": "adaptive"}  # both stages, begun by the book
MEAN: Settings = {"guess": "mean", "steps": 0}  # no stage: what the prior expects, given what it is shown
ALONE: Settings = {**BOTH, "unroll": 0}  # stage 1 by itself
AT_400: Settings = {**ALONE, "start": 400}  # the paper's M
NOISED: Settings = {**ALONE, "known": "noised"}
ROWS: dict[str, dict[str, Settings]] = {
    "start": {f"M = {m}": {**ALONE, "start": m, "near": min(40, m)} for m in (1000, 700, 400, 200, 100, 40)},
    "steps": {f"S = {s}": {**ALONE, "steps": s} for s in (1, 2, 5, 10, 20)},
    "prior": {
        "zero": {**AT_400, "guess": "zero"},
        "noise": {**AT_400, "guess": "noise"},
        "mean": {**AT_400, "guess": "mean", "known": "held"},
        "random": {**AT_400, "guess": "random"},
        "adaptive, by votes": {**AT_400, "ranking": "votes"},
        "adaptive, by error": {**AT_400, "ranking": "error"},
        "adaptive, 8 retrieved": {**AT_400, "retrieve": 8},
    },
    "unroll": {f"N = {n}": {**BOTH, "unroll": n} for n in (0, 5, 10, 25, 50)},
    "parts": {
        "U, M = 1000, S = 50": {**AT_400, "guess": "noise", "start": 1000, "steps": 50},
        "U, M = 1000, S = 20": {**AT_400, "guess": "noise", "start": 1000, "steps": 20},
        "U, M = 400, S = 20": {**AT_400, "guess": "noise", "steps": 20},
        "U+A, M = 400, S = 20": {**AT_400, "steps": 20},
        "U+A+I, N = 10": {**AT_400, "steps": 20, "unroll": 10},
    },
    "guidance": {
        "none": {**NOISED, "start": 400, "guidance": "none"},
        **{f"pull, {a:g}": {**NOISED, "start": 400, "guidance": "pull", "strength": float(a)} for a in (5, 20, 50)},
        "exact": {**NOISED, "start": 400, "guidance": "exact"},
    },
}


def stacks(args: argparse.Namespace, model: Model) -> Iterator[Tensor]:
    """The slices of unseen subjects [Z, M, X, Y], cropped to the head."""
    for index in range(args.subjects):
        if args.cache is not None:
            cache = Cache.open(args.cache)
            whole = cache.stack(cache.labels[index])[0]
        else:
            spacing = model.grid.spacing[0][0]
            size = tuple(int(16 * np.ceil(n / spacing / 16)) for n in (176, 208, 160))
            study = to_study(subject(index, SEED, PhantomConfig(shape=size, spacing=spacing)))
            parts = [study[m].data for m in model.modalities]
            whole = np.stack([Window.of(p, model.grid.percentiles).enter(p) for p in parts])
        there = (whole > HEAD).any(0)
        x, y, z = (np.flatnonzero(there.any(tuple({0, 1, 2} - {axis}))) for axis in range(3))
        x, y = (slice(max(0, v[0] - 2), v[-1] + 3) for v in (x, y))
        planes = (
            range(z[0], z[-1] + 1) if args.slices == 0 else np.linspace(z[0], z[-1], args.slices + 2)[1:-1].astype(int)
        )
        yield torch.from_numpy(np.ascontiguousarray(np.moveaxis(whole[:, x, y][..., list(planes)], -1, 0)))


def hide(images: Tensor, hidden: Sequence[int]) -> Batch:
    present = torch.ones(len(images), images.shape[1], 1, 1, dtype=torch.bool)
    present[:, list(hidden)] = False
    return Batch(torch.where(present, images, torch.full_like(images, -1.0)), present)


def scores(made: Tensor, truth: Tensor, target: int) -> tuple[float, float]:
    """PSNR pooled over the slices and SSIM averaged over them, of one modality."""
    head = (truth > HEAD).any(1).numpy()
    a, b = (((x[:, target] + 1) / 2).numpy() for x in (made, truth))
    every = [ssim(p, q, 1.0, h) for p, q, h in zip(a, b, head) if h.sum() > 100]
    return psnr(a.reshape(len(a), -1), b.reshape(len(b), -1), 1.0, head.reshape(len(a), -1)), float(np.mean(every))


def measure(make: Made, subjects: Sequence[Tensor], patterns: Sequence[Sequence[int]], seeds: int) -> dict[str, Any]:
    """Means over subjects and hidden modalities for every seed: mean and SD of PSNR and SSIM, PSNR by pattern."""
    start, found = time.perf_counter(), []
    for seed in range(seeds):
        for number, images in enumerate(subjects):
            for hidden in patterns:
                made = make(hide(images, hidden), seed).float().clamp(-1, 1)
                found += [(seed, number, hidden, m, *scores(made, images, m)) for m in hidden]
    by_seed = [[np.mean([row[k] for row in found if row[0] == s]) for k in (4, 5)] for s in range(seeds)]
    (a, b), (da, db) = np.mean(by_seed, 0), np.std(by_seed, 0, ddof=1) if seeds > 1 else (0.0, 0.0)
    detail = {}
    for hidden in patterns:
        for m in hidden:
            detail[f"{'+'.join(map(str, hidden))}:{m}"] = float(np.mean([r[4] for r in found if r[2:4] == (hidden, m)]))
    seconds = (time.perf_counter() - start) / sum(len(x) for x in subjects) / seeds / len(patterns)
    row = {"psnr": a, "psnr_sd": da, "ssim": b, "ssim_sd": db, "seconds_a_slice": seconds}
    return {k: round(float(v), 4) for k, v in row.items()} | {"psnr_by_pattern": detail}


def with_settings(method: APT, settings: Settings) -> Made:
    def make(batch: Batch, seed: int) -> Tensor:
        kept = method.config
        try:
            method.config = dataclasses.replace(kept, **settings)
            return method.complete(batch, Rng.of(seed, len(batch), "benchmark"))
        finally:
            method.config = kept

    return make


def with_features_of(method: APT, shift: int) -> Made:
    """The prior is told the features of the slice `shift` places on."""
    make, kept = with_settings(method, ALONE), method._tokens

    def made(batch: Batch, seed: int) -> Tensor:
        method._tokens = lambda images, present: kept(images, present).roll(shift, 0)  # type: ignore[method-assign]
        try:
            return make(batch, seed)
        finally:
            method._tokens = kept  # type: ignore[method-assign]

    return made


def guesses(method: APT, settings: Settings) -> Made:
    """What stage 1 would begin with."""

    def make(batch: Batch, seed: int) -> Tensor:
        kept, present = method.config, batch.present.expand_as(batch.images)
        try:
            method.config = dataclasses.replace(kept, **settings)
            with torch.no_grad():
                return method._guess(batch.images, present, Rng.of(seed, len(batch), "benchmark"))
        finally:
            method.config = kept

    return make


def plain(method: APT, steps: int, start: int, guess: str) -> Made:
    """Deterministic DDIM with the known channels replaced: from noise, or from the noised guess."""

    def make(batch: Batch, seed: int) -> Tensor:
        present, rng = batch.present.expand_as(batch.images), Rng.of(seed, len(batch), "benchmark")
        kept, process = method.config, method.prior.process
        try:
            method.config = dataclasses.replace(kept, guidance="none", guess=guess)
            with torch.no_grad():
                tokens = method._tokens(batch.images, present)
                first = torch.where(present, batch.images, method._guess(batch.images, present, rng))
                denoise = method._bent(batch.images, present, tokens)
                times = falling(start, steps)
                return ddim(denoise, process, noised(process, first, times[0], rng), times)
        finally:
            method.config = kept

    return make


def baseline(model: Model, kind: str) -> Made:
    fitted = Baselines.from_dict(model.card["baselines"])

    def make(batch: Batch, seed: int) -> Tensor:
        out, there = batch.images.clone(), batch.present[0].flatten().numpy()
        volume = np.moveaxis(batch.images.numpy(), 0, -1)
        for m in np.flatnonzero(~there):
            made = fitted.predict(volume, there, model.modalities[m], kind)  # type: ignore[arg-type]
            out[:, m] = torch.from_numpy(np.moveaxis(made, -1, 0).astype(np.float32))
        return out

    return make


def table(rows: dict[str, Made], subjects: Sequence[Tensor], patterns: Sequence[Sequence[int]], seeds: int) -> dict:
    out = {}
    for name, make in rows.items():
        out[name] = found = measure(make, subjects, patterns, seeds)
        print(f"{name:28} {found['psnr']:6.2f} +- {found['psnr_sd']:.2f} dB   SSIM {found['ssim']:.3f}   "
              f"{found['seconds_a_slice']:.3f} s/slice", flush=True)  # fmt: skip
    return out


def stripes(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """One whole volume, its FLAIR (or last modality) hidden."""
    args.slices, args.subjects = 0, 1
    images, last, out = next(stacks(args, model)), len(model.modalities) - 1, {}
    head = np.moveaxis((images > HEAD).any(1).numpy(), 0, -1)
    truth = np.moveaxis(((images[:, last] + 1) / 2).numpy(), 0, -1)
    rows = {"the mean": MEAN, "stage 1": ALONE, "both stages": BOTH,
            "both stages, slices not coupled": {**BOTH, "coupling": 0.0}}  # fmt: skip
    for name, settings in rows.items():
        start = time.perf_counter()
        made = with_settings(model.method, settings)(hide(images, (last,)), 0)
        volume = np.moveaxis(((made[:, last] + 1) / 2).numpy(), 0, -1)
        found = {"stripes": stripe_ratio(volume, [truth], head), "seconds": time.perf_counter() - start}
        out[name] = {**found, "psnr": psnr(volume, truth, 1.0, head), "slices": len(images)}
        print(name, out[name], flush=True)
    return out


def run(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    method: APT = model.method
    known = args.known or method.config.known
    guess = method.config.guess if known == "held" else "adaptive"
    method.config = dataclasses.replace(method.config, known=known, guess=guess)
    if args.what == "stripes":
        return stripes(model, args)
    subjects, n = list(stacks(args, model)), len(model.modalities)
    single = [(m,) for m in range(n)]
    if args.what == "patterns":
        every = [hidden for size in range(1, n) for hidden in combinations(range(n), size)]
        settings = {"both stages": BOTH, "both stages from the mean": {"guess": "mean"}, "the mean": MEAN}
        rows = {name: with_settings(method, s) for name, s in settings.items() if args.only in name}
        found = table(rows, subjects, every, args.seeds)
        return found | table({kind: baseline(model, kind) for kind in KINDS}, subjects, every, 1)
    if args.what == "cost":
        rows = {
            "both stages": with_settings(method, BOTH), "stage 1": with_settings(method, ALONE),
            "the mean": with_settings(method, MEAN),
            **{f"DDIM from noise, {s}": plain(method, s, 1000, "noise") for s in (10, 20)},
            **{f"DDIM from the guess, {s}": plain(method, s, method.config.start, "adaptive") for s in (5,)},
        }  # fmt: skip
        return table(rows, subjects, single, args.seeds)
    if args.what == "features":
        rows = {name: with_features_of(method, shift) for name, shift in (("the slice's own", 0), ("another's", 1))}
        return table(rows, subjects, single, args.seeds)
    if args.what == "guess":
        rows = {name: guesses(method, s) for name, s in ROWS["prior"].items() if name not in ("zero", "noise", "mean")}
        return table(rows, subjects, single, args.seeds)
    chosen = {name: with_settings(method, s) for name, s in ROWS[args.what].items() if args.only in name}
    return table(chosen, subjects, single, args.seeds)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=[*ROWS, "guess", "features", "patterns", "cost", "stripes"])
    options.add_argument("--model", required=True, help="a model trained by `amodal train apt`")
    options.add_argument("--subjects", type=int, default=4)
    options.add_argument("--slices", type=int, default=6, help="of each subject")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--known", choices=["held", "noised"], help="in place of the model's own way")
    options.add_argument("--name", default="", help="of the result, in place of what is compared")
    options.add_argument("--only", default="", help="only rows whose name holds this")
    options.add_argument("--cache", type=Path, help="a cache of unseen subjects, in place of new virtual ones")
    options.add_argument("--precision", default="auto")
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "apt.json")
    args = options.parse_args()
    torch.set_num_threads(1)
    model = load(args.model, device="cpu", precision=args.precision)
    about = {"model": model.sha256, "subjects": args.subjects, "slices": args.slices, "seeds": args.seeds}
    about |= {"known": args.known or model.method.config.known, "precision": model.precision}
    found = {**about, "rows": run(args, model)}
    name = args.name or (f"{args.what}, {args.known}" if args.known else args.what)
    kept = json.loads(args.out.read_text()) if args.out.is_file() else {}
    args.out.write_text(json.dumps({**kept, name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

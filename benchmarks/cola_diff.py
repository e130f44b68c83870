"""CoLa-Diff's comparisons: `python benchmarks/cola_diff.py TRAIN TEST --out FOLDER [--steps 500] [--any-minutes 30]`.

Both data sets as `amodal phantom` makes them (or real ones). One codec is trained for all, and measured: what it loses
no network brings back. Measured on TEST, whose subjects are never trained on:

- the paper's Table 2 (top): networks that make --target alone, with its four components taken out one by one, and with
  ours beside them, --seeds times each, for --steps each: PSNR, SSIM and their SD over seeds
- one network that makes any contrast from any others, for --any-minutes: every contrast from all others beside both
  baselines; the target from more and more inputs (Table 2, bottom); how the SD map of 8 draws correlates with the
  absolute error of their mean, in the head, in every 16th slice

What is done already is found in FOLDER and not done again. Writes FOLDER/results.json, prints the tables, and leaves
the network of any contrast in FOLDER/model, for `amodal complete --model`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from amodal.cli import guides, present
from amodal.core.config import override
from amodal.core.rng import seed_of
from amodal.data import layouts
from amodal.data.dataset import INDEX, Cache, prefetch
from amodal.data.intensity import Window
from amodal.data.volume import Study, Volume
from amodal.methods import cola_diff
from amodal.metrics.baselines import Baselines
from amodal.metrics.image import head_mask
from amodal.model import Model
from amodal.train.engine import fit
from amodal.train.plan import Plan

PAPER = "components=0"  # conditions alone, no estimate to begin with
# what is taken out, as settings of the config
ROWS: dict[str, tuple[str, ...]] = {
    "all": (PAPER,),
    "without the modified network": (PAPER, "net.modified=false"),
    "without structural guidance": (PAPER, "guidance=false"),
    "without auto-weight adaptation": (PAPER, "net.weighting=false"),
    "without cooperative filtering": (PAPER, "net.filtering=false"),
    "all, and begun with the voxelwise estimate": (),
}
GROWING = ("T1w", "T1Gd", "FLAIR", "T2w")  # inputs, one more at a time (less the target)
WARMUP, EMA = 50, 0.99  # of the runs, which are short
DRAWS, EVERY, WATCHED = 8, 16, 6  # for the correlation: draws, of how many slices one is taken, subjects


def studies(args: argparse.Namespace) -> list[Study]:
    """The test subjects with their tissue maps (a map of a hidden contrast is never used)."""
    read = partial(guides.read, method="cola_diff", config=args.config, folder=args.out / "tissue-test")
    return [read(source) for source in layouts.find(args.test)]


def cached(args: argparse.Namespace) -> Cache:
    folder = args.out / "cache"
    if (folder / INDEX).is_file():
        return Cache.open(folder)
    read = partial(guides.read, method="cola_diff", config=args.config, folder=args.out / "tissue-train")
    grid = cola_diff.grid(args.config)
    return Cache.build(map(read, layouts.find(args.train)), grid, args.config.modalities, folder)


def train(args: argparse.Namespace, config: Any, cache: Cache, name: str, plan: Plan) -> Any:
    """The codec's stages, or the prior's with the codec found in FOLDER/codec; the trained method."""
    torch.manual_seed(seed_of(plan.seed, "weights"))
    net, folder, prior = cola_diff.build(config), args.out / name, name != "codec"
    weights, codec = folder / "weights.safetensors", args.out / "codec" / "weights.safetensors"
    if prior:
        net.codec.load_state_dict(load_file(codec))
    if weights.is_file():
        (net if prior else net.codec).load_state_dict(load_file(weights))
        return net.eval().requires_grad_(False)
    chosen = net.stages()[-1:] if prior else net.stages()[:-1]
    share = sum(s.share for s in chosen)
    net.stages = lambda: tuple(dataclasses.replace(s, share=s.share / share) for s in chosen)
    data = prefetch(lambda k: cache.batch(k, plan.batch, plan.seed, args.crop))
    if fit(net, data, folder, plan, device=args.device, resume=True, quiet=True).stopped:
        raise SystemExit("stopped by a signal; the same command goes on.")
    part = folder / ".weights.part"
    save_file({k: v.contiguous() for k, v in (net if prior else net.codec).cpu().state_dict().items()}, part)
    os.replace(part, weights)
    return net.eval().requires_grad_(False)


def reconstructed(net: Any, subjects: list[Study]) -> dict[str, list[float]]:
    """PSNR of the codec alone, in the head, on the data's own grid: modality -> one value a subject."""
    found: dict[str, list[float]] = {}
    for study in subjects:
        unit = {m: Window.of(study[m].data).enter(study[m].data) for m in net.modalities if m in study}
        mask = head_mask((np.stack(list(unit.values())) + 1) / 2)
        for name, image in unit.items():
            slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))[:, None]
            with torch.inference_mode():
                made = np.moveaxis(net.codec(slices)[:, 0].clamp(-1, 1).numpy(), 0, -1)
            found.setdefault(name, []).append(float(-10 * np.log10(np.square((made - image)[mask] / 2).mean())))
    return found


def scored(
    model: Model, subjects: list[Study], inputs: Callable[[str], tuple[str, ...]], targets: tuple[str, ...]
) -> Any:
    """target -> made by -> metric -> one value a subject."""
    out: dict[str, dict[str, dict[str, list[float]]]] = {}
    for study in subjects:
        for name in targets:
            seen = study.only(*inputs(name), name)
            done = model.complete(seen.without(name), [name])
            for who, row in present.scores(model, seen, done, (name,))[name].items():
                for metric, value in row.items():
                    out.setdefault(name, {}).setdefault(who, {}).setdefault(metric, []).append(value)
    return out


def thinned(study: Study) -> Study:
    """Every `EVERY`th axial slice of a study."""
    affine = study[study.reference].affine @ np.diag([1, 1, EVERY, 1])
    volumes = {m: Volume(study[m].data[..., ::EVERY], affine) for m in study}
    return dataclasses.replace(study, volumes=volumes, tissue={m: t[..., ::EVERY] for m, t in study.tissue.items()})


def correlation(model: Model, subjects: list[Study], name: str) -> list[float]:
    """r of SD and absolute error over the voxels of the head, one a subject."""
    found = []
    for study in subjects:
        unit = {m: (Window.of(study[m].data).enter(study[m].data) + 1) / 2 for m in study}
        mask = head_mask(np.stack(list(unit.values())))[..., ::EVERY]
        done = model.complete(thinned(study).without(name), [name], samples=DRAWS)
        error = np.abs(done.scaled[name] - unit[name][..., ::EVERY])[mask]
        found.append(float(np.corrcoef(done.scaled_spread[name][mask], error)[0, 1]))
    return found


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What is in the file, or what is made now and written there."""
    if not path.is_file():
        path.write_text(json.dumps(make()))
        print(f"{path.stem}: done", flush=True)
    return json.loads(path.read_text())


def model_of(args: argparse.Namespace, settings: tuple[str, ...], name: str, plan: Plan, cache: Cache) -> Model:
    config = override(args.config, settings)
    net = train(args, config, cache, name, plan).to(args.device)
    return Model("cola_diff", net, cola_diff.grid(config), cache.windows(), {"baselines": args.baselines})


def slug(row: str) -> str:
    return row.replace(",", "").replace(" ", "-")


def run_row(args: argparse.Namespace, row: str, seed: int, cache: Cache, subjects: list[Study]) -> Any:
    """A network of one target, trained and measured."""
    settings = (*ROWS[row], f"target={args.target}", *args.row_set)
    plan = Plan(steps=args.steps, batch=args.batch, seed=seed, warmup=WARMUP, ema=EMA)
    model = model_of(args, settings, f"{slug(row)}-{seed}", plan, cache)
    return scored(model, subjects, lambda t: tuple(m for m in model.modalities if m != t), (args.target,))


def run_any(args: argparse.Namespace, cache: Cache, subjects: list[Study]) -> Any:
    """One network of any target, trained and measured."""
    plan = Plan(minutes=args.any_minutes, batch=args.batch, warmup=WARMUP, ema=EMA)
    model = model_of(args, (), "any", plan, cache)
    model.save(args.out / "model")
    every = model.modalities
    inputs = [m for m in GROWING if m in every and m != args.target]
    grow = [tuple(inputs[: i + 1]) for i in range(len(inputs))]
    return {
        "others": scored(model, subjects, lambda t: tuple(m for m in every if m != t), every),
        "growing": {"+".join(g): scored(model, subjects, lambda _, g=g: g, (args.target,))[args.target] for g in grow},
        "r": {t: correlation(model, subjects[:WATCHED], t) for t in every},
    }


def mean_sd(values: list[float], digits: int = 2) -> str:
    sd = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {sd:.{digits}f}"


def show(found: dict[str, Any], target: str) -> None:
    print("\nThe codec alone: PSNR (mean over subjects)\n")
    print(", ".join(f"{name} {np.mean(values):.1f}" for name, values in found["codec"].items()))
    print(f"\n{target} from all others, components taken out (mean over subjects, ± SD over seeds)")
    print("\n| | PSNR | SSIM |\n|---|---|---|")
    for row, runs in found["rows"].items():
        per = [[float(np.mean(run[target]["model"][m])) for run in runs] for m in ("psnr", "ssim")]
        print(f"| {row} | {mean_sd(per[0])} | {mean_sd(per[1], 4)} |")
    if (one := found.get("any")) is None:
        return
    print("\nEvery contrast from all others, PSNR / SSIM (mean ± SD over subjects)\n")
    print("| target | this model | " + " | ".join(k for k in next(iter(one["others"].values())) if k != "model") + " |")
    for name, who in one["others"].items():
        print(
            f"| {name} | " + " | ".join(f"{mean_sd(v['psnr'])} / {mean_sd(v['ssim'], 3)}" for v in who.values()) + " |"
        )
    print(f"\n{target} from more inputs\n\n| inputs | PSNR | SSIM | regression |\n|---|---|---|---|")
    for name, who in one["growing"].items():
        cells = [mean_sd(who["model"]["psnr"]), mean_sd(who["model"]["ssim"], 3), mean_sd(who["regression"]["psnr"])]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\nSD of {DRAWS} draws and absolute error, r in the head")
    print(", ".join(f"{name} {np.mean(values):.2f}" for name, values in one["r"].items()))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("train", type=Path)
    options.add_argument("test", type=Path)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--preset", default="small")
    options.add_argument("--set", nargs="*", default=[], metavar="key=value")
    options.add_argument("--target", default="T2w")
    options.add_argument("--steps", type=int, default=500, help="of the prior, for each row and seed")
    options.add_argument(
        "--any-minutes", type=float, default=30.0, help="of the prior that makes any contrast; 0: none"
    )
    options.add_argument("--codec-minutes", type=float, default=10.0)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    options.add_argument("--row-set", nargs="*", default=[], metavar="key=value", help="settings of the rows alone")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--codec-batch", type=int, default=16)
    options.add_argument("--crop", type=int, nargs=2, default=(80, 96), help="voxels of a slice that are trained on")
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    args.config = override(cola_diff.PRESETS[args.preset](), args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    cache, subjects = cached(args), studies(args)
    args.baselines = Baselines.fit((cache.stack(label) for label in cache.labels), cache.modalities).to_dict()
    plan = Plan(minutes=args.codec_minutes, batch=args.codec_batch, warmup=WARMUP)
    codec = train(args, args.config, cache, "codec", plan)
    found = {"codec": kept(args.out / "codec.json", lambda: reconstructed(codec, subjects)), "rows": {}}
    for seed in range(args.seeds):  # a seed of all rows before the next: stopped early, the rows are comparable
        for row in args.rows:
            path = args.out / f"{slug(row)}-{seed}.json"
            found["rows"].setdefault(row, []).append(kept(path, partial(run_row, args, row, seed, cache, subjects)))
    if args.any_minutes:
        found["any"] = kept(args.out / "any.json", lambda: run_any(args, cache, subjects))
    (args.out / "results.json").write_text(json.dumps(found, indent=1))
    show(found, args.target)


if __name__ == "__main__":
    main()

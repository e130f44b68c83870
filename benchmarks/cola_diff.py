"""CoLa-Diff's comparisons: `python benchmarks/cola_diff.py TRAIN TEST --out FOLDER [--minutes 8] [--seeds 3]`.

Both data sets as `amodal phantom` makes them (or real ones). One codec is trained for all; then the latent space
network of each row below, for `--minutes` each, for every seed. Measured on TEST, whose subjects are never trained on:

- every contrast made from all others, beside both baselines
- the four components of the paper's Table 2 (top) taken out one by one: PSNR, SSIM and their SD over seeds
- T2w from more and more inputs (Table 2, bottom)
- how the SD map of 8 draws correlates with the absolute error, in the head

What is done already is found in FOLDER and not done again. Writes FOLDER/results.json and prints the tables.
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
from amodal.data.volume import Study
from amodal.methods import cola_diff
from amodal.metrics.baselines import Baselines
from amodal.metrics.image import head_mask
from amodal.model import Model
from amodal.train.engine import fit
from amodal.train.plan import Plan

# what is taken out, as settings of the config
ROWS: dict[str, tuple[str, ...]] = {
    "all": (),
    "without the modified network": ("net.modified=false",),
    "without structural guidance": ("guidance=false",),
    "without auto-weight adaptation": ("net.weighting=false",),
    "without cooperative filtering": ("net.filtering=false",),
}
GROWING = (("T1w",), ("T1w", "T1Gd"), ("T1w", "T1Gd", "FLAIR"))  # inputs of T2w
DRAWS = 8


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


def train(args: argparse.Namespace, config: Any, cache: Cache, folder: Path, seed: int, prior: bool) -> Any:
    """The codec's stages, or the prior's with the codec found in FOLDER/codec; the trained method."""
    torch.manual_seed(seed_of(seed, "weights"))
    net = cola_diff.build(config)
    weights, codec = folder / "weights.safetensors", args.out / "codec" / "weights.safetensors"
    if prior:
        net.codec.load_state_dict(load_file(codec))
    if weights.is_file():
        (net if prior else net.codec).load_state_dict(load_file(weights))
        return net.eval().requires_grad_(False)
    chosen = net.stages()[-1:] if prior else net.stages()[:-1]
    share = sum(s.share for s in chosen)
    net.stages = lambda: tuple(dataclasses.replace(s, share=s.share / share) for s in chosen)
    data = prefetch(lambda k: cache.batch(k, args.batch, seed, (args.crop,) * 2))
    plan = Plan(minutes=args.minutes if prior else args.codec_minutes, batch=args.batch, seed=seed)
    fit(net, data, folder, plan, device=args.device, resume=True, quiet=True)
    part = folder / ".weights.part"
    save_file({k: v.contiguous() for k, v in (net if prior else net.codec).cpu().state_dict().items()}, part)
    os.replace(part, weights)
    return net.eval().requires_grad_(False)


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


def correlation(model: Model, subjects: list[Study], name: str) -> list[float]:
    """r of SD and absolute error over the voxels of the head, one a subject."""
    found = []
    for study in subjects:
        done = model.complete(study.without(name), [name], samples=DRAWS)
        unit = {m: (Window.of(study[m].data).enter(study[m].data) + 1) / 2 for m in model.modalities}
        mask = head_mask(np.stack(list(unit.values())))
        error = np.abs(done.scaled[name] - unit[name])[mask]
        found.append(float(np.corrcoef(done.scaled_spread[name][mask], error)[0, 1]))
    return found


def run_row(args: argparse.Namespace, row: str, seed: int, cache: Cache, subjects: list[Study], card: Any) -> Any:
    """Train and measure one row with one seed, or find it done."""
    name = f"{row.replace(' ', '-')}-{seed}"
    place = args.out / f"{name}.json"
    if place.is_file():
        return json.loads(place.read_text())
    config = override(args.config, ROWS[row])
    net = train(args, config, cache, args.out / name, seed, prior=True).to(args.device)
    model = Model("cola_diff", net, cola_diff.grid(config), cache.windows(), {"baselines": card})
    every = config.modalities
    others = {"others": scored(model, subjects, lambda t: tuple(m for m in every if m != t), every)}
    if row == "all":
        grow = {"+".join(g): scored(model, subjects, lambda _, g=g: g, ("T2w",))["T2w"] for g in GROWING}
        others |= {"growing": grow, "r": {t: correlation(model, subjects, t) for t in every}}
    place.write_text(json.dumps(others))
    print(f"{row}, seed {seed}: done", flush=True)
    return others


def mean_sd(values: list[float], digits: int = 2) -> str:
    sd = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {sd:.{digits}f}"


def show(found: dict[str, list[Any]]) -> None:
    first = found["all"]
    print("\nEvery contrast from all others (mean over subjects, ± SD over seeds)\n")
    print("| target | this model | regression | best single |\n|---|---|---|---|")
    for target, who in first[0]["others"].items():
        cells = []
        for kind in who:
            per = [[float(np.mean(run["others"][target][kind][m])) for run in first] for m in ("psnr", "ssim")]
            cells.append(f"{mean_sd(per[0])} / {mean_sd(per[1], 3)}")
        print(f"| {target} | " + " | ".join(cells) + " |")
    print(
        "\nComponents taken out (mean over targets and subjects, ± SD over seeds)\n\n| | PSNR | SSIM |\n|---|---|---|"
    )
    for row, runs in found.items():
        per = {
            m: [float(np.mean([run["others"][t]["model"][m] for t in run["others"]])) for run in runs]
            for m in ("psnr", "ssim")
        }
        print(f"| {row} | {mean_sd(per['psnr'])} | {mean_sd(per['ssim'], 3)} |")
    print("\nT2w from more inputs\n\n| inputs | PSNR | SSIM |\n|---|---|---|")
    for inputs in first[0]["growing"]:
        per = {m: [float(np.mean(run["growing"][inputs]["model"][m])) for run in first] for m in ("psnr", "ssim")}
        print(f"| {inputs} | {mean_sd(per['psnr'])} | {mean_sd(per['ssim'], 3)} |")
    print(f"\nSD of {DRAWS} draws and absolute error, r in the head")
    for target in first[0]["r"]:
        print(f"{target}: {mean_sd([float(np.mean(run['r'][target])) for run in first])}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("train", type=Path)
    options.add_argument("test", type=Path)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--preset", default="small")
    options.add_argument("--set", nargs="*", default=[], metavar="key=value")
    options.add_argument("--minutes", type=float, default=8.0, help="of the prior, for each row and seed")
    options.add_argument("--codec-minutes", type=float, default=8.0)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--crop", type=int, default=112)
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    args.config = override(cola_diff.PRESETS[args.preset](), args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    cache, subjects = cached(args), studies(args)
    card = Baselines.fit((cache.stack(label) for label in cache.labels), cache.modalities).to_dict()
    train(args, args.config, cache, args.out / "codec", 0, prior=False)
    found = {r: [run_row(args, r, seed, cache, subjects, card) for seed in range(args.seeds)] for r in args.rows}
    (args.out / "results.json").write_text(json.dumps(found))
    show(found)


if __name__ == "__main__":
    main()

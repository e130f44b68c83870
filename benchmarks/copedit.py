"""The comparisons of the CoPeDiT paper, one command each, on any dataset.

    python benchmarks/copedit.py DATASET --what table4 --minutes 30 --seeds 0 1 2

    table4   the prior without each prompt, without all, with mask codes in their place
    table6   the tokenizer without each pretext task
    table7   the prior with prompts in the other blocks, in both
    table8   U-Net, DiT, DiT-3D, MDiT3D as the prior
    figure7  --model RUN: the prompts in two dimensions, by what is missing
    figure8  --model RUN: prompts of wrong patterns for a share of the subjects; zeroed, random, shuffled, swapped
    scores   --model RUN: against its own sketch, regression and the best single modality, or interpolation of slices
    steps    --model RUN: sampled in 1, 2, 5, 10, 25 and 50 steps

`--variants NAME ...` are those of a table that are trained. `--set prior.context=false` changes a setting for all: a
prior that is shown a sketch needs no prompt to know what is missing, so this is how they are judged on their own.
Brain or heart follows from `--preset` (small, small:heart, published:...) or the model. The last `--hold-out` subjects
are never trained on and all patterns of theirs are measured (hearts: gaps of a quarter, half and three quarters):
PSNR in dB and SSIM in the head, of [0, 1] by the image's own window. All priors of a table share one tokenizer, the
batches and the number of minutes or steps; a seed changes weights and noise. Results: benchmarks/results/copedit.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amodal.core.config import override
from amodal.core.contract import Batch
from amodal.core.rng import Rng, seed_of
from amodal.data import layouts
from amodal.data.dataset import INDEX, Cache, prefetch
from amodal.methods import copedit
from amodal.methods.copedit import patterns as missing_patterns
from amodal.methods.copedit.config import Config
from amodal.methods.copedit.patterns import telling
from amodal.methods.copedit.system import CoPeDiT
from amodal.methods.copedit.tokenizer import average
from amodal.metrics.baselines import KINDS, Baselines
from amodal.metrics.image import head_mask, psnr, ssim
from amodal.model import load
from amodal.model.slices import interpolated, upright
from amodal.preprocess.align import prepare
from amodal.train.engine import fit
from amodal.train.plan import Plan

Row = dict[str, Any]
PROMPTS = ("count", "position", "contrast")


# the variants of each table: name -> (config -> config)


def _without(prompt: str) -> Callable[[Config], Config]:
    return lambda c: replace(c, guidance=tuple(p for p in PROMPTS if p != prompt))


def _inject(where: str) -> Callable[[Config], Config]:
    return lambda c: replace(c, prior=replace(c.prior, inject=where))


def _untasked(task: str) -> Callable[[Config], Config]:
    return lambda c: replace(c, losses=replace(c.losses, **{task: 0.0}))


TABLES: dict[str, dict[str, Callable[[Config], Config]]] = {
    "table4": {
        "without count": _without("count"), "without position": _without("position"),
        "without contrast": _without("contrast"), "without prompts": lambda c: replace(c, guidance=()),
        "mask codes": lambda c: replace(c, guidance=("mask",)), "CoPeDiT": lambda c: c,
    },
    "table6": {**{f"without {task}": _untasked(task) for task in PROMPTS}, "CoPeVAE": lambda c: c},
    "table7": {"within slots": _inject("within"), "both": _inject("both"), "across slots": _inject("across")},
    "table8": {
        name: (lambda c, b=backbone: replace(c, backbone=b))
        for name, backbone in (("U-Net", "unet"), ("DiT", "dit"), ("DiT-3D", "dit3d"), ("MDiT3D", "mdit"))
    },
}  # fmt: skip


def train(config: Config, cache: Cache, out: Path, seed: int, choice: argparse.Namespace, tokenizer: Any) -> CoPeDiT:
    """A method trained as its config says; `tokenizer`: a trained one to start from, or None."""
    torch.manual_seed(seed_of(seed, "weights"))
    method = copedit.build(config)
    if tokenizer is not None:
        method.tokenizer.load_state_dict(tokenizer.state_dict())
    plan = Plan(choice.steps, choice.minutes, choice.batch, ema=choice.ema, warmup=choice.warmup, seed=seed)
    data = prefetch(lambda k: cache.batch(k, choice.batch, seed, config.size))
    fit(method, data, out, plan, device=choice.device, resume=True, quiet=choice.quiet)
    return method.eval().requires_grad_(False)


# measuring


def patterns(config: Config) -> Iterator[tuple[int, Tensor]]:
    """(how much is missing, present [1, M, 1, 1, 1 or Z]) of every pattern that is measured."""
    if config.layout == "modalities":
        for bits in itertools.product((True, False), repeat=len(config.modalities)):
            if 0 < sum(bits) < len(bits):
                yield len(bits) - sum(bits), torch.tensor(bits).reshape(1, -1, 1, 1, 1)
        return
    depth = config.size[2]
    for gap in (depth // 4, depth // 2, 3 * depth // 4):
        for start in {depth // 16, (depth - gap) // 2 + 1, depth - gap - depth // 16}:
            there = torch.ones(depth, dtype=torch.bool)
            there[start : start + gap] = False
            yield gap, there.reshape(1, 1, 1, 1, -1)


def unit(x: Any) -> np.ndarray:
    """[-1, 1] -> [0, 1]."""
    return (np.clip(np.asarray(x, np.float32), -1, 1) + 1) / 2


def compare(made: np.ndarray, truth: np.ndarray, missing: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM of what was missing: a volume in the head, or the slices of a gap, in [0, 1]."""
    if missing.ndim == 0:
        return psnr(made, truth, 1.0, mask), ssim(made, truth, 1.0, mask)
    a, b = made[..., missing], truth[..., missing]
    return psnr(a, b, 1.0), float(np.mean([ssim(a[..., k], b[..., k], 1.0) for k in range(a.shape[-1])]))


def scores(method: CoPeDiT, cache: Cache, name: str, seed: int, others: Baselines | None = None) -> list[Row]:
    """One row a subject, pattern and image; with `others` (or for stacks) baselines too."""
    config, rows = method.config, []
    device = next(method.parameters()).device
    for label in cache.labels:
        stack, _ = cache.stack(label)
        images, mask = torch.from_numpy(stack)[None], head_mask(unit(stack))
        for count, present in patterns(config):
            rng = Rng.of(seed_of(seed, label), 1, "compare")
            batch = Batch(images, present).to(device)
            made, sketch = method.complete(batch, rng)[0].float().cpu().numpy(), method.voxelwise(batch)
            where = present[0].numpy()
            for m, modality in enumerate(config.modalities):
                if where[m].all():
                    continue
                missing = np.array(True) if config.layout == "modalities" else ~where[m, 0, 0]
                guesses = {name: made[m]} | baselines(stack, where, modality, m, config, others)
                if sketch is not None and others is not None:
                    guesses["its sketch"] = sketch[0, m].float().cpu().numpy()
                for who, guess in guesses.items():
                    p, s = compare(unit(guess), unit(stack[m]), missing, mask)
                    rows.append({"who": who, "seed": seed, "subject": label, "missing": count, "image": modality,
                                 "psnr": p, "ssim": s})  # fmt: skip
    return rows


def baselines(
    stack: np.ndarray, where: np.ndarray, modality: str, m: int, config: Config, others: Baselines | None
) -> dict[str, np.ndarray]:
    """What must be beaten: regression and the best single modality, or interpolation between neighbours."""
    if config.layout == "slices":
        there = np.flatnonzero(where[m, 0, 0])
        every = np.arange(stack.shape[-1])
        return {k: interpolated(stack[m][..., there], there, every, k == "cubic") for k in ("linear", "cubic")}
    if others is None:
        return {}
    flags = where.reshape(len(stack))
    given = [n for n, flag in zip(config.modalities, flags) if flag]
    kinds = [k for k in KINDS if others.available(k, modality, given)]
    return {k: others.predict(stack, flags, modality, k) for k in kinds}


@torch.inference_mode()
def tokenizer_scores(method: CoPeDiT, cache: Cache, name: str, seed: int) -> list[Row]:
    """What the tokenizer alone loses (Table 6), and how well it perceives: shares of counts and places told rightly."""
    config, rows = method.config, []
    for label in cache.labels:
        stack, _ = cache.stack(label)
        images, mask = torch.from_numpy(stack)[None], head_mask(unit(stack))
        again = method.tokenizer(images[0][:, None])[:, 0].float().numpy()
        for m, modality in enumerate(config.modalities):
            p, s = compare(unit(again[m]), unit(stack[m]), np.array(True), mask)
            rows.append({"who": name, "seed": seed, "subject": label, "missing": 0, "image": modality, "psnr": p,
                         "ssim": s})  # fmt: skip
        for count, present in patterns(config):
            seen = method.perceive(Batch(images, present))
            places = missing_patterns.places(config, present.expand(1, -1, 1, 1, present.shape[-1]))
            wanted, missing = missing_patterns.labels(config, places)
            right = ((seen.missing > 0.5) == missing).float().mean()
            rows.append({"who": name, "seed": seed, "subject": label, "missing": count, "image": "perception",
                         "count": float(seen.count.argmax(1) == wanted), "position": float(right)})  # fmt: skip
    return rows


# the prompts themselves


def corrupted(method: CoPeDiT, cache: Cache, seed: int) -> list[Row]:
    """Figure 8: prompts of a wrong pattern for a share of the images; prompts zeroed, random, shuffled, swapped."""
    rows: list[Row] = []
    tell = method._condition
    for which in (*PROMPTS, "all"):
        hit = list(range(3)) if which == "all" else [PROMPTS.index(which)]
        for how, share in (*(("wrong", r) for r in (0.25, 0.5, 1.0)), *((h, 1.0) for h in EXCHANGES)):
            draw = np.random.default_rng(seed_of(seed, which, how, share))

            def told(prompts: Tensor, places: Tensor, hit=hit, how=how, share=share, draw=draw) -> Tensor | None:
                changed = prompts.clone()
                if draw.random() < share:
                    changed[:, hit] = EXCHANGES.get(how, _wrong)(prompts, draw)[:, hit]
                return tell(changed, places)

            method._condition = told  # type: ignore[method-assign]
            found = scores(method, cache, f"{which} {how} {share:g}", seed)
            rows += found
    method._condition = tell  # type: ignore[method-assign]
    return rows


def _wrong(prompts: Tensor, draw: np.random.Generator) -> Tensor:
    """The prompts of another pattern, seen before."""
    SEEN.append(prompts.clone())
    return SEEN[int(draw.integers(max(1, len(SEEN) - 1)))]


SEEN: list[Tensor] = []
EXCHANGES: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "zeroed": lambda p, draw: torch.zeros_like(p),
    "random": lambda p, draw: torch.from_numpy(draw.standard_normal(p.shape)).to(p) * p.std() + p.mean(),
    "shuffled": lambda p, draw: p[..., torch.from_numpy(draw.permutation(p.shape[-1]))],
    "swapped": lambda p, draw: p.roll(1, dims=1),
}


@torch.inference_mode()
def embedding(method: CoPeDiT, cache: Cache, path: Path) -> None:
    """Figure 7: the prompts of all subjects and patterns on their two main axes, coloured by what is missing."""
    import matplotlib.pyplot as plt

    found, counts, sets = [], [], []
    for label in cache.labels:
        images = torch.from_numpy(cache.stack(label)[0])[None]
        for count, present in patterns(method.config):
            _, told = method._glimpse(images, present.expand_as(images))
            found.append(average(told, telling(present))[0])
            counts.append(count)
            sets.append(str(present.flatten().int().tolist()))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    for k, (axis, name) in enumerate(zip(axes, PROMPTS)):
        x = torch.stack(found)[:, k].float()
        x = (x - x.mean(0)) @ torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:2].T
        colour = counts if k == 0 else [sorted(set(sets)).index(s) for s in sets]
        axis.scatter(x[:, 0], x[:, 1], c=colour, cmap="viridis" if k == 0 else "tab20", s=10)
        axis.set_title(f"{name}, coloured by {'how many' if k == 0 else 'which'} are missing")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


# the commands


def table(rows: list[Row]) -> None:
    """Mean over subjects for each seed, then mean and range over the seeds."""
    for who in dict.fromkeys(row["who"] for row in rows):
        for missing in sorted({row["missing"] for row in rows if row["who"] == who}):
            mine = [row for row in rows if row["who"] == who and row["missing"] == missing]
            line = f"{who:24} missing {missing:2}"
            for metric in ("psnr", "ssim", "count", "position"):
                by_seed = [
                    np.mean([r[metric] for r in mine if r["seed"] == s and metric in r])
                    for s in sorted({r["seed"] for r in mine})
                    if any(metric in r for r in mine)
                ]
                if by_seed:
                    line += f"  {metric} {np.mean(by_seed):7.3f} ({min(by_seed):.3f}-{max(by_seed):.3f})"
            print(line, flush=True)


def open_cache(choice: argparse.Namespace, config: Config) -> Cache:
    """The dataset on the network's grid, made once."""
    folder = choice.out / f"cache-{config.layout}-{'x'.join(map(str, config.size))}"
    if (folder / INDEX).is_file():
        return Cache.open(folder)
    if (choice.dataset / INDEX).is_file():
        return Cache.open(choice.dataset)
    read = (lambda s: upright(prepare(s))) if config.layout == "slices" else prepare
    return Cache.build(map(read, layouts.find(choice.dataset)), copedit.grid(config), config.modalities, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--what", choices=[*TABLES, "figure7", "figure8", "scores", "steps"], required=True)
    parser.add_argument("--variants", nargs="+", help="of a table; all")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--preset", choices=list(copedit.PRESETS), default="small")
    parser.add_argument("--model", type=Path, help="a run of amodal train copedit; tables take its tokenizer")
    parser.add_argument("--hold-out", type=int, default=8)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/copedit"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "copedit.json")
    choice = parser.parse_args()
    model = load(choice.model, device=choice.device) if choice.model else None
    config = model.method.config if model else copedit.PRESETS[choice.preset]()
    cache = open_cache(choice, config)
    if not model:
        config = replace(copedit.for_modalities(config, cache.modalities), size=tuple(cache.grid["size"]))
    config = override(config, choice.settings)
    held = cache.only(*cache.labels[-choice.hold_out :])
    learn = cache.without(*held.labels)
    rows: list[Row] = []
    if choice.what in TABLES:
        tokenizer = model.method.tokenizer if model else None
        if tokenizer is None and choice.what != "table6":
            first = replace(config, stages=("tokenizer",))
            tokenizer = train(first, learn, choice.out / "tokenizer", 0, choice, None).tokenizer
        stage, measured = ("tokenizer", tokenizer_scores) if choice.what == "table6" else ("prior", scores)
        chosen = {name: change for name, change in TABLES[choice.what].items() if name in (choice.variants or [name])}
        for (name, change), seed in itertools.product(chosen.items(), choice.seeds):
            out = choice.out / choice.what / f"{name.replace(' ', '-')}-{seed}"
            method = train(replace(change(config), stages=(stage,)), learn, out, seed, choice, tokenizer)
            rows += measured(method, held, name, seed)
            table([row for row in rows if row["who"] == name])
    elif choice.what == "steps":
        for steps in (1, 2, 5, 10, 25, 50):
            model.method.config = replace(config, steps=steps)
            rows += scores(model.method, held, f"{steps} steps", choice.seeds[0])
    elif choice.what == "figure7":
        embedding(model.method, held, choice.out / "figure7.png")
    elif choice.what == "figure8":
        rows = scores(model.method, held, "as perceived", 0) + corrupted(model.method, held, 0)
    else:
        model.method.config = config
        fitted = Baselines.fit((learn.stack(label) for label in learn.labels), learn.modalities)
        rows = tokenizer_scores(model.method, held, "tokenizer", 0)
        for seed in choice.seeds:
            rows += scores(model.method, held, "CoPeDiT", seed, fitted)
    table(rows)
    known = json.loads(choice.results.read_text()) if choice.results.exists() else {}
    about = {
        key: str(value) for key, value in vars(choice).items() if key not in ("results", "out", "dataset", "model")
    }
    known[f"{choice.what} {config.layout}"] = {"settings": about, "subjects": len(held), "rows": rows}
    choice.results.parent.mkdir(parents=True, exist_ok=True)
    choice.results.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()

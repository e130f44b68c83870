"""The comparisons of the CoPeDiT paper, one command each, on any dataset.

    python benchmarks/copedit.py DATASET --what table4 --minutes 30 --seeds 0 1 2

    table4      the prior without each prompt, without all, with mask codes in their place
    table6      the tokenizer without each pretext task
    table7      the prior with prompts in the other blocks, in both
    table8      U-Net, DiT, DiT-3D, MDiT3D as the prior
    figure7     --model RUN: the prompts in two dimensions, by what is missing
    figure8     --model RUN: prompts of wrong patterns for a share of the images; zeroed, random, shuffled, swapped
    scores      --model RUN: against its own sketch, regression and the best single modality, or interpolation
    steps       --model RUN: sampled in 1, 2, 5, 10, 25 and 50 steps (--sampling)
    perception --model RUN: what the tokenizer loses, and how well it perceives

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
SCORES = ("scores", "steps", "perception")
SCORED = ("psnr", "ssim", "count", "position", "heads count", "heads position")


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


def patterns(config: Config, each: int = 99) -> Iterator[tuple[int, Tensor]]:
    """(how much is missing, present [1, M, 1, 1, 1 or Z]) of every pattern that is measured: `each` of every count,
    others of them for others of the counts."""
    for count, found in itertools.groupby(sorted(_patterns(config), key=lambda p: p[0]), key=lambda p: p[0]):
        few = list(found)
        yield from (few[(k + count) % len(few)] for k in range(min(each, len(few))))


def _patterns(config: Config) -> Iterator[tuple[int, Tensor]]:
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


def scores(
    method: CoPeDiT, cache: Cache, name: str, seed: int, others: Baselines | None = None, each: int = 99
) -> list[Row]:
    """One row a subject, pattern (`each` of every count) and image; with `others` (or for stacks) baselines too."""
    config, rows = method.config, []
    device = next(method.parameters()).device
    for label in cache.labels:
        stack, _ = cache.stack(label)
        images, mask = torch.from_numpy(stack)[None], head_mask(unit(stack))
        for count, present in patterns(config, each):
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
        for who, present in questions(config, name):
            seen = method.perceive(Batch(images, present))
            places = missing_patterns.places(config, present.expand(1, -1, 1, 1, present.shape[-1]))
            wanted, missing = missing_patterns.labels(config, places)
            told = average(method._glimpse(images, present.expand_as(images))[1], telling(present))
            number, position = (method.tokenizer.answer(task, told[:, k]) for k, task in enumerate(PROMPTS[:2]))
            row = {"who": who, "seed": seed, "subject": label, "missing": int(missing.sum()), "image": "perception"}
            row |= {"count": float(seen.count.argmax(1) == wanted + 1),
                    "position": float(((seen.missing > 0.5) == missing).float().mean()),
                    "heads position": float(((position > 0) == missing).float().mean())}  # fmt: skip
            rows.append(row | ({"heads count": float(number.argmax(1) == wanted)} if wanted >= 0 else {}))
    return rows


def questions(config: Config, name: str) -> Iterator[tuple[str, Tensor]]:
    """(whose row, present) of every pattern that is asked about: nothing missing; what is measured of modalities; gaps
    of stacks from every third slice on, and stacks of which every second, third or fourth slice is there."""
    depth = config.size[2] if config.layout == "slices" else 1
    whole = torch.ones(1, len(config.modalities), 1, 1, depth, dtype=torch.bool)
    yield name, whole
    if config.layout == "modalities":
        yield from ((name, present) for _, present in patterns(config))
        return
    z = torch.arange(depth)
    for gap in (depth // 4, depth // 2, 3 * depth // 4):
        for start in range(0, depth - gap + 1, 3):
            yield name, whole & ~((z >= start) & (z < start + gap))
    for step, first in itertools.product((2, 3, 4), (0, 1)):
        yield f"{name}, combs", whole & (z % step == first)


def corrupted(method: CoPeDiT, cache: Cache, seed: int, each: int) -> list[Row]:
    """Figure 8: prompts of a wrong pattern for a share of the images; prompts zeroed, random, shuffled, swapped."""
    tell, known = method._condition, {}

    def seen(prompts: Tensor, places: Tensor) -> Tensor | None:
        known[tuple(places[0].tolist())] = prompts.clone()
        return tell(prompts, places)

    method._condition = seen  # type: ignore[method-assign]
    rows = scores(method, cache, "as perceived", seed, each=each)
    for which in (*PROMPTS, "all"):
        hit = list(range(3)) if which == "all" else [PROMPTS.index(which)]
        for how, share in (*(("wrong", r) for r in (0.25, 0.5, 1.0)), *((h, 1.0) for h in EXCHANGES)):
            draw = np.random.default_rng(seed_of(seed, which, how, share))

            def told(prompts: Tensor, places: Tensor, hit=hit, how=how, share=share, draw=draw) -> Tensor | None:
                changed = prompts.clone()
                others = [p for pattern, p in known.items() if pattern != tuple(places[0].tolist())]
                if draw.random() < share:
                    wrong = others[draw.integers(len(others))]
                    changed[:, hit] = EXCHANGES[how](prompts, draw)[:, hit] if how in EXCHANGES else wrong[:, hit]
                return tell(changed, places)

            method._condition = told  # type: ignore[method-assign]
            rows += scores(method, cache, f"{which} {how} {share:g}", seed, each=each)
    method._condition = tell  # type: ignore[method-assign]
    return [row for row in rows if row["who"] not in ("linear", "cubic")]


EXCHANGES: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "zeroed": lambda p, draw: torch.zeros_like(p),
    "random": lambda p, draw: torch.from_numpy(draw.standard_normal(p.shape)).to(p) * p.std() + p.mean(),
    "shuffled": lambda p, draw: p[..., torch.from_numpy(draw.permutation(p.shape[-1]))],
    "swapped": lambda p, draw: p.roll(1, dims=1),
}


@torch.inference_mode()
def embedding(method: CoPeDiT, cache: Cache, path: Path) -> None:
    """Figure 7: the prompts of all subjects and patterns on their two main axes: that of the count coloured by how many
    are missing, that of the position by which, that of the contrast by whose they are."""
    import matplotlib.pyplot as plt

    found, groups = [], []
    for k, label in enumerate(cache.labels):
        images = torch.from_numpy(cache.stack(label)[0])[None]
        for count, present in patterns(method.config):
            _, told = method._glimpse(images, present.expand_as(images))
            found.append(average(told, telling(present))[0])
            groups.append((count, str(present.flatten().int().tolist()), k))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    for k, (axis, name, by) in enumerate(zip(axes, PROMPTS, ("how many are missing", "which are missing", "subject"))):
        x = torch.stack(found)[:, k].float()
        x = (x - x.mean(0)) @ torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:2].T
        kinds = sorted({group[k] for group in groups})
        axis.scatter(x[:, 0], x[:, 1], c=[kinds.index(group[k]) for group in groups], cmap="tab20", s=10)
        axis.set_title(f"{name}, coloured by {by}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def means(rows: list[Row]) -> list[Row]:
    """The mean of every score over subjects and images, for each who, seed and number of what is missing."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["who"], row["seed"], row["missing"]), []).append(row)
    found = []
    for key, mine in groups.items():
        values = {name: [row[name] for row in mine if name in row] for name in SCORED}
        scored = {name: round(float(np.mean(v)), 4) for name, v in values.items() if v}
        found.append(dict(zip(("who", "seed", "missing"), key)) | scored)
    return found


def table(rows: list[Row]) -> None:
    """Mean over subjects for each seed, then mean and range over the seeds."""
    found = means(rows)
    order = list(dict.fromkeys(row["who"] for row in found))
    for who, missing in sorted(
        {(r["who"], r["missing"]) for r in found}, key=lambda key: (order.index(key[0]), key[1])
    ):
        line = f"{who:24} missing {missing:2}"
        for name in SCORED:
            seeds = [r[name] for r in found if (r["who"], r["missing"]) == (who, missing) and name in r]
            line += f"  {name} {np.mean(seeds):7.3f} ({min(seeds):.3f}-{max(seeds):.3f})" if seeds else ""
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
    parser.add_argument("--what", choices=[*TABLES, "figure7", "figure8", *SCORES], required=True)
    parser.add_argument("--variants", nargs="+", help="of a table; all")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--preset", choices=list(copedit.PRESETS), default="small")
    parser.add_argument("--model", type=Path, help="a run of amodal train copedit; tables take its tokenizer")
    parser.add_argument("--hold-out", type=int, default=8)
    parser.add_argument("--each", type=int, default=99, help="patterns of every count of what is missing; all")
    parser.add_argument("--sampling", type=int, nargs="+", default=[1, 2, 5, 10, 25, 50], help="steps of --what steps")
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
        for steps in choice.sampling:
            model.method.config = replace(config, steps=steps)
            rows += scores(model.method, held, f"{steps} steps", choice.seeds[0], each=choice.each)
    elif choice.what == "figure7":
        embedding(model.method, held, choice.out / "figure7.png")
    elif choice.what == "figure8":
        rows = corrupted(model.method, held, 0, choice.each)
    elif choice.what == "perception":
        rows = tokenizer_scores(model.method, held, "tokenizer", 0)
    else:
        model.method.config = config
        fitted = Baselines.fit((learn.stack(label) for label in learn.labels), learn.modalities)
        rows = tokenizer_scores(model.method, held, "tokenizer", 0)
        for seed in choice.seeds:
            rows += scores(model.method, held, "CoPeDiT", seed, fitted)
    table(rows)
    known = json.loads(choice.results.read_text()) if choice.results.exists() else {}
    about = {key: str(v) for key, v in vars(choice).items() if key not in ("results", "out", "dataset", "model")}
    known[f"{choice.what} {config.layout}"] = {"settings": about, "subjects": len(held), "scores": means(rows)}
    choice.results.parent.mkdir(parents=True, exist_ok=True)
    choice.results.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""CT, PET and FLAIR from other contrasts: `python benchmarks/synthesis.py --model runs/five/model [-n 4]`.

On unseen virtual subjects, half with skull and scalp: T1w alone, with T2starw, with a third contrast, with all others;
clean (the posterior mean in one step), and mixed (T1w clean, the other MR contrasts measured: R = 4, 8 coils, 8 %
centre, noise 0.01 of the maximum, 20 steps; what is missing is then the posterior mean given the reconstruction).
PSNR and SSIM in the head on the model's scale (data range 1), the mean absolute error in HU or SUV, and beside them
what the model must beat: voxelwise regression and the best single contrast, fitted on the training set, from the same
clean images. Mean over subjects with its standard error. Writes benchmarks/results/synthesis.json. Models for these
five contrasts are made by tools/five_contrasts.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amodal.core.contract import Batch, Measurement
from amodal.core.rng import Rng, seed_of
from amodal.data.phantom import PhantomConfig, subject, to_study
from amodal.data.volume import Study
from amodal.metrics.baselines import Baselines
from amodal.metrics.image import head_mask, psnr, ssim
from amodal.model import Model, load
from amodal.physics.coils import birdcage
from amodal.physics.masks import equispaced
from amodal.physics.mri import simulate

SEED, COILS, ACCELERATION, NOISE = 6000, 8, 4, 0.01  # subjects of this seed are never trained on
FIVE = ("T1w", "FLAIR", "T2starw", "CT", "PET")
MR = ("T1w", "FLAIR", "T2starw")
INPUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    target: (("T1w",), ("T1w", "T2starw"), ("T1w", "T2starw", third), tuple(m for m in FIVE if m != target))
    for target, third in (("CT", "FLAIR"), ("PET", "FLAIR"), ("FLAIR", "CT"))
}


def study_of(index: int) -> Study:
    """Subject `index` of the test cohort; every other one has its head on."""
    settings: dict[str, Any] = {"modalities": FIVE, "shape": (112, 128, 104)}
    if index % 2:
        settings |= {"shape": (128, 144, 120), "head": True, "stripped": False}
    return to_study(subject(index, SEED, PhantomConfig(**settings, protocol_jitter=0.15)))


def slices_of(model: Model, study: Study, every: int) -> np.ndarray:
    """Some slices of the middle [M, X, Y, Z'] in [-1, 1]."""
    stack = np.stack([model.window(m, study[m]).enter(study[m].data) for m in FIVE]).astype(np.float32)
    area = (stack.max(0) > -0.8).sum((0, 1))
    inside = np.flatnonzero(area > 0.25 * area.max())
    return stack[..., inside[every // 2 :: every]]


def measurement(image: torch.Tensor, seed: int) -> Measurement:
    """K-space of slices [Z, X, Y] in [-1, 1], as a scanner of COILS coils gives it."""
    z, x, y = image.shape
    unit, maps = (image + 1) / 2, birdcage((x, y), COILS)[None]
    sampled = equispaced((x, y), ACCELERATION, 0.08, seed)[None, None]
    noise = NOISE * float(unit.max())
    eps = Rng.of(seed, z, "k-space").normal(COILS, x, y, 2)
    return Measurement(simulate(unit, maps, sampled, noise, eps), sampled, maps, noise)


def complete(
    model: Model, stack: np.ndarray, clean: tuple[str, ...], measured: tuple[str, ...], sampler: str, seed: int
) -> np.ndarray:
    """[M, X, Y, Z] in [0, 1], from what is clean and what is measured of it."""
    images = torch.from_numpy(stack).movedim(-1, 0).contiguous()
    method = model._with(posterior=sampler, steps=1, coupling=0.0)  # the slices are no neighbours
    present = torch.tensor([m in clean for m in FIVE]).reshape(1, -1, 1, 1).expand(len(images), -1, 1, 1)
    given = {m: measurement(images[:, FIVE.index(m)], seed_of(seed, m)) for m in measured}
    if given:
        method.config = method.measuring()
    shown = torch.where(present, images, torch.full_like(images, -1))
    batch = Batch(shown, present, measurement=given or None)
    return (method.complete(batch, Rng.of(seed, len(images), "synthesis")).movedim(0, -1).numpy() + 1) / 2


def score(model: Model, made: np.ndarray, truth: np.ndarray, mask: np.ndarray, target: str) -> dict[str, float]:
    """`made` and `truth` [X, Y, Z] in [0, 1]."""
    scale = model.scale(target)
    apart = np.abs(scale.leave(2 * made - 1) - scale.leave(2 * truth - 1))
    return {
        "psnr": psnr(made, truth, 1.0, mask),
        "ssim": ssim(made, truth, 1.0, mask),
        "mae": float(apart[mask].mean()),
    }


def baselines(found: Baselines, stack: np.ndarray, inputs: tuple[str, ...], target: str) -> dict[str, np.ndarray]:
    """What each baseline makes of the clean inputs, in [0, 1]."""
    there = np.array([m in inputs for m in FIVE])
    kinds = [k for k in ("regression", "single") if found.available(k, target, inputs)]  # type: ignore[arg-type]
    return {kind: (found.predict(stack, there, target, kind) + 1) / 2 for kind in kinds}  # type: ignore[arg-type]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", required=True)
    options.add_argument("-n", type=int, default=4)
    options.add_argument("--every", type=int, default=8, help="every how many slices one is made")
    options.add_argument("--sampler", default="mds", choices=("mds", "mps"))
    options.add_argument("--device", default="auto")
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "synthesis.json")
    args = options.parse_args()
    model = load(args.model, device=args.device, precision="fp32")
    model.method.config = dataclasses.replace(model.method.config, draws=2)
    found, rows = Baselines.from_dict(model.card["baselines"]), []
    for index in range(args.n):
        stack = slices_of(model, study_of(index), args.every)
        unit = (stack + 1) / 2
        mask = head_mask(unit[[FIVE.index(m) for m in MR]])
        for target, sets in INPUTS.items():
            truth = unit[FIVE.index(target)]
            for inputs in sets:
                name, m = "+".join(inputs), FIVE.index(target)
                measured = tuple(i for i in inputs if i in MR and i != "T1w")
                made = {"clean": complete(model, stack, inputs, (), "mds", index)[m]}
                if measured:
                    clean = tuple(i for i in inputs if i not in measured)
                    made["mixed"] = complete(model, stack, clean, measured, args.sampler, index)[m]
                made |= baselines(found, stack, inputs, target)
                for how, image in made.items():
                    rows.append({"subject": index, "target": target, "inputs": name, "how": how,
                                 **score(model, image, truth, mask, target)})  # fmt: skip
            print(f"subject {index + 1} of {args.n}: {target}", flush=True)
    args.out.parent.mkdir(exist_ok=True)
    about = {"model": model.sha256, "subjects": args.n, "seed": SEED, "every": args.every}
    args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """The table of means and standard errors."""
    print(f"{'target':7}{'inputs':26}{'how':12}{'PSNR':>14}{'SSIM':>8}{'MAE':>10}")
    for key in dict.fromkeys((r["target"], r["inputs"], r["how"]) for r in rows):
        same = [r for r in rows if (r["target"], r["inputs"], r["how"]) == key]
        values = np.array([[r["psnr"], r["ssim"], r["mae"]] for r in same])
        mean, error = values.mean(0), values.std(0, ddof=min(1, len(same) - 1)) / len(same) ** 0.5
        print(f"{key[0]:7}{key[1]:26}{key[2]:12}{mean[0]:8.2f} ±{error[0]:4.2f}{mean[1]:8.3f}{mean[2]:10.3g}")


if __name__ == "__main__":
    main()

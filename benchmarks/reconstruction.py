"""FLAIR from undersampled k-space, on unseen virtual subjects: `python benchmarks/reconstruction.py --model RUN`.

As in the paper: every 4th line, 8 coils (SigPy's birdcage, radius 1.5), complex Gaussian noise of 0.01 of the image's
maximum, and a centre of 8 %; beyond it, the image has a phase that is estimated, as is the noise level. Reconstructed
from y alone and with clean images of the subject. The model must know T1w, FLAIR, T2starw, CT and PET.

    --published    also the paper's samplers, 150 steps of MDS and 1000 of MPS with one gradient each, on two slices
    --kspace FILE  real k-space too: a tenth of what was sampled outside the centre is kept back and predicted

PSNR and SSIM in the head, both scaled by the truth's window, data range 1. To benchmarks/results/reconstruction.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amodal.core.contract import Batch, Measurement
from amodal.core.rng import Rng
from amodal.data import kspace
from amodal.data.intensity import Window
from amodal.data.phantom import PhantomConfig, subject, to_study
from amodal.metrics.image import psnr, ssim
from amodal.model import Model, load
from amodal.model.reconstruct import scale
from amodal.physics import classic, stacking
from amodal.physics.coils import birdcage
from amodal.physics.linear import mask
from amodal.physics.masks import MASKS
from amodal.physics.mri import sense, simulate
from amodal.physics.prepare import misfit, oriented, phased, settle

FIVE = ("T1w", "FLAIR", "T2starw", "CT", "PET")
SEED = 5000  # never trained on
COHORT = (
    PhantomConfig(modalities=FIVE, shape=(112, 128, 104)),
    PhantomConfig(modalities=FIVE, shape=(128, 144, 120), head=True, stripped=False),
)  # brains and heads in turn
HELP: tuple[tuple[str, ...], ...] = ((), ("T1w",), ("T1w", "T2starw"), ("T1w", "T2starw", "CT", "PET"))
FAST = {"MDS": {"posterior": "mds"}, "MPS": {"posterior": "mps"}, "MPS, 1 gradient": {"posterior": "mps", "pulls": 1}}
PUBLISHED = {
    "MDS, 150 steps": {"posterior": "mds", "steps": 150, "finish": False},
    "MDS, 20 steps": {"posterior": "mds", "finish": False},
    "MPS, 1000 steps": {"posterior": "mps", "steps": 1000, "pulls": 1, "finish": False},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Slices of a subject: stack [Z, M, X, Y] in [-1, 1], the truth's magnitudes and window, and its scan."""

    images: Tensor
    truth: Tensor
    window: Window
    scan: Measurement


def case(model: Model, number: int, target: str, slices: int, choice: argparse.Namespace) -> Case:
    study = to_study(subject(number, SEED, COHORT[number % len(COHORT)]))
    depth = study[target].shape[2]
    where = np.linspace(0.35 * depth, 0.75 * depth, slices).astype(int)
    windows = {m: model.window(m, study[m]) for m in model.modalities}
    stack = np.stack([windows[m].enter(study[m].data[..., where]) for m in model.modalities])
    truth = torch.from_numpy(np.ascontiguousarray(np.moveaxis(study[target].data[..., where], -1, 0)))
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(stack, -1, 0)))
    return Case(images, truth, windows[target], scanned(truth, model, choice, number))


def scanned(truth: Tensor, model: Model, choice: argparse.Namespace, seed: int) -> Measurement:
    """A scan of magnitudes [Z, X, Y] with a smooth phase; maps are known, noise and phase estimated."""
    x, y = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in truth.shape[1:]], indexing="ij")
    angle = 1.0 + 1.2 * x - 0.8 * y + 0.5 * x * y
    shape = (truth.shape[1], truth.shape[2])
    maps = birdcage(shape, choice.coils)[None]
    kept = MASKS[choice.mask](shape, choice.acceleration, 0.08, seed).expand(1, 1, *shape)
    eps = Rng.of(SEED + seed, len(truth)).normal(choice.coils, *shape, 2)
    noise = choice.noise * float(truth.max())
    y = simulate(truth * torch.polar(torch.ones_like(angle), angle), maps, kept, noise, eps)
    found, _ = settle(y, kept, maps)
    window = scale(found, model.grid.percentiles)
    return dataclasses.replace(found, window=(window.lo, window.hi))


def sampled(model: Model, images: Tensor, scan: Measurement, target: str, clean: Sequence[str], samples: int = 1,
            **changes: Any) -> Tensor:  # fmt: skip
    """Magnitudes [Z, X, Y] by the model: the mean of `samples` draws."""
    method, config = model.method, model.method.config
    present = torch.tensor([m in clean for m in model.modalities]).reshape(1, -1, 1, 1)
    present = present.expand(len(images), -1, 1, 1)
    method.config = dataclasses.replace(method.measuring(), **changes)
    batch = Batch(images, present, measurement={target: scan})
    draws = [method.complete(batch, Rng.of(k, len(images), "benchmark")) for k in range(samples)]
    method.config = config
    return Window(*scan.window).leave(torch.stack(draws).mean(0)[:, model.modalities.index(target)])


def scores(made: Tensor, one: Case) -> dict[str, float]:
    a, b = ((one.window.enter(x).numpy() + 1) / 2 for x in (made, one.truth))
    head = b > 0.03
    return {
        "psnr": float(np.mean([psnr(*pair, 1.0, m) for *pair, m in zip(a, b, head)])),
        "ssim": float(np.mean([ssim(*pair, 1.0, m) for *pair, m in zip(a, b, head)])),
        "misfit": float(misfit(one.scan, made).mean()),
    }


def table(
    model: Model, cases: Sequence[Case], target: str, ways: dict[str, dict[str, Any]], sets: int = len(HELP)
) -> list[dict[str, Any]]:
    """A row for each way and each set of clean modalities, averaged over cases."""
    rows = []
    for name, changes in ways.items():
        for clean in HELP[:sets]:
            began = time.perf_counter()
            made = [sampled(model, c.images, c.scan, target, clean, **changes) for c in cases]
            rows.append(row(name, "y" + "".join(f" + {m}" for m in clean), cases, made, time.perf_counter() - began))
    return rows


def row(name: str, given: str, cases: Sequence[Case], made: Sequence[Tensor], seconds: float) -> dict[str, Any]:
    found = [scores(image, c) for image, c in zip(made, cases)]
    mean = {key: round(float(np.mean([f[key] for f in found])), 4) for key in found[0]}
    slices = sum(len(c.truth) for c in cases)
    print(f"{name:18} {given:32} {mean['psnr']:6.2f} dB  {mean['ssim']:.3f}  residual {mean['misfit']:.2f}  "
          f"{seconds / slices:6.1f} s a slice", flush=True)  # fmt: skip
    return {"method": name, "given": given, **mean, "seconds_a_slice": round(seconds / slices, 2)}


def classics(cases: Sequence[Case]) -> list[dict[str, Any]]:
    rows = []
    for name, make in classic.ALL.items():
        began = time.perf_counter()
        made = [make(c.scan).abs() for c in cases]
        rows.append(row(name, "y", cases, made, time.perf_counter() - began))
    return rows


def real(model: Model, file: Path, target: str) -> list[dict[str, Any]]:
    """Relative error of k-space samples that were kept back, for images of real data.

    The model makes magnitudes, which take their phase from the centre of k-space; |.| does the same to the others.
    """
    found = kspace.read(file)
    scan, _ = settle(torch.from_numpy(found.data.copy()), torch.from_numpy(found.sampled.copy()))
    x, y = (torch.arange(n) - n // 2 for n in found.matrix)
    centre = (x.abs()[:, None] < 12) & (y.abs()[None] < 12)
    drawn = torch.rand(found.matrix, generator=torch.Generator().manual_seed(0)) < 0.1
    held = scan.sampled & drawn & ~centre
    part = dataclasses.replace(scan, kspace=scan.kspace * ~held, sampled=scan.sampled & ~held)
    window = scale(part, model.grid.percentiles)
    part = dataclasses.replace(part, window=(window.lo, window.hi))

    def error(image: Tensor) -> float:
        truth = mask(held)(scan.kspace)
        return float((mask(held)(sense(scan)(image)) - truth).norm() / truth.norm())

    plain = {name: make(part) for name, make in classic.ALL.items()}
    rows: list[dict[str, Any]] = [{"method": name, "error": error(image)} for name, image in plain.items()]
    rows += [{"method": f"|{name}|", "error": error(phased(part, image.abs()))} for name, image in plain.items()]
    # X runs from front to back, Y from right to left
    size = (part.kspace.shape[-1], part.kspace.shape[-2])
    whole = [-(-n // 16) * 16 for n in size]
    corner = ((whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2)
    empty = torch.full((1, len(model.modalities), *whole), -1.0)

    def magnitudes(some: Measurement, samples: int, changes: dict[str, Any]) -> Tensor:
        turned = dataclasses.replace(oriented(some, True, (True, True)), corner=corner)
        made = sampled(model, empty, turned, target, (), samples, **changes)
        made = made[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
        return made.flip((-1, -2)).transpose(-1, -2)

    for name, changes in FAST.items():
        for samples in (1, 4):
            made = magnitudes(part, samples, changes)
            rows.append({"method": f"{name}, mean of {samples}", "error": error(phased(part, made))})
            if name == "MDS":  # `--validate`: other samples are kept back from what is left
                rest, back = stacking.keep_back(part, 1)
                tried = stacking.blends(rest, magnitudes(rest, samples, changes))
                weight = stacking.errors(part, back, tried)[1]
                final = stacking.blends(part, made)[weight]
                rows.append(
                    {"method": f"{name}, mean of {samples}, validated", "error": error(final), "weight": weight}
                )
    for line in rows:
        line["error"] = round(line["error"], 4)
        print(f"real k-space: {line['method']:18} error of kept-back samples {line['error']:.3f}", flush=True)
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--model", required=True)
    options.add_argument("--target", default="FLAIR")
    options.add_argument("-n", type=int, default=4, help="virtual subjects")
    options.add_argument("--slices", type=int, default=4, help="of each")
    options.add_argument("--acceleration", type=float, default=4)
    options.add_argument("--mask", choices=list(MASKS), default="equispaced")
    options.add_argument("--coils", type=int, default=8)
    options.add_argument("--noise", type=float, default=0.01)
    options.add_argument("--published", action="store_true")
    options.add_argument("--kspace", type=Path)
    options.add_argument("--real-target", default="T1w", help="what the real k-space shows")
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reconstruction.json")
    choice = options.parse_args()
    torch.set_num_threads(1)
    model = load(choice.model)
    cases = [case(model, i, choice.target, choice.slices, choice) for i in range(choice.n)]
    rows = classics(cases) + table(model, cases, choice.target, FAST)
    found: dict[str, Any] = {"rows": rows}
    if choice.published:
        few = [dataclasses.replace(c, images=c.images[:1], truth=c.truth[:1], scan=c.scan[:1]) for c in cases[:2]]
        found["published"] = table(model, few, choice.target, FAST | PUBLISHED, sets=2)
    if choice.kspace:
        found["real"] = real(model, choice.kspace, choice.real_target)
    about = {k: v for k, v in vars(choice).items() if k not in ("out", "model", "kspace")}
    choice.out.parent.mkdir(parents=True, exist_ok=True)
    choice.out.write_text(json.dumps({"weights": model.sha256, **about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

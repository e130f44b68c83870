"""What a step of MDS costs beside the network evaluation it follows: `python benchmarks/step_cost.py [--coils 8]`.

One slice of 256 x 256, every 4th line with a centre of 8 %; the network of the five-contrast prior (random weights:
time does not depend on them) in the precision that `auto` takes. An evaluation alone and one with its correction are
timed in turn, at early, middle and late times of a sampling run, where conjugate gradients need more or fewer
iterations. Writes benchmarks/results/step_cost.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amodal.core.contract import Measurement
from amodal.core.device import bf16, pick
from amodal.core.rng import Rng
from amodal.diffusion.denoiser import Denoise
from amodal.methods import any2all
from amodal.methods.any2all.measured import decompose
from amodal.nn.layout import convert
from amodal.physics.coils import birdcage
from amodal.physics.masks import MASKS
from amodal.physics.mri import simulate

FIVE = ("T1w", "FLAIR", "T2starw", "CT", "PET")
TIMES = (1000, 800, 600, 400, 200, 50)


def scan(size: int, coils: int, kind: str) -> Measurement:
    maps, shape = birdcage((size, size), coils)[None], (size, size)
    x, y = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    image = ((x**2 + y**2) < 0.7).float() * (0.6 + 0.3 * torch.sin(20 * x) * torch.cos(15 * y))
    kept = MASKS[kind](shape, 4, 0.08, 0).expand(1, 1, *shape)
    eps = Rng.of(0, 1).normal(coils, *shape, 2)
    phase = torch.polar(torch.ones(1, size, size), (1 + x - y)[None])
    return Measurement(simulate(image[None] * phase, maps, kept, 0.01, eps), kept, maps, 0.01, phase)


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def row(t: int, prior: Denoise, corrected: Denoise, x: Tensor, rounds: int) -> dict[str, Any]:
    """Medians of an evaluation alone and of a corrected step at time `t`, taken in turn after a warm-up."""
    at = torch.full((1,), float(t))

    def pair() -> tuple[float, float]:
        return seconds(lambda: prior(x, at)), seconds(lambda: corrected(x, at))

    pair()
    pairs = [pair() for _ in range(rounds)]
    alone, both = (1e3 * statistics.median(p) for p in zip(*pairs))
    ratios = sorted(b / a for a, b in pairs)
    ratio, low, high = (round(r, 3) for r in (statistics.median(ratios), ratios[0], ratios[-1]))
    print(f"t = {t:4}: network {alone:6.1f} ms, corrected {both:6.1f} ms, {ratio:.2f} ({low:.2f} to {high:.2f})")
    return {"time": t, "network_ms": round(alone, 1), "step_ms": round(both, 1), "ratio": ratio, "range": [low, high]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--size", type=int, default=256)
    options.add_argument("--coils", type=int, default=8)
    options.add_argument("--mask", choices=list(MASKS), default="equispaced")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--precision", default="auto")
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step_cost.json")
    choice = options.parse_args()
    torch.manual_seed(0)
    config = any2all.for_modalities(any2all.small(), FIVE)
    method = any2all.build(dataclasses.replace(config)).eval().requires_grad_(False)
    half = bf16(choice.precision, pick("cpu"))
    prior = convert(method, torch.bfloat16 if half else torch.float32).prior
    whole = (choice.size, choice.size)
    corrected = decompose(prior, prior.process, {1: scan(choice.size, choice.coils, choice.mask)}, whole)
    x = torch.randn(1, len(FIVE), *whole)
    with torch.inference_mode():
        rows = [row(t, prior, corrected, x, choice.rounds) for t in TIMES]
    mean = statistics.mean(r["step_ms"] for r in rows) / statistics.mean(r["network_ms"] for r in rows)
    print(f"over a run: {mean:.2f} times the network alone")
    about = {
        "size": choice.size, "coils": choice.coils, "mask": choice.mask, "bf16": half, "torch": str(torch.__version__),
        "threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine(),
    }  # fmt: skip
    choice.out.parent.mkdir(parents=True, exist_ok=True)
    choice.out.write_text(json.dumps({**about, "over_a_run": round(mean, 3), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

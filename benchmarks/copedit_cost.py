"""What CoPeDiT costs at its published size: one completion, with its parts, and one optimisation step.

    python benchmarks/copedit_cost.py                                    # published:brats, one contrast missing
    python benchmarks/copedit_cost.py --what tokenizer                   # its step takes longest

Random weights (time does not depend on them). `complete`: one subject in the precision that `auto` takes, with seconds,
GFLOP (2 a multiply-add) and the share of this machine's rate of matrix products of encoding, sampling and decoding.
`prior`, `tokenizer`: one step of that stage at batch 1, the latents of the frozen tokenizer included. The peak of
memory is that of the whole process so far. Results: benchmarks/results/copedit_cost.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from dit import keep, rate, seconds
from torch import Tensor, nn

from amodal.core.contract import Batch
from amodal.core.device import bf16
from amodal.core.rng import Rng
from amodal.methods import copedit
from amodal.methods.copedit import system
from amodal.methods.copedit.system import CoPeDiT
from amodal.nn.count import flops
from amodal.nn.layout import convert
from amodal.train.engine import fit
from amodal.train.plan import Plan


class Clock:
    """Seconds, calls and GFLOP of a network inside a method."""

    def __init__(self, net: nn.Module, *inputs: Tensor):
        self.seconds, self.calls, self.began = 0.0, 0, 0.0
        self.gflop = flops(net, *inputs)[1] / 1e9
        net.register_forward_pre_hook(self._start)
        net.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.began
        self.calls += 1


def peak() -> float:
    """The process's largest memory so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def study(config: copedit.Config) -> Batch:
    """One subject of noise in [-1, 1]."""
    images = torch.rand(1, len(config.modalities), *config.size) * 2 - 1
    return Batch(images, torch.ones(1, len(config.modalities), 1, 1, 1, dtype=torch.bool))


def complete(config: copedit.Config, half: bool) -> dict[str, Any]:
    """One completion: the last contrast missing, or the middle half of the slices."""
    method: CoPeDiT = copedit.build(config).eval().requires_grad_(False)
    whole = study(config)
    present = torch.ones(1, len(config.modalities), 1, 1, config.size[2], dtype=torch.bool)
    if config.layout == "modalities":
        present[:, -1] = False
    else:
        present[..., config.size[2] // 4 : 3 * config.size[2] // 4] = False
    codec = method.tokenizer.codec
    z = torch.empty(1, config.slots, config.codec.channels, *(n // codec.factor for n in config.size), device="meta")
    z = z[..., :1] if config.layout == "slices" else z
    one = torch.empty(1, config.codec.channels, *(n // codec.factor for n in config.size), device="meta")
    given = [z, torch.zeros(1), torch.empty(1, config.condition, device="meta")]
    clocks = {
        "encode": Clock(codec.encoder, torch.empty(1, 1, *config.size, device="meta")),
        "sample": Clock(method.prior.net, *given, *([z] if config.prior.context else [])),
        "decode": Clock(codec.decoder, one),
    }
    convert(method, torch.bfloat16 if half else torch.float32)
    total, limit = seconds(lambda: method.complete(Batch(whole.images, present), Rng.of(0, 1))), rate(half)
    parts = {}
    for name, clock in clocks.items():
        reached = clock.gflop * clock.calls / clock.seconds
        parts[name] = {
            "seconds": clock.seconds,
            "calls": clock.calls,
            "gflop": clock.gflop * clock.calls,
            "rate": reached,
        }
        work = f"{clock.calls:3} calls  {clock.gflop * clock.calls:9.1f} GFLOP  {reached:5.0f} GFLOP/s"
        print(f"  {name:8} {clock.seconds:7.1f} s  {work}, {100 * reached / limit:3.0f} % of the matrix rate")
    print(f"  complete {total:7.1f} s, matrix rate {limit:.0f} GFLOP/s, memory {peak():.1f} GiB", flush=True)
    return {"seconds": total, "ceiling": limit, "peak_gib": peak(), "parts": parts}


def step(config: copedit.Config, stage: str) -> dict[str, Any]:
    """One optimisation step of a stage; what is measured before it (on one batch) is not in `seconds`."""
    system.SEEN = 1  # what is measured before the first step is measured on one batch
    method, data = copedit.build(replace(config, stages=(stage,))), study(config)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(steps=1, batch=1, ema=0.0, save_every=10**9)
        whole = seconds(lambda: fit(method, lambda k: data, folder, plan, device="cpu", quiet=True))
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    print(f"  {stage}: one step {rows[-1]['seconds']:.1f} s ({whole:.1f} s with measuring before and saving after), "
          f"loss {rows[-1]['loss']:.4f}, memory {peak():.1f} GiB", flush=True)  # fmt: skip
    return {"seconds": rows[-1]["seconds"], "whole": whole, "peak_gib": peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(copedit.PRESETS), default=["published:brats"])
    parser.add_argument("--what", nargs="+", choices=("complete", "prior", "tokenizer"), default=["complete", "prior"])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--size", type=int, nargs=3, help="voxels, to see how cost grows; those of the preset")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "copedit_cost.json")
    choice = parser.parse_args()
    torch.set_num_threads(choice.threads)
    half = bf16("auto", torch.device("cpu"))
    for name in choice.cases:
        config = replace(copedit.PRESETS[name](), steps=choice.steps)
        config = replace(config, size=tuple(choice.size)) if choice.size else config
        print(f"{name}, {'x'.join(map(str, config.size))} x {len(config.modalities)}, {choice.steps} steps, "
              f"{'bf16' if half else 'fp32'}, {choice.threads} threads", flush=True)  # fmt: skip
        for what in choice.what:
            found = complete(config, half) if what == "complete" else step(config, what)
            key = f"{name} {what} {'x'.join(map(str, config.size))}"
            keep(choice.out, key, {"steps": choice.steps, "bf16": half, **found}, choice.threads)


if __name__ == "__main__":
    main()

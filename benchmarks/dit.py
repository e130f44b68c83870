"""The transformer of CoPeDiT against the straightforward one: same sizes, same work, in one run.

    python benchmarks/dit.py --cases small published:ixi --rounds 5

The peer computes in float32, with separate query, key and value layers, attention written out, rotary positions in
complex numbers, and modulations made anew for every sequence, as the published count has it. Ours: bf16 where the
machine has it, fused attention, one modulation a sample.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amodal.core.device import bf16
from amodal.methods import copedit
from amodal.methods.copedit.config import Config
from amodal.nn.count import flops
from amodal.nn.dit import DiT, DiTConfig, patches, positions, rotations, unpatch
from amodal.nn.embed import sinusoidal
from amodal.nn.layout import convert


class PlainBlock(nn.Module):
    """As one would first write it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        inner = int(2 / 3 * 4 * width)
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1, self.norm2 = nn.RMSNorm(width, 1e-4), nn.RMSNorm(width, 1e-4)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, h: Tensor, condition: Tensor, turn: Tensor | None) -> Tensor:
        """h [N, T, D], condition [N, D], turn [T, head / 2] complex."""
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = self.norm1(h) * (1 + scale) + shift
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if turn is not None:
            q, k = (
                torch.view_as_real(torch.view_as_complex(u.unflatten(-1, (-1, 2))) * turn).flatten(-2) for u in (q, k)
            )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        h = h + gate * self.out((weights @ v).transpose(1, 2).flatten(2))
        x = self.norm2(h) * (1 + scale2) + shift2
        return h + gate2 * self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Plain(nn.Module):
    """The same network: slots folded into the batch for one kind of block, places for the other."""

    def __init__(self, config: DiTConfig, channels: int, condition: int):
        super().__init__()
        self.config, voxels, width = config, config.patch[0] * config.patch[1] * config.patch[2], config.hidden
        self.patch = nn.Linear(channels * (2 if config.context else 1) * voxels, width)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.told = nn.Sequential(nn.SiLU(), nn.Linear(condition, width))
        self.blocks = nn.ModuleList(PlainBlock(width, config.heads) for _ in range(config.blocks))
        self.modulation = nn.Linear(width, 2 * width)
        self.norm, self.out = nn.RMSNorm(width, 1e-4), nn.Linear(width, channels * voxels)

    def forward(self, z: Tensor, label: Tensor, condition: Tensor, context: Tensor | None = None) -> Tensor:
        c = self.config
        given = z if context is None else torch.cat([z, context], dim=2)
        cells = [n // p for n, p in zip(z.shape[3:], c.patch)]
        h = self.patch(patches(given, c.patch)) + positions(cells, z.shape[1], c.hidden, c.stacked, z.device)
        (b, s, t, d), time = h.shape, self.time(sinusoidal(label, 256))
        both = time + self.told(condition)
        turn = torch.complex(*rotations(cells, c.hidden // c.heads, z.device))
        for i, block in enumerate(self.blocks):
            if i % 2:
                x = h.transpose(1, 2).reshape(b * t, s, d)
                x = block(x, nn.functional.silu(both).repeat_interleave(t, 0), None)
                h = x.reshape(b, t, s, d).transpose(1, 2)
            else:
                x = block(h.reshape(b * s, t, d), nn.functional.silu(time).repeat_interleave(s, 0), turn)
                h = x.reshape(b, s, t, d)
        shift, scale = self.modulation(nn.functional.silu(time))[:, None, None].chunk(2, dim=-1)
        return unpatch(self.out(self.norm(h) * (1 + scale) + shift), cells, c.patch)


def inputs(config: Config, batch: int) -> list[Tensor]:
    """A noisy latent, a time, prompts and, where the network has it, a context."""
    spatial = [n // config.codec.factor for n in config.size]
    spatial[2] = 1 if config.layout == "slices" else spatial[2]
    z = torch.randn(batch, config.slots, config.codec.channels, *spatial)
    more = [torch.randn_like(z)] if config.prior.context else []
    return [z, torch.full((batch,), 300.0), torch.randn(batch, config.condition), *more]


def measure(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, dict[str, float]]:
    """Both in turn: median and range of seconds, and of the ratio to ours within a round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            with torch.inference_mode():
                run()
            if round_:  # the first is to warm up
                times[name].append(time.perf_counter() - start)
    table = {}
    for name, found in times.items():
        ratios = [theirs / ours for theirs, ours in zip(found, times["amodal"])]
        table[name] = {
            **{"median_s": statistics.median(found), "min_s": min(found), "max_s": max(found)},
            **{"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)},
        }
    return table


def rate(half: bool, size: int = 2048) -> float:
    """This machine's rate of matrix products now, in GFLOP/s: the ceiling."""
    a = torch.randn(size, size, dtype=torch.bfloat16 if half else torch.float32)
    best = min(seconds(lambda: a @ a) for _ in range(5))
    return 2 * size**3 / best / 1e9


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def keep(out: Path, name: str, found: dict[str, Any], threads: int) -> None:
    """Write what was found under its name, with the machine as it is now; what other runs wrote stays."""
    machine = {
        "cpu": platform.processor(), "threads": threads, "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1), "torch": torch.__version__,
    }  # fmt: skip
    kept = json.loads(out.read_text()) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**kept, name: {**found, "machine": machine}}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(copedit.PRESETS), default=["small", "small:heart"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dit.json")
    choice = parser.parse_args()
    torch.set_num_threads(choice.threads)
    half = bf16("auto", torch.device("cpu"))
    for name in choice.cases:
        config = copedit.PRESETS[name]()
        ours = DiT(config.prior, config.codec.channels, config.condition).eval()
        plain = Plain(config.prior, config.codec.channels, config.condition).eval()
        given = inputs(config, choice.batch)
        work = flops(ours, *given)[1]
        published = flops(DiT(replace(config.prior, everywhere=True), config.codec.channels, config.condition), *given)
        ours = convert(ours, torch.bfloat16 if half else torch.float32)
        runs = {"amodal": lambda n=ours, g=given: n(*g), "straightforward": lambda n=plain, g=given: n(*g)}
        table, ceiling = measure(runs, choice.rounds), rate(half)
        reached = work / table["amodal"]["median_s"] / 1e9
        print(f"{name}, batch {choice.batch}: {work / 1e9:.1f} GFLOP (as published: {published[1] / 1e9:.1f})")
        for who, row in table.items():
            ratio = f"{row['ratio']:.2f}x ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
            print(f"  {who:16} {row['median_s']:8.3f} s  {ratio}")
        print(f"  {reached:.0f} GFLOP/s, {100 * reached / ceiling:.0f} % of this machine's matrix rate ({ceiling:.0f})")
        found = {
            "batch": choice.batch, "gflop": work / 1e9, "ceiling_gflops": ceiling, "reached_gflops": reached,
            "bf16": half, "note": choice.note, "results": table,
        }  # fmt: skip
        keep(choice.out, name, found, choice.threads)


if __name__ == "__main__":
    main()

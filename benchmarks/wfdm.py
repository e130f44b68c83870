"""WFDM at its published size against MONAI's MAISI networks: one evaluation of the prior, one training step, one
volume decoded; and where a whole volume's time goes.

    python benchmarks/wfdm.py [--cases prior train decode volume] [--rounds 3] [--threads 2] [--device cpu|cuda]

Peers: MONAI as it comes (fp32) and at its best (bf16 autocast, channels-last, huge pages). Bf16 is ours and the best
peer's where the hardware computes in it (`core.device.bf16`), else both are fp32. Every network lives in a
process of its own, so that its memory is its own; in every round all take their turn, after a warm-up. A turn of the
prior is two evaluations, of which the second is timed: a sampler makes 50 in a row. Printed are medians, the range over
rounds, the ratio to ours, and the most memory a process held (on a GPU: that torch held).
Needs monai and einops. Results are added to `benchmarks/results/wfdm.json`, with machine and versions. `--latent` makes
it small, to try the script: `--latent 8 8 8 --rounds 1`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor, nn

from amodal.codecs.wavelet_fusion import WaveletCodec
from amodal.core.device import bf16, keep_memory
from amodal.core.rng import Rng
from amodal.methods import wfdm
from amodal.methods.wfdm.network import width_of
from amodal.nn.layout import convert

Run = Callable[[], dict[str, float]]  # one turn; how many seconds its parts took
HUGE = {"THP_MEM_ALLOC_ENABLE": "1"}


def ours(case: str, latent: tuple[int, ...], device: torch.device) -> Run:
    """amodal: bf16 weights (training: bf16 autocast), channels-last, and memory kept as `load` and `train` do."""
    keep_memory()
    half = bf16("auto", device)
    kind = torch.bfloat16 if half else torch.float32
    size = tuple(4 * n for n in latent)
    if case == "decode":
        codec = convert(WaveletCodec(wfdm.published().codec), kind).to(device).eval().requires_grad_(False)
        z = prior_inputs(latent, device)[0]
        return timed("decode", lambda: codec.decode(z))
    method = wfdm.build(dataclasses.replace(wfdm.published(), size=size)).to(device)
    if case == "train":
        return training(convert(method.net).train(), prior_inputs(latent, device), half)
    convert(method, kind).eval().requires_grad_(False)
    z, t, vector = prior_inputs(latent, device)
    if case == "prior":
        return timed("evaluation", lambda: method.net(z, t, vector), before=1)

    def volume() -> dict[str, float]:
        start = clock(device)
        marks: list[float] = []
        wanted = torch.arange(len(method.modalities)) == 0
        method.generate(1, size, Rng.of(0, 1), {"wanted": wanted}, lambda done, of: marks.append(clock(device)))
        end = clock(device)
        return {"50 steps": marks[-1] - start, "decode": end - marks[-1], "volume": end - start}

    return volume


def monai(case: str, latent: tuple[int, ...], device: torch.device, best: bool) -> Run:
    """MAISI's networks as MONAI makes them."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

    z, t, _ = prior_inputs(latent, device)
    half = best and bf16("auto", device)
    if case == "decode":
        net: nn.Module = AutoencoderKlMaisi(
            3, 1, 1, (2, 2, 2), (64, 128, 256), (False, False, False), latent_channels=4, num_splits=2, dim_split=1
        )
    else:
        net = DiffusionModelUNetMaisi(
            3, 4, 4, 2, (64, 128, 256, 512), (False, False, True, True), num_head_channels=(0, 0, 32, 32)
        )
    net = net.to(device)
    if best:
        net = net.to(memory_format=torch.channels_last_3d)
        z = z.contiguous(memory_format=torch.channels_last_3d)
    if case == "train":
        return training(net.train(), (z, t), half)
    net.eval().requires_grad_(False)
    decode: Any = getattr(net, "decode", None)
    if case == "decode":
        return timed("decode", lambda: decode(z), half)
    return timed("evaluation", lambda: net(z, t), half, before=1)


PEERS: dict[str, tuple[Callable[[str, tuple[int, ...], torch.device], Run], dict[str, str]]] = {
    "amodal": (ours, HUGE),  # as its command line has it
    "monai, default": (lambda *a: monai(*a, best=False), {}),
    "monai, best": (lambda *a: monai(*a, best=True), HUGE),
}
ALONE = ("volume",)  # cases without a peer


def prior_inputs(latent: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    config = wfdm.published()
    vector = torch.zeros(1, width_of(len(config.modalities), config.schema), device=device)
    vector[0, 0] = 1
    return torch.randn(1, 4, *latent, device=device), torch.tensor([500.0], device=device), vector


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(name: str, run: Callable[[], Any], cast: bool = False, before: int = 0) -> Run:
    """`run`, timed after so many that are not."""
    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")

    def turn() -> dict[str, float]:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16) if cast else nullcontext():
            for _ in range(before):
                run()
            start = clock(device)
            run()
            return {name: clock(device) - start}

    return turn


def training(net: nn.Module, inputs: tuple[Tensor, ...], cast: bool) -> Run:
    """Forward, mean square against noise, backward, a step of AdamW."""
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4)
    device = inputs[0].device

    def turn() -> dict[str, float]:
        start = clock(device)
        with torch.autocast(device.type, torch.bfloat16) if cast else nullcontext():
            loss = (net(*inputs).float() - inputs[0]).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return {"step": clock(device) - start}

    return turn


def work(pipe: Connection, peer: str, case: str, latent: tuple[int, ...], device: str, threads: int) -> None:
    """A process: builds its network, then takes a turn whenever it is told to."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.init()
    try:
        run = PEERS[peer][0](case, latent, place)
        while pipe.recv() == "go":
            seconds = run()
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            pipe.send((seconds, torch.cuda.max_memory_allocated() if place.type == "cuda" else held))
    except Exception as error:  # a peer that cannot run here is told, and left out
        pipe.send(f"{type(error).__name__}: {error}")


def measure(case: str, choice: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All peers in turn, `rounds` times after a warm-up."""
    context = multiprocessing.get_context("spawn")
    names = ["amodal"] if case in ALONE else list(PEERS)
    lines: dict[str, Connection] = {}
    processes = []
    for name in names:
        lines[name], theirs = context.Pipe()
        arguments = (theirs, name, case, tuple(choice.latent), choice.device, choice.threads)
        before = {key: os.environ.pop(key, None) for key in HUGE}
        os.environ.update(PEERS[name][1])
        processes.append(context.Process(target=work, args=arguments, daemon=True))
        processes[-1].start()
        for key, value in before.items():
            os.environ.pop(key, None)
            os.environ.update({key: value} if value is not None else {})
    found: dict[str, list[tuple[dict[str, float], float]]] = {name: [] for name in names}
    for turn in range(choice.rounds + 1):
        for name in list(found):
            lines[name].send("go")
            said = lines[name].recv()
            if isinstance(said, str):
                print(f"  {name}: cannot run here ({said})", file=sys.stderr)
                del found[name]
            elif turn:
                found[name].append(said)
    for name, process in zip(names, processes):
        if name in found:
            lines[name].send("stop")
        process.join(10)
    return {name: summary(turns, found["amodal"]) for name, turns in found.items()}


def summary(turns: list[tuple[dict[str, float], float]], own: list[tuple[dict[str, float], float]]) -> dict[str, Any]:
    """Median and range of the seconds of the last part, ratio to ours round by round, memory, medians of all parts."""
    last = list(turns[0][0])[-1]
    seconds, base = ([parts[last] for parts, _ in rows] for rows in (turns, own))
    ratios = [a / b for a, b in zip(seconds, base)]
    return {
        "median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds),
        "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "memory_gib": turns[-1][1] / 2**30,
        "parts": {name: statistics.median(parts[name] for parts, _ in turns) for name in turns[0][0]},
    }  # fmt: skip


def show(case: str, table: dict[str, dict[str, Any]]) -> None:
    print(case)
    for name, row in table.items():
        spread = f"{row['min_s']:.2f}-{row['max_s']:.2f}"
        ratio = f"{row['ratio']:.2f}x ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
        print(f"  {name:16} {row['median_s']:8.2f} s  ({spread})  {ratio:>22}  {row['memory_gib']:6.2f} GiB")
        if len(row["parts"]) > 1:
            print("    " + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in row["parts"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cases = ["prior", "train", "decode", "volume"]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--latent", nargs=3, type=int, default=(48, 56, 40))
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "wfdm.json")
    choice = parser.parse_args()
    results = json.loads(choice.out.read_text()) if choice.out.exists() else {}
    for case in choice.cases:
        table = measure(case, choice)
        show(case, table)
        about = {"latent": list(choice.latent), "rounds": choice.rounds, "device": choice.device, "note": choice.note}
        kind = "" if bf16("auto", torch.device(choice.device)) else ", float32"
        results[f"{case}, {choice.device}{kind}"] = {**about, "machine": machine(choice.threads), "results": table}
        choice.out.parent.mkdir(parents=True, exist_ok=True)
        choice.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

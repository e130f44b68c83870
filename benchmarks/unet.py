"""The U-Net against MONAI's DiffusionModelUNet of equal channels: one forward pass, and one training step.

    python benchmarks/unet.py [--cases small heavy ...] [--rounds 5] [--threads 2] [--note "shared machine"]

Peers: MONAI as it comes (fp32), and MONAI at its best (bf16 autocast, channels-last, fused attention). All take turns
in every round, after a warm-up; printed are medians, the range over rounds, and the ratio to ours with its range.
Needs monai and einops. On a busy machine take one thread.
Results are added to `benchmarks/results/unet.json`, with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import monai
import torch
from machine import machine
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from amodal.core.device import bf16
from amodal.methods import any2all
from amodal.nn.count import flops, parameters
from amodal.nn.layout import CHANNELS_LAST, convert, fold, unfold
from amodal.nn.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Case:
    """A network, the size of one image, and the batches of forward pass and training step (0: not measured)."""

    config: UNetConfig
    size: tuple[int, ...]
    forward: int
    train: int


CASES: dict[str, Case] = {
    "small": Case(any2all.small().net, (192, 192), 8, 8),
    "heavy": Case(UNetConfig(4, 4, (128, 256, 512), 2, (False, False, True), head_size=512), (256, 256), 1, 1),
    "volume": Case(UNetConfig(4, 4, (32, 64, 128), 2, (False, False, True), dims=3), (48, 56, 40), 1, 1),
    "published": Case(any2all.published().net, (256, 256), 1, 0),
}


class Peer(nn.Module):
    """MONAI's network behind the same folding of voxels into channels, so that both do the same work."""

    def __init__(self, config: UNetConfig, fused: bool):
        super().__init__()
        self.patch = config.patch
        cell = config.patch**config.dims
        self.net = DiffusionModelUNet(
            spatial_dims=config.dims,
            in_channels=config.in_channels * cell,
            out_channels=config.out_channels * cell,
            num_res_blocks=config.blocks,
            channels=config.channels,
            attention_levels=config.attention,
            norm_num_groups=config.groups,
            num_head_channels=[min(c, config.head_size) for c in config.channels],
            resblock_updown=config.resample == "residual",
            use_flash_attention=fused,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.patch == 1:
            return self.net(x, t)
        return unfold(self.net(fold(x, self.patch), t), self.patch)


def networks(case: Case, training: bool) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What is compared: name -> (x, t) -> result. Ours infers with bf16 weights and trains under autocast; ours and the
    best peer in fp32 where the hardware has no bf16."""
    half = bf16("auto", torch.device("cpu"))
    ours = convert(UNet(case.config), torch.bfloat16 if half and not training else None).train(training)
    plain = Peer(case.config, fused=False).train(training)
    best = Peer(case.config, fused=True).train(training).to(memory_format=CHANNELS_LAST[case.config.dims])

    def cast(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        def run(x: Tensor, t: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return net(x.contiguous(memory_format=CHANNELS_LAST[case.config.dims]), t)

        return run

    return {"amodal": cast(ours) if training else ours, "monai, default": plain, "monai, best": cast(best)}


def seconds(run: Callable[[Tensor, Tensor], Tensor], case: Case, training: bool) -> float:
    """One pass over a random batch; training: forward, mean square, backward."""
    batch = case.train if training else case.forward
    x, t = torch.randn(batch, case.config.in_channels, *case.size), torch.rand(batch) * 999
    start = time.perf_counter()
    if training:
        run(x, t).float().square().mean().backward()
    else:
        with torch.inference_mode():
            run(x, t)
    return time.perf_counter() - start


def measure(case: Case, training: bool, rounds: int) -> dict[str, dict[str, float]]:
    """Every network once a round, in turn: median and range of seconds, and of the ratio to ours within a round."""
    runs = networks(case, training)
    for run in runs.values():
        seconds(run, case, training)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, case, training))
    table = {}
    for name, found in times.items():
        ratios = [theirs / ours for theirs, ours in zip(found, times["amodal"])]
        table[name] = {
            **{"median_s": statistics.median(found), "min_s": min(found), "max_s": max(found)},
            **{"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)},
        }
    return table


def show(table: dict[str, dict[str, float]], work: float) -> None:
    """One line a network."""
    for name, row in table.items():
        spread = f"{row['min_s']:.3f}-{row['max_s']:.3f}"
        ratio = f"{row['ratio']:.2f}x ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
        print(f"  {name:16} {row['median_s']:8.3f} s  ({spread})  {ratio:>22}  {work / row['median_s']:7.0f} GFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["small", "heavy", "volume"])
    parser.add_argument("--modes", nargs="+", choices=["forward", "train"], default=["forward", "train"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "unet.json")
    choice = parser.parse_args()
    torch.set_num_threads(choice.threads)
    results = json.loads(choice.out.read_text()) if choice.out.exists() else {}
    for name in choice.cases:
        case = CASES[name]
        with torch.device("meta"):
            net = UNet(case.config)
        every = flops(net, torch.empty(1, case.config.in_channels, *case.size), torch.empty(1))[1]
        print(f"{name}: {parameters(net)[0] / 1e6:.1f} M parameters, {every / 1e9:.1f} GFLOP an image")
        for mode in choice.modes:
            training = mode == "train"
            batch = case.train if training else case.forward
            if not batch:
                continue
            print(f" {mode}, batch {batch} of {case.config.in_channels} x {' x '.join(map(str, case.size))}")
            table = measure(case, training, choice.rounds)
            show(table, every * batch * (3 if training else 1) / 1e9)
            about = {"batch": batch, "size": case.size, "rounds": choice.rounds, "gflop_per_image": every / 1e9}
            row = {
                **about,
                "note": choice.note,
                "machine": {**machine(choice.threads), "monai": monai.__version__},
                "results": table,
            }
            kind = "" if bf16("auto", torch.device("cpu")) else ", float32"
            results.setdefault(name, {})[mode + kind] = row
            choice.out.parent.mkdir(parents=True, exist_ok=True)
            choice.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

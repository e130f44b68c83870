"""What similar cooperative filtering costs: `python benchmarks/cola_diff_filter.py [--rounds 100] [--out FILE.json]`.

One evaluation of the latent space network (batch 1, one CPU thread, float32, conditions mapped beforehand) with its
filters and without, in turns, so that a busy machine slows both: medians of CPU time, and the share of the filters.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from amodal.methods import cola_diff

CASES = (("small", (24, 28)), ("small", (56, 56)), ("published:brats", (56, 56)))  # preset, size of the latent
FIRST = 3  # rounds that do not count


def cost(preset: str, size: tuple[int, int], rounds: int) -> dict[str, float | str]:
    config = cola_diff.PRESETS[preset]()
    torch.manual_seed(0)
    net = cola_diff.build(config).net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    bare = copy.deepcopy(net)
    bare.filters = nn.ModuleList(nn.Identity() for _ in net.filters)
    x, y = (torch.randn(1, n, *size) for n in (config.codec.channels, config.conditions))
    label, known = torch.zeros(1), torch.ones(1, 2 * len(config.modalities) + 1)
    seconds: list[list[float]] = [[], []]
    with torch.inference_mode():
        maps = net.maps(y)
        for _ in range(rounds + FIRST):
            for network, found in zip((net, bare), seconds):
                start = time.process_time()
                network.evaluate(x, label, maps, known)
                found.append(time.process_time() - start)
    with_filters, without = (statistics.median(found[FIRST:]) for found in seconds)
    share = 1 - without / with_filters
    return {
        "preset": preset,
        "latent": f"{size[0]} x {size[1]}",
        "with": with_filters,
        "without": without,
        "share": share,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=100)
    options.add_argument("--out", type=Path)
    args = options.parse_args()
    torch.set_num_threads(1)
    found = [cost(preset, size, max(5, args.rounds // (1 if preset == "small" else 10))) for preset, size in CASES]
    for row in found:
        print(f"{row['preset']}, {row['latent']}: {1e3 * row['with']:.1f} ms, {1e3 * row['without']:.1f} ms without "
              f"filters: {100 * row['share']:.1f} %")  # fmt: skip
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

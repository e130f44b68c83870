"""amodal methods: the papers, their tasks, presets, and how large their networks are."""

from __future__ import annotations

import json
from typing import Any

from . import console, options


def methods(as_json: options.AsJson = False, quiet: options.Quiet = False, debug: options.Debug = False) -> int:
    """List the methods: paper, tasks, presets, parameters and GFLOPs of each network."""
    found = describe()
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    for method in found:
        console.say(f"{method['name']}: {method['paper']}\ntasks: {', '.join(method['tasks'])}", quiet)
        rows = [
            [preset, network, f"{size['parameters']:,}", f"{size['trainable']:,}", f"{size['gflops']:,}"]
            for preset, about in method["presets"].items()
            for network, size in about["networks"].items()
        ]
        console.table("", ["preset", "network", "parameters", "trainable", "GFLOPs"], rows, quiet)
    return 0


def describe() -> list[dict[str, Any]]:
    """Every method and preset, its networks made on the meta device: nothing is allocated, nothing computed."""
    from ..methods import METHODS

    return [
        {
            "name": name,
            "paper": method.PAPER,
            "tasks": list(method.TASKS),
            "presets": {
                preset: {"networks": {n: size(*made) for n, made in method.networks(config()).items()}}
                for preset, config in method.PRESETS.items()
            },
        }
        for name, method in METHODS.items()
    ]


def size(network: Any, inputs: Any) -> dict[str, float]:
    """Parameters and GFLOPs (2 per multiply-add, batch 1) of a network, without and with the products of attention."""
    from ..nn import count

    every, trainable = count.parameters(network)
    layers, whole = (round(n / 1e9, 3) for n in count.flops(network, *inputs))
    return {"parameters": every, "trainable": trainable, "gflops": layers, "gflops_with_attention": whole}

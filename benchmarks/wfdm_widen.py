"""A WFDM model in twice the width that says the same: channels doubled, what reads them halved (Net2Net).

    python benchmarks/wfdm_widen.py RUN OUT

So a prior that was trained small goes on in twice the width without losing what it learned. Twins read the same and are
read a little differently, by opposite amounts, so that training parts them. Group norms see every channel with its
twin, and attention heads hold twice the channels, so their queries are divided by the root of 2. Prior and adapter are
widened; the codec, the regression, the estimate and the embeddings of conditions stay. Writes the model to OUT and
tells how far what both make of one latent lies apart.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amodal.core.rng import Rng
from amodal.methods import wfdm
from amodal.model import Model, load

APART = 0.25  # of the root mean square of a weight: how differently twins are read
NETWORKS = ("prior.net.unet.", "adapter.")


def twice(config: wfdm.Config) -> wfdm.Config:
    """The config of the widened model."""
    net = config.net
    channels = tuple(2 * n for n in net.channels)
    return replace(
        config, net=replace(net, channels=channels, head_size=2 * net.head_size, embed=net.embed or 4 * net.channels[0])
    )


def written(w: Tensor) -> Tensor:
    """A weight [out, ...] with every output doubled."""
    return w.repeat_interleave(2, dim=0)


def read(w: Tensor, rng: Rng) -> Tensor:
    """A weight [out, in, ...] for inputs that are doubled: the sum over twins is what it was."""
    half = w / 2
    apart = APART * half.square().mean().sqrt() * rng.normal(*w.shape)[0]
    return torch.stack([half + apart, half - apart], dim=2).flatten(1, 2)


def times(w: Tensor) -> Tensor:
    """The first layer of the embedding of time [embed, width]: cosines and sines of twice as many frequencies, of which
    every other one is as it was."""
    cosines, sines = (part.new_zeros(len(w), 2 * part.shape[1]) for part in w.chunk(2, dim=1))
    cosines[:, ::2], sines[:, ::2] = w.chunk(2, dim=1)
    return torch.cat([cosines, sines], dim=1)


def queries(w: Tensor) -> Tensor:
    """Queries, keys and values [3 C, ...] with queries for heads of twice the size."""
    q, rest = w[: len(w) // 3], w[len(w) // 3 :]
    return torch.cat([q / 2**0.5, rest])


def widened(name: str, w: Tensor, widths: tuple[int, ...], rng: Rng) -> Tensor:
    """One weight of a network, by its name in it; `widths`: of its modulations."""
    if name.startswith("embed."):
        if name == "embed.first.weight":
            return times(w)
        if not name.startswith("embed.modulation."):
            return w
        parts = [part for n, row in zip(widths, w.split([2 * n for n in widths])) if n for part in row.split(n)]
        return torch.cat([written(part) for part in parts])
    if ".qkv." in name:
        w = queries(w)
    if name.startswith(("head.", "direct.")):
        return w if w.ndim == 1 else read(w, rng)
    w = written(w)
    return w if w.ndim == 1 or name.startswith(("stem.", "known.")) else read(w, rng)


def widen(model: Model) -> Model:
    """The model in twice the width."""
    old, method = model.method, wfdm.build(twice(model.method.config))
    widths: dict[str, Any] = {"prior.net.unet.": old.net.unet.embed.widths, "adapter.": old.adapter.embed.widths}
    state = {}
    for number, (key, w) in enumerate(old.state_dict().items()):
        prefix = next((p for p in NETWORKS if key.startswith(p)), None)
        rng = Rng.of(number, 1, "widen")
        state[key] = w if prefix is None else widened(key.removeprefix(prefix), w.float(), widths[prefix], rng)
    method.load_state_dict(state)
    return Model(
        model.name, method.eval(), model.grid, model.windows, card=model.card, quantities=model.quantities,
    )  # fmt: skip


def apart(a: Any, b: Any) -> float:
    """The largest difference of what two methods' priors make of one noisy latent."""
    rng, config = Rng.of(0, 1, "latent"), a.config
    z = rng.normal(config.codec.channels, *(n // a.codec.factor for n in config.size))
    table = a.encode_metadata([{}])
    vector = wfdm.network.condition(torch.tensor([0]), len(a.modalities), table["values"], table["known"])
    t = torch.tensor([0.6 * a.prior.process.end])
    with torch.inference_mode():
        x, y = (m.prior(z, t, vector) for m in (a, b))
    return float((x - y).abs().max() / x.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    choice = parser.parse_args()
    model = load(choice.run, device="cpu", precision="fp32")
    wide = widen(model)
    print(f"{choice.out}: what both make of a latent lies {apart(model.method, wide.method):.1e} of its spread apart")
    wide.save(choice.out)


if __name__ == "__main__":
    main()

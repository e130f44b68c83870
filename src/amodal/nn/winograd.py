"""Convolutions with fewer multiplications: sums before and after save products between (Winograd 1980).

A `Scheme` makes the outputs of a tile along an axis by fewer products than taps x outputs; over all axes that is one
matrix product for each place of a tile.

TWO     3 taps, 4 products for 2 outputs in place of 6: in 3-D 8 a voxel for 27 (Lavin & Gray 2016, F(2, 3))
FOUR    3 taps, 6 products for 4 outputs in place of 12: in 3-D 3.4 a voxel, in 2-D 2.25 for 9 (the same, F(4, 3)).
        Its sums are of large and small terms: in float32 1e-5 of the SD, in bf16 they would spoil the image
TWICE   voxels repeated once, then 3 taps, 3 products for 2 outputs, where the transposed convolution has 4 (see
        `blocks.Up`): in 3-D 27 for each voxel that is repeated, not 64. With taps (a, b, c) around x
            left = (a + b + c) x + a (x_before - x),   right = (a + b + c) x + c (x_after - x)
HALF    3 taps at every other voxel, 5 products for 2 outputs in place of 6: in 3-D 15.6 an output for 27. Of 5 voxels
        the outer taps meet 1, 3 and 5, which is F(2, 2), the middle one 2 and 4

The sums are bound by memory, so they pay for many channels only; and where a processor has matrix units, not in bf16.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import onepass
from .layout import CHANNELS_LAST

BUDGET = 1 << 22  # values of all tiles at once: more do not stay in the cache
PART = 32  # outputs whose weights are transformed at once, in float32
FETCH = 8, 6  # tiles whose products take as long as reading their place's weights, from memory and from a cache
NEAR = 1 << 22  # values that stay in a cache

Conv = nn.Conv2d | nn.Conv3d
Rows = tuple[tuple[float, ...], ...]
CONVOLVE: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}

Make = Callable[[Tensor], Tensor]
_derived: WeakKeyDictionary[Conv, tuple[tuple[int, int], dict[Make, Tensor]]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Scheme:
    """Along an axis: `taps` makes the weights of every product of the 3 taps, `spread` the other factors of the voxels
    of a tile and one more at each end, `fold` the outputs of the products. The next tile is `step` voxels on."""

    taps: Rows
    spread: Rows
    fold: Rows
    step: int

    @property
    def stride(self) -> int:
        """That of the layers it is for."""
        return max(1, self.step // len(self.fold))

    def total(self, size: int) -> int:
        """Outputs of so many voxels."""
        return -(-len(self.fold) * size // self.step)


Way = tuple[Scheme, ...]  # a scheme for every axis

TWO = Scheme(
    taps=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    spread=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    fold=((1, 1, 1, 0), (0, 1, -1, -1)),
    step=2,
)
FOUR = Scheme(
    taps=(
        (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
    ),
    spread=(
        (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
    ),
    fold=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    step=4,
)  # fmt: skip
TWICE = Scheme(
    taps=((1, 1, 1), (1, 0, 0), (0, 0, 1)),
    spread=((0, 1, 0), (1, -1, 0), (0, -1, 1)),
    fold=((1, 1, 0), (1, 0, 1)),
    step=1,
)
HALF = Scheme(
    taps=((1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 1, 0)),
    spread=((1, 0, -1, 0, 0, 0), (0, 0, 1, 0, 0, 0), (0, 0, -1, 0, 1, 0), (0, 1, 0, 0, 0, 0), (0, 0, 0, 1, 0, 0)),
    fold=((1, 1, 0, 1, 0), (0, 1, 1, 0, 1)),
    step=4,
)
ONE = Scheme(taps=((1,),), spread=((1,),), fold=((1,),), step=1)  # one tap; or an axis that an image does not have
# by stride, what a layer may be computed by, and the taps that it has a voxel along an axis
STRIDED: dict[int, tuple[Sequence[Scheme], float]] = {1: ((TWO, FOUR), 3), 2: ((HALF,), 1.5)}
# by torch, of the type computed in and the number of axes: channels, of input and of output, from which a scheme pays
WIDE: dict[tuple[Scheme, torch.dtype, int], int] = {
    (TWO, torch.bfloat16, 3): 128, (TWICE, torch.bfloat16, 3): 128,
    (TWO, torch.float32, 3): 128, (FOUR, torch.float32, 3): 48, (TWICE, torch.float32, 3): 128,
    (TWO, torch.float32, 2): 512, (FOUR, torch.float32, 2): 128, (TWICE, torch.float32, 2): 128,
}  # fmt: skip
GAIN = 1.3  # and how many times fewer products it then needs
# in one pass, by code compiled here (onepass.py), in float32 whatever x is of: the same two
NATIVE: dict[torch.dtype, tuple[int, float]] = {torch.float32: (32, 1.3), torch.bfloat16: (32, 2.5)}


def convolve(layer: Conv, x: Tensor, halo: bool = False, add: Tensor | None = None) -> Tensor:
    """layer(x) + add, by the shorter way where one pays: the same but for rounding (bf16, by torch: 1 % of its SD, not
    0.2 %).

    `halo`: x has its neighbours along the first axis, where the layer would pad with zeros. `add`, which nobody needs
    any more, may be overwritten.
    """
    if way := shortest(layer, x, *STRIDED.get(layer.stride[0], ())):
        return short(way, layer, x, halo, add)
    if halo:
        sides = (0, *layer.padding[1:])
        out = CONVOLVE[x.ndim - 2](x, layer.weight, layer.bias, layer.stride, sides)
    else:
        out = layer(x)
    return out if add is None else out.add_(add)


def short(way: Way, layer: Conv, x: Tensor, halo: bool = False, add: Tensor | None = None) -> Tensor:
    """layer(x) + add by this way."""
    if found := compiled(way, x.dtype):
        weight = derived(layer, packing(way, found[1]))
        return onepass.run(found, three(way), x, weight, layer.out_channels, layer.bias, add, halo)
    out = run(way, x, derived(layer, transforming(way)), layer.bias, halo)
    return out if add is None else out.add_(add)


def compiled(way: Way, kind: torch.dtype) -> onepass.Kernel | None:
    """What onepass has for this way."""
    return onepass.kernel(three(way), kind == torch.bfloat16) if kind in NATIVE else None


def three(way: Way) -> Way:
    """The way with a scheme for each of three axes."""
    return (ONE,) * (3 - len(way)) + way


def shortest(layer: Conv, x: Tensor, schemes: Sequence[Scheme] = (), taps: float = 3) -> Way | None:
    """Of the ways that these schemes make, and that pay for this layer, the one of fewest products; None where all in
    all the long way, of so many taps a voxel along an axis, is the shorter one, and where gradients are asked for or
    autocast chooses the type."""
    size, (outputs, inputs) = x.shape[2:], layer.weight.shape[:2]
    if (
        not schemes
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")  # products in bf16 would be too far off
        or x.dtype != layer.weight.dtype
        or (set(layer.weight.shape[2:]), set(layer.stride), set(layer.padding)) != ({3}, {schemes[0].stride}, {1})
        or (x.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported())
    ):
        return None
    pair = outputs * inputs
    long = pair * taps ** len(size) * (size.numel() + fetch(pair * taps ** len(size)))
    least, gain = NATIVE.get(x.dtype, (max(inputs, outputs) + 1, GAIN))
    if max(inputs, outputs) >= least:
        full = math.prod(-(-n // onepass.LINE) * onepass.LINE for n in (inputs, outputs))
        best = fewest(schemes, size, full)
        if gain * count(best, size, full) < long and compiled(best, x.dtype):
            return best
    paying = [s for s in schemes if min(inputs, outputs) >= WIDE.get((s, x.dtype, len(size)), inputs + 1)]
    best = fewest(paying, size, pair) if paying else ()
    return best if best and GAIN * count(best, size, pair) < long else None


def fewest(schemes: Sequence[Scheme], size: Sequence[int], pairs: int) -> Way:
    """The way of the lowest `count`."""
    return min(itertools.product(schemes, repeat=len(size)), key=lambda way: count(way, size, pairs))


def count(way: Way, size: Sequence[int], pairs: int) -> int:
    """Products for an image of this size and so many pairs of input and output channel, and what the reading of their
    weights takes, in products."""
    tiles = math.prod(-(-n // scheme.step) for n, scheme in zip(size, way))
    weights = pairs * math.prod(len(scheme.taps) for scheme in way)
    return weights * (tiles + fetch(weights))


def fetch(weights: float) -> int:
    """Tiles whose products take as long as reading so many weights."""
    return FETCH[weights <= NEAR]


def places(way: Way, kind: torch.dtype) -> Tensor:
    """[places, 3^dims]: the weights of all products of a tile of the taps, the last axis fastest."""
    return functools.reduce(torch.kron, (torch.tensor(scheme.taps, dtype=kind) for scheme in way))


def transformed(way: Way, weight: Tensor) -> Tensor:
    """[K, C, 3, ...] -> [places, C, K], the last axis fastest."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    matrix, parts = places(way, wide), []
    for part in weight.split(PART):
        taps = part.flatten(2).movedim(-1, 0).to(wide)  # [3^dims, part, C]
        parts.append(torch.matmul(matrix, taps.flatten(1)).to(weight.dtype).unflatten(1, part.shape[:2]))
    return torch.cat(parts, dim=1).transpose(1, 2)


@functools.cache
def transforming(way: Way) -> Make:
    """`transformed` by this way, one function for each, as `derived` wants it."""
    return functools.partial(transformed, way)


@functools.cache
def packing(way: Way, columns: int) -> Make:
    """Of a weight what the compiled way multiplies by: the taps are packed first, they are fewer."""

    def make(weight: Tensor) -> Tensor:
        packed = onepass.pack(weight.flatten(2).permute(2, 1, 0), columns)
        return torch.matmul(places(way, torch.float32), packed.flatten(1)).unflatten(1, packed.shape[1:])

    return make


def derived(layer: Conv, make: Make) -> Tensor:
    """make(layer.weight), without gradients made once and kept as long as the layer has this weight."""
    weight = layer.weight
    if torch.is_grad_enabled():
        return make(weight)
    state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
    known = _derived.get(layer)
    if known is None or known[0] != state:
        known = _derived[layer] = (state, {})
    if make not in known[1]:
        known[1][make] = make(weight)
    return known[1][make]


def run(
    way: Way, x: Tensor, tiles: Tensor, bias: Tensor | None = None, halo: bool = False, budget: int = BUDGET
) -> Tensor:
    """By torch: x [B, C, *spatial] and `transformed` weights, zeros around x -> [B, K, *spatial], or twice or half the
    size.

    Channels-last. `halo`: x has its neighbours along the first axis, which gets shorter by 2. `budget`: values of the
    tiles computed at once.
    """
    size = (x.shape[2] - 2 * halo, *x.shape[3:])
    dims, folded = len(size), [len(scheme.fold) for scheme in way]
    shape = (len(x), tiles.shape[2], *(s.total(n) for n, s in zip(size, way)))
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST[dims])
    grid, begin = [-(-n // s.step) for n, s in zip(size, way)], (int(halo), 0, 0)  # where the layer's first voxel lies
    parts = list(boxes(grid, budget // (len(tiles) * sum(tiles.shape[1:]))))
    for sample, result in zip(x.movedim(1, -1), out.movedim(1, -1)):
        for box in parts:
            spans = [(n + s.step * a - 1, n + s.step * b + 1) for n, s, (a, b) in zip(begin, way, box)]
            part = around(sample, spans)[None]
            for axis, scheme in enumerate(way, 1):  # [places so far, tiles so far, voxels to come, C]
                part = times(scheme.spread, part.unfold(axis, scheme.step + 2, scheme.step).movedim(-1, 1))
            products = torch.bmm(part.flatten(1, -2), tiles).flatten()[None]
            for scheme in way:  # [outputs so far, places to come, tiles and K]
                products = times(scheme.fold, products.unflatten(1, (len(scheme.taps), -1)))
            products = products.unflatten(1, (*(b - a for a, b in box), -1)).unflatten(0, folded)
            put(products, bias, result[tuple(slice(f * a, f * b) for f, (a, b) in zip(folded, box))])
    return out


def boxes(grid: Sequence[int], count: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Parts of a grid of tiles, (first, last + 1) along every axis, of at most `count` tiles or of one."""
    sides: list[int] = []
    for n in reversed(grid):
        sides.insert(0, max(1, min(n, count)))
        count //= n  # 0 once an axis is cut
    return itertools.product(*([(a, min(a + side, n)) for a in range(0, n, side)] for n, side in zip(grid, sides)))


def around(x: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The voxels of these spans of x [*spatial, C], zeros outside."""
    inside, zeros = [], [0, 0]
    for (first, last), n in zip(spans, x.shape):
        low, high = max(first, 0), min(last, n)
        inside.append(slice(low, high))
        zeros[2:2] = [low - first, last - high]
    return F.pad(x[tuple(inside)], zeros)


def times(rows: Rows, x: Tensor) -> Tensor:
    """The matrix of these rows [r, n] by x [L, n, ...] -> [L r, ...], sum by sum: x may be a view of any strides."""
    out, parts = x.new_empty(len(x), len(rows), *x.shape[2:]), x.unbind(1)
    for row, total in zip(rows, out.unbind(1)):
        terms = [(factor, part) for factor, part in zip(row, parts) if factor]
        (_, first), *others = sorted(terms, key=lambda term: term[0] != 1)
        if not others:
            total.copy_(first)
        for factor, part in others:
            first = torch.add(first, part, alpha=factor, out=total)
    return out.flatten(0, 1)


def put(parts: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """parts [outputs of a tile, for every axis, then tiles, for every axis, then K] + bias -> out [*spatial, K]."""
    dims = out.ndim - 1
    tiles = parts.permute(*(k for axis in range(dims) for k in (dims + axis, axis)), -1)
    whole = [n * of for n, of in zip(parts.shape[dims:-1], parts.shape[:dims])]
    fits = whole == list(out.shape[:-1])
    into = out if fits else out.new_empty(*whole, out.shape[-1])
    for axis, of in enumerate(parts.shape[:dims]):
        into = into.unflatten(2 * axis, (-1, of))
    into.copy_(tiles) if bias is None else torch.add(tiles, bias, out=into)
    if not fits:
        out.copy_(into.reshape(*whole, -1)[tuple(map(slice, out.shape))])

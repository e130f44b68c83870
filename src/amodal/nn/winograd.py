"""3-D convolutions with fewer multiplications: sums before and after save products between (Winograd 1980).

A `Scheme` makes 2 outputs along an axis by fewer products than taps x outputs; over three axes that is one matrix
product for each place of a tile.

PLAIN   3 taps, 4 products for 2 outputs in place of 6: in 3-D 8 a voxel for 27 (Lavin & Gray 2016, F(2, 3))
TWICE   voxels repeated once, then 3 taps, 3 products for 2 outputs, where the transposed convolution has 4 (see
        `blocks.Up`): in 3-D 27 for each voxel that is repeated, not 64. With taps (a, b, c) around x
            left = (a + b + c) x + a (x_before - x),   right = (a + b + c) x + c (x_after - x)

The sums are bound by memory, so they pay for many channels only; and where a processor has matrix units, not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDE = 128  # channels, of input and of output, from which it pays
BUDGET = 1 << 24  # values of all tiles at once: more do not stay in the cache
PART = 32  # outputs whose weights are transformed at once, in float32

Conv = nn.Conv2d | nn.Conv3d
CONVOLVE: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}

_derived: WeakKeyDictionary[Conv, tuple[tuple[object, int, int], Tensor]] = WeakKeyDictionary()


def convolve(layer: Conv, x: Tensor, halo: bool = False) -> Tensor:
    """layer(x), by the shorter way where that pays: the same but for rounding (1 % of its SD in bf16, not 0.2 %).

    `halo`: x has its neighbours along the first axis, where the layer would pad with zeros.
    """
    if pays(layer, x):
        return run(PLAIN, x, derived(layer, PLAIN.transformed), layer.bias, halo)
    if not halo:
        return layer(x)
    sides = (0, *layer.padding[1:])
    return CONVOLVE[x.ndim - 2](x, layer.weight, layer.bias, layer.stride, sides)


def pays(layer: Conv, x: Tensor) -> bool:
    """Whether a wide 3 x 3 x 3 convolution is computed in bf16, without gradients, by a CPU without matrix units."""
    return (
        x.dtype == torch.bfloat16 == layer.weight.dtype
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and layer.weight.shape[2:] == (3, 3, 3)
        and set(layer.stride) == {1}
        and set(layer.padding) == {1}
        and min(layer.weight.shape[:2]) >= WIDE
        and not torch.cpu._is_amx_tile_supported()
    )


def derived(layer: Conv, make: Callable[[Tensor], Tensor]) -> Tensor:
    """make(layer.weight), without gradients made once and kept as long as the layer has this weight."""
    weight = layer.weight
    if torch.is_grad_enabled():
        return make(weight)
    state = (make, weight.data_ptr(), 0 if weight.is_inference() else weight._version)
    known = _derived.get(layer)
    if known is None or known[0] != state:
        known = _derived[layer] = (state, make(weight))
    return known[1]


@dataclass(frozen=True)
class Scheme:
    """`taps`: the weights of every product in terms of the 3 taps. `step`: voxels a tile; with one more at each end
    `spread` makes of them the other factors, `fold` of the products the 2 outputs (where to, if it is given). `every`:
    a product that both outputs hold as it is."""

    taps: tuple[tuple[float, float, float], ...]
    step: int
    spread: Callable[[Tensor, int], Tensor]
    fold: Callable[..., tuple[Tensor, Tensor]]
    every: int

    def transformed(self, weight: Tensor) -> Tensor:
        """[K, C, 3, 3, 3] -> [places, C, K], places in the order last axis, middle, first."""
        g = torch.tensor(self.taps, dtype=torch.float32)
        places = torch.einsum("ia,jb,lc->ljiabc", g, g, g).flatten(3).flatten(0, 2)
        parts = []
        for part in weight.split(PART):
            taps = part.permute(2, 3, 4, 0, 1).flatten(0, 2).float()  # [27, part, C]
            parts.append(torch.matmul(places, taps.flatten(1)).to(weight.dtype).unflatten(1, part.shape[:2]))
        return torch.cat(parts, dim=1).transpose(1, 2)


def spread_plain(x: Tensor, axis: int) -> Tensor:
    """[..., 2 n + 2, ...] -> [4, ..., n, ...]."""
    n = (x.shape[axis] - 2) // 2
    a, b, c, d = (x.narrow(axis, k, 2 * n - 1)[(slice(None),) * axis + (slice(None, None, 2),)] for k in range(4))
    out = x.new_empty(4, *a.shape)
    torch.sub(a, c, out=out[0])
    torch.add(b, c, out=out[1])
    torch.sub(c, b, out=out[2])
    torch.sub(b, d, out=out[3])
    return out


def fold_plain(m: Tensor, even: Tensor | None = None, odd: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[4, ...] -> the even and the odd outputs; overwrites m."""
    first = torch.add(m[1], m[2])
    return last(torch.add, first, m[0], even), last(torch.sub, m[1].sub_(m[2]), m[3], odd)


def spread_twice(x: Tensor, axis: int) -> Tensor:
    """[..., n + 2, ...] -> [3, ..., n, ...]."""
    n = x.shape[axis] - 2
    before, here, after = (x.narrow(axis, k, n) for k in range(3))
    out = x.new_empty(3, *here.shape)
    out[0] = here
    torch.sub(before, here, out=out[1])
    torch.sub(after, here, out=out[2])
    return out


def fold_twice(m: Tensor, even: Tensor | None = None, odd: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[3, ...] -> the even and the odd outputs; overwrites m."""
    return last(torch.add, m[1], m[0], even), last(torch.add, m[2], m[0], odd)


def last(sum_of: Callable[..., Tensor], x: Tensor, y: Tensor, out: Tensor | None) -> Tensor:
    """The last sum of an output: of as much of x and y as fits into `out`, or of all, into x."""
    if out is None:
        return sum_of(x, y, out=x)
    part = tuple(map(slice, out.shape))
    return sum_of(x[part], y[part], out=out)


PLAIN = Scheme(((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)), 2, spread_plain, fold_plain, 1)
TWICE = Scheme(((1, 1, 1), (1, 0, 0), (0, 0, 1)), 1, spread_twice, fold_twice, 0)


def run(
    scheme: Scheme, x: Tensor, tiles: Tensor, bias: Tensor | None = None, halo: bool = False, budget: int = BUDGET
) -> Tensor:
    """x [B, C, *spatial] and `transformed` weights, zeros around x -> [B, K, *spatial], or twice the size.

    Channels-last. `halo`: x has its neighbours along the first axis, which gets shorter by 2. `budget`: values of the
    tiles computed at once, at least one row of tiles along the first axis.
    """
    size = [x.shape[2] - 2 * halo, *x.shape[3:]]
    step, sides = scheme.step, len(scheme.taps)
    deep, *plane = (-(-n // step) for n in size)
    shape = (len(x), tiles.shape[2], *(2 * n // step for n in size))
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    rows = max(1, budget // (len(tiles) * plane[0] * plane[1] * sum(tiles.shape[1:])))
    around = [n for count, tile in zip(size[:0:-1], plane[::-1]) for n in (1, step * tile + 1 - count)]
    for sample, result in zip(x.movedim(1, -1), out.movedim(1, -1)):
        for first in range(0, deep, rows):
            last = min(first + rows, deep)
            begin, end = step * first - 1 + halo, step * last + 1 + halo
            low, high = max(begin, 0), min(end, len(sample))
            part = F.pad(sample[low:high], (0, 0, *around, low - begin, end - high))
            for axis in (0, 2, 4):  # every spread adds an axis in front
                part = scheme.spread(part, axis)
            products = torch.bmm(part.flatten(0, 2).flatten(1, -2), tiles)
            products = products.unflatten(1, (last - first, *plane)).unflatten(0, (sides,) * 3)
            if bias is not None:
                products[(scheme.every,) * 3] += bias
            gather(scheme, products, result[2 * first : 2 * last])
    return out


def gather(scheme: Scheme, products: Tensor, out: Tensor) -> None:
    """Products [sides, sides, sides, d, h, w, K] into out [<= 2 d, <= 2 h, <= 2 w, K]."""
    for c, columns in enumerate(scheme.fold(products)):
        for b, lines in enumerate(scheme.fold(columns)):
            even, odd = (out[a::2, b::2, c::2] for a in range(2))
            scheme.fold(lines, even, odd)

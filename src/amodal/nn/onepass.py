"""Winograd's convolutions in one pass: `winograd.c`, compiled for each combination of schemes (`native`)."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from . import native
from .layout import CHANNELS_LAST, channels_last

LINE = 16  # the kernel's channels are a multiple of this
ROWS = 6  # tiles whose products are made at once
MANY_TILES = 36  # of a task, where weights come from memory
CACHE = 1 << 17, 1 << 22  # floats that a task may need at once, floats of weights that stay in a cache between tasks
BLOCK = 128  # outputs of a task
Rows = tuple[tuple[float, ...], ...]
Kernel = tuple[Callable[..., None], int]  # the function, and the outputs that it makes at once


class Scheme(Protocol):
    """What is asked of `winograd.Scheme`."""

    @property
    def spread(self) -> Rows: ...
    @property
    def fold(self) -> Rows: ...
    @property
    def step(self) -> int: ...
    def total(self, size: int) -> int: ...


class Shape(ctypes.Structure):
    """`shape_of` of winograd.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "inputs", "outputs", "threads")),
        *((name, ctypes.c_int64 * 3) for name in ("size", "begin", "total", "tiles")),
        *((name, ctypes.c_int64) for name in ("together", "block", "scratch")),
    ]


@functools.cache
def kernel(way: tuple[Scheme, ...], half: bool) -> Kernel | None:
    """The compiled function of a way, a scheme for each of three axes; None where it cannot be had."""
    library = native.library("winograd", half, axes(way))
    if library is None:
        return None
    library.columns.restype = ctypes.c_int64
    library.convolve.restype = None
    library.convolve.argtypes = [ctypes.c_void_p] * 5 + [ctypes.POINTER(Shape), ctypes.c_void_p]
    return library.convolve, library.columns()


def axes(way: Sequence[Scheme]) -> str:
    """What winograd.c has to know of a way."""
    parts = []
    for axis, scheme in zip("XYZ", way):
        sizes = len(scheme.spread[0]), len(scheme.spread), len(scheme.fold), scheme.step
        names = zip(("IN", "PLACES", "OUT", "STEP"), sizes)
        parts.append("enum { " + ", ".join(f"{name}_{axis} = {size}" for name, size in names) + " };")
        if axis == "X":
            rows = (f"ROW({place}, {total(row, 'X({})')})" for place, row in enumerate(scheme.spread))
            parts += [f"#define SPREAD_X {' '.join(rows)}", table("FOLD_X", scheme.fold)]
        else:
            both = {"spread": scheme.spread, "fold": scheme.fold}
            parts += [lines(f"{name}_{axis.lower()}", rows) for name, rows in both.items()]
    return "\n".join(parts)


def total(row: Sequence[float], term: str) -> str:
    """The sum of a row's terms, without the zeros."""
    terms = [(float(v), term.format(k)) for k, v in enumerate(row) if v]
    return " + ".join(name if v == 1 else f"{v}f * {name}" for v, name in terms)


def table(name: str, rows: Rows) -> str:
    """Rows as an array."""
    inside = ", ".join("{" + ", ".join(f"{float(v)}f" for v in row) + "}" for row in rows)
    return f"static const float {name}[{len(rows)}][{len(rows[0])}] = {{{inside}}};"


def lines(name: str, rows: Rows) -> str:
    """Rows as a function: a line for each."""
    body = " ".join(f"out[{k} * wide] = {total(row, 'in[{} * gap]')};" for k, row in enumerate(rows))
    return f"static inline void {name}(const loose *in, int64_t gap, loose *out, int64_t wide) {{ {body} }}"


def pack(tiles: Tensor, columns: int) -> Tensor:
    """Weights [places, C, K] as the kernel reads them: [places, K / columns, C, columns] in float32, C and K up to a
    multiple of LINE and of `columns` by zeros."""
    tiles = F.pad(tiles.float(), (0, -tiles.shape[2] % columns, 0, -tiles.shape[1] % LINE))
    return tiles.unflatten(2, (-1, columns)).transpose(1, 2).contiguous()


def run(
    found: Kernel, way: Sequence[Scheme], x: Tensor, weight: Tensor, outputs: int,
    bias: Tensor | None = None, add: Tensor | None = None, halo: bool = False,
) -> Tensor:  # fmt: skip
    """x [B, C, *spatial] and a packed weight -> [B, outputs, *spatial], channels-last, plus `add`, of that shape.

    `way`: a scheme for each of three axes; an image in 2-D has one voxel along the first.
    """
    if short := -outputs % LINE:
        bias = None if bias is None else F.pad(bias, (0, short))
        out = channels_last(run(found, way, x, weight, outputs + short, bias, halo=halo)[:, :outputs])
        return out if add is None else out.add_(add)
    call, columns = found
    dims, inputs = x.ndim - 2, weight.shape[2]
    if x.shape[1] < inputs:
        x = F.pad(x.movedim(1, -1), (0, inputs - x.shape[1])).movedim(-1, 1)
    missing = 3 - dims
    size = (*[1] * missing, *x.shape[2:])
    begin = [0, 0, 0]
    begin[missing] = int(halo)
    inner = [n - 2 * b for n, b in zip(size, begin)]
    tiles = [-(-n // s.step) for n, s in zip(inner, way)]
    total = [s.total(n) for n, s in zip(inner, way)]
    threads, count = torch.get_num_threads(), len(x) * math.prod(tiles)
    together, block = share(way, inputs, outputs, columns, weight.numel(), count, threads)
    scratch = needed(way, inputs, block, together)
    shape = Shape(
        len(x), inputs, outputs, threads, *((ctypes.c_int64 * 3)(*v) for v in (size, begin, total, tiles)),
        together, block, scratch,
    )  # fmt: skip
    form = (len(x), outputs, *total[missing:])
    out = torch.empty(form, dtype=x.dtype, memory_format=CHANNELS_LAST[dims])
    bias, add = (None if bias is None else bias.float()), (None if add is None else channels_last(add))
    given = (channels_last(x), weight, bias, add)
    place = torch.empty(threads * scratch)
    first, *rest = (None if v is None else v.data_ptr() for v in given)
    call(first, out.data_ptr(), *rest, ctypes.byref(shape), place.data_ptr())
    return out


def share(
    way: Sequence[Scheme], inputs: int, outputs: int, columns: int, weights: int, tiles: int, threads: int
) -> tuple[int, int]:
    """How many tiles and outputs a task has."""
    block = min(BLOCK, -(-outputs // columns) * columns)
    together = MANY_TILES
    if weights <= CACHE[1]:
        each = needed(way, inputs, block, 1)
        together = min(max(CACHE[0] // each // ROWS, 1) * ROWS, MANY_TILES)
    together = min(together, tiles)
    boxes = -(-tiles // together)
    while block > columns and (tasks := boxes * -(-outputs // block)) < 2 * threads and tasks % threads:
        block = -(-block // 2 // columns) * columns
    return together, block


def needed(way: Sequence[Scheme], inputs: int, block: int, together: int) -> int:
    """Floats of a task's own memory: where its voxels lie, zeros, what it spreads, its products and sums."""
    places = math.prod(len(s.spread) for s in way[1:])
    cells, sums = math.prod(len(s.spread[0]) for s in way), math.prod(len(s.fold) for s in way)
    seen = 2 * together * cells + LINE + inputs
    floats = seen + places * (together * (inputs + block) + 2 * LINE) + together * sums * block
    return -(-floats // LINE) * LINE

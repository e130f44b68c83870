"""Studies made ready for training: on the network's grid, in [-1, 1], in half precision, on disk and memory-mapped.

Batches are a pure function of their number, so resuming, several processes and prefetching need no state at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.config import from_dict, to_dict
from ..core.contract import Batch, Grid
from ..core.errors import InputError
from ..core.rng import seed_of
from .frame import Frame, window_of
from .guidance import CLASSES, densities, on_grid
from .intensity import QUANTITIES, Window, group_window
from .volume import Study, Volume

INDEX, FORMAT = "index.json", 1
CONTENT = -0.8  # brighter than a tenth of the range: head, not field of view
FULL = 0.05  # slices with more than this part of the largest content area are drawn ...
RARE = 0.1  # ... and all others this much more rarely
GAIN, GAMMA = (0.9, 1.1), (0.8, 1.25)


Encode = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, torch.Tensor] | None]


@dataclass(frozen=True)
class Entry:
    """One cached study. `box`: first and last + 1 voxel of the content per axis; `areas`: content voxels of each axial
    slice; `windows`: the intensities that became -1 and 1, of the modalities present; `metadata`: what is known of the
    subject, as the data set's table says it; `spacing`: of the grid, mm (0: not noted); `tissue`: the file of its
    tissue maps, uint8 [M, X, Y, Z] ("": none), `density` what `guidance.densities` says of them."""

    label: str
    file: str
    shape: tuple[int, int, int]
    windows: Mapping[str, tuple[float, float]]
    box: tuple[tuple[int, int], ...]
    areas: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tissue: str = ""
    density: Sequence[Any] = ()


@dataclass(frozen=True)
class Cache:
    """Studies on disk, ready to be drawn from. `skipped`: labels of studies that had none of the modalities;
    `quantities`: the one window of each quantitative modality (CT, PET)."""

    folder: Path
    modalities: tuple[str, ...]
    grid: Mapping[str, Any]
    entries: tuple[Entry, ...]
    skipped: tuple[str, ...] = ()
    quantities: Mapping[str, Window] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        studies: Iterable[Study],
        grid: Grid,
        modalities: Sequence[str],
        folder: str | Path,
        overwrite: bool = False,
    ) -> Cache:
        """Write the cache of `studies`, read one at a time; the folder appears once it is whole.

        InputError: the folder exists and `overwrite` is not given, two studies with one label, or no usable study.
        """
        folder = Path(folder)
        if folder.exists() and not overwrite:
            raise InputError(f"{folder}: exists already; open it, or give --overwrite to build it anew.")
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            entries, skipped = _write(studies, grid, tuple(modalities), partial)
            entries, quantities = _settle(entries, tuple(modalities), partial)
            index = {"format": FORMAT, "modalities": list(modalities), "grid": to_dict(grid), "skipped": skipped}
            index["quantities"] = {name: to_dict(window) for name, window in quantities.items()}
            index["studies"] = [asdict(e) for e in entries]
            (partial / INDEX).write_text(json.dumps(index))
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> Cache:
        """Open a cache; InputError if there is none or it is of another format."""
        folder = Path(folder)
        try:
            index = json.loads((folder / INDEX).read_text())
            if index["format"] != FORMAT:
                raise InputError(
                    f"{folder}: cache format {index['format']}, this version reads {FORMAT}; build it anew."
                )
            entries = tuple(_entry(e) for e in index["studies"])
            quantities = {name: from_dict(Window, w) for name, w in index.get("quantities", {}).items()}
            return cls(folder, tuple(index["modalities"]), index["grid"], entries, tuple(index["skipped"]), quantities)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}: no training cache can be read here ({error}); build it anew.") from error

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(e.label for e in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def only(self, *labels: str) -> Cache:
        """The same cache with some of its studies; InputError if one is not there."""
        if missing := sorted(set(labels) - set(self.labels)):
            raise InputError(f"{self.folder}: has no study {missing[0]}; choose among {', '.join(self.labels)}.")
        return replace(self, entries=tuple(e for e in self.entries if e.label in labels))

    def without(self, *labels: str) -> Cache:
        """The same cache less some of its studies."""
        return self.only(*(label for label in self.labels if label not in labels))

    def windows(self) -> dict[str, tuple[float, float]]:
        """The median intensity window of each modality, over the studies that have it."""
        out = {}
        for name in self.modalities:
            if found := [e.windows[name] for e in self.entries if name in e.windows]:
                lo, hi = np.median(np.array(found), axis=0)
                out[name] = (float(lo), float(hi))
        return out

    def stack(self, label: str) -> tuple[np.ndarray, np.ndarray]:
        """A whole study, [M, X, Y, Z] float32 in [-1, 1] (-1 where absent), and what is present, bool [M]."""
        entry = self.only(label).entries[0]
        return np.ascontiguousarray(self._array(entry), dtype=np.float32), self._present(entry)

    def batch(
        self, step: int, size: int, seed: int, crop: Sequence[int], rank: int = 0, world: int = 1,
        augment: bool = True, jitter: bool = False, encode: Encode | None = None,
    ) -> Batch:  # fmt: skip
        """Batch number `step` of process `rank`: a pure function of its arguments.

        `crop` (x, y): axial slices [B, M, x, y], mostly such with content. `crop` (x, y, z): sub-volumes. Crops lie at
        random around the content and are padded with -1. `augment`: left-right flip; `jitter`: gain and gamma of each
        modality, half of the time. Jitter is off by default: what a target's intensities are for given inputs is just
        what is to be learned, and cohorts of several scanners vary by themselves. `encode`: what becomes of the
        metadata of the subjects (Method.encode_metadata). Where there are tissue maps, metadata holds "tissue", uint8
        [B, M, *crop], and "density" [B, M, classes, 2] as well.
        """
        images, present, rows, known = [], [], [], []
        for i in range(size):
            draw = np.random.default_rng(seed_of(seed, "batch", step * world + rank, i))
            entry = self.entries[int(draw.integers(len(self.entries)))]
            image, there = self._sample(entry, tuple(crop), draw), self._present(entry)
            images.append(_augment(image, there, draw, jitter) if augment else image)
            present.append(there.reshape(-1, *(1,) * len(crop)))
            rows.append(entry.metadata)
            known.append(self._density(entry))
        metadata, stack, m = None if encode is None else encode(rows), np.stack(images), len(self.modalities)
        if self._guided:
            tissue = torch.from_numpy(stack[:, m:].clip(min=0).astype(np.uint8))
            metadata = {**(metadata or {}), "tissue": tissue, "density": torch.from_numpy(np.stack(known))}
            stack = np.ascontiguousarray(stack[:, :m])
        return Batch(torch.from_numpy(stack), torch.from_numpy(np.stack(present)), metadata)

    def guidance(self, label: str) -> Mapping[str, np.ndarray]:
        """The tissue maps of a whole study and their densities, as in the metadata of a batch; empty without any."""
        entry = self.only(label).entries[0]
        return {"tissue": np.array(self._maps(entry)), "density": self._density(entry)} if self._guided else {}

    @property
    def _guided(self) -> bool:
        return any(e.tissue for e in self.entries)

    def _sample(self, entry: Entry, crop: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
        """A crop of the images [M, *crop], and of the tissue maps after them: [2 M, *crop]."""
        arrays = [self._array(entry)] + [self._maps(entry)] * self._guided
        if len(crop) == 2:
            areas = np.array(entry.areas)
            weights = np.where(areas > FULL * areas.max(), 1.0, RARE)
            z = int(draw.choice(len(areas), p=weights / weights.sum()))
            arrays = [array[..., z] for array in arrays]
        starts = [_start(n, c, box, draw) for n, c, box in zip(entry.shape, crop, entry.box)]
        return np.concatenate([_cut(array, starts, crop) for array in arrays])

    def _array(self, entry: Entry) -> np.ndarray:
        """Memory-mapped afresh each time (0.1 ms), so that a large cohort holds no files open."""
        return np.load(self.folder / entry.file, mmap_mode="r", allow_pickle=False)

    def _maps(self, entry: Entry) -> np.ndarray:
        if not entry.tissue:
            return np.broadcast_to(np.uint8(0), (len(self.modalities), *entry.shape))
        return np.load(self.folder / entry.tissue, mmap_mode="r", allow_pickle=False)

    def _density(self, entry: Entry) -> np.ndarray:
        none = np.zeros((len(self.modalities), CLASSES, 2), np.float32)
        return np.array(entry.density, np.float32) if entry.tissue else none

    def _present(self, entry: Entry) -> np.ndarray:
        return np.array([name in entry.windows for name in self.modalities])


def prefetch(data: Callable[[int], Batch], depth: int = 2) -> Callable[[int], Batch]:
    """`data` with the next `depth` batches made ahead in a thread; as before, any number may be asked for."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    ahead: dict[int, Future[Batch]] = {}
    last, stride = 0, 1

    def get(index: int) -> Batch:
        nonlocal last, stride
        stride, last = (index - last) or stride, index
        found = ahead.pop(index, None) or pool.submit(data, index)
        wanted = [index + stride * k for k in range(1, depth + 1)]
        for number in [n for n in ahead if n not in wanted]:
            ahead.pop(number).cancel()
        for number in wanted:
            if number >= 0 and number not in ahead:
                ahead[number] = pool.submit(data, number)
        return found.result()

    return get


def _write(
    studies: Iterable[Study], grid: Grid, modalities: tuple[str, ...], folder: Path
) -> tuple[list[Entry], list[str]]:
    entries: list[Entry] = []
    skipped: list[str] = []
    for study in studies:
        if study.label in {e.label for e in entries}:
            raise InputError(f"{study.label}: two studies have this label; give each its own subject or session name.")
        if any(name in study for name in modalities):
            entries.append(_write_one(study, grid, modalities, folder / f"study-{len(entries):05d}.npy"))
        else:
            skipped.append(study.label)
    if not entries:
        raise InputError(f"no study with any of {', '.join(modalities)} was found; give at least one to train on.")
    return entries, skipped


def _write_one(study: Study, grid: Grid, modalities: tuple[str, ...], path: Path) -> Entry:
    frame = Frame.of(study[study.reference], grid)
    windows, layers = {}, {}
    for name in modalities:
        if name in study:
            try:
                window = _window(name, study[name], grid)
            except InputError as error:
                raise InputError(f"{study.label} {name}: {error}") from error
            layers[name] = window.enter(frame.enter(study[name]))
            windows[name] = (float(window.lo), float(window.hi))
    shape = next(iter(layers.values())).shape
    # Fortran order: an axial slice of all modalities is one contiguous piece of the file
    array = np.full((len(modalities), *shape), -1, np.float16, order="F")
    for i, name in enumerate(modalities):
        if name in layers:
            array[i] = layers[name]
    content = np.max(array, axis=0) > CONTENT
    np.save(path, array, allow_pickle=False)
    areas = tuple(int(n) for n in content.sum((0, 1)))
    known = {k: v for k, v in study.metadata.items() if isinstance(v, (str, int, float, bool))}
    entry = Entry(study.label, path.name, shape, windows, _box(content), areas, known, frame.spacing)
    if not any(name in study.tissue for name in modalities):
        return entry
    maps, beside = on_grid(study, frame, modalities), path.with_name(f"{path.stem}-tissue.npy")
    np.save(beside, np.asfortranarray(maps), allow_pickle=False)
    return replace(entry, tissue=beside.name, density=densities(array, maps).tolist())


def _window(name: str, volume: Volume, grid: Grid) -> Window:
    """The window a volume is cached with; that of a quantity without a fixed one is all its range, until `_settle`."""
    if name not in QUANTITIES:
        return window_of(volume, grid)
    return QUANTITIES[name].window or Window(0.0, max(float(volume.data.max()), 1e-6))


def _settle(entries: list[Entry], modalities: tuple[str, ...], folder: Path) -> tuple[list[Entry], dict[str, Window]]:
    """Bring quantities without a fixed window (PET) to one window for the group, on disk; entries and windows."""
    known = {m: QUANTITIES[m].window for m in modalities if m in QUANTITIES and any(m in e.windows for e in entries)}
    out = {name: window for name, window in known.items() if window is not None}
    for name in known.keys() - out.keys():
        having, row = [e for e in entries if name in e.windows], modalities.index(name)
        group = group_window([_top(_map(folder, e)[row], e.windows[name]) for e in having])
        out[name] = group
        for e in having:
            array = _map(folder, e)
            array[row] = group.enter(Window(*e.windows[name]).leave(array[row].astype(np.float32)))
            array.flush()
        entries = [replace(e, windows={**e.windows, name: (group.lo, group.hi)}) if e in having else e for e in entries]
    return entries, out


def _map(folder: Path, entry: Entry) -> np.memmap:
    """The file of a study, to be changed; opened one at a time, as a process may not hold many."""
    return np.load(folder / entry.file, mmap_mode="r+", allow_pickle=False)


def _top(layer: np.ndarray, window: tuple[float, float]) -> float:
    """The upper end of a cached quantity, but for a thousandth of what is not background."""
    values = Window(*window).leave(layer.astype(np.float32))
    return float(np.percentile(values[values >= 0.02 * values.max()], 99.9))


def _entry(values: Mapping[str, Any]) -> Entry:
    """An entry as index.json holds it; its file must lie in the cache's own folder."""
    for file in (values["file"], values.get("tissue", "")):
        if Path(file).name != file:
            raise ValueError(f"{file!r} is not a file name")
    windows = {name: (float(lo), float(hi)) for name, (lo, hi) in values["windows"].items()}
    box = tuple((int(a), int(b)) for a, b in values["box"])
    x, y, z = values["shape"]
    return Entry(
        str(values["label"]),
        values["file"],
        (x, y, z),
        windows,
        box,
        tuple(values["areas"]),
        values.get("metadata", {}),
        _triple(values.get("spacing", (0.0, 0.0, 0.0))),
        values.get("tissue", ""),
        values.get("density", ()),
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z


def _box(content: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Where the content lies, per axis; rows with less than 0.5 % of the fullest row's content are stray voxels."""
    out = []
    for axis in range(content.ndim):
        profile = content.sum(tuple(a for a in range(content.ndim) if a != axis))
        inside = np.flatnonzero(profile > 0.005 * profile.max())
        out.append((int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, content.shape[axis]))
    return tuple(out)


def _start(length: int, crop: int, box: tuple[int, int], draw: np.random.Generator) -> int:
    """Where a crop begins on one axis: within the content or around all of it, and inside the array where it fits."""
    low, high = sorted((box[0], box[1] - crop))
    if length >= crop:
        low, high = max(low, 0), min(high, length - crop)
    return int(draw.integers(low, high + 1))


def _cut(array: np.ndarray, starts: Sequence[int], crop: Sequence[int]) -> np.ndarray:
    """[M, *crop] float32 from `starts` on, -1 outside the array."""
    out = np.full((array.shape[0], *crop), -1, np.float32)
    spans = [(max(s, 0), min(s + c, n)) for s, c, n in zip(starts, crop, array.shape[1:])]
    target = tuple(slice(a - s, b - s) for (a, b), s in zip(spans, starts))
    out[(slice(None), *target)] = array[(slice(None), *(slice(a, b) for a, b in spans))]
    return out


def _augment(image: np.ndarray, present: np.ndarray, draw: np.random.Generator, jitter: bool) -> np.ndarray:
    """Left-right flip, half of the time; with `jitter` gain and gamma on the [0, 1] scale, likewise, per modality."""
    if draw.random() < 0.5:
        image = image[:, ::-1].copy()
    for layer, there in zip(image, present):
        change, gain, gamma = draw.random() < 0.5, draw.uniform(*GAIN), np.exp(draw.uniform(*np.log(GAMMA)))
        if there and change and jitter:
            unit = np.clip((layer + 1) / 2, 0, 1)
            layer[...] = np.clip(np.float32(gain) * unit ** np.float32(gamma), 0, 1) * 2 - 1
    return image

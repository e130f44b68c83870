"""A model completes a study: onto the network's grid, through the method, and back to where the patient lay."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..core.config import from_dict, to_dict
from ..core.contract import Batch, Grid, Progress, share
from ..core.errors import InputError
from ..core.modality import canonical
from ..core.rng import Rng
from ..data.frame import Frame, window_of
from ..data.intensity import Window
from ..data.volume import Study, Volume
from . import files, intervals
from .detail import SKETCHING, lost
from .guidance import guidance
from .outline import Outlines

_BACKGROUND = 0.15  # share of voxels that are exactly 0 in every input, above which the study counts as masked
_MARGIN = 8  # voxels around the content that the network sees too


@dataclass(frozen=True, eq=False)
class Completion:
    """A completed study. `study` holds what was acquired, untouched, and what was made; `scaled` what was made in
    units of the modality's own window, [0, 1] on the reference's grid; `spread` the SD over samples in the study's
    units, `scaled_spread` in those of the window."""

    study: Study
    inputs: tuple[str, ...]
    made: tuple[str, ...]
    scaled: Mapping[str, np.ndarray]
    spread: Mapping[str, Volume]
    scaled_spread: Mapping[str, np.ndarray]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]
    seconds: float

    def __getitem__(self, name: str) -> Volume:
        return self.study[name]


@dataclass(eq=False)
class Model:
    """A method with all it needs to take a user's files. `windows`: the training median range of each modality, which a
    synthesised image takes, as it has no scale of its own. `card`: training data, scores, baselines, licence.
    `quantities`: the one window of what has units (CT in HU, PET in SUV), for what comes in as for what is made.
    `outlines`: where heads lie, for generation slice by slice."""

    name: str
    method: Any  # a Method and a torch.nn.Module
    grid: Grid = field(default_factory=Grid)
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    id: str = ""
    precision: str = "fp32"
    quantities: Mapping[str, Window] = field(default_factory=dict)
    outlines: Outlines | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.method.modalities

    @property
    def calibration(self) -> intervals.Calibration | None:
        """What its SD maps are worth, as its card says; None if it was not calibrated."""
        return intervals.of_card(self.card, self.sha256)

    def interval(self, full: Completion, name: str, level: float = 0.9) -> tuple[Volume, Volume]:
        """The lower and upper end of the calibrated interval of what was made, in the units of the image.

        InputError unless several samples were drawn and the model was calibrated (amodal evaluate --calibrate).
        """
        known = self.calibration
        if known is None or name not in full.scaled_spread or level not in known.levels(name):
            raise InputError(
                f"there is no {100 * level:g} % interval of {name}: draw several samples with a model that was "
                "calibrated, see amodal evaluate --calibrate."
            )
        samples, scale = full.provenance["Sampler"]["Samples"], self.scale(name)
        half = known.half(name, level, full.scaled_spread[name], samples)
        ends = (scale.leave(2 * (full.scaled[name] + sign * half) - 1).astype(np.float32) for sign in (-1, 1))
        low, high = (full[name].like(end, f"SYNTHETIC {name}, end of a {100 * level:g} % interval") for end in ends)
        return low, high

    def window(self, name: str, volume: Volume) -> Window:
        """The window of an image that comes in: its own, or that of its modality where that is quantitative."""
        return self.quantities.get(name) or window_of(volume, self.grid)

    def scale(self, name: str) -> Window:
        """The window of an image that is made."""
        return self.quantities.get(name) or Window(*self.windows.get(name, (0.0, 1.0)))

    def targets(self, available: Sequence[str], missing: Sequence[str] | None = None) -> tuple[str, ...]:
        """What `complete` will make: `missing`, or all the model knows and the study lacks. InputError if it cannot."""
        known = ", ".join(self.modalities)
        absent = [m for m in self.modalities if m not in available]
        wanted = [canonical(name) for name in missing] if missing else absent
        for name in wanted:
            if name not in self.modalities:
                raise InputError(f"the model does not know {name}; it makes {known}.")
        if not wanted:
            raise InputError(f"nothing is missing of {known}; name a modality to make with --missing.")
        if not [m for m in self.modalities if m in available and m not in wanted]:
            seen = ", ".join(available) or "nothing"
            raise InputError(
                f"the study has {seen} and {', '.join(wanted)} is to be made; give another of {known} to make it from."
            )
        return tuple(m for m in self.modalities if m in wanted)

    def complete(
        self, study: Study, missing: Sequence[str] | None = None, samples: int = 1, seed: int = 0, *,
        steps: int | None = None, chunk: int | None = None, sampler: str | None = None,
        progress: Progress | None = None,
    ) -> Completion:  # fmt: skip
        """Make what is missing of a study whose volumes share one grid. `missing` may name what is there, to hide it.

        With `samples` K > 1 the result is the mean of K draws, `spread` their SD. The same seed gives the same image.
        """
        start = time.perf_counter()
        if samples < 1:
            raise InputError(f"samples={samples}: choose at least 1.")
        made = self.targets(study.modalities, missing)
        inputs = tuple(m for m in self.modalities if m in study and m not in made)
        given = study.only(*inputs)
        frame, entry = Frame.of(given[inputs[0]], self.grid), self.entry(given)
        stack, there = self.enter(given, frame, entry)
        fixed = any(self.grid.size)  # the network knows no other size
        part = (slice(None),) * 4 if fixed else _content(stack[there], self.method.dims)
        maps = guidance(given, frame, self.modalities, stack, part, self.method.dims)
        method = self._with(chunk=chunk, posterior=sampler)
        method.config = dataclasses.replace(method.config, steps=method.steps_for(samples) if steps is None else steps)
        draws = [
            self._draw(method, given, stack[part], there, seed, k, part, share(progress, k, samples), maps)
            for k in range(samples)
        ]
        mean, spread = _moments(draws)
        outside = self._background(given)
        rows = [(i, m) for i, m in enumerate(self.modalities) if m in made]
        scaled, sd = (
            {m: self._leave(x[i], stack.shape, part, frame, outside) for i, m in rows} for x in (mean, spread)
        )
        if self.name in SKETCHING and frame.resampled:
            scaled = self._detailed(scaled, self.enter(given, entry=entry)[0], stack, there, frame, outside)
        return self._completion(study, given, made, scaled, sd, samples, seed, method, frame, start)

    # what `complete` is made of

    def _with(self, **settings: int | str | None) -> Any:
        """The method with some settings replaced (None: as it is); weights are shared."""
        changed = {key: value for key, value in settings.items() if value is not None}
        method, config = copy.copy(self.method), to_dict(self.method.config)
        if foreign := sorted(set(changed) - set(config)):
            raise InputError(f"{self.name} has no setting {foreign[0]!r} to change; leave the flag out.")
        method.config = from_dict(type(method.config), {**config, **changed})
        return method

    def stack(self, study: Study) -> tuple[np.ndarray, np.ndarray]:
        """What the network would see of a study: [M, X, Y, Z] in [-1, 1], and which modalities are there, bool [M]."""
        given = study.only(*self.modalities)
        return self.enter(given, Frame.of(given[given.reference], self.grid))

    def entry(self, study: Study) -> dict[str, Window]:
        """The window of each image of a study that comes in."""
        return {m: self.window(m, study[m]) for m in self.modalities if m in study}

    def enter(
        self, study: Study, frame: Frame | None = None, entry: Mapping[str, Window] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """[M, X, Y, Z] in [-1, 1] on the network's grid in a `frame`, or on the study's own; -1 where nothing is. And
        which modalities are there [M]. `entry`: the windows, where they are known."""
        entry = self.entry(study) if entry is None else entry
        shape = study[study.reference].shape if frame is None else frame.shape
        stack = np.full((len(self.modalities), *shape), -1, np.float32)
        for m, window in entry.items():
            volume = study[m]
            stack[self.modalities.index(m)] = window.enter(volume.data if frame is None else frame.enter(volume))
        return stack, np.array([m in entry for m in self.modalities])

    def _draw(
        self, method: Any, study: Study, stack: np.ndarray, there: np.ndarray, seed: int, sample: int,
        part: tuple[slice, ...], progress: Progress | None, maps: Mapping[str, torch.Tensor],
    ) -> np.ndarray:  # fmt: skip
        """One sample [M, X, Y, Z] in [-1, 1]. The random stream belongs to the slice's place in the frame."""
        device = next(self.method.parameters()).device
        images = torch.from_numpy(stack)
        if method.dims == 2:
            images = images.movedim(-1, 0).contiguous()  # a sample is an axial slice
            first = part[-1].start or 0
            rng = Rng.of(seed, first + len(images), "complete", sample)[first:]
        else:
            images, rng = images[None], Rng.of(seed, 1, "complete", sample)
        present = torch.from_numpy(there).reshape(1, -1, *[1] * (images.ndim - 2))
        present = present.expand(len(images), *present.shape[1:])
        metadata = method.encode_metadata([study.metadata] * len(images))
        metadata = {**(metadata or {}), **maps} if maps else metadata
        out = method.complete(Batch(images, present, metadata).to(device), rng, progress).float().cpu()
        return (out.movedim(0, -1) if method.dims == 2 else out[0]).numpy()

    def _leave(
        self, x: np.ndarray, shape: tuple[int, ...], part: tuple[slice, ...], frame: Frame, outside: np.ndarray | None
    ) -> np.ndarray:
        """One modality of a draw, in [0, 1], back on the reference's grid; exactly 0 outside a masked head."""
        whole = np.zeros(shape[1:], np.float32)
        whole[part[1:]] = x
        home = frame.leave(whole, fill=0.0).astype(np.float32)
        return home if outside is None else np.where(outside, np.float32(0), home)

    def _detailed(
        self, scaled: dict[str, np.ndarray], here: np.ndarray, stack: np.ndarray, there: np.ndarray, frame: Frame,
        outside: np.ndarray | None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """What was made, with what the network's grid loses of its sketch; `here`: the stack at its own size."""
        whole = (slice(None),) * 4
        more = lost(self.method, here, stack, there, lambda x: self._leave(x, stack.shape, whole, frame, outside))
        if more is None:
            return scaled
        return {m: np.clip(x + more[self.modalities.index(m)], 0, 1) for m, x in scaled.items()}

    def _completion(
        self, study: Study, given: Study, made: tuple[str, ...], scaled: dict[str, np.ndarray],
        sd: dict[str, np.ndarray], samples: int, seed: int, method: Any, frame: Frame, start: float,
    ) -> Completion:  # fmt: skip
        reference, volumes, spread = given[given.modalities[0]], dict(given.volumes), {}
        for name in made:
            scale, middle = self.scale(name), 2 * scaled[name] - 1
            data = scale.leave(middle).astype(np.float32)
            if (outside := self._background(given)) is not None:
                data[outside] = self._empty(name)
            volumes[name] = reference.like(data, f"SYNTHETIC {name}, amodal {__version__}, not acquired")
            if samples > 1:
                wide = scale.spread(middle, 2 * sd[name])
                spread[name] = reference.like(wide, f"SYNTHETIC {name} SD over {samples} samples")
        ignored = [m for m in study.modalities if m not in self.modalities]
        notes = study.notes + tuple(f"{m}: left as it is, the model does not know it." for m in ignored)
        if frame.resampled:
            notes += (f"Resampled to {_mm(frame.spacing)} mm for the network and back.",)
        volumes |= {m: study[m] for m in ignored}
        done = dataclasses.replace(study, volumes=volumes, notes=notes)
        return Completion(
            study=done, inputs=given.modalities, made=made, scaled=scaled, spread=spread,
            scaled_spread=sd if samples > 1 else {}, notes=notes, seconds=time.perf_counter() - start,
            provenance=self.provenance(method, samples, seed) | intervals.stated(self.calibration, made, samples),
        )  # fmt: skip

    def _empty(self, name: str) -> float:
        """What a masked image holds outside: 0, or the lower end of a quantity (air, in HU)."""
        return self.quantities[name].lo if name in self.quantities else 0.0

    def _background(self, given: Study) -> np.ndarray | None:
        """Where every input is empty, to the bit, if that is so much of the field of view that they are masked."""
        outside = np.logical_and.reduce([v.data == self._empty(name) for name, v in given.volumes.items()])
        return outside if outside.mean() > _BACKGROUND else None

    def provenance(self, method: Any, samples: int, seed: int) -> dict[str, Any]:
        """What made an image: tool, method, weights, sampler, seed, precision, environment."""
        return {
            "Tool": f"amodal {__version__}",
            "Method": self.name,
            "Weights": {"Id": self.id, "SHA256": self.sha256, "Licence": self.card.get("licence", "unknown")},
            "Sampler": {
                "Name": method.sampler, "Steps": method.config.steps, "Seed": seed, "Samples": samples,
                "Precision": self.precision,
            },
            "Environment": {"torch": str(torch.__version__), "device": str(next(self.method.parameters()).device)},
        }  # fmt: skip

    # on disk

    def save(self, folder: str | Path, half: bool = False) -> Path:
        """Write weights.safetensors and model.json; `half` stores 16-bit weights. Nothing is left half-written."""
        kind = torch.float16 if half else torch.float32
        state = {k: v.detach().cpu().contiguous().to(kind if v.is_floating_point() else v.dtype)
                 for k, v in self.method.state_dict().items()}  # fmt: skip
        about = {
            "method": self.name, "modalities": list(self.modalities), "config": to_dict(self.method.config),
            "grid": to_dict(self.grid), "windows": {k: list(v) for k, v in self.windows.items()},
            "quantities": {k: to_dict(v) for k, v in self.quantities.items()}, "card": self.card,
        }  # fmt: skip
        if self.outlines is not None:
            state |= {k: v.to(kind) for k, v in self.outlines.tensors().items()}
        self.sha256 = files.write(Path(folder), state, about)
        return Path(folder)


def _content(stack: np.ndarray, dims: int) -> tuple[slice, ...]:
    """The box around what is not background (all axes of [M, X, Y, Z]); 2-D methods need no margin between slices."""
    content: np.ndarray = np.any(stack > -0.98, axis=0)
    box: list[slice] = [slice(None)]
    for axis in range(3):
        where = np.flatnonzero(np.any(content, axis=tuple(a for a in range(3) if a != axis)))
        margin = 0 if dims == 2 and axis == 2 else _MARGIN
        box.append(slice(max(0, where[0] - margin), min(content.shape[axis], where[-1] + 1 + margin)))
    return tuple(box)


def _moments(draws: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD over samples, in [0, 1] units."""
    unit = (np.stack(draws) + 1) / 2
    mean = np.asarray(unit.mean(axis=0), np.float32)
    return mean, np.asarray(unit.std(axis=0, ddof=1), np.float32) if len(unit) > 1 else np.zeros_like(mean)


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:.2f}" for s in spacing)

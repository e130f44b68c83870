"""A model: a trained method with its grid, its intensity scales and what is known of it. It completes studies.

On disk it is a folder: weights.safetensors, model.json (format version, method, config, grid, windows, card, sha256).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from . import __version__
from .core.config import from_dict, to_dict
from .core.contract import Batch, Grid, Progress, share
from .core.device import bf16, pick
from .core.errors import InputError
from .core.modality import canonical
from .core.rng import Rng
from .data.frame import Frame
from .data.intensity import Window
from .data.nifti import sha256
from .data.volume import Study, Volume
from .methods import METHODS
from .nn.layout import convert

FORMAT = 1
DEFAULT = Path(__file__).parent / "models" / "default"
_FILES = ("weights.safetensors", "model.json")
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
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
    synthesised image takes, as it has no scale of its own. `card`: training data, scores, baselines, licence."""

    name: str
    method: Any  # a Method and a torch.nn.Module
    grid: Grid = field(default_factory=Grid)
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    id: str = ""
    precision: str = "fp32"

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.method.modalities

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
        frame = Frame.of(given[inputs[0]], self.grid)
        stack, there = self._stack(given, frame)
        part = _content(stack[there], self.method.dims)
        method = self._with(chunk=chunk, posterior=sampler)
        method.config = dataclasses.replace(method.config, steps=method.steps_for(samples) if steps is None else steps)
        draws = [
            self._draw(method, stack[part], there, seed, k, part, share(progress, k, samples)) for k in range(samples)
        ]
        mean, spread = _moments(draws)
        outside = _background(given)
        rows = [(i, m) for i, m in enumerate(self.modalities) if m in made]
        scaled, sd = (
            {m: self._leave(x[i], stack.shape, part, frame, outside) for i, m in rows} for x in (mean, spread)
        )
        return self._completion(study, given, made, scaled, sd, samples, seed, method.config, frame, start)

    # what `complete` is made of

    def _with(self, **settings: int | str | None) -> Any:
        """The method with some settings replaced (None: as it is); weights are shared."""
        changed = {key: value for key, value in settings.items() if value is not None}
        method = copy.copy(self.method)
        method.config = from_dict(type(method.config), {**to_dict(method.config), **changed})
        return method

    def _stack(self, given: Study, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """[M, X, Y, Z] in [-1, 1] on the network's grid, -1 where nothing is, and which modalities are there [M]."""
        stack = np.full((len(self.modalities), *frame.shape), -1, np.float32)
        for i, name in enumerate(self.modalities):
            if name in given:
                window = Window.of(given[name].data, self.grid.percentiles)
                stack[i] = window.enter(frame.enter(given[name]))
        return stack, np.array([m in given for m in self.modalities])

    def _draw(
        self, method: Any, stack: np.ndarray, there: np.ndarray, seed: int, sample: int, part: tuple[slice, ...],
        progress: Progress | None,
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
        out = method.complete(Batch(images, present).to(device), rng, progress).float().cpu()
        return (out.movedim(0, -1) if method.dims == 2 else out[0]).numpy()

    def _leave(
        self, x: np.ndarray, shape: tuple[int, ...], part: tuple[slice, ...], frame: Frame, outside: np.ndarray | None
    ) -> np.ndarray:
        """One modality of a draw, in [0, 1], back on the reference's grid; exactly 0 outside a masked head."""
        whole = np.zeros(shape[1:], np.float32)
        whole[part[1:]] = x
        home = frame.leave(whole, fill=0.0).astype(np.float32)
        return home if outside is None else np.where(outside, np.float32(0), home)

    def _completion(
        self, study: Study, given: Study, made: tuple[str, ...], scaled: dict[str, np.ndarray],
        sd: dict[str, np.ndarray], samples: int, seed: int, config: Any, frame: Frame, start: float,
    ) -> Completion:  # fmt: skip
        reference, volumes, spread = given[given.modalities[0]], dict(given.volumes), {}
        for name in made:
            lo, hi = self.windows.get(name, (0.0, 1.0))
            data = (lo + scaled[name] * (hi - lo)).astype(np.float32)
            if (outside := _background(given)) is not None:
                data[outside] = 0
            volumes[name] = reference.like(data, f"SYNTHETIC {name}, amodal {__version__}, not acquired")
            if samples > 1:
                spread[name] = reference.like(sd[name] * (hi - lo), f"SYNTHETIC {name} SD over {samples} samples")
        ignored = [m for m in study.modalities if m not in self.modalities]
        notes = study.notes + tuple(f"{m}: left as it is, the model does not know it." for m in ignored)
        if frame.resampled:
            notes += (f"Resampled to {_mm(frame.spacing)} mm for the network and back.",)
        volumes |= {m: study[m] for m in ignored}
        done = dataclasses.replace(study, volumes=volumes, notes=notes)
        return Completion(
            study=done, inputs=given.modalities, made=made, scaled=scaled, spread=spread,
            scaled_spread=sd if samples > 1 else {}, notes=notes, seconds=time.perf_counter() - start,
            provenance=self.provenance(config, samples, seed),
        )  # fmt: skip

    def provenance(self, config: Any, samples: int, seed: int) -> dict[str, Any]:
        """What made an image: tool, method, weights, sampler, seed, precision, environment."""
        return {
            "Tool": f"amodal {__version__}",
            "Method": self.name,
            "Weights": {"Id": self.id, "SHA256": self.sha256, "Licence": self.card.get("licence", "unknown")},
            "Sampler": {
                "Name": f"{config.posterior}-{config.solver}", "Steps": config.steps, "Seed": seed, "Samples": samples,
                "Precision": self.precision,
            },
            "Environment": {"torch": str(torch.__version__), "device": str(next(self.method.parameters()).device)},
        }  # fmt: skip

    # on disk

    def save(self, folder: str | Path, half: bool = False) -> Path:
        """Write weights.safetensors and model.json; `half` stores 16-bit weights. Nothing is left half-written."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kind = torch.float16 if half else torch.float32
        state = {k: v.detach().cpu().contiguous().to(kind if v.is_floating_point() else v.dtype)
                 for k, v in self.method.state_dict().items()}  # fmt: skip
        weights, temporary = folder / "weights.safetensors", folder / ".weights.safetensors.part"
        temporary.write_bytes(to_bytes(state))
        self.sha256 = sha256(temporary)
        about = {
            "format": FORMAT, "amodal": __version__, "method": self.name, "modalities": list(self.modalities),
            "config": to_dict(self.method.config), "grid": to_dict(self.grid),
            "windows": {k: list(v) for k, v in self.windows.items()}, "sha256": self.sha256, "card": self.card,
        }  # fmt: skip
        page = folder / ".model.json.part"
        page.write_text(json.dumps(about, indent=1) + "\n")
        os.replace(temporary, weights)
        os.replace(page, folder / "model.json")
        return folder


def load(where: str | Path = "default", *, device: str = "auto", precision: str = "auto") -> Model:
    """A model by name: `default`, a folder, or a Hugging Face hub id `owner/name[@revision]` (the only case that asks
    the network). InputError if the folder holds a pickle, another format version, or weights whose sha256 is not the
    stated one."""
    folder = _find(where)
    about = _about(folder)
    method = build(about)
    weights = folder / "weights.safetensors"
    try:
        method.load_state_dict({k: v.float() for k, v in load_file(str(weights)).items()})
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{weights} are not the weights of the network in model.json; fetch the model anew."
        ) from error
    target = pick(device)
    half = bf16(precision, target)
    convert(method, torch.bfloat16 if half else torch.float32).to(target).eval().requires_grad_(False)
    return Model(
        name=about["method"], method=method, grid=from_dict(Grid, about["grid"]), card=about["card"],
        windows={k: (float(lo), float(hi)) for k, (lo, hi) in about["windows"].items()}, sha256=about["sha256"],
        id=str(where) if folder == DEFAULT or _is_hub(where) else folder.name, precision="bf16" if half else "fp32",
    )  # fmt: skip


def build(about: Mapping[str, Any]) -> Any:
    """The untrained method (a Method and a torch.nn.Module) a model.json describes."""
    name = about["method"]
    if name not in METHODS:
        raise InputError(f"the model is of method {name!r}; this version knows {', '.join(METHODS)}.")
    module = METHODS[name]
    return module.build(from_dict(module.Config, about["config"]))


def describe(where: str | Path) -> dict[str, Any]:
    """model.json of a model, checked, with its folder; no weights are read into memory."""
    folder = _find(where)
    return {**_about(folder), "folder": str(folder)}


def is_model(path: str | Path) -> bool:
    """Whether a path is a model's folder."""
    return (Path(path) / "model.json").is_file()


def _is_hub(where: str | Path) -> bool:
    return not Path(where).exists() and isinstance(where, str) and _HUB.fullmatch(where) is not None


def _find(where: str | Path) -> Path:
    folder = DEFAULT if where == "default" else _fetch(str(where)) if _is_hub(where) else Path(where)
    if not is_model(folder):
        raise InputError(f"{where} is no model; give a folder with model.json and weights.safetensors, or `default`.")
    return folder


def _fetch(where: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = where.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's errors are many; the user needs one sentence
        raise InputError(
            f"{where} is no folder here and could not be had from the hub ({type(error).__name__}); "
            "give the path of a model folder."
        ) from error


def _about(folder: Path) -> dict[str, Any]:
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES):
        raise InputError(
            f"{folder} holds {pickles[0]}, which may carry code; a model is safetensors and JSON only, remove the file."
        )
    page = folder / "model.json"
    try:
        about = json.loads(page.read_text())
        version = about["format"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{page} is no model description; train the model again or fetch it anew.") from error
    if version != FORMAT:
        raise InputError(
            f"{folder} has model format {version!r}; this version reads {FORMAT}, update amodal or the model."
        )
    if missing := {"method", "config", "grid", "windows", "card", "sha256", "modalities"} - set(about):
        raise InputError(f"{page} lacks {sorted(missing)[0]}; fetch the model anew.")
    weights = folder / "weights.safetensors"
    found = sha256(weights) if weights.is_file() else "no file"
    if found != about["sha256"]:
        stated = str(about["sha256"])[:12]
        raise InputError(f"{weights} has sha256 {found[:12]}, model.json says {stated}; fetch the model anew.")
    return about


def _content(stack: np.ndarray, dims: int) -> tuple[slice, ...]:
    """The box around what is not background (all axes of [M, X, Y, Z]); 2-D methods need no margin between slices."""
    content: np.ndarray = np.any(stack > -0.98, axis=0)
    box: list[slice] = [slice(None)]
    for axis in range(3):
        where = np.flatnonzero(np.any(content, axis=tuple(a for a in range(3) if a != axis)))
        margin = 0 if dims == 2 and axis == 2 else _MARGIN
        box.append(slice(max(0, where[0] - margin), min(content.shape[axis], where[-1] + 1 + margin)))
    return tuple(box)


def _background(given: Study) -> np.ndarray | None:
    """Where every input is exactly 0, if that is so much of the field of view that the inputs are masked."""
    outside = np.logical_and.reduce([v.data == 0 for v in given.volumes.values()])
    return outside if outside.mean() > _BACKGROUND else None


def _moments(draws: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD over samples, in [0, 1] units."""
    unit = (np.stack(draws) + 1) / 2
    mean = np.asarray(unit.mean(axis=0), np.float32)
    return mean, np.asarray(unit.std(axis=0, ddof=1), np.float32) if len(unit) > 1 else np.zeros_like(mean)


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:.2f}" for s in spacing)

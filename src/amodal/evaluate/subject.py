"""One subject's part of an evaluation: read once, every pattern hidden, made by every model, measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import AmodalError
from ..data.intensity import Window
from ..data.volume import Source, Study
from ..metrics.baselines import KINDS, Baselines
from ..metrics.statistics import Score
from ..report import figures
from ..report.page import write
from . import calibrate, store
from .measure import Ruler, Target, head_of, slice_axis

if TYPE_CHECKING:
    from ..model import Model

LOG = logging.getLogger(__name__)
MODEL = "model"  # the name of the tested model's rows, beside those of `baselines.KINDS` and of other models
Hidden = tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """What is tested, and how: the same for all subjects. `models`: the tested one is `MODEL`, others have names."""

    models: Mapping[str, Model]
    baselines: Baselines | None
    prepare: Callable[[Source], Study]
    ruler: Ruler
    steps: int | None
    samples: int
    seed: int
    pattern: Callable[..., list[Score]] | None = None  # how one pattern is tried, if not by hiding modalities

    @property
    def modalities(self) -> tuple[str, ...]:
        """What every model knows, in the order of the tested one."""
        return tuple(m for m in self.models[MODEL].modalities if all(m in x.modalities for x in self.models.values()))


@dataclass(eq=False)
class Truth:
    """What was acquired. `stack` [M, X, Y, Z] in [-1, 1] by the windows the baselines were fitted on (-1 where absent);
    `present` which are there; `targets` what is to be met; `tried` the scores of baselines, needed by many patterns."""

    study: Study
    names: tuple[str, ...]
    stack: np.ndarray
    present: np.ndarray
    targets: dict[str, Target]
    bounds: Mapping[str, tuple[float, float]]
    windows: Mapping[str, Window]
    tried: dict[tuple[str, str, str], dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, model: Model, ruler: Ruler) -> Truth:
        names = model.modalities
        there = [name for name in names if name in study]
        windows = {name: model.window(name, study[name]) for name in there}
        stack = np.full((len(names), *study[study.reference].shape), -1, np.float32)
        for name in there:
            stack[names.index(name)] = windows[name].enter(study[name].data)
        present = np.array([name in study for name in names])
        head, axis = head_of(list((stack[present] + 1) / 2)), slice_axis(study[study.reference].affine)
        bounds = {name: ruler.bounds(name, study[name].data) for name in there}
        truth = cls(study, names, stack, present, {}, bounds, windows)
        for name in there:  # (beyond the window the truth is clipped only where the scale is the window)
            own = (stack[names.index(name)] + 1) / 2 if truth.same(name) else _unit(study[name].data, bounds[name])
            truth.targets[name] = Target(own, head, axis, ruler)
        return truth

    def same(self, name: str) -> bool:
        """Whether the model's window is the scale that is measured on."""
        window = self.windows[name]
        return (window.lo, window.hi) == self.bounds[name] and not window.knots

    def unit(self, name: str, data: np.ndarray) -> np.ndarray:
        """Intensities of this study in [0, 1] of the ruler's scale."""
        return _unit(data, self.bounds[name])

    def rescaled(self, name: str, x: np.ndarray) -> np.ndarray:
        """An image in [0, 1] of the model's window as one in [0, 1] of the ruler's scale."""
        return x if self.same(name) else _unit(self.windows[name].leave(2 * x - 1), self.bounds[name])


def run(trial: Trial, source: Source, plan: Sequence[Hidden], folder: Path, tick: Callable[[int], None]) -> dict:
    """All patterns of one subject: its scores, or why there are none. What goes wrong here is told, not raised."""
    if source.problem is None and not plan:
        have = ", ".join(source.files) or "nothing"
        return {"skipped": f"it has {have}: there is nothing to hide that leaves something the model knows."}
    done, start = 0, time.perf_counter()
    try:
        study = trial.prepare(source).only(*trial.modalities)
        truths = {name: Truth.of(study, model, trial.ruler) for name, model in trial.models.items()}
        scores: list[Score] = []
        counts: dict[str, np.ndarray] = {}
        for hidden in plan:
            for name, model in trial.models.items():
                scores += (trial.pattern or _pattern)(trial, name, model, truths[name], hidden, folder, counts)
            done += 1
            tick(1)
        if counts:
            calibrate.keep(folder / calibrate.FILE, counts)
    except Exception as error:  # one subject's fault must not cost the others
        tick(len(plan) - done)
        LOG.debug("%s failed", source.label, exc_info=True)
        return {"failed": str(error) if isinstance(error, AmodalError) else f"{type(error).__name__}: {error}"}
    return {"scores": [store.row(s) for s in scores], "seconds": round(time.perf_counter() - start, 2)}


def _unit(data: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    low, high = bounds
    return ((data - low) / np.float32(high - low)).clip(0, 1).astype(np.float32)


def _pattern(
    trial: Trial, method: str, model: Model, truth: Truth, hidden: Hidden, folder: Path, counts: dict[str, np.ndarray]
) -> list[Score]:
    """Hide some modalities, make them, measure them. The model gets a study that does not hold them at all."""
    study, pattern = truth.study, "+".join(hidden)
    full = model.complete(
        study.without(*hidden), missing=list(hidden), samples=trial.samples, seed=trial.seed, steps=trial.steps
    )
    scores: list[Score] = []
    for name in hidden:
        target = truth.targets[name]
        guess = np.asarray(full.scaled[name], np.float32)
        if guess.shape != target.image.shape or not np.isfinite(guess).all():
            raise AmodalError(f"the model made a {name} of shape {guess.shape} that does not fit or is not finite.")
        measured = truth.rescaled(name, guess)
        found = {method: target.scores(measured)}
        if method == MODEL:
            found |= _baselines(trial.baselines, truth, hidden, name)
            write(picture(folder, pattern, name), _strip(study, target, measured))
            if trial.samples > 1:  # in units of the model's own window, as its SD maps are
                own, sd = (truth.stack[truth.names.index(name)] + 1) / 2, np.asarray(full.scaled_spread[name])
                counts[f"{pattern}|{name}"] = calibrate.count(guess, sd, own, target.head)
        scores += [Score(study.label, pattern, name, m, who, v) for who, row in found.items() for m, v in row.items()]
    return scores


def _baselines(known: Baselines | None, truth: Truth, hidden: Hidden, name: str) -> dict[str, dict[str, float]]:
    """The scores of what each baseline makes of what is seen; those not fitted for it are left out."""
    inputs = [m for m in truth.study.modalities if m not in hidden]
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        key = known and known.available(kind, name, inputs)
        if known is None or not key:
            continue
        if (kind, name, key) not in truth.tried:  # the fit looks at these inputs alone, whatever else is there
            seen = np.array([m in key.split("+") for m in truth.names])
            made = (known.predict(truth.stack, seen, name, kind) + 1) / 2
            truth.tried[kind, name, key] = truth.targets[name].scores(truth.rescaled(name, made))
        found[kind] = truth.tried[kind, name, key]
    return found


def picture(folder: Path, pattern: str, name: str) -> Path:
    """Where the picture of one image is kept."""
    return folder / f"{pattern}_{name}.jpg"


def _strip(study: Study, target: Target, guess: np.ndarray) -> bytes:
    affine = study[study.reference].affine
    views: list[Any] = [figures.ras(x, affine) for x in (target.image, guess, target.head)]
    return figures.strip(views[0][0], views[1][0], views[0][1], views[2][0])

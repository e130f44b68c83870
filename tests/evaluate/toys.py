"""Studies, and a model that knows the truth and errs by a known amount."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from scipy import ndimage

from amodal.core.contract import Grid
from amodal.data.intensity import Window
from amodal.data.volume import Source, Study, Volume
from amodal.metrics.baselines import Baselines

NAMES = ("T1w", "T2w", "FLAIR")
SHAPE = (20, 24, 16)
AFFINES = {"RAS": np.diag([2.0, 2, 3, 1]), "PSR": np.array([[0.0, 0, 3, 0], [-2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])}


def study(label, names=NAMES, seed=0, affine=AFFINES["RAS"]):
    """A ball with three contrasts; FLAIR is nearly a function of the others."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]
    head = sum(a**2 for a in axes) < 0.8
    t1, t2 = (ndimage.gaussian_filter(rng.random(SHAPE), 1) for _ in range(2))
    t1, t2 = ((x - x.min()) / np.ptp(x) + 0.5 for x in (t1, t2))
    flair = 0.6 * t1 + 0.4 * t2 + 0.05 * rng.standard_normal(SHAPE)
    images = dict(zip(NAMES, (t1, t2, flair)))
    scale = {"T1w": 100, "T2w": 1, "FLAIR": 1000}
    return Study(label, {n: Volume((scale[n] * images[n] * head).astype(np.float32), affine) for n in names})


def scaled(volume):
    return (Window.of(volume.data, Grid().percentiles).enter(volume.data) + 1) / 2


@dataclass(frozen=True)
class Sampling:
    steps: int = 25


class Model:
    """Knows the truth of every study and makes it, `error` too bright where that is not too bright to be shown."""

    modalities = NAMES
    grid = Grid()
    name, id, precision = "any2all", "default", "fp32"
    method = SimpleNamespace(config=Sampling(), steps_for=lambda samples: 25)

    def __init__(self, studies, error=0.1, card=None, sha256="ab12", noise=0.0):
        """`noise`: SD of what it errs by beside `error`; its samples then err by as much, each their own way."""
        self.truths = {s.label: s for s in studies}
        self.error, self.noise = error, noise
        self.card, self.sha256 = card or {}, sha256
        self.calls = []

    def window(self, name, volume):
        return Window.of(volume.data, self.grid.percentiles)

    def complete(self, study, missing=None, samples=1, seed=0, steps=None, progress=None):
        assert not set(missing) & set(study.modalities), "what is hidden must not be given"
        self.calls.append((study.label, tuple(missing), seed, steps))
        made = {m: scaled(self.truths[study.label][m]) + self.error for m in missing}
        if samples == 1:
            return SimpleNamespace(scaled=made)
        rng = np.random.default_rng(len(self.calls))
        draws = {m: self.noise * rng.standard_normal((samples + 1, *SHAPE)) for m in missing}
        mean = {m: (made[m] + d[0] + d[1:].mean(0)).astype(np.float32) for m, d in draws.items()}
        return SimpleNamespace(scaled=mean, scaled_spread={m: d[1:].std(0, ddof=1) for m, d in draws.items()})


def baselines(studies):
    def stack(s):
        return np.stack([2 * scaled(s[m]) - 1 for m in NAMES])

    return Baselines.fit([(stack(s), np.ones(3, bool)) for s in studies], NAMES).to_dict()


def values(table, **wanted):
    return [s.value for s in table.scores if all(getattr(s, k) == v for k, v in wanted.items())]


def cohort_of(folder, *names_of, affine=AFFINES["RAS"]):
    """Sources whose files exist, a `prepare` that gives their studies, and the studies."""
    studies, sources = {}, []
    for k, names in enumerate(names_of):
        label = f"sub-{k + 1:02d}"
        files = {n: folder / f"{label}_{n}.nii.gz" for n in names}
        for path in files.values():
            path.write_bytes(b"data")
        sources.append(Source(label, None, files))
        studies[label] = study(label, names, k, affine)
    return sources, (lambda source: studies[source.label]), list(studies.values())

"""An audit tells a model that copies from one that does not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from amodal.core.contract import Grid
from amodal.core.errors import InputError
from amodal.data.dataset import Cache
from amodal.data.intensity import Window
from amodal.data.volume import Study, Volume
from amodal.evaluate.audit import audit
from amodal.metrics.extractors import load

from .toys import cohort_of

NAMES = ("T1w", "FLAIR")
GRID = Grid(multiple=(1, 1, 1))
SHAPE = (32, 32, 32)


def person(label, seed):
    rng = np.random.default_rng(seed)
    r = sum(a**2 for a in np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)])
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 3)
    one = np.where(r < 0.8, 1 + texture / texture.std() / 3, 0).clip(0)
    return Study(label, {"T1w": Volume(100 * one, np.eye(4)), "FLAIR": Volume(100 * one**2, np.eye(4))})


@pytest.fixture
def run(tmp_path):
    sources, _, _ = cohort_of(tmp_path, *[NAMES] * 6)
    people = {s.label: person(s.label, k) for k, s in enumerate(sources)}
    trained = [person(f"sub-t{k}", 100 + k) for k in range(12)]
    cache = Cache.build(iter(trained), GRID, NAMES, tmp_path / "cache")
    calls = []

    def go(copies, out="out", given=None):
        def complete(study, missing, seed, steps):
            calls.append(study.label)
            rng = np.random.default_rng(len(calls))
            donor = trained[len(calls) % len(trained)] if copies else person("new", 1000 + len(calls))
            data = donor[missing[0]].data + 0.5 * rng.standard_normal(SHAPE)
            return SimpleNamespace(scaled={missing[0]: (Window.of(data).enter(data) + 1) / 2})

        # no stages: a loss attack needs all that was trained on, see below
        model = SimpleNamespace(
            modalities=("T1w", "FLAIR", "T2w"), grid=GRID, sha256="ab12", complete=complete,
            window=lambda name, volume: Window.of(volume.data),
        )  # fmt: skip
        return audit(
            given or sources, model, cache, tmp_path / out, prepare=lambda s: people[s.label], extractor=load("texture")
        )

    go.calls = calls
    return go


def test_copies_are_found_and_others_are_not(run, tmp_path):
    bad, _ = run(copies=True, out="bad")
    good, _ = run(copies=False, out="good")
    assert set(bad) == set(good) == set(NAMES)
    assert all(any(v.good is False for v in a.verdicts) for a in bad.values())
    assert not any(v.good is False for a in good.values() for v in a.verdicts)
    written = json.loads((tmp_path / "bad" / "audit.json").read_text())
    assert written["protocol"]["id"] == "audit v1" and written["audits"]["FLAIR"]["training"] == 12
    assert (tmp_path / "bad" / "privacy.html").stat().st_size > 1000


def test_what_was_completed_is_not_made_again(run):
    run(copies=False)
    assert len(run.calls) == 12
    run(copies=False)
    assert len(run.calls) == 12


def test_subjects_that_were_trained_on_are_refused(run, tmp_path):
    source = cohort_of(tmp_path, NAMES)[0][0]
    from dataclasses import replace

    with pytest.raises(InputError, match="sub-t3 is also the name of a subject trained on"):
        run(copies=False, given=[replace(source, subject="sub-t3")])

"""A generated cohort beside a real one: what is good is told from what is not, and nothing is made twice."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from amodal.core.errors import InputError
from amodal.data.volume import Study, Volume
from amodal.evaluate import PROTOCOLS, Plan, generation
from amodal.evaluate.protocols import chosen
from amodal.evaluate.space import Space
from amodal.metrics.extractors import load

from .toys import cohort_of

NAMES = ("T1w", "FLAIR")


def head(seed, shape=(32, 32, 32), noise=0.0):
    rng = np.random.default_rng(seed)
    r = sum((a / rng.uniform(0.7, 1)) ** 2 for a in np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)])
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 3)
    return 1000 * ((r < 0.8) * (1 + texture / texture.std() / 4) + noise * rng.standard_normal(shape)).clip(0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    sources, _, _ = cohort_of(tmp_path, *[NAMES] * 9)
    protocol = replace(PROTOCOLS["wfdm-brainscape"], modalities=NAMES, space=Space((32, 32, 32), (1.0, 1.0, 1.0)))
    protocol, tested = chosen(protocol, sources, other_data=True)
    model = SimpleNamespace(
        id="m", name="wfdm", sha256="ab12",
        method=SimpleNamespace(encode_metadata=lambda rows: None, config=SimpleNamespace(steps=50)),
    )  # fmt: skip
    made = []

    def prepare(source):
        volumes = {n: Volume(head(7 * int(source.label[-1]) + len(n)), np.eye(4)) for n in NAMES}
        return Study(source.label, volumes, metadata={"age": 50})

    def go(out="out", noise=0.0, fails=()):
        def fake(model, n, seed, *, modalities, metadata, steps):
            made.append((modalities[0], metadata))
            if len(made) in fails:
                raise InputError("it cannot.")
            yield Study("sub-synth", {modalities[0]: Volume(head(seed % 1000, noise=noise), np.eye(4))})

        monkeypatch.setattr(generation, "generate", fake)
        plan = Plan(protocol=protocol, data="toys")
        return generation.generation(
            tested, model, tmp_path / out, prepare=prepare, plan=plan, extractor=load("texture")
        )

    go.made, go.model = made, model
    return go


def test_a_good_cohort_is_nearer_than_a_bad_one(run, tmp_path):
    good, bad = run("good"), run("bad", noise=1.0)
    for modality in (*NAMES, "all"):
        assert good.measures[modality]["fid (texture)"].value < bad.measures[modality]["fid (texture)"].value / 5
        assert good.measures[modality]["msssim"].value > bad.measures[modality]["msssim"].value
    results = json.loads((tmp_path / "good" / "results.json").read_text())
    assert results["protocol"]["id"] == "wfdm-brainscape v1; other data"
    assert results["run"]["extractor"]["name"] == "texture"
    assert results["run"]["models"]["model"]["steps"] == 50  # nobody asked for another number
    assert "m, wfdm, weights ab12, 50 steps" in (tmp_path / "good" / "report.html").read_text()
    assert results["measures"]["T1w"]["msssim"]["generated"] == 9
    theirs = {(b["modality"], b["metric"]): b for b in results["published"]}
    assert theirs["all", "fid"]["mine"] is None  # another feature network is another number
    assert theirs["all", "msssim"]["mine"] == pytest.approx(good.measures["all"]["msssim"].value)
    page = (tmp_path / "good" / "report.html").read_text()
    assert "How near is the generated cohort?" in page and "Beside the paper" in page and "not measured" in page


def test_what_was_generated_is_not_made_again(run):
    first = run("out")
    assert len(run.made) == 18 and {m for m, _ in run.made} == set(NAMES)
    assert run.made[0][1] is None  # the model takes no metadata
    again = run("out")
    assert len(run.made) == 18
    assert again.scores == first.scores


def test_metadata_goes_to_a_model_that_takes_it(run):
    run.model.method.encode_metadata = lambda rows: {"age": rows}
    run("out")
    assert run.made[0][1] == {"age": 50}


def test_a_subject_that_fails_is_named(run):
    found = run("out", fails={1})
    assert list(found.failed.values()) == ["it cannot."]
    assert found.measures["T1w"]["fid (texture)"].generated == 8
    with pytest.raises(InputError, match="it cannot"):
        run("other", fails=set(range(100)))

"""An audit tells a model that copies from one that does not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from amodal.core.contract import Grid
from amodal.core.errors import InputError
from amodal.data import nifti
from amodal.data.dataset import Cache
from amodal.data.intensity import Window
from amodal.data.volume import Study, Volume
from amodal.evaluate.audit import audit, audit_generated, generated_in, of_nobody
from amodal.metrics.extractors import load
from amodal.preprocess.align import prepare

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


@pytest.fixture
def trained(tmp_path):
    people = [person(f"sub-t{k}", 100 + k) for k in range(12)]
    return people, Cache.build(iter(people), GRID, NAMES, tmp_path / "cache")


def written(folder, studies, sources=()):
    """A dataset as `amodal generate` writes it."""
    for study in studies:
        for name, volume in study.volumes.items():
            path = folder / study.subject / "anat" / f"{study.subject}_desc-synth_{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nifti.write(path, volume.data, volume, descrip="SYNTHETIC")
            about = {"Sources": list(sources), "Synthetic": {"Weights": {"SHA256": "ab12"}}}
            path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(about))
    return folder


def test_a_generated_cohort_that_copies_is_told_from_one_that_does_not(trained, tmp_path):
    people, cache = trained
    rng = np.random.default_rng(0)
    stolen = [
        Study(f"sub-synth{k}", {m: Volume(v.data + 0.5 * rng.standard_normal(SHAPE), v.affine)
                                for m, v in person.volumes.items()})
        for k, person in enumerate(people[:6])
    ]  # fmt: skip
    new = [person(f"sub-synth{k}", 1000 + k) for k in range(6)]
    found = {}
    for name, studies in (("stolen", stolen), ("new", new)):
        sources = generated_in(written(tmp_path / name, studies))
        assert of_nobody(sources) and [s.label for s in sources] == [s.subject for s in studies]
        audits, failed = audit_generated(
            sources, cache, tmp_path / f"{name} out", prepare=prepare, extractor=load("texture")
        )
        assert not failed and set(audits) == set(NAMES)
        found[name] = audits
    for audit_of in found["stolen"].values():
        image = audit_of.spaces[0]
        assert [n.training.split()[0] for n in image.neighbours] == [f"sub-t{k}" for k in range(6)]
        assert all(n.copy for n in image.neighbours)
        assert any(v.good is False for v in audit_of.verdicts)
    for audit_of in found["new"].values():
        assert not any(n.copy for space in audit_of.spaces for n in space.neighbours)
        assert not any(v.good is False for v in audit_of.verdicts)
    protocol = json.loads((tmp_path / "stolen out" / "audit.json").read_text())["protocol"]
    assert protocol["id"] == "audit of a generated cohort v1" and protocol["models"] == ["ab12"]


def test_held_out_subjects_show_a_pull_to_the_training_set(trained, tmp_path):
    people, cache = trained
    sources = generated_in(written(tmp_path / "made", [person(f"sub-synth{k}", 1000 + k) for k in range(6)]))
    split = cache.only("sub-t0", "sub-t1", "sub-t2", "sub-t3", "sub-t4", "sub-t5")
    audits, _ = audit_generated(
        sources, split, tmp_path / "out", unseen=cache.without(*split.labels), prepare=prepare,
        extractor=load("texture"),
    )  # fmt: skip
    assert audits["FLAIR"].held_out == audits["FLAIR"].training == 6
    assert audits["FLAIR"].spaces[0].pull.expected == pytest.approx(0.5, abs=0.05)


def test_what_cannot_be_read_of_a_generated_cohort_is_named(trained, tmp_path):
    _, cache = trained
    place = written(tmp_path / "made", [person(f"sub-synth{k}", 1000 + k) for k in range(2)])
    (place / "sub-synth0" / "anat" / "sub-synth0_desc-synth_T1w.nii.gz").write_text("no image")
    audits, failed = audit_generated(
        generated_in(place), cache, tmp_path / "out", prepare=prepare, extractor=load("texture")
    )
    assert list(failed) == ["sub-synth0"] and audits["T1w"].generated == 1
    (place / "sub-synth1" / "anat" / "sub-synth1_desc-synth_T1w.nii.gz").write_text("no image")
    with pytest.raises(InputError, match="no generated subject could be read: .*synth0"):
        audit_generated(generated_in(place), cache, tmp_path / "again", prepare=prepare)
    other = Cache.build(iter([Study("sub-1", {"PDw": person("x", 1)["T1w"]})] * 1), GRID, ("PDw",), tmp_path / "pd")
    with pytest.raises(InputError, match="T1w were generated, the model learned PDw"):
        audit_generated(generated_in(place), other, tmp_path / "other", prepare=prepare)


def test_completions_and_people_are_not_taken_for_a_generated_cohort(tmp_path):
    made = written(tmp_path / "derivatives", [person("sub-01", 1)], sources=["bids:raw:sub-01/anat/sub-01_T2w.nii.gz"])
    assert generated_in(made) == []
    cohort_of(tmp_path, NAMES)
    assert generated_in(tmp_path) == []

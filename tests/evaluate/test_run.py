"""The trust test, with a model that knows the truth and errs by a known amount."""

import csv
import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from amodal.core.errors import InputError
from amodal.evaluate import evaluate, measure, parse_patterns

from .toys import AFFINES, NAMES, SHAPE, Model, baselines, cohort_of, study, values


@pytest.fixture
def cohort(tmp_path):
    return lambda *names, **options: cohort_of(tmp_path, *names, **options)


def test_every_modality_is_hidden_once_and_measured(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES, NAMES)
    model = Model(studies, card={"baselines": baselines([study("train", seed=9)])})
    table = evaluate(sources, model, tmp_path / "out", prepare=prepare, patterns="each", steps=7, seed=3)
    assert {c[1] for c in model.calls} == {("T1w",), ("T2w",), ("FLAIR",)}
    assert {c[2:] for c in model.calls} == {(3, 7)}
    for name in NAMES:
        assert values(table, modality=name, metric="psnr", method="model") == pytest.approx([20, 20], abs=1e-3)
        assert values(table, modality=name, metric="mae", method="model") == pytest.approx([0.1, 0.1], abs=1e-5)
    assert values(table, modality="FLAIR", metric="stripes", method="model") == pytest.approx([1, 1], abs=1e-4)
    assert min(values(table, modality="FLAIR", metric="psnr", method="regression")) > max(
        values(table, modality="FLAIR", metric="psnr", method="single")
    )
    assert not table.failed
    assert not table.skipped


def test_what_is_written_can_be_read(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES)
    table = evaluate(sources, Model(studies), tmp_path / "out", prepare=prepare, patterns=["FLAIR", "T2w+FLAIR"])
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["subject", "pattern", "modality", "metric", "method", "value"]
    assert {(r["pattern"], r["modality"]) for r in rows} == {
        ("FLAIR", "FLAIR"),
        ("T2w+FLAIR", "T2w"),
        ("T2w+FLAIR", "FLAIR"),
    }
    assert len(rows) == len(table.scores) == 3 * 4
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["n"] == 1
    assert results["protocol"]["id"] == "trust v2"
    assert results["protocol"]["patterns"] == [["FLAIR"], ["T2w", "FLAIR"]]
    assert results["run"]["models"]["model"]["steps"] == 25
    assert results["models"]["model"]["sha256"] == "ab12"
    assert set(results["subjects"]["sub-01"]) == set(NAMES)
    assert len(results["scores"]) == len(table.scores)
    assert {s["pattern"] for s in results["summary"] if s["modality"] == "FLAIR"} == {"FLAIR", "T2w+FLAIR", "all"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "sub-01" in page
    assert "SYNTHETIC" in page
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")]


def test_all_patterns_leave_something(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES)
    model = Model(studies)
    evaluate(sources, model, tmp_path / "out", prepare=prepare, patterns="all")
    assert len(model.calls) == 6


def test_subjects_are_measured_on_what_they_have(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES, ("T1w", "FLAIR"), ("T1w",))
    table = evaluate(sources, Model(studies), tmp_path / "out", prepare=prepare, patterns="each")
    assert {s.modality for s in table.scores if s.subject == "sub-02"} == {"T1w", "FLAIR"}
    assert list(table.skipped) == ["sub-03"]
    assert "T1w" in table.skipped["sub-03"]


@pytest.mark.parametrize("workers", [1, 3])
def test_one_bad_subject_does_not_stop_the_others(cohort, tmp_path, workers):
    sources, prepare, studies = cohort(NAMES, NAMES, NAMES)

    def fragile(source):
        if source.label == "sub-02":
            raise InputError("sub-02_T1w.nii.gz is truncated; copy it again.")
        return prepare(source)

    model, ticks = Model(studies), []
    table = evaluate(
        sources,
        model,
        tmp_path / "out",
        prepare=fragile,
        patterns="each",
        workers=workers,
        progress=lambda done, of: ticks.append((done, of)),
    )
    assert table.failed == {"sub-02": "sub-02_T1w.nii.gz is truncated; copy it again."}
    assert {s.subject for s in table.scores} == {"sub-01", "sub-03"}
    assert "truncated" in (tmp_path / "out" / "report.html").read_text()
    assert ticks[-1] == (9, 9)
    assert sorted(ticks) == ticks


def test_a_fault_of_the_model_is_named(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES)
    model = Model(studies)
    model.complete = lambda *a, **k: 1 / 0
    table = evaluate(sources, model, tmp_path / "out", prepare=prepare)
    assert "ZeroDivisionError" in table.failed["sub-01"]
    assert (tmp_path / "out" / "report.html").exists()


def test_finished_subjects_are_not_done_again(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES, NAMES)
    first, second, third = (Model(studies) for _ in range(3))
    a = evaluate(sources[:1], first, tmp_path / "out", prepare=prepare, patterns="each")
    b = evaluate(sources, second, tmp_path / "out", prepare=prepare, patterns="each")
    assert {c[0] for c in second.calls} == {"sub-02"}
    assert values(b, subject="sub-01") == values(a, subject="sub-01")
    assert "sub-01" in (tmp_path / "out" / "results.csv").read_text()
    evaluate(sources, third, tmp_path / "out", prepare=prepare, overwrite=True, patterns="each")
    assert len(third.calls) == 6


def test_a_subject_whose_file_changed_is_done_again(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES)
    evaluate(sources, Model(studies), tmp_path / "out", prepare=prepare, patterns="each")
    sources[0].files["T1w"].write_bytes(b"other data")
    again = Model(studies)
    evaluate(sources, again, tmp_path / "out", prepare=prepare, patterns="each")
    assert len(again.calls) == 3


def test_results_of_another_model_are_not_mixed_in(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES)
    evaluate(sources, Model(studies), tmp_path / "out", prepare=prepare, patterns="each")
    before = (tmp_path / "out" / "results.csv").read_text()
    with pytest.raises(InputError, match="--overwrite"):
        evaluate(sources, Model(studies, sha256="cd34"), tmp_path / "out", prepare=prepare)
    with pytest.raises(InputError, match="--overwrite"):
        evaluate(sources, Model(studies), tmp_path / "out", prepare=prepare, seed=1)
    assert (tmp_path / "out" / "results.csv").read_text() == before


def test_where_a_model_lies_does_not_matter(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES)
    evaluate(sources, Model(studies), tmp_path / "out", prepare=prepare, patterns="each")
    moved = Model(studies)
    moved.id = "./elsewhere"
    evaluate(sources, moved, tmp_path / "out", prepare=prepare, patterns="each")
    assert moved.calls == []
    assert json.loads((tmp_path / "out" / "results.json").read_text())["models"]["model"]["id"] == "./elsewhere"


def test_workers_do_not_change_the_numbers(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES, NAMES, NAMES)
    one, many = (
        evaluate(sources, Model(studies), tmp_path / f"out{w}", prepare=prepare, workers=w).scores for w in (1, 3)
    )
    assert one == many


def test_stripes_are_measured_along_the_slices_of_any_orientation(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES, affine=AFFINES["PSR"])
    assert nib.aff2axcodes(AFFINES["PSR"]) == ("P", "S", "R")
    model = Model(studies)
    jitter = 0.1 * np.random.default_rng(0).standard_normal((1, SHAPE[1], 1))  # voxel axis 1 points to S
    clean = model.complete
    model.complete = lambda *a, **k: SimpleNamespace(scaled={m: x + jitter for m, x in clean(*a, **k).scaled.items()})
    table = evaluate(sources, model, tmp_path / "out", prepare=prepare)
    assert min(values(table, metric="stripes", method="model")) > 1.3


@pytest.mark.parametrize(
    ("patterns", "message"),
    [("CT", "cannot be hidden"), ("T1w+nonsense", "unknown"), ([], "no pattern"), ([("PDw",)], "cannot be hidden")],
)
def test_unknown_patterns_are_refused(cohort, tmp_path, patterns, message):
    sources, prepare, studies = cohort(NAMES)
    with pytest.raises(InputError, match=message):
        evaluate(sources, Model(studies), tmp_path / "out", prepare=prepare, patterns=patterns)
    assert not (tmp_path / "out").exists()


def test_patterns_take_aliases_in_any_order():
    assert parse_patterns("flair+t2,t1", NAMES) == (("T2w", "FLAIR"), ("T1w",))
    assert parse_patterns([("FLAIR", "T2w"), "T2w+FLAIR"], NAMES) == (("T2w", "FLAIR"),)


def test_nothing_to_evaluate_and_no_place_to_write(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES)
    with pytest.raises(InputError, match="no subject"):
        evaluate([], Model(studies), tmp_path / "out", prepare=prepare)
    with pytest.raises(InputError, match="sub-01"):
        evaluate(sources * 2, Model(studies), tmp_path / "out", prepare=prepare)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        evaluate(sources, Model(studies), tmp_path / "file", prepare=prepare)
    with pytest.raises(InputError, match="workers"):
        evaluate(sources, Model(studies), tmp_path / "out", prepare=prepare, workers=0)


@pytest.mark.parametrize("bad", [np.full(SHAPE, np.nan), np.zeros((4, 4, 4))])
def test_an_image_that_is_none_is_a_failure(cohort, tmp_path, bad):
    sources, prepare, studies = cohort(NAMES)
    model = Model(studies)
    model.complete = lambda study, missing, **k: SimpleNamespace(scaled=dict.fromkeys(missing, bad))
    table = evaluate(sources, model, tmp_path / "out", prepare=prepare)
    assert "does not fit or is not finite" in table.failed["sub-01"]
    assert not table.scores


def test_a_perfect_image_is_no_trouble(cohort, tmp_path):
    sources, prepare, studies = cohort(NAMES)
    table = evaluate(sources, Model(studies, error=0.0), tmp_path / "out", prepare=prepare, patterns="each")
    assert values(table, metric="psnr", method="model") == [np.inf] * 3
    json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    again = evaluate(sources, Model(studies, error=0.0), tmp_path / "out", prepare=prepare, patterns="each")
    assert again.scores == table.scores


def test_measure_is_in_the_unit_range():
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.random((16, 16, 16)), 1)
    mask = np.ones(truth.shape, bool)
    found = measure(truth + 0.01, truth, mask)
    assert found["psnr"] == pytest.approx(40, abs=1e-2)
    assert found["mae"] == pytest.approx(0.01, abs=1e-5)
    assert found["stripes"] == pytest.approx(1, abs=1e-4)

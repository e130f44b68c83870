"""Evaluations as a user runs them: killed and gone on with, calibrated, by a paper's protocol, compared."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import amodal
from amodal.cli import main
from amodal.core.errors import InputError
from amodal.model import load, of_card

ENTRY = [sys.executable, "-c", "from amodal.cli import main; raise SystemExit(main())"]


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("five") / "raw"
    words = ["phantom", str(out), "-n", "5", "--size", "32x32x12", "--spacing", "5", "--workers", "1", "-q"]
    assert main([*words, "--seed", "7", "--tumour", "1"]) == 0
    return out


def rows(out):
    with (out / "results.csv").open(newline="") as file:
        return sorted(map(tuple, csv.reader(file)))


def test_a_kill_in_the_middle_and_a_resume_that_repeats_nothing(run, five, model, tmp_path):
    words = ["evaluate", str(five), "--model", str(model), "--steps", "1", "--patterns", "each"]
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [*ENTRY, *words, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 300
    while not list(out.glob("subjects/*/scores.json")) and time.monotonic() < end:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("subjects/*/scores.json")}
    assert 1 <= len(finished) < 5 and not (out / "results.json").exists()
    assert run(*words, "--out", out)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # not touched
    assert len(list(out.glob("subjects/*/scores.json"))) == 5
    assert not [p for p in out.rglob(".*") if p.is_file() and "tmp" in p.name and p.parent == out]
    whole = tmp_path / "whole"
    assert run(*words, "--out", whole)[0] == 0
    assert rows(out) == rows(whole)
    again = out / "report.html"
    before = {p: p.stat().st_mtime_ns for p in out.glob("subjects/**/*") if p.is_file()}
    assert run(*words, "--out", out)[0] == 0  # nothing left to do: the report is written anew, nothing else
    assert {p: p.stat().st_mtime_ns for p in before} == before and again.exists()


def test_all_sets_are_hidden_unless_told(run, five, model, tmp_path):
    shutil.copytree(five / "sub-001", tmp_path / "raw" / "sub-001")
    code, said, err = run("evaluate", tmp_path / "raw", "--model", model, "--out", tmp_path / "out", "--steps", 1)
    assert (code, err) == (0, "")
    patterns = {line[1] for line in rows(tmp_path / "out")} - {"pattern"}
    assert len(patterns) == 14
    assert "5 subjects are needed" in said  # the verdict in words


def test_calibration_is_kept_in_the_model_and_stated_where_it_is_used(run, five, model, tmp_path):
    own = tmp_path / "model"
    own.mkdir()
    for name in ("model.json", "weights.safetensors"):
        shutil.copy(model / name, own / name)
    words = ["evaluate", five, "--patterns", "random:2", "--steps", 1, "--samples", 2, "--precision", "fp32"]
    code, said, err = run(*words, "--model", own, "--out", tmp_path / "cal", "--calibrate")
    assert (code, err) == (0, "")
    assert "kept in" in said and "SD at its word" in said
    loaded = load(own)
    known = of_card(loaded.card, loaded.sha256)
    assert known is not None and known.samples == 2 and known.steps == 1
    about = json.loads((tmp_path / "cal" / "results.json").read_text())
    assert set(about["calibration"]["modalities"]) == set(known.modalities)
    for line in about["coverage"]:  # what was fitted on these very subjects covers what it should
        assert line["left_out"] == pytest.approx(line["level"], abs=0.15)
    report = (tmp_path / "cal" / "report.html").read_text()
    assert "What the SD maps are worth" in report
    name = next(iter(known.modalities))
    full = loaded.complete(amodal.read(five / "sub-001"), [name], samples=2, steps=1)
    low, high = loaded.interval(full, name, 0.9)
    lo, hi = loaded.windows[name]
    half = known.factor(name, 0.9, 2) * (full.scaled_spread[name] + known.modalities[name].floor) * (hi - lo)
    assert high.data - low.data == pytest.approx(2 * half, rel=1e-4, abs=1e-2)
    with pytest.raises(InputError, match="no 80 % interval"):
        loaded.interval(full, name, 0.8)
    code, said, _ = run(*words, "--model", own, "--out", tmp_path / "after")
    assert code == 0
    for line in json.loads((tmp_path / "after" / "results.json").read_text())["coverage"]:
        assert line["stated"] == pytest.approx(line["level"], abs=0.02)  # the same subjects
        assert line["factor"] is None
    done = tmp_path / "done"
    study = tmp_path / "raw"
    shutil.copytree(five / "sub-001", study / "sub-001")
    assert run("complete", study, done, "--model", own, "--missing", name, "--samples", 2, "--steps", 1, "-q")[0] == 0
    sidecar = json.loads(next(done.rglob("*desc-synthstd_*.json")).read_text())
    stated = sidecar["Synthetic"]["Intervals"][name]["90 %"]
    assert stated["Floor"] == known.modalities[name].floor
    assert stated["Factor"] == pytest.approx(known.factor(name, 0.9, 2), abs=1e-3)


def test_the_default_model_is_calibrated_as_a_copy(run, five, model, tmp_path, monkeypatch):
    from amodal.cli import evidence
    from amodal.model import files

    monkeypatch.setitem(files.SHIPPED, "default", model)
    before = (model / "model.json").read_bytes()
    job = evidence.Job(dataset=five, models=("default",), out=tmp_path / "out")
    assert evidence._own(job) == tmp_path / "out" / "model"
    assert (tmp_path / "out" / "model" / "model.json").read_bytes() == before == (model / "model.json").read_bytes()
    assert evidence._own(evidence.Job(dataset=five, models=(str(model),), out=tmp_path / "out")) == model


def test_models_beside_each_other_and_runs_compared(run, cohort, model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    words = ["--patterns", "FLAIR", "--steps", 1, "--precision", "fp32"]
    code, said, err = run("evaluate", cohort, "--model", model, "--model", other, "--out", tmp_path / "both", *words)
    assert (code, err) == (0, "")
    assert "Compared, paired by subject" in said
    assert {line[4] for line in rows(tmp_path / "both")} == {"method", "model", str(other), "single", "regression"}
    for name in ("a", "b"):
        seed = 0 if name == "a" else 1
        assert run("evaluate", cohort, "--model", model, "--out", tmp_path / name, *words, "--seed", seed, "-q")[0] == 0
    paths = [tmp_path / name / "results.json" for name in ("a", "b")]
    code, said, err = run("evaluate", "--compare", *paths)
    assert (code, err) == (0, "")
    assert "3 subjects" in said and "trust v2" in said
    run("evaluate", cohort, "--model", model, "--out", tmp_path / "c", "--patterns", "T2w", "--steps", 1, "-q")
    code, _, err = run("evaluate", "--compare", paths[0], tmp_path / "c" / "results.json")
    assert code == 2 and "different protocols (patterns" in err and err.count("\n") == 1


def test_runs_on_other_files_do_not_compare(run, five, cohort, model, tmp_path):
    for name, data in (("a", five), ("b", cohort)):
        words = ["--model", model, "--out", tmp_path / name, "--patterns", "FLAIR", "--steps", 1, "-q"]
        assert run("evaluate", data, *words)[0] == 0
    code, _, err = run("evaluate", "--compare", tmp_path / "a" / "results.json", tmp_path / "b" / "results.json")
    assert code == 2 and "share no subject of the same files" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare", "a.json"], "two results.json"),
        (["--compare", "a.json", "b.json"], "no result of an evaluation"),
        ([], "DATASET is missing"),
        (["DATA", "--subjects", "2"], "belong to a --protocol"),
        (["DATA", "--protocol", "apt"], "is unknown"),
        (["DATA", "--protocol", "copedit-brats"], "is of 1251 subjects and 5 here have"),
        (["DATA", "--protocol", "cola-ixi"], "needs subjects with T1w, T2w, PDw"),
        (["DATA", "--protocol", "cola-brats2018", "--allow-other-data", "--patterns", "FLAIR"], "says itself"),
        (["DATA", "--calibrate", "--samples", "1"], "samples=1"),
        (["DATA", "--model", "default", "--model", "default"], "given twice"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(run, five, model, tmp_path, words, said):
    given = [five if word == "DATA" else word for word in words]
    if "DATA" in words and "--model" not in words:
        given += ["--model", model]
    code, _, err = run("evaluate", *given, "--out", tmp_path / "out")
    assert code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_protocol_runs_small(run, five, model, tmp_path):
    out = tmp_path / "out"
    words = ["evaluate", five, "--model", model, "--out", out, "--protocol", "cola-brats2018", "--allow-other-data"]
    code, said, err = run(*words, "--subjects", 1, "--steps", 1)
    assert (code, err) == (0, "")
    assert "Beside the paper (cola-brats2018 v1; other data; 1 subjects)" in said and "28.33" in said
    assert {line[3] for line in rows(out)} == {"metric", "psnr", "ssim"}
    code, said, _ = run(*words, "--subjects", 1, "--dry-run")
    assert code == 0 and "tested: sub-" in said


def test_downstream_by_the_command(run, five, model, tmp_path):
    out = tmp_path / "out"
    words = [
        "evaluate",
        five,
        "--model",
        model,
        "--out",
        out,
        "--steps",
        1,
        "--patterns",
        "FLAIR",
        "--downstream",
        "WT",
    ]
    code, said, err = run(*words, "--iterations", 1)
    assert code == 2 and "2 label maps" in err  # tissues and tumours: it must be said which
    labels = "derivatives/truth/{subject}/anat/{subject}_desc-brats_dseg.nii.gz"
    code, said, err = run(*words, "--iterations", 1, "--labels", labels)
    assert (code, err) == (0, "")
    assert "completed" in said and {line[4] for line in rows(out)} == {"method", "real", "missing", "completed"}
    assert run("evaluate", "--compare", out / "results.json", out / "results.json")[0] == 0


def test_an_audit_by_the_command(run, five, cohort, model, tmp_path):
    code, _, err = run("evaluate", cohort, "--model", model, "--audit", model, "--out", tmp_path / "same")
    assert code == 2 and "is also the name of a subject trained on" in err
    other = tmp_path / "other"
    for subject in ("sub-004", "sub-005"):
        shutil.copytree(five / subject, other / subject)
    words = ["evaluate", other, "--model", model, "--audit", model, "--out", tmp_path / "out", "--steps", 1]
    code, said, err = run(*words, "--precision", "fp32")
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "privacy.html").is_file() and "privacy.html" in said
    assert set(json.loads((tmp_path / "out" / "audit.json").read_text())["audits"]) == {"T1w", "T1Gd", "T2w", "FLAIR"}


def test_a_generated_cohort_is_audited_by_the_command(run, cohort, tmp_path):
    made, model, tiny = tmp_path / "made", tmp_path / "model", ["--preset", "tiny", "--precision", "fp32"]
    assert run("train", "wfdm", cohort, "--out", model, *tiny, "--steps", 1, "--batch", 2, "--quiet")[0] == 0
    assert run("generate", made, "--model", model, "-n", 2, "--steps", 1, "--modality", "FLAIR", "--quiet")[0] == 0
    learned = json.loads((model / "cache" / "index.json").read_text())["studies"][0]["label"]
    copied = made / "sub-synth0002" / "anat" / "sub-synth0002_desc-synth_FLAIR.nii.gz"
    shutil.copyfile(cohort / learned / "anat" / f"{learned}_FLAIR.nii.gz", copied)
    code, said, _ = run("evaluate", made, "--audit", model, "--dry-run")
    assert code == 0 and f"would evaluate {model} on 2 of 2 subjects" in said.replace("\n", " ")
    for name, real in (("run", model), ("data", cohort)):
        out = tmp_path / name
        code, said, err = run("evaluate", made, "--audit", real, "--model", model, "--out", out)
        assert (code, err) == (0, "") and "FLAIR: " in said
        (audit,) = json.loads((out / "audit.json").read_text())["audits"].values()
        near = {n["generated"].split()[0]: n for n in audit["spaces"][0]["neighbours"]}
        assert near["sub-synth0002"]["copy"] and near["sub-synth0002"]["training"] == f"{learned} FLAIR"
        assert near["sub-synth0002"]["distance"] < 0.01 and not near["sub-synth0001"]["copy"]
        assert (out / "privacy.html").is_file()


def test_workers_do_not_change_the_table(run, cohort, model, tmp_path):
    (tmp_path / "raw").mkdir()
    for subject in ("sub-001", "sub-002", "sub-003"):
        shutil.copytree(cohort / subject, tmp_path / "raw" / subject)
    (tmp_path / "raw" / "sub-003" / "anat" / "sub-003_T1w.nii.gz").write_text("no image")
    words = ["evaluate", tmp_path / "raw", "--model", model, "--patterns", "FLAIR", "--steps", 1, "--device", "cpu"]
    for workers in (1, 2):
        code, _, err = run(*words, "--workers", workers, "--out", tmp_path / str(workers))
        assert code == 1 and err.startswith("error: sub-003: ")
    assert rows(tmp_path / "1") == rows(tmp_path / "2")
    assert len(rows(tmp_path / "1")) == 1 + 2 * 3 * 4

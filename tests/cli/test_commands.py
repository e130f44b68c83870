"""The other commands: what they print and what they leave."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time

from amodal.methods import any2all

from .conftest import TINY


def test_inspect_a_file(run, cohort):
    path = cohort / "sub-001" / "anat" / "sub-001_T1w.nii.gz"
    code, out, _ = run("inspect", path, "--json")
    found = json.loads(out)
    assert code == 0 and found["kind"] == "file"
    assert (found["shape"], found["spacing"], found["orientation"]) == ([32, 32, 12], [5.0, 5.0, 5.0], "RAS")
    assert (found["sform_code"], found["qform_code"]) == (1, 1)
    assert "32, 32, 12" in run("inspect", path)[1]


def test_inspect_a_dataset(run, dataset, model):
    code, out, _ = run("inspect", dataset, "--model", model, "--json")
    found = json.loads(out)
    assert code == 0 and (found["kind"], found["layout"], len(found["studies"])) == ("dataset", "bids", 3)
    first = found["studies"][0]
    assert first["subject"] == "sub-001" and first["can_be_made"] == ["FLAIR"] and first["one_grid"] is True
    code, out, _ = run("inspect", dataset, "--model", model)
    assert code == 0 and out.count("missing, can be made") == 3 and out.count("RAS, s1 q1") == 9


def test_inspect_names_what_is_damaged(run, dataset, model):
    bad = dataset / "sub-002" / "anat" / "sub-002_T1w.nii.gz"
    bad.write_text("no image")
    code, out, _ = run("inspect", dataset, "--model", model, "--json")
    found = json.loads(out)
    assert code == 1 and len(found["problems"]) == 1 and "sub-002_T1w.nii.gz" in found["problems"][0]
    assert "damaged" in run("inspect", dataset, "--model", model)[1]


def test_inspect_a_model(run, model):
    code, out, _ = run("inspect", model, "--json")
    found = json.loads(out)
    assert code == 0 and (found["kind"], found["method"]) == ("model", "any2all")
    assert found["modalities"] == ["T1w", "T1Gd", "T2w", "FLAIR"]
    assert found["card"]["training"]["steps"] == 3 and found["card"]["training"]["studies"] == 2
    assert found["sha256"] in run("inspect", model)[1]


def test_methods(run):
    code, out, _ = run("methods", "--json")
    (found,) = (m for m in json.loads(out) if m["name"] == "any2all")
    assert code == 0 and found["paper"] and found["tasks"]
    assert {"published", "small", "tiny"} <= set(found["presets"])
    prior = found["presets"]["tiny"]["networks"]["prior"]
    assert (
        prior["parameters"] == prior["trainable"] == sum(p.numel() for p in any2all.build(any2all.tiny()).parameters())
    )
    assert 0 < prior["gflops"] <= prior["gflops_with_attention"]


def test_methods_as_a_table(run, monkeypatch):
    from amodal.cli import methods

    monkeypatch.setattr(
        methods,
        "describe",
        lambda: [
            {
                "name": "m",
                "paper": "P",
                "tasks": ["t"],
                "presets": {
                    "p": {
                        "networks": {
                            "prior": {
                                "parameters": 1234567,
                                "trainable": 1,
                                "gflops": 2.5,
                                "gflops_with_attention": 3.0,
                            }
                        }
                    }
                },
            }
        ],
    )
    assert "1,234,567" in run("methods")[1]


def test_phantom_makes_the_same_again(run, cohort, tmp_path):
    words = ["-n", 1, "--size", "32x32x12", "--spacing", 5, "--workers", 1]
    assert run("phantom", tmp_path / "a", *words)[0] == 0
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("sub-*.nii.gz"))
    assert {p.name for p in files} >= {"sub-001_T1w.nii.gz", "sub-001_FLAIR.nii.gz"}
    assert all((tmp_path / "a" / p).read_bytes() == (cohort / p).read_bytes() for p in files)
    assert run("phantom", tmp_path / "b", *words, "--dry-run")[0] == 0 and not (tmp_path / "b").exists()


def test_training_goes_on_where_it_stopped(run, dataset, tmp_path):
    words = ["train", "any2all", dataset, "--out", tmp_path / "run", *TINY, "--quiet"]
    assert run(*words)[0] == 0
    steps = lambda: [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]  # noqa: E731
    assert max(steps()) == 3
    code, _, err = run(*words)
    assert code == 2 and "--resume" in err
    more = [*words, "--resume"]
    more[more.index("3")] = "5"
    assert run(*more)[0] == 0
    assert max(steps()) == 5 and 1 in steps()
    about = json.loads((tmp_path / "run" / "model.json").read_text())
    assert about["modalities"] == ["T1w", "T1Gd", "T2w"]  # what the dataset has
    assert set(about["card"]["baselines"]["regression"]) == {"T1w", "T1Gd", "T2w"}


TWICE = """
import os, sys
from pathlib import Path
from amodal.cli.app import main
from amodal.model import Model
from amodal.train import machine
rank, save, notes = os.environ.get("LOCAL_RANK", "0"), Model.save, Path(__file__).parent
machine.devices = lambda device: ("cpu", 2)
Model.save = lambda *given: ((notes / f"saved by {rank}").touch(), save(*given))
code = main(sys.argv[1:])
(notes / f"{rank} ended with {code}").touch()
sys.exit(code)
"""


def test_two_processes_leave_one_model(run, cohort, study, tmp_path):
    """As on two GPUs: the second process is started by the same command, and only the first writes."""
    (tmp_path / "twice.py").write_text(TWICE)
    words = ["train", "any2all", cohort, "--out", tmp_path / "run", *TINY, "--set", "steps=2", "-q"]
    words = [sys.executable, tmp_path / "twice.py", *words, "--report", tmp_path / "run.json"]
    done = subprocess.run(list(map(str, words)), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    for _ in range(300):  # the first does not wait for the second
        if (tmp_path / "1 ended with 0").exists():
            break
        time.sleep(0.1)
    assert {p.name for p in tmp_path.glob("* *")} == {"saved by 0", "0 ended with 0", "1 ended with 0"}
    assert [e["status"] for e in json.loads((tmp_path / "run.json").read_text())["subjects"]] == ["done"]
    code, _, err = run("complete", study, tmp_path / "out", "--model", tmp_path / "run", "-q")
    assert code == 0, err  # the weights are those that model.json states


def test_training_leaves_out_what_is_damaged(run, dataset, tmp_path):
    (dataset / "sub-002" / "anat" / "sub-002_T1w.nii.gz").write_text("no image")
    code, _, err = run("train", "any2all", dataset, "--out", tmp_path / "run", *TINY, "--hold-out", 0, "-q")
    assert code == 0 and err.startswith("warning: sub-002 is left out: ")
    about = json.loads((tmp_path / "run" / "model.json").read_text())
    assert about["card"]["training"]["studies"] == 2


def test_a_preset_for_other_modalities():
    config = any2all.for_modalities(any2all.tiny(), ("T1w", "FLAIR"))
    assert (config.net.in_channels, config.net.out_channels, config.net.times) == (2, 2, 2)
    shared = any2all.for_modalities(any2all.published(), ("T1w", "FLAIR"))
    assert shared.net.times == 1
    any2all.build(config)


def test_evaluate(run, cohort, model, tmp_path):
    shutil.copytree(cohort / "sub-001", tmp_path / "raw" / "sub-001")
    shutil.copytree(cohort / "sub-002", tmp_path / "raw" / "sub-002")
    out, report = tmp_path / "out", tmp_path / "run.json"
    words = ["evaluate", tmp_path / "raw", "--model", model, "--out", out, "--patterns", "FLAIR", "--steps", 1]
    code, said, err = run(*words, "--report", report)
    assert (code, err) == (0, "")
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert {r["subject"] for r in rows} == {"sub-001", "sub-002"} and {r["modality"] for r in rows} == {"FLAIR"}
    assert {r["method"] for r in rows} == {"model", "single", "regression"}
    assert {"psnr", "ssim", "mae"} <= {r["metric"] for r in rows}
    assert (out / "report.html").is_file() and (out / "results.json").is_file()
    assert "regression" in said and "psnr" in said
    assert [s["status"] for s in json.loads(report.read_text())["subjects"]] == ["done", "done"]


def test_evaluate_names_a_bad_subject(run, dataset, model, tmp_path):
    (dataset / "sub-001" / "anat" / "sub-001_T1w.nii.gz").write_text("no image")
    shutil.rmtree(dataset / "sub-003")
    words = ["evaluate", dataset, "--model", model, "--out", tmp_path / "out", "--patterns", "T2w", "--steps", 1]
    code, _, err = run(*words)
    assert code == 1 and err.startswith("error: sub-001: ") and err.count("\n") == 1


def test_demo(run, model, tmp_path):
    out = tmp_path / "demo"
    code, said, err = run("demo", "--out", out, "--model", model, "--size", 32)
    assert (code, err) == (0, "")
    assert [word in said for word in ("model", "regression", "single", "psnr", ".html")] == [True] * 5
    assert list(out.rglob("*_desc-synth_FLAIR.nii.gz")) and list(out.rglob("sub-*.html"))
    assert run("demo", "--out", out, "--model", model, "--size", 32)[0] == 2
    assert run("demo", "--out", out, "--model", model, "--size", 32, "--overwrite", "-q") == (0, "", "")


def test_what_is_written_is_valid_bids(run, cohort, dataset, model, tmp_path, bids_errors):
    assert run("complete", dataset, tmp_path / "out", "--model", model, "--samples", 2)[0] == 0
    assert bids_errors(cohort) == bids_errors(tmp_path / "out") == []

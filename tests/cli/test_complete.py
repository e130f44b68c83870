"""amodal complete, as a user calls it: files in, files out."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from amodal.data.nifti import sha256

SUBJECTS = ("sub-001", "sub-002", "sub-003")


def image(out: Path, subject: str = "sub-001", desc: str = "synth", suffix: str = "FLAIR") -> Path:
    return out / subject / "anat" / f"{subject}_desc-{desc}_{suffix}.nii.gz"


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_what_a_dataset_lacks_is_made(run, dataset, model, tmp_path):
    out, report = tmp_path / "out", tmp_path / "run.json"
    before = {p: sha256(p) for p in dataset.rglob("*.nii.gz")}
    code, said, err = run("complete", dataset, out, "--model", model, "--report", report)
    assert (code, err) == (0, "")
    for subject in SUBJECTS:
        made, like = nib.load(image(out, subject)), nib.load(dataset / subject / "anat" / f"{subject}_T1w.nii.gz")
        assert made.shape == like.shape and np.array_equal(made.affine, like.affine)
        for key in ("sform_code", "qform_code", "pixdim", "xyzt_units"):
            assert np.array_equal(made.header[key], like.header[key])
        assert made.header["descrip"].item().startswith(b"SYNTHETIC")
        assert np.asarray(made.dataobj).std() > 0
        assert "SYNTHETIC" in (out / f"{subject}.html").read_text()
        assert str(image(out, subject)) in said
    assert {p: sha256(p) for p in dataset.rglob("*.nii.gz")} == before
    done = json.loads(report.read_text())
    assert done["status"] == "done" and [s["subject"] for s in done["subjects"]] == list(SUBJECTS)
    for entry in done["subjects"]:
        assert entry["status"] == "done" and len(entry["inputs"]) == 3 and entry["error"] is None
        assert entry["seconds"] > 0 and entry["peak_memory_mib"] > 50
        assert all(Path(path).is_file() for path in entry["outputs"]) and len(entry["outputs"]) == 2


def test_the_sidecar_says_where_an_image_comes_from(run, study, model, tmp_path):
    assert run("complete", study, tmp_path / "out", "--model", model, "--seed", 7, "-q")[0] == 0
    beside = json.loads(image(tmp_path / "out").with_suffix("").with_suffix(".json").read_text())
    assert beside["Description"].startswith("SYNTHETIC FLAIR")
    assert beside["SkullStripped"] is True
    assert beside["SpatialReference"] == beside["Sources"][0] == "bids:raw:sub-001/anat/sub-001_T1w.nii.gz"
    assert len(beside["Sources"]) == 3
    how = beside["Synthetic"]
    assert how["Method"] == "any2all" and how["Sampler"]["Seed"] == 7 and how["Sampler"]["Steps"] == 1
    assert how["Weights"]["SHA256"] == sha256(model / "weights.safetensors")
    assert how["InputSHA256"]["T1w"] == sha256(study / "sub-001/anat/sub-001_T1w.nii.gz")
    assert set(how["Checks"]) == {"one grid", "voxel size"} and how["Checks"]["one grid"] == "pass"


def test_one_bad_subject_does_not_stop_the_others(run, dataset, model, tmp_path):
    bad = dataset / "sub-002" / "anat" / "sub-002_T2w.nii.gz"
    bad.write_bytes(bad.read_bytes()[:2000])
    report = tmp_path / "run.json"
    code, said, err = run("complete", dataset, tmp_path / "out", "--model", model, "--report", report)
    assert code == 1
    assert err.count("\n") == 1 and err.startswith("error: sub-002: ") and "truncated" in err
    assert "2 of 3 subjects done; failed: sub-002" in said
    assert [image(tmp_path / "out", s).exists() for s in SUBJECTS] == [True, False, True]
    entries = json.loads(report.read_text())["subjects"]
    assert [e["status"] for e in entries] == ["done", "failed", "done"]
    assert "sub-002_T2w.nii.gz" in entries[1]["error"] and entries[1]["outputs"] == []


def test_what_was_acquired_can_be_hidden_and_compared(run, cohort, model, tmp_path):
    shutil.copytree(cohort / "sub-001", tmp_path / "raw" / "sub-001")
    report = tmp_path / "run.json"
    words = ["complete", tmp_path / "raw", tmp_path / "out", "--model", model, "--missing", "FLAIR", "t1ce"]
    code, said, _ = run(*words, "--report", report)
    assert code == 0 and "regression" in said
    scores = json.loads(report.read_text())["subjects"][0]["scores"]
    assert set(scores) == {"T1Gd", "FLAIR"}
    assert set(scores["FLAIR"]) == {"model", "single", "regression"}
    assert 0 < scores["FLAIR"]["model"]["psnr"] < 100
    assert image(tmp_path / "out", suffix="FLAIR").exists()
    assert (tmp_path / "out/sub-001/anat/sub-001_ce-gadolinium_desc-synth_T1w.nii.gz").exists()
    # the hidden images are not seen: other voxels in them change nothing
    for path in (tmp_path / "raw").rglob("*FLAIR.nii.gz"):
        nib.save(nib.Nifti1Image(voxels(path)[::-1], nib.load(path).affine, nib.load(path).header), path)
    assert run("complete", *words[1:2], tmp_path / "again", *words[3:])[0] == 0
    assert np.array_equal(voxels(image(tmp_path / "out")), voxels(image(tmp_path / "again")))


def test_plain_files(run, cohort, model, tmp_path, monkeypatch):
    for name in ("T1w", "T2w"):
        shutil.copy(cohort / "sub-001" / "anat" / f"sub-001_{name}.nii.gz", tmp_path / f"{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    files = ["--t1w", "T1w.nii.gz", "--t2w", "T2w.nii.gz"]
    assert run("complete", "out", *files, "--missing", "FLAIR", "--model", model)[0] == 0
    made = list((tmp_path / "out").rglob("*.nii.gz"))
    assert len(made) == 1 and made[0].name.endswith("_desc-synth_FLAIR.nii.gz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["T1w.nii.gz", "T2w.nii.gz", "out"]


def test_the_same_seed_gives_the_same_image(run, dataset, model, tmp_path):
    base = ["--model", model, "--device", "cpu", "--precision", "fp32", "--seed", 3]
    ways = {"one": [], "two": ["--batch", 5], "three": ["--workers", 3], "four": ["--batch", 1, "--workers", 2]}
    for name, more in ways.items():
        assert run("complete", dataset, tmp_path / name, *base, *more)[0] == 0
    for subject in SUBJECTS:
        first, *others = (voxels(image(tmp_path / name, subject)) for name in ways)
        for other in others:
            np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-3 * first.max())
    assert run("complete", dataset, tmp_path / "five", *base[:-1], 4)[0] == 0
    assert not np.allclose(voxels(image(tmp_path / "five")), voxels(image(tmp_path / "one")))


def test_several_samples_say_how_sure_they_are(run, study, model, tmp_path):
    assert run("complete", study, tmp_path / "out", "--model", model, "--samples", 3)[0] == 0
    spread = voxels(image(tmp_path / "out", desc="synthstd"))
    assert spread.shape == voxels(image(tmp_path / "out")).shape
    assert spread.min() >= 0 and spread.max() > 0
    beside = json.loads(image(tmp_path / "out").with_suffix("").with_suffix(".json").read_text())
    assert "Mean of 3 samples" in beside["Description"]


def test_nothing_missing_is_said_and_nothing_written(run, cohort, model, tmp_path):
    code, said, _ = run("complete", cohort, tmp_path / "out", "--model", model)
    assert code == 0 and said.count("nothing is missing") == 3
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_plan_and_writes_nothing(run, dataset, model, tmp_path):
    (dataset / "sub-003" / "anat" / "sub-003_T2w.nii.gz").unlink()
    code, said, _ = run("complete", dataset, tmp_path / "out", "--model", model, "--dry-run")
    assert code == 0 and not (tmp_path / "out").exists()
    rows = [line for line in said.splitlines() if "sub-00" in line]
    assert [row.count("will be made") for row in rows] == [1, 1, 2]
    assert [row.count("there") for row in rows] == [3, 3, 2]


def test_quiet_is_quiet(run, study, model, tmp_path):
    assert run("complete", study, tmp_path / "out", "--model", model, "-q") == (0, "", "")


def test_an_interrupt_keeps_what_is_done(run, dataset, model, tmp_path, monkeypatch):
    from amodal.cli import completion

    usual = completion.subject_page

    def stop(path, page):
        if "sub-002" in str(path):
            raise KeyboardInterrupt
        return usual(path, page)

    monkeypatch.setattr(completion, "subject_page", stop)
    report = tmp_path / "run.json"
    code, _, err = run("complete", dataset, tmp_path / "out", "--model", model, "--report", report)
    assert code == 130 and err.startswith("error: interrupted")
    assert [e["status"] for e in json.loads(report.read_text())["subjects"]] == ["done", "failed"]
    assert image(tmp_path / "out").exists() and not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.parametrize("session", ["sub-12/ses-1"])
def test_a_real_session_on_three_grids(run, data_root, model, tmp_path, session):
    folder = data_root / "open-ms-raw" / session
    before = {p: sha256(p) for p in folder.rglob("*.nii.gz")}
    code, _, err = run("complete", folder, tmp_path / "out", "--model", model, "--steps", 1)
    assert (code, err) == (0, "")
    (made,) = (tmp_path / "out").rglob("*_ce-gadolinium_desc-synth_T1w.nii.gz")
    like = nib.load(next(folder.rglob("*T1w.nii.gz")))
    assert nib.load(made).shape == like.shape and np.array_equal(nib.load(made).affine, like.affine)
    beside = json.loads(made.with_suffix("").with_suffix(".json").read_text())
    assert beside["SkullStripped"] is False
    assert beside["Synthetic"]["Checks"]["one grid"].startswith("warn")
    assert {p: sha256(p) for p in folder.rglob("*.nii.gz")} == before

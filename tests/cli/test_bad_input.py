"""Whatever is wrong with the input is said in one sentence, before anything is written: exit code 2."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from amodal.data.nifti import sha256

T1 = "sub-001/anat/sub-001_T1w.nii.gz"


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray] = lambda x: x, sform: float = 1.0) -> None:
    """Write a NIfTI file again with its voxels changed, and its sform and qform multiplied."""
    image = nib.load(path)
    data = change(np.asarray(image.dataobj, np.float32))
    header = nib.Nifti1Header()
    header.set_data_shape(data.shape)
    header.set_sform(image.affine * sform, code=1)
    nib.save(nib.Nifti1Image(data, None, header), path)


def damage(raw: Path, what: str) -> None:
    path = raw / T1
    {
        "series": lambda: rewrite(path, lambda x: np.stack([x, x], -1)),
        "nan": lambda: rewrite(path, lambda x: np.where(x > x.mean(), np.nan, x)),
        "zeros": lambda: rewrite(path, np.zeros_like),
        "affine": lambda: rewrite(path, sform=0.0),
        "text": lambda: path.write_text("this is no image"),
        "truncated": lambda: path.write_bytes(path.read_bytes()[:2000]),
        "short": lambda: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:5000])),
        "twice": lambda: shutil.copy(path, path.with_name("sub-001_acq-other_T1w.nii.gz")),
    }[what]()


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(run, *words, says: str) -> None:
    """The command line is refused with one sentence that holds the words `says`."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith(".\n"), err
    assert all(part in err for part in says.split(" & ")), err


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("series", "_T1w.nii.gz & 4-D series"),
        ("nan", "_T1w.nii.gz & NaN"),
        ("zeros", "_T1w.nii.gz & all voxels are 0"),
        ("affine", "_T1w.nii.gz & affine"),
        ("text", "_T1w.nii.gz & not a NIfTI file"),
        ("truncated", "_T1w.nii.gz & truncated"),
        ("short", "_T1w.nii.gz & truncated"),
        ("twice", "two files for T1w"),
    ],
)
def test_a_bad_file(run, study, model, tmp_path, what, says):
    damage(study, what)
    before = contents(study)
    refused(run, "complete", study, tmp_path / "out", "--model", model, "--report", tmp_path / "run.json", says=says)
    assert not (tmp_path / "out").exists() and not (tmp_path / "run.json").exists()
    assert contents(study) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("complete {raw}/nowhere {out}", "nowhere & no such file or folder"),
        ("complete {empty} {out}", "no modality found"),
        ("complete {raw}", "OUTPUT is missing"),
        ("complete {raw} {out} --missing NOISE", "NOISE & FLAIR"),
        ("complete {raw} {out} --missing PDw", "PDw & this model makes T1w, T1Gd, T2w, FLAIR"),
        ("complete {raw} {out} --missing T1w T1Gd T2w", "sub-001 & to be hidden"),
        ("complete {raw} {raw}", "never written to"),
        ("complete {raw} {raw}/sub-001/out", "never written to"),
        ("complete {raw} {file}", "is a file"),
        ("complete {raw} {file}/out", "is a file"),
        ("complete {raw} {out} --t1w {t1}", "both"),
        ("complete {out} --t1w {raw}/nowhere.nii.gz", "no such file"),
        ("complete {out} --t1w {t1} --t2w {t1}", "two modalities"),
        ("complete {out} --t1w {t1} --missing NOISE", "NOISE"),
        ("complete {raw} {out} --samples 0", "--samples"),
        ("complete {raw} {out} --device tpu", "device & auto"),
        ("complete {raw} {out} --precision fp7", "fp7 & bf16"),
        ("complete {raw} {out} --model {empty}", "model.json"),
        ("complete {raw} {out} --model {empty}/nowhere/run", "model"),
        ("evaluate {empty} --out {out}", "no modality found"),
        ("evaluate {raw} --out {out} --patterns NOISE", "NOISE"),
        ("evaluate {raw} --out {file}", "is a file"),
        ("evaluate {single} --out {out}", "no subject has two"),
        ("inspect {raw}/nowhere", "no such file or folder"),
        ("inspect {file}", "expected a NIfTI file"),
        ("phantom {out} -n 0", "-n & greater than or equal to 1"),
        ("phantom {out} -n 1 --size big", "--size big"),
        ("phantom {out} -n 1 --tumour 2", "tumour=2"),
        ("phantom {out} -n 1 --modalities T1w,NOISE", "NOISE"),
        ("phantom {raw} -n 1 --size 32", "--overwrite"),
        ("demo --out {raw}", "--overwrite"),
        ("train nothing {raw} --out {out} --steps 1", "'nothing' is unknown & any2all"),
        ("train any2all {raw} --out {out} --steps 1 --preset huge", "'huge' is unknown & tiny"),
        ("train any2all {raw} --out {out} --preset tiny", "steps or minutes"),
        ("train any2all {raw} --out {out} --preset tiny --steps 1 --set colour=red", "colour & steps"),
        ("train any2all {raw} --out {out} --preset tiny --steps 1 --set steps=many", "steps='many'"),
        ("train any2all {raw} --out {out} --preset tiny --steps 1 --modality PET", "PET"),
        ("train any2all {empty} --out {out} --steps 1", "no modality found"),
    ],
)
def test_bad_usage(run, study, model, tmp_path, words, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("a file")
    single = tmp_path / "single" / "sub-9" / "anat"
    single.mkdir(parents=True)
    shutil.copy(study / T1, single / "sub-9_T1w.nii.gz")
    places = {"raw": study, "out": tmp_path / "out", "empty": tmp_path / "empty", "file": tmp_path / "file.txt"}
    filled = words.format(**places, t1=study / T1, single=tmp_path / "single").split()
    if words.startswith(("complete", "evaluate")) and "--model" not in words:
        filled += ["--model", str(model)]
    before = contents(tmp_path)
    refused(run, *filled, says=says)
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"other weights"), "sha256"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "sha256"),
        (lambda folder: (folder / "weights.pt").write_bytes(b"code"), "weights.pt & may carry code"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json"),
        (lambda folder: edit(folder, format=99), "format & 99"),
        (lambda folder: edit(folder, method="nothing"), "nothing & any2all"),
    ],
)
def test_a_bad_model(run, study, model, tmp_path, change, says):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("weights.safetensors", "model.json"):
        shutil.copy(model / name, folder)
    change(folder)
    refused(run, "complete", study, tmp_path / "out", "--model", folder, says=says)
    assert not (tmp_path / "out").exists()


def edit(folder: Path, **values: object) -> None:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, **values}))


def test_an_output_that_is_there_is_kept(run, study, model, tmp_path):
    words = ["complete", study, tmp_path / "out", "--model", model]
    assert run(*words)[0] == 0
    before = contents(tmp_path / "out")
    refused(run, *words, says="exists & --overwrite")
    assert contents(tmp_path / "out") == before
    assert run(*words, "--overwrite")[0] == 0


def test_a_dataset_that_is_not_ours_is_not_written_into(run, study, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset_description.json").write_text(
        '{"Name": "mine", "BIDSVersion": "1.8.0", "DatasetType": "derivative"}'
    )
    before = contents(tmp_path / "out")
    refused(run, "complete", study, tmp_path / "out", "--model", model, says="amodal did not make")
    assert contents(tmp_path / "out") == before

"""From a cohort to a completed subject by the commands a user calls."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np

from amodal.cli import main


def test_a_cohort_in_a_completed_study_out(tmp_path, capsys):
    raw, run, out = tmp_path / "raw", tmp_path / "run", tmp_path / "out"
    tiny = [
        "--preset",
        "tiny",
        "--steps",
        "8",
        "--batch",
        "4",
        "--crop",
        "32",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    cohort = ["-n", "2", "--size", "32x32x10", "--spacing", "5", "--workers", "1", "-q"]
    assert main(["phantom", str(raw), *cohort]) == 0
    assert main(["train", "apt", str(raw), "--out", str(run), *tiny, "--set", "spacing=[5,5]", "-q"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(run), "--json"]) == 0
    book = json.loads(capsys.readouterr().out)["card"]["codebook"]
    names = ("T1w", "T1Gd", "T2w", "FLAIR")
    assert list(book) == list(names) and all(len(lines) == 3 for lines in book.values())
    assert main(["inspect", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "codebook" in shown and "rising" in shown
    anat = raw / "sub-001" / "anat"
    for path in [*anat.glob("*FLAIR*"), *anat.glob("*T2w*")]:
        path.unlink()
    words = ["complete", str(raw / "sub-001"), str(out), "--model", str(run), "--device", "cpu", "-q"]
    assert main(words) == 0
    given = nib.load(anat / "sub-001_T1w.nii.gz")
    for name in ("T2w", "FLAIR"):
        made = nib.load(out / "sub-001" / "anat" / f"sub-001_desc-synth_{name}.nii.gz")
        assert np.array_equal(made.affine, given.affine) and made.shape == given.shape
        assert np.isfinite(made.get_fdata()).all() and made.get_fdata().std() > 0
        sidecar = json.loads((out / "sub-001" / "anat" / f"sub-001_desc-synth_{name}.json").read_text())
        assert sidecar["Synthetic"]["Method"] == "apt"
        assert sidecar["Synthetic"]["Sampler"]["Name"] == "apt-adaptive-renoise-unroll"

"""CoPeDiT as a user meets it: train, complete, evaluate, look; for brains, and for stacks of the heart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from amodal.data import nifti
from amodal.data.volume import Volume

TINY = ["--steps", "4", "--batch", "2", "--device", "cpu", "--precision", "fp32", "-q"]
OBLIQUE = np.array([[-1.5, 0.8, 2.1, 10.0], [0.6, 1.7, -4.0, -20.0], [-0.9, 0.9, 5.5, 30.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def brain(cohort, tmp_path_factory):
    from amodal.cli import main

    out = tmp_path_factory.mktemp("copedit") / "run"
    assert main(["train", "copedit", str(cohort), "--out", str(out), "--preset", "tiny", *TINY]) == 0
    return out


def test_both_stages_are_trained(brain):
    lines = [json.loads(line) for line in (brain / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "loss" in line] == ["tokenizer"] * 2 + ["prior"] * 2
    assert {"codec/loss", "critic/loss", "codec/count_right"} <= set(lines[0])
    from safetensors.torch import load_file

    weights = load_file(str(brain / "weights.safetensors"))
    assert (weights["whitening.scale"] != 1).all()  # the latents' scale is stored


def test_from_bids_to_bids(run, dataset, brain, tmp_path):
    out = tmp_path / "out"
    code, said, _ = run("complete", dataset, out, "--model", brain, "--steps", 2)
    assert code == 0 and "FLAIR" in said
    made = sorted(out.rglob("*_desc-synth_FLAIR.nii.gz"))
    assert len(made) == 3
    reference = nifti.read(dataset / "sub-001" / "anat" / "sub-001_T1w.nii.gz")
    found = nifti.read(made[0])
    assert np.array_equal(found.affine, reference.affine) and found.shape == reference.shape
    about = json.loads(made[0].with_name(made[0].name.replace(".nii.gz", ".json")).read_text())
    assert about["Synthetic"]["Method"] == "copedit" and about["Synthetic"]["Sampler"]["Name"] == "ddim-x0"
    assert "arXiv:2602.18400" in (out / "sub-001.html").read_text()


def test_it_says_what_it_perceives(run, dataset, brain):
    code, said, _ = run("inspect", dataset, "--model", brain)
    assert code == 0 and said.count("the model perceives") == 3
    found = json.loads(run("inspect", dataset, "--model", brain, "--json")[1])
    assert set(found["perceived"][0]["taken_for"]) == {"T1w", "T1Gd", "T2w"}


def test_stacks_of_the_heart(run, tmp_path):
    """Thick oblique stacks in, a trained model out, and a gap filled by it."""
    raw = tmp_path / "raw"
    for subject in range(3):
        x, y, z = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 40), np.linspace(0, 1, 11), indexing="ij")
        data = 400 * np.exp(-(3 + subject) * (x**2 + y**2)) * (1 + z) + 30
        volume = Volume(data.astype(np.float32), OBLIQUE)
        nifti.write(raw / f"sub-0{subject + 1}" / "anat" / f"sub-0{subject + 1}_cine.nii.gz", volume.data, volume)
    (raw / "dataset_description.json").write_text('{"Name": "hearts", "BIDSVersion": "1.10.0"}')
    code, _, err = run("train", "copedit", raw, "--out", tmp_path / "run", "--preset", "tiny:heart", *TINY)
    assert code == 0, err
    source = raw / "sub-01" / "anat" / "sub-01_cine.nii.gz"
    code, said, err = run(
        "complete", source, tmp_path / "out", "--model", tmp_path / "run", "--missing-slices", "3:6", "--steps", 2
    )
    assert code == 0, err
    assert "linear" in said and "cubic" in said
    (path,) = (tmp_path / "out").rglob("*_desc-synth_cine.nii.gz")
    given, made = nifti.read(source), nifti.read(path)
    assert np.array_equal(given.affine, made.affine)
    there = [k for k in range(11) if k not in (3, 4, 5)]
    assert np.array_equal(given.data[..., there], made.data[..., there])

"""amodal generate for a model that knows metadata: what is asked, what is refused, what is written."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from amodal.cli.app import main
from amodal.methods import wfdm
from amodal.model import Model, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that knows its training data: ages 30 to 80, women alone, tumours and none."""
    torch.manual_seed(0)
    config = wfdm.tiny()
    method = wfdm.build(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in method.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    rows = [{"age": 30, "sex": "F", "tumour": "no"}, {"age": 80, "sex": "F", "tumour": "yes"}]
    table = method.encode_metadata(rows)
    method.net.metadata.fit(table["values"], table["known"])
    windows = dict.fromkeys(config.modalities, (0.0, 100.0))
    return Model("wfdm", method, wfdm.grid(config), windows).save(tmp_path_factory.mktemp("model") / "model")


def generate(folder, out, *flags):
    arguments = ["generate", str(out), "--model", str(folder), "--modality", "FLAIR", "--steps", "2", "--quiet"]
    return main([*arguments, "--device", "cpu", "--precision", "fp32", *map(str, flags)])


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file, delimiter="\t"))


def image(out, number):
    return nib.load(out / f"sub-synth{number:04d}/anat/sub-synth{number:04d}_desc-synth_FLAIR.nii.gz")


def test_the_statistics_of_training_travel_with_the_model(folder):
    encoder = load(folder, device="cpu").method.net.metadata
    assert (encoder.low[0], encoder.high[0]) == (30, 80) and encoder.counts[1].tolist() == [0, 2, 0]


def test_what_was_asked_stands_in_the_table(folder, tmp_path, capsys):
    out = tmp_path / "cohort"
    assert generate(folder, out, "-n", 2, "--meta", "age=60", "gender=female") == 0
    rows = table(out / "participants.tsv")
    assert [(r["participant_id"], r["age"], r["sex"]) for r in rows] == [
        ("sub-synth0001", "60", "F"), ("sub-synth0002", "60", "F"),
    ]  # fmt: skip
    assert "requested" in json.loads((out / "participants.json").read_text())["age"]["Description"]
    found = image(out, 1)
    assert found.shape == (16, 16, 16) and found.header.get_zooms()[:3] == (8.0, 8.0, 8.0)
    about = json.loads((out / "sub-synth0001/anat/sub-synth0001_desc-synth_FLAIR.json").read_text())
    assert about["Synthetic"]["Asked"] == {"age": "60", "sex": "F"}
    assert about["Synthetic"]["Sampler"]["Name"].startswith("rflow-ddim")
    assert not list(out.rglob("*T1w*")) and "warning" not in capsys.readouterr().err


def test_the_values_change_the_image_and_the_seed_does_not_depend_on_n(folder, tmp_path):
    for name, flags in {"a": ["age=60"], "b": ["age=40"], "c": ["age=60"]}.items():
        assert generate(folder, tmp_path / name, "-n", 1 + (name == "c"), "--meta", *flags) == 0
    a, b, c = (np.asarray(image(tmp_path / name, 1).dataobj) for name in "abc")
    assert np.array_equal(a, c) and not np.array_equal(a, b)


@pytest.mark.parametrize(
    "pair, sentence",
    [("shoe=43", "--meta shoe: the model knows no such field; choose one of age, sex, tumour, ms"),
     ("age=old", "age is a number in year"), ("sex=Q", "sex is F, M")],
)  # fmt: skip
def test_what_the_model_does_not_know_is_refused(folder, tmp_path, capsys, pair, sentence):
    assert generate(folder, tmp_path / "out", "--meta", pair) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_values_outside_the_training_data_are_made_with_a_warning(folder, tmp_path, capsys):
    report = tmp_path / "run.json"
    assert generate(folder, tmp_path / "out", "--meta", "age=95", "sex=M", "--report", report) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "age=95 lies outside 30 to 80" in said and "sex=M: no training subject was so" in said
    assert len(json.loads(report.read_text())["subjects"][0]["warnings"]) == 2


def test_conditions_from_a_real_table(folder, tmp_path):
    """--like: rows of a table, as its participants.json explains them; --meta goes before."""
    real = tmp_path / "participants.tsv"
    lines = ["participant_id\tage\tsex\tgroup", *(f"sub-{i}\t{480 + 120 * i}\t2\tpatient" for i in range(4))]
    real.write_text("\n".join(lines) + "\n")
    sidecar = {"age": {"Units": "months"}, "sex": {"Levels": {"1": "male", "2": "female"}}}
    real.with_suffix(".json").write_text(json.dumps(sidecar))
    out = tmp_path / "out"
    assert generate(folder, out, "-n", 6, "--like", real, "--meta", "tumour=yes") == 0
    rows = table(out / "participants.tsv")
    assert {r["age"] for r in rows} <= {"40", "50", "60", "70"} and len({r["age"] for r in rows}) > 1
    assert {r["sex"] for r in rows} == {"F"} and {r["tumour"] for r in rows} == {"yes"} and "group" not in rows[0]


def test_a_table_with_nothing_the_model_knows_is_refused(folder, tmp_path, capsys):
    real = tmp_path / "other.tsv"
    real.write_text("participant_id\tshoe\nsub-1\t43\n")
    assert generate(folder, tmp_path / "out", "--like", real) == 2
    assert "nothing in it that the model knows" in " ".join(capsys.readouterr().err.split())


def test_a_model_in_two_steps_by_the_command(cohort, tmp_path, capsys):
    """Trained, asked and completed with as any other: the coarse prior and its factors travel with the weights."""
    run, tiny = tmp_path / "run", ["--preset", "tiny", "--precision", "fp32", "--device", "cpu", "-q"]
    settings = ["aligned=true", "coarse=[16]", "factors=2", 'stages=["prior"]']
    words = ["train", "wfdm", cohort, "--out", run, *tiny, "--steps", 1, "--batch", 2, "--set", *settings]
    assert main([str(w) for w in words]) == 0
    method = load(run, device="cpu").method
    law = method.coarse.net.normal
    assert law.factors.abs().amax((1, 2, 3, 4, 5)).gt(0).all() and (law.rest < law.variance).any()
    assert generate(run, tmp_path / "made", "-n", 1, "--meta", "age=60") == 0
    assert np.isfinite(image(tmp_path / "made", 1).get_fdata()).all()
    subject = next(cohort.glob("sub-*/anat/*_T1w.nii.gz"))
    out = tmp_path / "done"
    words = ["complete", out, "--t1w", subject, "--model", run, "--missing", "FLAIR"]
    code = main([str(w) for w in [*words, "--device", "cpu", "--precision", "fp32", "-q"]])
    assert (code, capsys.readouterr().err) == (0, "")
    (found,) = out.rglob("*FLAIR.nii.gz")
    assert nib.load(found).shape == nib.load(subject).shape
    words = ["train", "wfdm", cohort, "--out", tmp_path / "no", *tiny, "--steps", 1, "--set", "coarse=[16]"]
    assert main([str(w) for w in words]) == 2 and "set aligned=true" in capsys.readouterr().err
    assert not (tmp_path / "no" / "model.json").exists()

"""BIDS names, tables and dataset descriptions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amodal.core.errors import InputError
from amodal.data import bids

LABEL = st.text("abcXYZ0189", min_size=1, max_size=6)


def test_parse_takes_a_name_apart():
    name = bids.parse("sub-01_ses-02_acq-mprage_ce-gadolinium_run-1_T1w.nii.gz")
    assert name.entities == {"sub": "01", "ses": "02", "acq": "mprage", "ce": "gadolinium", "run": "1"}
    assert (name.suffix, name.extension, name.modality) == ("T1w", ".nii.gz", "T1Gd")


@pytest.mark.parametrize(
    ("filename", "modality"),
    [
        ("sub-1_T1w.nii", "T1w"),
        ("sub-1_ce-gd_T1w.nii.gz", "T1Gd"),
        ("sub-1_FLAIR.nii.gz", "FLAIR"),
        ("sub-1_PDw.nii.gz", "PDw"),
        ("sub-1_ct.nii.gz", "CT"),
        ("sub-1_ce-gadolinium_FLAIR.nii.gz", None),  # an enhanced FLAIR is no FLAIR
        ("sub-1_dseg.nii.gz", None),
        ("sub-1_mod-T1w_defacemask.nii.gz", None),
    ],
)
def test_modality_of_a_name(filename, modality):
    assert bids.parse(filename).modality == modality


@pytest.mark.parametrize(
    "filename", ["t1.nii.gz", "sub-01.nii.gz", "T1w_sub-01.nii.gz", "participants.tsv", "sub-_T1w.nii"]
)
def test_what_is_no_bids_name(filename):
    assert bids.parse(filename) is None
    assert bids.entities(filename) == {}


def test_entities_are_written_in_the_order_of_the_standard():
    given = {
        "desc": "synth",
        "ce": "gadolinium",
        "space": "MNI",
        "ses": "1",
        "acq": "a",
        "sub": "01",
        "run": "2",
        "res": "1",
    }
    assert (
        str(bids.Name(given, "T1w")) == "sub-01_ses-1_acq-a_ce-gadolinium_run-2_space-MNI_res-1_desc-synth_T1w.nii.gz"
    )


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from(bids.ENTITIES), LABEL, min_size=1), st.sampled_from(["T1w", "FLAIR"]))
def test_a_name_comes_back(entities, suffix):
    name = bids.Name(entities, suffix)
    again = bids.parse(str(name))
    assert again == name
    assert list(again.entities) == [key for key in bids.ENTITIES if key in entities]


def test_labels_hold_letters_and_digits_only():
    assert bids.label("BraTS-GLI_000.05") == "BraTSGLI00005"
    assert bids.entities(str(bids.Name({"sub": "a_b-c"}, "T1w"))) == {"sub": "abc"}
    with pytest.raises(InputError, match="'--' holds no letter"):
        bids.label("--")
    with pytest.raises(InputError, match="'foo' is unknown"):
        str(bids.Name({"foo": "1"}, "T1w"))


def test_a_table_gives_numbers_and_leaves_gaps_out(tmp_path):
    (tmp_path / "t.tsv").write_text(
        "participant_id\tage\tsex\tscore\tlate\nsub-01\t61\tF\t1.5\t\nsub-02\tn/a\tM\tn/a\t89+\n"
    )
    one, two = bids.read_table(tmp_path / "t.tsv")
    assert one == {"participant_id": "sub-01", "age": 61, "sex": "F", "score": 1.5}
    assert two == {"participant_id": "sub-02", "sex": "M", "late": "89+"}
    assert bids.read_table(tmp_path / "t.tsv", text=("age",))[0]["age"] == "61"


def test_dataset_description(tmp_path):
    raw, out = tmp_path / "my data", tmp_path / "out"
    bids.write_dataset_description(raw, "cohort", licence="CC0")
    assert bids.read_description(raw)["DatasetType"] == "raw"
    assert bids.read_description(raw)["License"] == "CC0"
    bids.write_dataset_description(out, "made", "derivative", raw=raw)
    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetLinks"] == {"raw": "../my%20data"}
    assert about["GeneratedBy"][0]["Name"] == "amodal"
    assert [p.name for p in out.iterdir()] == ["dataset_description.json"]  # no temporary file is left
    assert bids.read_description(tmp_path) == {}


def test_what_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written .*choose a folder"):
        bids.write_text(tmp_path / "file" / "x.json", "{}")

"""The metadata schema: the paper's 25 fields, three states, tables and their explanations, requests."""

from __future__ import annotations

import json

import pytest

from amodal.core.errors import InputError
from amodal.methods import wfdm
from amodal.methods.wfdm import schema

BRAIN = schema.built_in("brainscape")
VIRTUAL = schema.built_in("virtual")


def cell(fields, column, said):
    """What one cell becomes: its value, or None if it is not known."""
    found = schema.encode(fields, [{column: said}])
    place = fields.place(column)
    return found["values"][0, place].item() if found["known"][0, place] else None


def test_the_25_fields_of_the_paper_in_their_order():
    """Section 2.2.2."""
    assert BRAIN.names == (
        "age", "height", "weight", "BMI", "age_group", "sex", "race", "handedness", "education",
        "socioeconomic_status", "stroke", "schizophrenia", "depression", "ADHD", "bipolar_disorder", "prosopagnosia",
        "epilepsy", "FCD", "HS", "tumor", "acute_ischaemic_stroke", "DNT", "GL", "aneurysm", "ASD",
    )  # fmt: skip
    kinds = [field.kind for field in BRAIN.fields]
    assert kinds == ["number"] * 4 + ["category"] * 6 + ["flag"] * 15


@pytest.mark.parametrize(
    "column, said, expected",
    [
        ("age", "61", 61.0), ("Age", 61.5, 61.5), ("age", "n/a", None), ("age", "", None), ("age", "abc", None),
        ("age", "inf", None), ("age", None, None), ("sex", "F", 1.0), ("sex", "male", 2.0), ("gender", "Female", 1.0),
        ("sex", "unknown", None), ("sex", "x", None), ("tumor", "no", 1.0), ("tumour", "Yes", 2.0), ("tumor", "0", 1.0),
        ("tumor", 1, 2.0), ("tumor", True, 2.0), ("tumor", "1.0", 2.0), ("tumor", "n/a", None),
        ("handedness", "R", 1.0), ("race", "Caucasian", 3.0), ("height", "0", 0.0),
    ],
)  # fmt: skip
def test_cells_of_a_table(column, said, expected):
    assert cell(BRAIN, column, said) == expected


def test_a_flag_has_three_states():
    found = schema.encode(BRAIN, [{"tumor": "no"}, {"tumor": "yes"}, {"tumor": "n/a"}, {}])
    place = BRAIN.place("tumor")
    assert found["values"][:, place].tolist() == [1, 2, 0, 0]
    assert found["known"][:, place].tolist() == [True, True, False, False]


def test_unknown_columns_are_left_alone():
    assert not schema.encode(BRAIN, [{"shoe_size": "43"}])["known"].any()


def test_a_sidecar_explains_the_table():
    """Units of numbers, codes of levels, as participants.json of BIDS has them."""
    sidecar = {
        "age": {"Units": "months"},
        "height": {"Units": "m"},
        "sex": {"Levels": {"1": "male", "2": "female", "9": "not told"}},
        "tumor": {"Levels": {"a": "yes, confirmed", "b": {"Description": "no"}}},
        "group": {"Levels": {"1": "patient"}},
    }
    table = schema.adapt(BRAIN, sidecar)
    assert cell(table, "age", "120") == pytest.approx(10) and cell(table, "height", "1.8") == pytest.approx(180)
    assert (cell(table, "sex", "1"), cell(table, "sex", "2"), cell(table, "sex", "9")) == (2, 1, None)
    assert (cell(table, "tumor", "a"), cell(table, "tumor", "b"), cell(table, "tumor", "yes")) == (2, 1, 2)
    rows = schema.translate(BRAIN, [{"age": "120", "sex": "1", "group": "1", "tumor": "n/a"}], sidecar)
    assert rows == [{"age": "10", "sex": "M"}]


def test_the_virtual_cohort_fits_its_schema():
    row = {"age": 50.0, "sex": "M", "tumour": "yes", "ms": "no"}
    assert schema.encode(VIRTUAL, [row])["known"].all()
    sidecar = {"tumour": {"Levels": {"yes": "tumour", "no": "no tumour"}}, "age": {"Units": "year"}}
    assert schema.translate(VIRTUAL, [row], sidecar) == [{"age": "50", "sex": "M", "tumour": "yes", "ms": "no"}]


def test_requests():
    assert schema.request(BRAIN, {"Age": "60", "gender": "female", "tumour": "1"}) == {
        "age": "60", "sex": "F", "tumor": "yes",
    }  # fmt: skip
    assert schema.request(BRAIN, {"age": "n/a"}) == {}


@pytest.mark.parametrize(
    "wanted, sentence",
    [
        ({"shoe": "43"}, "knows no such field; choose one of age, height"),
        ({"age": "old"}, "age=old: age is a number in year"),
        ({"sex": "Q"}, "sex is F, M"),
        ({"tumor": "maybe"}, "tumor is yes or no"),
        ({"sex": "F", "gender": "M"}, "given twice"),
    ],
)
def test_requests_that_make_no_sense_are_refused_by_name(wanted, sentence):
    with pytest.raises(InputError, match=sentence):
        schema.request(BRAIN, wanted)


def test_a_schema_is_a_file_of_the_users(tmp_path):
    path = tmp_path / "mine.json"
    fields = [{"name": "iq", "kind": "number"}, {"name": "site", "kind": "category", "categories": ["A", "B"]}]
    path.write_text(json.dumps({"fields": fields}))
    config = wfdm.with_schema(wfdm.tiny(), str(path))
    assert (
        config.schema.names == ("iq", "site")
        and wfdm.build(config).encode_metadata([{"site": "b"}])["known"].sum() == 1
    )


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("not json", "no schema can be read"),
        ('{"fields": [{"name": "a", "kind": "colour"}]}', "choose one of number, category, flag"),
        ('{"fields": [{"name": "a", "kind": "number", "size": 3}]}', "no such setting"),
        ('{"fields": [{"name": "a", "kind": "category"}]}', "categories belong to a category"),
        ('{"fields": [{"name": "a", "kind": "flag"}, {"name": "b", "kind": "flag", "names": ["A"]}]}', "'a' twice"),
        ('{"fields": [{"name": "a", "kind": "flag", "words": {"x": "perhaps"}}]}', "stands for 'perhaps'"),
    ],
)
def test_files_that_are_no_schema_are_refused(tmp_path, text, sentence):
    path = tmp_path / "schema.json"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        schema.read(path)


def test_values_unlike_the_training_data_are_told():
    """Ranges of numbers, categories nobody had, fields nobody had recorded."""
    method = wfdm.build(wfdm.tiny())
    asking = wfdm.asking
    assert asking.outside(method, {"age": "200"}) == []  # not trained: nothing is known
    rows = [{"age": a, "sex": "F", "tumour": t} for a, t in ((30, "no"), (80, "yes"))]
    table = method.encode_metadata(rows)
    method.net.metadata.fit(table["values"], table["known"])
    assert asking.outside(method, {"age": "55", "sex": "F", "tumour": "yes"}) == []
    said = asking.outside(method, {"age": "85", "sex": "M", "ms": "yes"})
    assert said[0] == "age=85 lies outside 30 to 80, the range of the training data."
    assert said[1] == "sex=M: no training subject was so."
    assert said[2].startswith("ms=yes: no training subject had ms recorded")
    assert asking.request(method, {"age": 60, "tumor": "no"}) == {"age": "60", "tumour": "no"}

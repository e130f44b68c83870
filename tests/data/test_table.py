"""Studies listed in a table."""

import numpy as np
import pytest

from amodal.core.errors import InputError
from amodal.data import layouts, nifti
from amodal.data.volume import Volume


@pytest.fixture
def folder(tmp_path):
    for name in ("a1", "a2", "b1"):
        data = np.arange(64, dtype=np.float32).reshape(4, 4, 4) + len(name)
        nifti.write(tmp_path / f"{name}.nii.gz", data, like=Volume(data, np.eye(4)))
    return tmp_path


def written(folder, text, name="list.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_rows_are_studies(folder):
    path = written(folder, "subject,t1ce,FLAIR,age\nA,a1.nii.gz,a2.nii.gz,61\nsub-B,b1.nii.gz,,\n")
    first, second = layouts.find(path)
    assert (first.subject, set(first.files), first.metadata) == ("sub-A", {"T1Gd", "FLAIR"}, {"age": "61"})
    assert first.read()["FLAIR"].data[0, 0, 1] == 3.0
    assert (second.subject, set(second.files)) == ("sub-B", {"T1Gd"})


def test_sessions_and_tabs(folder):
    path = written(folder, "participant_id\tsession\tt1\nx\t1\ta1.nii.gz\nx\tses-2\ta2.nii.gz\n", "list.tsv")
    assert [source.label for source in layouts.find(path)] == ["sub-x_ses-1", "sub-x_ses-2"]


def test_a_file_that_is_gone_is_one_studys_problem(folder):
    good, bad = layouts.find(written(folder, "subject,t1\nA,a1.nii.gz\nB,gone.nii.gz\n"))
    assert good.problem is None and "gone.nii.gz: no such file" in bad.problem
    with pytest.raises(InputError, match="gone"):
        bad.read()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has the columns none"),
        ("name,t1\nA,a1.nii.gz\n", "give `subject`"),
        ("subject,file\nA,a1.nii.gz\n", "modality"),
        ("subject,t1,t1w\nA,a1.nii.gz,a2.nii.gz\n", "two columns"),
        ("subject,t1\nA,a1.nii.gz\nA,a2.nii.gz\n", "more than one"),
    ],
)
def test_tables_that_cannot_be(folder, text, said):
    with pytest.raises(InputError, match=said):
        layouts.find(written(folder, text))

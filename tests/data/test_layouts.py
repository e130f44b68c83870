"""Which studies are found in a folder, whatever its layout. Names only: every file here is empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from amodal.core.errors import InputError
from amodal.data import layouts


def lay(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def shown(sources) -> dict[str, dict[str, str]]:
    return {source.label: {name: path.name for name, path in source.files.items()} for source in sources}


BIDS = (
    "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
    "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii",
    "sub-02/ses-a/anat/sub-02_ses-a_ce-gadolinium_T1w.nii.gz",
    "sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz",
    "sub-02/ses-a/anat/sub-02_ses-a_FLAIR.json",
    "sub-02/ses-a/anat/sub-02_ses-a_mod-T1w_defacemask.nii.gz",
    "sub-02/ses-a/anat/sub-02_ses-a_desc-synth_T2w.nii.gz",
    "sub-02/ses-a/anat/._sub-02_ses-a_T2w.nii.gz",
    "sub-02/ses-a/func/sub-02_ses-a_task-rest_bold.nii.gz",
    "sub-01/anat/sub-01_T2w.nii.gz",
    "sub-01/anat/sub-01_part-phase_T2starw.nii.gz",
    "sub-01/ct/sub-01_ct.nii.gz",
    "sub-03/func/sub-03_task-rest_bold.nii.gz",
    "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz",
)


def test_bids_dataset(tmp_path):
    lay(tmp_path, *BIDS)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t40\tF\nsub-02\t61\tM\n")
    (tmp_path / "sub-02" / "sub-02_sessions.tsv").write_text("session_id\tage\nses-a\t62\n")
    found = layouts.find(tmp_path)
    assert shown(found) == {
        "sub-01": {"T2w": "sub-01_T2w.nii.gz", "CT": "sub-01_ct.nii.gz"},
        "sub-02_ses-a": {
            "T1w": "sub-02_ses-a_T1w.nii",
            "T1Gd": "sub-02_ses-a_ce-gadolinium_T1w.nii.gz",
            "FLAIR": "sub-02_ses-a_FLAIR.nii.gz",
        },
        "sub-02_ses-b": {"T1w": "sub-02_ses-b_T1w.nii.gz"},
    }
    assert [s.metadata for s in found] == [{"age": 40, "sex": "F"}, {"age": 62, "sex": "M"}, {"age": 61, "sex": "M"}]
    assert all(s.layout == "bids" and s.root == tmp_path and s.problem is None for s in found)


@pytest.mark.parametrize(
    ("inside", "labels"),
    [
        ("sub-02", ["sub-02_ses-a", "sub-02_ses-b"]),
        ("sub-02/ses-b", ["sub-02_ses-b"]),
        ("sub-02/ses-a/anat", ["sub-02_ses-a"]),
        ("sub-01", ["sub-01"]),
        ("sub-01/anat", ["sub-01"]),
        ("sub-01/../sub-02/ses-b/", ["sub-02_ses-b"]),
    ],
)
def test_a_folder_in_a_bids_dataset(tmp_path, inside, labels):
    lay(tmp_path, *BIDS)
    found = layouts.find(tmp_path / inside)
    assert [s.label for s in found] == labels
    assert {s.root for s in found} == {tmp_path}  # so that URIs are those of the dataset


def test_a_relative_path(tmp_path, monkeypatch):
    lay(tmp_path, *BIDS)
    monkeypatch.chdir(tmp_path / "sub-02")
    assert [s.label for s in layouts.find(".")] == ["sub-02_ses-a", "sub-02_ses-b"]


def test_of_several_runs_the_first_is_used_and_that_is_said(tmp_path):
    lay(tmp_path, *(f"sub-01/anat/sub-01_run-{n}_T1w.nii.gz" for n in (10, 2)), "sub-01/anat/sub-01_T2w.nii.gz")
    (source,) = layouts.find(tmp_path)
    assert source.files["T1w"].name == "sub-01_run-2_T1w.nii.gz"
    assert source.metadata["notes"] == ("T1w: 2 runs, sub-01_run-2_T1w.nii.gz is used.",)
    assert source.problem is None


@pytest.mark.parametrize("other", ["sub-01_T1w.nii", "sub-01_acq-low_T1w.nii.gz"])
def test_two_files_for_one_modality_stop_their_subject_only(tmp_path, other):
    lay(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", f"sub-01/anat/{other}", "sub-02/anat/sub-02_T1w.nii.gz")
    one, two = layouts.find(tmp_path)
    assert two.problem is None
    with pytest.raises(InputError, match="two files for T1w") as error:
        one.read()
    assert other in str(error.value) and "sub-01_T1w.nii.gz" in str(error.value) and "keep one" in str(error.value)


BRATS = {
    "brats-2018": (
        "HGG/Brats18_2013_2_1/Brats18_2013_2_1_{}.nii.gz",
        "sub-Brats18201321",
        {"t1": "T1w", "t1ce": "T1Gd", "t2": "T2w", "flair": "FLAIR"},
    ),
    "brats-2021": (
        "BraTS2021_00000/BraTS2021_00000_{}.nii.gz",
        "sub-BraTS202100000",
        {"t1": "T1w", "t1ce": "T1Gd", "t2": "T2w", "flair": "FLAIR"},
    ),
    "brats-2023": (
        "BraTS-GLI-00003-001/BraTS-GLI-00003-001-{}.nii.gz",
        "sub-BraTSGLI00003_ses-001",
        {"t1n": "T1w", "t1c": "T1Gd", "t2w": "T2w", "t2f": "FLAIR"},
    ),
}


@pytest.mark.parametrize("layout", BRATS)
@pytest.mark.parametrize("plain", [False, True])
def test_brats(tmp_path, layout, plain):
    pattern, label, names = BRATS[layout]
    pattern = pattern.removesuffix(".gz") if plain else pattern
    files = [pattern.format(name) for name in (*names, "seg")]
    lay(
        tmp_path,
        *files,
        *(file.replace("00000", "00007").replace("2013_2", "2013_5").replace("03-", "05-") for file in files),
    )
    found = layouts.find(tmp_path)
    assert len(found) == 2 and found[0].layout == layout
    assert shown(found)[label] == {canonical: Path(pattern.format(name)).name for name, canonical in names.items()}
    (one,) = layouts.find((tmp_path / pattern).parent)
    assert one.label == label and one.files == next(s for s in found if s.label == label).files


def test_ixi_in_folders_by_contrast(tmp_path):
    lay(
        tmp_path,
        "IXI-T1/IXI002-Guys-0828-T1.nii.gz",
        "IXI-T2/IXI002-Guys-0828-T2.nii.gz",
        "IXI-PD/IXI002-Guys-0828-PD.nii.gz",
        "IXI-MRA/IXI002-Guys-0828-MRA.nii.gz",
        "IXI-T1/IXI012-HH-1211-T1.nii.gz",
    )
    assert shown(layouts.find(tmp_path)) == {
        "sub-IXI002": {
            "T1w": "IXI002-Guys-0828-T1.nii.gz",
            "T2w": "IXI002-Guys-0828-T2.nii.gz",
            "PDw": "IXI002-Guys-0828-PD.nii.gz",
        },
        "sub-IXI012": {"T1w": "IXI012-HH-1211-T1.nii.gz"},
    }
    flat = lay(tmp_path / "flat", "IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz")
    assert shown(layouts.find(flat)) == {
        "sub-IXI002": {"T1w": "IXI002-Guys-0828-T1.nii.gz", "T2w": "IXI002-Guys-0828-T2.nii.gz"}
    }


@pytest.mark.parametrize(
    ("stem", "found"),
    [
        ("t1", ("T1w", "")),
        ("T1_CE", ("T1Gd", "")),
        ("subject_t1ce", ("T1Gd", "subject")),
        ("pat-3.T2-FLAIR", ("FLAIR", "pat_3")),
        ("T1w_brain", ("T1w", "brain")),
        ("sub-01_ses-1_ce-gadobutrol_T1w", ("T1Gd", "sub-01_ses-1")),
        ("t1_space_flair", ("FLAIR", "t1_space")),
        ("t1_to_t2_affine", None),
        ("t1_seg", None),
        ("flair_mask", None),
        ("sub-01_desc-synth_FLAIR", None),
        ("scan", None),
        ("attention", None),
    ],
)
def test_modality_in_a_name(stem, found):
    assert layouts.modality_in(stem) == found


def test_a_folder_of_clearly_named_files(tmp_path):
    root = lay(
        tmp_path / "Patient 7",
        "t1.nii.gz",
        "T2.nii",
        "flair.nii.gz",
        "flair_seg.nii.gz",
        "notes.nii.gz",
        ".t1ce.nii.gz",
    )
    (source,) = layouts.find(root)
    assert source.label == "sub-Patient7"
    assert shown([source]) == {"sub-Patient7": {"T1w": "t1.nii.gz", "T2w": "T2.nii", "FLAIR": "flair.nii.gz"}}


def test_a_prefix_names_the_subject(tmp_path):
    lay(tmp_path, "anna_t1ce.nii.gz", "anna_flair.nii.gz")
    assert list(shown(layouts.find(tmp_path))) == ["sub-anna"]
    lay(tmp_path, "ben_t1ce.nii.gz", "ben_flair.nii.gz")
    assert list(shown(layouts.find(tmp_path))) == ["sub-anna", "sub-ben"]


def test_a_folder_of_such_folders(tmp_path):
    lay(
        tmp_path,
        "p1/t1.nii.gz",
        "p1/old/t1.nii.gz",
        "p2/2019/t1.nii.gz",
        "p2/2021/t2.nii.gz",
        "derivatives/p1/t1.nii.gz",
    )
    assert shown(layouts.find(tmp_path)) == {
        "sub-p1": {"T1w": "t1.nii.gz"},
        "sub-p2_ses-2019": {"T1w": "t1.nii.gz"},
        "sub-p2_ses-2021": {"T2w": "t2.nii.gz"},
    }


def test_folders_that_would_share_a_name_are_kept_apart(tmp_path):
    lay(tmp_path, "p_1_1/t1.nii.gz", "p_11/t1.nii.gz")
    assert [s.label for s in layouts.find(tmp_path)] == ["sub-px11", "sub-px1x1"]


@pytest.mark.parametrize(
    "pair", [("t1.nii", "t1.nii.gz"), ("t1ce.nii.gz", "t1c.nii.gz"), ("old_t1.nii.gz", "t1.nii.gz")]
)
def test_two_files_for_one_modality_in_a_folder(tmp_path, pair):
    lay(tmp_path, *pair, "flair.nii.gz")
    (source,) = layouts.find(tmp_path)
    with pytest.raises(InputError, match="two files for") as error:
        source.read()
    assert all(name in str(error.value) for name in pair)


def test_what_is_no_study_is_said_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        layouts.find(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no modality found"):
        layouts.find(lay(tmp_path / "a", "scan.nii.gz", "t1_seg.nii.gz", "readme.txt"))
    with pytest.raises(InputError, match="is a file"):
        layouts.find(lay(tmp_path / "b", "t1.nii.gz") / "t1.nii.gz")
    with pytest.raises(InputError, match="no modality found"):
        layouts.find(lay(tmp_path / "c", "sub-01/func/sub-01_task-rest_bold.nii.gz"))


def test_plain_files(tmp_path):
    lay(tmp_path, "x/a.nii.gz", "y/b.nii.gz")
    source = layouts.plain({"t2f": tmp_path / "y/b.nii.gz", "t1": tmp_path / "x/a.nii.gz"})
    assert source.label == "sub-study" and source.root == tmp_path
    assert list(source.files) == ["T1w", "FLAIR"] and source.files["FLAIR"].name == "b.nii.gz"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file was given"),
        ({"t1": "nowhere.nii"}, "no such file, given as T1w"),
        ({"bold": "a.nii"}, "modality 'bold' is unknown"),
        ({"t1c": "a.nii", "t1ce": "b.nii"}, "T1Gd was given twice"),
        ({"t1": "a.nii", "t2": "a.nii"}, "given for two modalities"),
    ],
)
def test_bad_plain_files(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(lay(tmp_path, "a.nii", "b.nii"))
    with pytest.raises(InputError, match=message):
        layouts.plain(files)


def test_real_datasets(data_root):
    found = layouts.find(data_root / "open-ms-raw")
    assert len(found) == 6 and all(list(s.files) == ["T1w", "T2w", "FLAIR"] for s in found)
    (source,) = layouts.find(data_root / "open-ms-mni")
    assert list(source.files) == ["T1w", "T1Gd", "T2w", "FLAIR"]
    (source,) = layouts.find(data_root / "sri24")
    assert list(source.files) == ["T1w", "T2w", "PDw"]

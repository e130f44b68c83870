"""What is made, as a BIDS derivative dataset: names, sidecars, and what is never written to."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from amodal.core.errors import InputError
from amodal.data import bids, layouts, nifti
from amodal.data.bids import Derivatives
from amodal.data.sidecar import Sampling, Weights, sidecar, skull_stripped
from amodal.data.volume import Volume

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


def scan(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, np.random.default_rng(seed).random((6, 7, 5)), Volume(np.zeros((6, 7, 5)), AFFINE))
    return path


@pytest.fixture
def raw(tmp_path) -> Path:
    """A raw dataset: one subject with two sessions, one without."""
    root = tmp_path / "ds"
    for name in ("sub-01/ses-1/anat/sub-01_ses-1", "sub-01/ses-2/anat/sub-01_ses-2", "sub-02/anat/sub-02"):
        scan(root / f"{name}_T1w.nii.gz")
        scan(root / f"{name}_T2w.nii.gz", 1)
    bids.write_dataset_description(root, "raw", licence="CC0")
    (root / "README.md").write_text("A raw dataset of noise, for the tests of amodal. " * 4)
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\nsub-02\t50\n")
    return root


def about(out: Derivatives, source, modality: str = "FLAIR", samples: int = 1, statistic: str = "mean") -> dict:
    return sidecar(
        modality,
        method="any2all",
        weights=Weights("default", "ab" * 32, "Apache-2.0"),
        sampling=Sampling("ddim", 25, seed=3, samples=samples),
        sources=[out.uri(path) for path in source.files.values()],
        reference=out.uri(source.files["T1w"]),
        skull_stripped=False,
        input_sha256={name: nifti.sha256(path) for name, path in source.files.items()},
        preprocessing=["T2w: resampled to T1w by the affines."],
        checks={"stripes": 1.02},
        seconds=4.26,
        statistic=statistic,
    )


def complete(out: Derivatives, source, modality: str = "FLAIR", samples: int = 1, overwrite: bool = False) -> Path:
    like = nifti.read(source.files["T1w"])
    image = np.ones(like.shape)
    if samples > 1:
        out.write_image(
            source, modality, image, like, about(out, source, modality, samples, "sd"), "synthstd", overwrite
        )
    return out.write_image(source, modality, image, like, about(out, source, modality, samples), overwrite=overwrite)


def test_names(tmp_path, raw):
    out = Derivatives(tmp_path / "out", raw)
    one, _, two = layouts.find(raw)
    where = {
        out.image_path(one, "FLAIR"): "sub-01/ses-1/anat/sub-01_ses-1_desc-synth_FLAIR.nii.gz",
        out.image_path(one, "T1Gd"): "sub-01/ses-1/anat/sub-01_ses-1_ce-gadolinium_desc-synth_T1w.nii.gz",
        out.image_path(two, "PDw", "synthstd"): "sub-02/anat/sub-02_desc-synthstd_PDw.nii.gz",
        out.report_path(one): "sub-01_ses-1.html",
        out.report_path(two): "sub-02.html",
    }
    assert {path.relative_to(out.root).as_posix() for path in where} == set(where.values())
    assert all(path.relative_to(out.root).as_posix() == name for path, name in where.items())


def test_uris(tmp_path, raw):
    out = Derivatives(raw / "derivatives" / "amodal", raw)
    source = layouts.find(raw)[0]
    assert out.uri(source.files["T1w"]) == "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    assert out.uri(out.image_path(source, "FLAIR")) == "bids::sub-01/ses-1/anat/sub-01_ses-1_desc-synth_FLAIR.nii.gz"
    store = scan(tmp_path / "store" / "x.nii.gz")
    link = raw / "sub-02" / "anat" / "sub-02_PDw.nii.gz"
    link.symlink_to(store)
    assert out.uri(link) == "bids:raw:sub-02/anat/sub-02_PDw.nii.gz"  # the name in the dataset, not in the store


def test_the_dataset_level_files(tmp_path, raw):
    out = Derivatives(raw / "derivatives" / "amodal", raw)
    out.prepare()
    names = {path.name for path in out.root.iterdir()}
    assert names == {"dataset_description.json", "descriptions.tsv", "README.md", ".bidsignore", "logs"}
    text = json.loads((out.root / "dataset_description.json").read_text())
    assert (text["DatasetType"], text["DatasetLinks"]) == ("derivative", {"raw": "../.."})
    assert "SYNTHETIC" in (out.root / "README.md").read_text()
    assert [row["desc_id"] for row in bids.read_table(out.root / "descriptions.tsv")] == ["desc-synth", "desc-synthstd"]
    (out.root / "README.md").write_text("mine")
    out.prepare()
    assert (out.root / "README.md").read_text() == "mine"
    out.prepare(overwrite=True)
    assert (out.root / "README.md").read_text() != "mine"


def test_an_image_and_its_sidecar(tmp_path, raw):
    source = layouts.find(raw)[0]
    out = Derivatives(tmp_path / "out", raw)
    out.prepare()
    path = complete(out, source, samples=8)
    image = nib.load(path)
    assert image.header["descrip"].item().decode().startswith("SYNTHETIC FLAIR amodal")
    assert np.array_equal(image.affine, AFFINE) and image.shape == (6, 7, 5)
    text = json.loads(path.with_name("sub-01_ses-1_desc-synth_FLAIR.json").read_text())
    assert text["Description"] == "SYNTHETIC FLAIR, not acquired: mean of 8 posterior samples."
    assert text["SpatialReference"] == text["Sources"][0] == "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    assert text["SkullStripped"] is False
    made = text["Synthetic"]
    assert made["Sampler"] == {"Name": "ddim", "Steps": 25, "Seed": 3, "Samples": 8, "Precision": "fp32"}
    assert made["Weights"] == {"Id": "default", "SHA256": "ab" * 32, "Licence": "Apache-2.0"}
    assert made["InputSHA256"]["T1w"] == nifti.sha256(source.files["T1w"])
    assert made["RuntimeSeconds"] == 4.3 and made["Environment"]["device"] == "cpu"
    assert not {"EchoTime", "RepetitionTime"} & set(text)
    spread = json.loads(
        out.image_path(source, "FLAIR", "synthstd").with_name("sub-01_ses-1_desc-synthstd_FLAIR.json").read_text()
    )
    assert (
        spread["Description"] == "SYNTHETIC FLAIR, not acquired: voxelwise standard deviation over 8 posterior samples."
    )


def test_what_is_there_is_replaced_only_when_allowed(tmp_path, raw):
    source = layouts.find(raw)[0]
    out = Derivatives(tmp_path / "out", raw)
    out.prepare()
    out.refuse_existing(source, ["FLAIR"])
    path = complete(out, source)
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        complete(out, source)
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        out.refuse_existing(source, ["T1Gd", "FLAIR"])
    assert complete(out, source, overwrite=True).read_bytes() == before


def test_an_image_that_cannot_be_written_leaves_nothing(tmp_path, raw):
    source = layouts.find(raw)[0]
    out = Derivatives(tmp_path / "out", raw)
    like = nifti.read(source.files["T1w"])
    bad = np.full(like.shape, np.nan)
    for before in ([], ["sub-01_ses-1_desc-synth_FLAIR.json", "sub-01_ses-1_desc-synth_FLAIR.nii.gz"]):
        kept = {name: (out.image_path(source, "FLAIR").parent / name).read_bytes() for name in before}
        with pytest.raises(Exception, match="not finite"):
            out.write_image(source, "FLAIR", bad, like, {"Description": "other"}, overwrite=True)
        assert sorted(path.name for path in (out.root / "sub-01/ses-1/anat").iterdir()) == before
        assert all((out.image_path(source, "FLAIR").parent / name).read_bytes() == kept[name] for name in before)
        complete(out, source, overwrite=True)


@pytest.mark.parametrize("inside", ["", "sub-01", "out", "derivativesx/amodal", "sub-01/derivatives"])
def test_the_raw_tree_is_never_written_to(raw, inside):
    for given in (raw, None):  # known as the source, or only met on the way up
        with pytest.raises(InputError, match="never written to; choose .*derivatives"):
            Derivatives(raw / inside, given).prepare()
    assert not (raw / "descriptions.tsv").exists() and not (raw / "out").exists()


def test_a_folder_without_description_is_not_written_to_either(tmp_path):
    scan(tmp_path / "cohort" / "p1" / "t1.nii.gz")
    (source,) = layouts.find(tmp_path / "cohort")
    with pytest.raises(InputError, match="never written to"):
        Derivatives.of(tmp_path / "cohort" / "out", source).prepare()


def test_another_dataset_is_not_mixed_in(tmp_path, raw):
    other = tmp_path / "fmriprep"
    other.mkdir()
    (other / "dataset_description.json").write_text(
        '{"DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}'
    )
    with pytest.raises(InputError, match="amodal did not make"):
        Derivatives(other, raw).prepare(overwrite=True)
    Derivatives(tmp_path / "out", raw).prepare()
    with pytest.raises(InputError, match="made from another dataset"):
        Derivatives(tmp_path / "out", tmp_path / "ds2").prepare()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Derivatives(tmp_path / "file", raw).prepare()


def test_plain_files_may_be_completed_beside_themselves(tmp_path):
    files = {"t1": scan(tmp_path / "a.nii.gz"), "t2": scan(tmp_path / "x" / "b.nii.gz")}
    source = layouts.plain(files)
    out = Derivatives.of(tmp_path / "out", source)
    out.prepare()
    assert complete(out, source).relative_to(out.root).as_posix() == "sub-study/anat/sub-study_desc-synth_FLAIR.nii.gz"
    assert [out.uri(path) for path in source.files.values()] == ["bids:raw:a.nii.gz", "bids:raw:x/b.nii.gz"]


def test_brats_names_become_valid_labels(tmp_path):
    scan(tmp_path / "in" / "BraTS-GLI-00003-001" / "BraTS-GLI-00003-001-t1n.nii.gz")
    (source,) = layouts.find(tmp_path / "in")
    path = complete(Derivatives.of(tmp_path / "out", source), source, "T1Gd")
    assert path.relative_to(tmp_path / "out").as_posix() == (
        "sub-BraTSGLI00003/ses-001/anat/sub-BraTSGLI00003_ses-001_ce-gadolinium_desc-synth_T1w.nii.gz"
    )


def test_the_validator_of_bids_finds_no_error(tmp_path, raw, bids_errors):
    scan(tmp_path / "brats" / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz")
    inside = Derivatives(raw / "derivatives" / "amodal", raw)
    for out, sources in ((inside, layouts.find(raw)), (None, layouts.find(tmp_path / "brats"))):
        out = out or Derivatives.of(tmp_path / "made from brats", sources[0])
        out.prepare()
        for source in sources:
            complete(out, source, "FLAIR", samples=4)
            complete(out, source, "T1Gd")
            out.report_path(source).write_text("<html></html>")
        (out.root / "logs" / "run.json").write_text("{}")
        assert bids_errors(out.root) == []
    assert bids_errors(raw) == []
    beside = inside.image_path(source := layouts.find(raw)[0], "FLAIR").with_name("sub-01_ses-1_desc-synth_FLAIR.json")
    beside.write_text(json.dumps({**about(inside, source), "SkullStripped": None}))  # and it would find one
    assert bids_errors(inside.root) != []


def head(fill: float, size: float, spacing: float = 4.0) -> Volume:
    """A ball of `size` mm radius in a field of view of 256 mm; `fill` is the level around it."""
    grid = np.indices((64, 64, 64)) - 31.5
    inside = np.linalg.norm(grid, axis=0) * spacing < size
    return Volume(np.where(inside, 100.0, fill), np.diag([spacing] * 3 + [1.0]))


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (head(0, 68), True),  # 1.3 litres
        (head(0, 95), False),  # 3.6 litres: a head on an empty background
        (head(3, 68), False),  # noise around it
    ],
)
def test_skull_stripped(volume, expected):
    assert skull_stripped(volume) is expected


def test_skull_stripped_on_real_scans(data_root):
    assert skull_stripped(nifti.read(data_root / "open-ms-mni/sub-07/anat/sub-07_T1w.nii.gz"))
    assert not skull_stripped(nifti.read(data_root / "open-ms-raw/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"))

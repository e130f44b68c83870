"""Three arms that differ in their images alone, told apart where they must be."""

import csv
import json

import numpy as np
import pytest
import torch

from amodal.core.errors import InputError
from amodal.data.volume import Study, Volume
from amodal.evaluate.downstream import ARMS, Task, dice, downstream, loss, patch
from amodal.evaluate.labels import find_labels, parse_regions, read_labels, same_kind

from .toys import AFFINES, Model, cohort_of

NAMES = ("T1w", "FLAIR")
SHAPE = (24, 24, 16)
TASK = Task({"WT": (1,)}, ("FLAIR",), share=0.6, channels=(4, 8), patch=16, batch=2, iterations=90, rate=1e-2)


def lesioned(label, seed):
    """A head with a lesion that FLAIR shows and T1w does not, and where the lesion is."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]
    head = sum(a**2 for a in axes) < 0.9
    middle = rng.uniform(-0.35, 0.35, 3)
    lesion = sum((a - m) ** 2 for a, m in zip(axes, middle)) < 0.1
    t1 = head * (1 + 0.1 * rng.standard_normal(SHAPE))
    flair = head * (0.5 + 1.0 * lesion + 0.1 * rng.standard_normal(SHAPE))
    volumes = {"T1w": Volume(t1, AFFINES["RAS"]), "FLAIR": Volume(flair, AFFINES["RAS"])}
    return Study(label, volumes), (lesion & head)[None]


class Device(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


@pytest.fixture
def run(tmp_path):
    sources, _, _ = cohort_of(tmp_path, *[NAMES] * 8)
    made = {s.label: lesioned(s.label, k) for k, s in enumerate(sources)}
    model = Model([study for study, _ in made.values()], error=0.0)
    model.modalities, model.method = NAMES, Device()

    def go(out="out", task=TASK, **changes):
        options = {"prepare": lambda s: made[s.label][0], "regions_of": lambda s, _: made[s.label][1]} | changes
        return downstream(sources, model, tmp_path / out, task, **options), model

    return go


def test_a_completed_modality_is_worth_what_it_shows(run, tmp_path):
    found, model = run()
    mean = {arm: np.mean([s.value for s in found.scores if s.method == arm]) for arm in ARMS}
    assert mean["real"] > 0.6
    assert mean["completed"] == pytest.approx(mean["real"], abs=0.05)  # this model knows the truth
    assert mean["missing"] < mean["real"] - 0.2
    tested = {s.subject for s in found.scores}
    assert len(tested) == 3
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["trained_on"], results["tested"]) == (5, sorted(tested))
    assert results["protocol"]["id"] == "downstream v1"
    pair = [c for c in found.comparisons if (c.difference.method, c.difference.other) == ("completed", "missing")]
    assert pair[0].difference.mean > 0.2
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert {(r["metric"], r["modality"], r["pattern"]) for r in rows} == {("dice", "WT", "FLAIR")}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "without FLAIR" in page and "completed" in page
    run()
    assert len(model.calls) == 8  # what was completed is not made again


def test_one_bad_subject_is_left_out(run):
    made = run()[1].truths

    def broken(source):
        if source.label == "sub-03":
            raise InputError("its label map is truncated; copy it again.")
        return made[source.label]

    found, _ = run("again", Task(**{**vars(TASK), "iterations": 1}), prepare=broken)
    assert found.failed == {"sub-03": "its label map is truncated; copy it again."}


def test_what_cannot_be_is_refused(run):
    with pytest.raises(InputError, match="cannot be taken away"):
        run(task=Task(**{**vars(TASK), "hidden": ("T2w",)}))
    with pytest.raises(InputError, match="cannot be taken away"):
        run(task=Task(**{**vars(TASK), "hidden": NAMES}))


def test_patches_are_the_same_for_all_arms():
    study, lesion = lesioned("a", 0)
    real = np.stack([study[m].data for m in NAMES])
    from amodal.evaluate.downstream import Case

    case = Case("a", real, 2 * real[1:], lesion)
    cubes = {arm: patch(case, arm, TASK, NAMES, np.random.default_rng(3)) for arm in ARMS}
    assert {c[0].shape for c in cubes.values()} == {(2, 16, 16, 16), (1, 16, 16, 16)}
    assert (cubes["real"][1] == cubes["missing"][1]).all()
    assert (cubes["real"][0][0] == cubes["missing"][0][0]).all()
    assert (cubes["completed"][0][1] == 2 * cubes["real"][0][1]).all()


def test_dice_and_loss_in_closed_form():
    a, b = np.zeros((2, 4, 4, 4), bool)
    assert dice(a, b) == 1
    a[:2], b[1:3] = True, True
    assert dice(a, b) == pytest.approx(0.5)
    truth = torch.zeros(1, 1, 4, 4, 4)
    truth[..., :2] = 1
    assert loss(100 * (2 * truth - 1), truth) == pytest.approx(0, abs=1e-5)
    zeros = loss(torch.zeros_like(truth), truth)  # p = 1/2 everywhere: log 2, and 1 - (2 * 16 + 1) / (32 + 32 + 1)
    assert zeros == pytest.approx(np.log(2) + 1 - 33 / 65, abs=1e-5)


def test_regions_are_parsed():
    assert parse_regions("WT, et") == {"WT": (1, 2, 3, 4), "ET": (3, 4)}
    assert parse_regions("lesion=1,core=1+3") == {"lesion": (1,), "core": (1, 3)}
    for bad in ("", "XY", "lesion=one", "=1"):
        with pytest.raises(InputError, match="region"):
            parse_regions(bad)


def test_label_maps_are_found(tmp_path, nifti_file):
    source = cohort_of(tmp_path, NAMES)[0][0]
    with pytest.raises(InputError, match="no label map"):
        find_labels(source, tmp_path)
    place = tmp_path / "derivatives" / "truth" / "sub-01" / "anat"
    place.mkdir(parents=True)
    (place / "sub-01_desc-brats_dseg.nii.gz").write_bytes(b"")
    assert find_labels(source, tmp_path).name == "sub-01_desc-brats_dseg.nii.gz"
    (place / "sub-01_desc-tissue_dseg.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="2 label maps"):
        find_labels(source, tmp_path)
    pattern = "derivatives/truth/{subject}/anat/*brats_dseg.nii.gz"
    assert find_labels(source, tmp_path, pattern).name == "sub-01_desc-brats_dseg.nii.gz"
    with pytest.raises(InputError, match="subject"):
        find_labels(source, tmp_path, "{patient}.nii.gz")


def test_label_maps_of_different_kinds_are_refused(tmp_path):
    """A healthy subject has a map of tissues alone: its numbers are no tumour."""
    sources = cohort_of(tmp_path, NAMES, NAMES, NAMES)[0]
    for k, name in enumerate(("brats", "brats", "tissue")):
        place = tmp_path / "derivatives" / "truth" / f"sub-0{k + 1}" / "anat"
        place.mkdir(parents=True)
        (place / f"sub-0{k + 1}_desc-{name}_dseg.nii.gz").write_bytes(b"")
    same_kind(sources[:2], tmp_path)
    with pytest.raises(InputError, match="different kinds, sub-01_desc-brats.* and sub-03_desc-tissue.*--labels"):
        same_kind(sources, tmp_path)
    same_kind(sources, tmp_path, "derivatives/*/{subject}/anat/*desc-brats*")
    (tmp_path / "derivatives" / "truth" / "sub-02" / "anat" / "sub-02_desc-tissue_dseg.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="sub-02 has 2 label maps"):
        same_kind(sources[:2], tmp_path)


def test_label_maps_are_read_on_the_grid_of_the_study(nifti_file):
    study, _ = lesioned("sub-01", 0)
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:8], labels[8:10] = 2, 4
    path = nifti_file("seg.nii.gz", data=labels, dtype=np.uint8, affine=AFFINES["RAS"])
    found = read_labels(path, study, parse_regions("WT,ET"))
    assert found.dtype == bool and found.shape == (2, *SHAPE)
    assert (found.sum((1, 2, 3)) == [6 * 24 * 16, 2 * 24 * 16]).all()
    with pytest.raises(InputError, match="does not lie on the voxels"):
        read_labels(nifti_file("other.nii.gz", data=labels[:5], dtype=np.uint8), study, parse_regions("WT"))

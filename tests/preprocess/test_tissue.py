"""Tissue maps: against the truth of a virtual subject, kept on disk, tumours from a segmentation, real data."""

import json
from pathlib import Path

import numpy as np
import pytest

from amodal.core.contract import Grid
from amodal.core.errors import AmodalError, InputError
from amodal.data import layouts, nifti
from amodal.data.frame import Frame
from amodal.data.guidance import densities, on_grid
from amodal.data.phantom import PhantomConfig
from amodal.data.phantom.tissue import TISSUES
from amodal.data.phantom.virtual import subject, to_study
from amodal.data.volume import Study, Volume
from amodal.preprocess import tissue
from amodal.preprocess.align import prepare

pytest.importorskip("dipy", reason="tissue maps need dipy: pip install amodal[tissue]")
GROUPS = ("CSF", "GM", "WM")


@pytest.fixture(scope="module")
def virtual():
    return subject(1, 7, PhantomConfig(shape=(96, 112, 96), spacing=2.0, modalities=("T1w", "T2w"), tumour=0.0))


def dice(found, truth):
    return [
        2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2, 3)
    ]  # fmt: skip


def truth_of(virtual):
    """The class that is the largest part of each voxel."""
    parts = [
        sum((part for name, part in virtual.fractions.items() if TISSUES[name].group == group), np.zeros(1))
        for group in (*GROUPS, "L")
    ]
    parts = np.stack(np.broadcast_arrays(*parts))
    return np.concatenate([1 - parts.sum(0, keepdims=True), parts]).argmax(0)


@pytest.mark.parametrize("name", ["T1w", "T2w"])
def test_dice_against_the_virtual_truth(virtual, name):
    found = tissue.classify(to_study(virtual)[name], name, tool="dipy")
    least = {"T1w": (0.86, 0.92, 0.94), "T2w": (0.83, 0.90, 0.92)}[name]
    scores = dice(found, truth_of(virtual))
    assert all(score > limit for score, limit in zip(scores, least)), scores
    assert ((found > 0) == (virtual.images[name] != 0)).all()


def head(shape=(24, 28, 20), seed=0):
    """A ball of white matter in grey matter in fluid, with noise; exactly 0 outside."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    r = np.sqrt(sum(a**2 for a in axes))
    classes = np.select([r < 0.55, r < 0.75, r < 0.9], [3, 2, 1], 0)
    noise = np.random.default_rng(seed).normal(0, 4, shape)
    image = np.array([0, 30, 90, 150])[classes] + np.where(classes > 0, noise, 0)
    return Volume(np.where(classes > 0, np.maximum(image, 1), 0), np.diag([4, 4, 4, 1])), classes


def test_the_classes_of_a_simple_head_and_their_order():
    volume, classes = head()
    assert min(dice(tissue.classify(volume, "T1w", tool="dipy"), classes)) > 0.95
    other = volume.like(np.where(volume.data > 0, 200 - volume.data, 0))
    assert min(dice(tissue.classify(other, "T2w", tool="dipy"), classes)) > 0.95


def test_the_same_image_gives_the_same_map():
    volume, _ = head()
    one, two = (tissue.classify(volume, "T1w", tool="dipy") for _ in range(2))
    assert one.dtype == np.uint8 and np.array_equal(one, two)


def test_the_field_of_the_coil_is_divided_out():
    volume, classes = head()
    x = np.linspace(-0.4, 0.4, volume.shape[0])[:, None, None]
    bent = volume.like(volume.data * np.exp(x))
    flat = tissue.even(bent, classes > 0)
    white = classes == 3
    assert flat[white].std() / flat[white].mean() < 0.6 * bent.data[white].std() / bent.data[white].mean()
    assert min(dice(tissue.classify(bent, "T1w", tool="dipy"), classes)) > 0.9


def test_a_tumour_is_a_class_of_its_own():
    volume, classes = head()
    mask = np.zeros(volume.shape, bool)
    mask[10:14, 12:16, 9:12] = True
    mask[0, 0, 0] = True  # outside the brain: no tumour
    found = tissue.classify(volume, "T1w", mask, tool="dipy")
    assert (found[10:14, 12:16, 9:12] == tissue.TUMOUR).all() and found[0, 0, 0] == 0


def test_a_mixed_voxel_goes_to_the_larger_part():
    classes = np.repeat([1, 1, 1, 2, 2, 2, 3, 3, 3], 9 * 9).reshape(9, 9, 9)
    image = np.array([0.0, 0.2, 0.5, 0.8])[classes]
    image[3, 4, 4] = 0.33  # a grey voxel by its neighbours, two thirds fluid
    found = tissue.parts(image, classes, np.ones_like(classes, bool))
    assert found[3, 4, 4] == 1 and (found != classes).sum() == 1


@pytest.mark.parametrize(
    ("volume", "name", "words"),
    [
        (head()[0], "FLAIR", "does not tell tissues apart"),
        (Volume(np.zeros((8, 8, 8)), np.eye(4)), "T1w", "no brain"),
    ],
)
def test_what_cannot_be_classified_is_refused_with_a_sentence(volume, name, words):
    with pytest.raises(InputError, match=words):
        tissue.classify(volume, name)


def test_an_image_without_three_tissues_is_refused():
    flat = np.zeros((16, 16, 16))
    flat[3:13, 3:13, 3:13] = 100.0
    with pytest.raises(AmodalError, match="three tissues"):
        tissue.classify(Volume(flat, np.eye(4)), "T1w", tool="dipy")


def test_maps_are_kept_and_found_again(tmp_path, monkeypatch):
    study = Study("sub-1", {"T1w": head()[0], "FLAIR": head()[0]})
    done = tissue.segment(study, ("T1w", "T2w", "FLAIR"), tmp_path)
    assert set(done.tissue) == {"T1w"}
    path = tmp_path / "sub-1_desc-tissueT1w_dseg.nii.gz"
    assert np.array_equal(nifti.read(path).data, done.tissue["T1w"]) and "Key" in json.loads(
        path.with_name("sub-1_desc-tissueT1w_dseg.json").read_text()
    )
    monkeypatch.setattr(tissue, "classify", lambda *_: pytest.fail("was to be found, not made"))
    again = tissue.segment(study, ("T1w",), tmp_path)
    assert np.array_equal(again.tissue["T1w"], done.tissue["T1w"])
    monkeypatch.setattr(tissue, "classify", lambda volume, *_: np.full(volume.shape, 2, np.uint8))
    other = Study("sub-1", {"T1w": head(seed=1)[0]})
    assert (tissue.segment(other, ("T1w",), tmp_path).tissue["T1w"] == 2).all()


def test_a_study_keeps_the_maps_of_what_it_keeps():
    study = Study("sub-1", {"T1w": head()[0], "T2w": head()[0]}, tissue={"T1w": head()[1], "T2w": head()[1]})
    assert set(study.without("T1w").tissue) == {"T2w"} and set(study.only("T1w").tissue) == {"T1w"}


def test_the_grid_and_the_densities():
    volume, classes = head()
    study = Study("sub-1", {"T1w": volume, "FLAIR": volume}, tissue={"T1w": classes.astype(np.uint8)})
    grid = Grid(spacing=((4.0, 4.0),) * 3, multiple=(1, 1, 1))
    maps = on_grid(study, Frame.of(volume, grid), ("T1w", "FLAIR"))
    assert np.array_equal(maps[0], classes) and not maps[1].any()
    found = densities(np.stack([volume.data, volume.data]), maps)
    np.testing.assert_allclose(found[0, :3, 0], [30, 90, 150], atol=1)
    np.testing.assert_allclose(found[0, :3, 1], [4, 4, 4], rtol=0.15)
    assert not found[1].any() and not found[0, 3].any()


def test_segmentations_beside_the_images_are_found(tmp_path):
    volume, classes = head((16, 16, 16))
    folder = tmp_path / "BraTS-GLI-00001-000"
    folder.mkdir()
    for end, data in (("t1n", volume.data), ("t2w", volume.data), ("seg", np.where(classes == 3, 2, 0))):
        nifti.write(folder / f"{folder.name}-{end}.nii.gz", data.astype(np.float32), volume)
    source = layouts.find(tmp_path)[0]
    found = tissue.tumour_of(source, prepare(source))
    assert found is not None and np.array_equal(found, classes == 3)
    (folder / f"{folder.name}-seg.nii.gz").unlink()
    assert tissue.tumour_of(source, prepare(source)) is None


def test_fast_is_taken_where_it_is_installed(tmp_path, monkeypatch):
    """A program called `fast` in the path is run with the flags of the authors and its classes are put in order."""
    program = tmp_path / "fast"
    program.write_text(
        "#!/bin/sh\n"
        'while [ $# -gt 1 ]; do if [ "$1" = -o ]; then out=$2; fi; all="$all $1"; shift; done\n'
        f'echo "$all" > {tmp_path}/flags\ncp {tmp_path}/answer.nii.gz "${{out}}_pveseg.nii.gz"\n'
    )
    program.chmod(0o755)
    volume, classes = head()
    nifti.write(tmp_path / "answer.nii.gz", np.array([0, 2, 3, 1])[classes].astype(np.float32), volume)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert np.array_equal(tissue.classify(volume, "T1w"), classes)
    flags = Path(tmp_path / "flags").read_text().split()
    assert flags[:10] == ["-n", "3", "-t", "1", "-H", "0.1", "-I", "4", "-l", "20"]
    (tmp_path / "fast").write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    with pytest.raises(AmodalError, match="FAST failed: broken"):
        tissue.classify(volume, "T1w")


def test_a_real_patient(data_root):
    """sub-07: lesions from its consensus mask; white matter is the larger part, fluid the smallest."""
    source = layouts.find(data_root / "open-ms-mni")[0]
    study = prepare(source)
    lesions = tissue.tumour_of(source, study)
    assert lesions is not None and 100 < lesions.sum() < 1e5
    volume = study["T1w"]
    part = volume.data[20:-20:2, 20:-20:2, 80:110:2]  # some slices, every other voxel: seconds, not minutes
    found = tissue.classify(Volume(part, np.diag([2, 2, 2, 1])), "T1w", tool="dipy")
    means = [float(part[found == k].mean()) for k in (1, 2, 3)]
    share = [float((found == k).sum() / (found > 0).sum()) for k in (1, 2, 3)]
    assert means[0] < means[1] < means[2] and 0.05 < share[0] < 0.35 and share[2] > 0.25 and share[1] > 0.25

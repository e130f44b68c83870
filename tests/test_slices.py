"""Missing slices of a stack: found, made in place, acquired ones left as they are; denser stacks; perception."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from amodal import model as models
from amodal.cli import main
from amodal.core.errors import InputError
from amodal.data import nifti
from amodal.data.volume import Study, Volume
from amodal.methods import copedit
from amodal.methods.copedit.tokenizer import Perception
from amodal.model import Model
from amodal.model.slices import (
    complete_slices,
    empty_slices,
    interpolated,
    parse_slices,
    slice_axis,
    straightened,
    windows,
)  # fmt: skip

from .conftest import write_nifti

OBLIQUE = np.array([[-1.5, 0.8, 2.1, 10.0], [0.6, 1.7, -4.0, -20.0], [-0.9, 0.9, 5.5, 30.0], [0, 0, 0, 1]])


def tiny(config) -> Model:
    torch.manual_seed(0)
    method = copedit.build(config)
    for parameter in method.prior.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    method = method.eval().requires_grad_(False)
    return Model("copedit", method, copedit.grid(config), {"cine": (0.0, 900.0)}, {"licence": "CC0-1.0"})


@pytest.fixture(scope="module")
def heart() -> Model:
    return tiny(copedit.tiny_heart())


@pytest.fixture(scope="module")
def brain() -> Model:
    return tiny(copedit.tiny())


def stack(count: int = 10, affine: np.ndarray | None = None) -> Volume:
    """Slices of a smooth shape, brighter from one end to the other, thick unless the affine says otherwise."""
    x, y, z = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 36), np.linspace(0, 1, count), indexing="ij")
    data = 300 * np.exp(-2 * (x**2 + y**2)) * (1 + z) + 40 + 20 * x
    return Volume(data.astype(np.float32), np.diag([2.5, 2.5, 8.0, 1.0]) if affine is None else affine)


@pytest.mark.parametrize("affine", [None, OBLIQUE], ids=["upright", "oblique"])
@pytest.mark.parametrize("axis", [2, 0])
def test_gaps_are_made_and_acquired_slices_stay(heart, affine, axis):
    whole = stack(10, affine)
    order = [2, 0, 1] if axis == 0 else [0, 1, 2]
    turned = np.eye(4)
    turned[:3, :3] = whole.affine[:3, :3][:, order]
    turned[:3, 3] = whole.affine[:3, 3]
    volume = Volume(whole.data.transpose(order), turned)
    assert slice_axis(volume) == axis
    done = complete_slices(heart, volume, [3, 4, 9], seed=1, steps=2)
    assert done.made == (3, 4, 9) and done.axis == axis and done.volume.shape == volume.shape
    assert np.array_equal(done.volume.affine, volume.affine)
    old, new = (np.moveaxis(v.data, axis, -1) for v in (volume, done.volume))
    there = [k for k in range(10) if k not in done.made]
    assert np.array_equal(old[..., there], new[..., there]) and np.isfinite(new).all()
    assert (new[..., [3, 4, 9]] != old[..., [3, 4, 9]]).any()
    again = complete_slices(heart, volume, [3, 4, 9], seed=1, steps=2)
    assert np.array_equal(new, np.moveaxis(again.volume.data, axis, -1))
    assert done.provenance["Method"] == "copedit" and done.provenance["Sampler"]["Name"] == "ddim-x0"


def test_what_lay_in_the_gap_does_not_matter(heart):
    a, b = stack(), stack()
    b.data[..., 4:6] = 7000
    made = [complete_slices(heart, v, [4, 5], steps=1).volume.data for v in (a, b)]
    assert np.array_equal(*made)


def test_empty_and_nan_slices_are_found(heart):
    volume = stack()
    volume.data[..., 2], volume.data[3, 4, 7] = 0, np.nan
    assert empty_slices(volume) == (2, 7)
    done = complete_slices(heart, volume, steps=1)
    assert done.made == (2, 7) and np.isfinite(done.volume.data).all()


def test_a_denser_stack(heart):
    """8 mm to 4 or 2.67 mm: acquired slices in their places to the bit, the affine re-spaced, both ends held."""
    volume = stack(9, OBLIQUE)
    for wanted, factor in ((4.0, 2), (2.5, 3)):
        done = complete_slices(heart, volume, spacing_z=wanted, steps=1)
        assert done.volume.shape == (40, 36, 8 * factor + 1)
        assert np.array_equal(done.volume.data[..., ::factor], volume.data)
        assert done.volume.spacing[2] == pytest.approx(volume.spacing[2] / factor)
        last = volume.affine @ [0, 0, 8, 1]
        assert np.allclose(done.volume.affine @ [0, 0, 8 * factor, 1], last)
        assert not set(done.made) & set(range(0, 8 * factor + 1, factor))


def test_samples_give_a_spread(heart):
    done = complete_slices(heart, stack(), [4], samples=3, steps=1)
    assert done.spread is not None
    assert done.spread.data[..., 4].max() > 0 and not done.spread.data[..., [3, 5]].any()


def test_long_stacks_are_worked_through_in_windows(heart):
    volume = stack(75, np.diag([2.5, 2.5, 3.0, 1.0]))
    done = complete_slices(heart, volume, [0, 20, 40, 60, 74], steps=1)
    assert done.made == (0, 20, 40, 60, 74) and np.isfinite(done.volume.data).all()
    for depth, length in ((10, 32), (32, 32), (33, 32), (75, 32), (100, 32)):
        covered = {k for s in windows(depth, length) for k in range(s, s + length)}
        assert set(range(depth)) <= covered


def test_interpolation_is_exact_where_it_should_be():
    places, wanted = np.array([1, 4, 5, 9]), np.arange(11)
    line = np.broadcast_to(3.0 * places - 2, (2, 2, 4)).astype(np.float32)
    held = np.clip(wanted, 1, 9)
    for cubic in (False, True):
        assert np.allclose(interpolated(line, places, wanted, cubic)[0, 0], 3.0 * held - 2, atol=1e-4)
    cube = np.broadcast_to(places**3.0, (1, 1, 4))
    assert np.allclose(interpolated(cube, places, wanted, cubic=True)[0, 0], held**3.0, atol=1e-2)


def test_an_oblique_stack_stands_upright():
    """Slices along z from apex (left, front, below) to base, sizes kept; upright ones as they are."""
    for affine in (np.diag([2.0, 2.5, 8.0, 1.0]), np.diag([-2.0, -2.5, 8.0, 1.0])):
        assert np.allclose(straightened(affine, 2), affine)
    upright = straightened(OBLIQUE, 2, inner=2)
    assert np.allclose(np.linalg.norm(upright[:3, :3], axis=0)[:2], np.linalg.norm(OBLIQUE[:3, :3], axis=0)[:2])
    assert upright[2, 2] == pytest.approx(np.linalg.norm(OBLIQUE[:3, 2]) / 2)
    flipped = OBLIQUE.copy()
    flipped[:3, 2] *= -1
    assert straightened(flipped, 2)[2, 2] < 0


@pytest.mark.parametrize(
    ("text", "found"), [("8:12", (8, 9, 10, 11)), ("3", (3,)), ("1,4:6,2", (1, 2, 4, 5)), (" 7 ", (7,))]
)
def test_slices_are_named(text, found):
    assert parse_slices(text, 12) == found


@pytest.mark.parametrize("text", ["8:13", "a", "3-5", "", "5:5", "-1"])
def test_bad_slices_are_refused(text):
    with pytest.raises(InputError, match="choose among|write it as"):
        parse_slices(text, 12)


def test_refusals(heart, brain):
    volume = stack()
    for words, call in (
        ("no slice is empty", lambda: complete_slices(heart, volume)),
        ("every slice is missing", lambda: complete_slices(heart, volume, range(10))),
        ("choose less", lambda: complete_slices(heart, volume, spacing_z=9.0)),
        ("not slices of a stack", lambda: complete_slices(brain, volume, [3])),
        ("choose at least 1", lambda: complete_slices(heart, volume, [3], samples=0)),
    ):
        with pytest.raises(InputError, match=words):
            call()


# perception


def test_a_study_is_perceived(brain):
    volume = stack(20, np.diag([6.0, 6.0, 6.0, 1.0]))
    seen = models.perceive(brain, Study("sub-01", {"T1w": volume, "FLAIR": volume}))
    assert set(seen.count) == {"0", "1", "2", "3"} and sum(seen.count.values()) == pytest.approx(1, abs=1e-3)
    assert set(seen.missing) == set(brain.modalities) and set(seen.taken_for) == {"T1w", "FLAIR"}
    assert seen.taken_for["T1w"] == seen.taken_for["FLAIR"]  # it is not told which is which
    assert "perceives" in seen.words
    with pytest.raises(InputError, match="none of which"):
        models.perceive(brain, Study("sub-01", {"CT": volume}))


def test_a_wrong_label_is_doubted():
    from amodal.model.perceive import _doubts

    sure = {"T1w": 0.1, "T2w": 0.85, "FLAIR": 0.05}
    assert _doubts({"T1w": sure}) == ("the file given as T1w looks like T2w (85 %); check its label.",)
    assert not _doubts({"T2w": sure}) and not _doubts({"T1w": {"T1w": 0.45, "T2w": 0.55}})
    # two files that look like T1w, one of them a little less: it is the other that would have to be T1Gd
    surely, nearly = {"T1w": 1 - 1e-9, "T1Gd": 1e-9}, {"T1w": 1 - 1e-4, "T1Gd": 1e-4}
    assert not _doubts({"T1w": surely, "T1Gd": nearly})
    (warning,) = _doubts({"T1w": nearly, "T1Gd": surely})
    assert warning.startswith("the file given as T1Gd looks like T1w (100 %)")


def test_a_stack_is_perceived(heart):
    seen = models.perceive_stack(heart, stack())
    assert set(seen.count) == {"no more than an eighth", "a quarter", "half", "three quarters"}
    assert sum(seen.count.values()) == pytest.approx(1, abs=1e-3) and set(seen.missing) == set(map(str, range(10)))


@pytest.mark.parametrize("turned", [False, True], ids=["upright", "upside down"])
def test_what_is_missing_of_a_stack_is_told_in_slices_of_the_file(heart, monkeypatch, turned):
    """12 slices, two places of the network apart and in the middle of its 32; it sees them from apex to base."""
    first = 5  # of 32 places, 23 of which lie between the first slice and the last
    seen = torch.zeros(1, 32)
    seen[0, [first + 2 * (11 - k if turned else k) for k in (1, 4, 5)]] = 0.9
    answer = Perception(torch.tensor([[0.0, 0.7, 0.2, 0.1]]), seen)
    monkeypatch.setattr(type(heart.method), "perceive", lambda self, batch: answer)
    found = models.perceive_stack(heart, stack(12, np.diag([2.5, 2.5, -6.0 if turned else 6.0, 1.0])))
    assert [k for k, p in found.missing.items() if p > 0.5] == ["1", "4", "5"]
    assert found.words.endswith("a quarter of its 32 places missing (70 %); slices of the file (from 0): 1, 4 to 5.")


# journeys


@pytest.fixture(scope="module")
def run_folder(heart, tmp_path_factory):
    return heart.save(tmp_path_factory.mktemp("heart") / "run")


def test_from_file_to_file(run_folder, tmp_path, capsys):
    volume = stack(12, OBLIQUE)
    source = tmp_path / "in" / "pat7.nii.gz"
    source.parent.mkdir()
    write_nifti(source, data=volume.data, affine=OBLIQUE)
    call = ["complete", str(source), str(tmp_path / "out"), "--model", str(run_folder), "--steps", "1"]
    assert main([*call, "--missing-slices", "4:6", "--report", str(tmp_path / "run.json")]) == 0
    (path,) = (tmp_path / "out").rglob("*_desc-synth_*.nii.gz")
    made, given = nifti.read(path), nifti.read(source)
    assert np.array_equal(made.affine, given.affine)
    there = [k for k in range(12) if k not in (4, 5)]
    assert np.array_equal(made.data[..., there], given.data[..., there])
    about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert about["Synthetic"]["Slices"] == [4, 5] and about["Description"].startswith("SYNTHETIC")
    assert next((tmp_path / "out").glob("*.html")).read_text().count("SYNTHETIC") > 0
    scores = json.loads((tmp_path / "run.json").read_text())["subjects"][0]["scores"]["slices"]
    assert set(scores) == {"model", "linear", "cubic"} and scores["linear"]["psnr"] > 20
    assert main([*call, "--missing-slices", "4:6"]) == 2  # it is there already
    assert main([*call, "--missing-slices", "4:6", "--overwrite", "--dry-run"]) == 0
    assert "4-5" in capsys.readouterr().out


def test_a_file_with_holes_and_a_denser_one(run_folder, tmp_path):
    volume = stack(8)
    volume.data[..., 3] = np.nan
    write_nifti(tmp_path / "a.nii.gz", data=volume.data, affine=volume.affine)
    call = ["complete", str(tmp_path / "a.nii.gz"), "--model", str(run_folder), "--steps", "1", "--quiet"]
    assert main([*call[:2], str(tmp_path / "o1"), *call[2:]]) == 0
    assert main([*call[:2], str(tmp_path / "o2"), *call[2:], "--spacing-z", "4"]) == 0
    (dense,) = (tmp_path / "o2").rglob("*_desc-synth_*.nii.gz")
    found = nifti.read(dense)
    assert found.shape == (40, 36, 15) and found.spacing[2] == pytest.approx(4)


def test_slices_of_a_folder_are_refused(run_folder, tmp_path, capsys):
    (tmp_path / "study").mkdir()
    call = ["complete", str(tmp_path / "study"), str(tmp_path / "out"), "--model", str(run_folder)]
    assert main([*call, "--missing-slices", "3"]) == 2
    assert "slices are those of one file" in capsys.readouterr().err


def test_inspect_says_what_the_model_perceives(brain, run_folder, tmp_path, capsys):
    folder = brain.save(tmp_path / "brain")
    volume = stack(20, np.diag([6.0, 6.0, 6.0, 1.0]))
    (tmp_path / "study").mkdir()
    for name in ("t1", "flair"):
        write_nifti(tmp_path / "study" / f"pat_{name}.nii.gz", data=volume.data, affine=volume.affine)
    assert main(["inspect", str(tmp_path / "study"), "--model", str(folder), "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)["perceived"]
    assert set(seen["missing"]) == set(brain.modalities) and set(seen["taken_for"]) == {"T1w", "FLAIR"}
    assert main(["inspect", str(tmp_path / "study" / "pat_t1.nii.gz"), "--model", str(run_folder)]) == 0
    assert "perceives" in capsys.readouterr().out

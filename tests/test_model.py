"""A model as its users meet it: studies in, studies out on their own grid; folders are trusted only if they fit."""

from __future__ import annotations

import dataclasses
import json
import shutil

import huggingface_hub
import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from amodal import model as module
from amodal.core.contract import Grid
from amodal.core.errors import InputError
from amodal.data import nifti
from amodal.data.volume import Study, Volume
from amodal.methods import any2all
from amodal.model import Model, describe, is_model, load

WINDOWS = {"T1w": (0.0, 100.0), "T1Gd": (10.0, 210.0), "T2w": (0.0, 400.0), "FLAIR": (5.0, 55.0)}
CARD = {"licence": "Apache-2.0", "training": {"studies": 3}}
OBLIQUE = np.array([[-0.98, 0.05, 0.12, 40.0], [0.04, 0.99, -0.21, -30.0], [-0.13, 0.20, 2.9, 10.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    method = any2all.build(dataclasses.replace(any2all.tiny(), steps=3))
    generator = torch.Generator().manual_seed(1)
    for parameter in method.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    return Model("any2all", method.eval().requires_grad_(False), Grid(), WINDOWS, CARD)


@pytest.fixture
def folder(model, tmp_path):
    return model.save(tmp_path / "tiny")


def volume(seed=0, shape=(14, 16, 4), affine=OBLIQUE, scale=300.0, masked=False):
    """A ball with texture; outside it faint noise, or 0 if masked."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(a**2 for a in axes) < 1.2
    data = np.where(inside, scale * rng.uniform(0.4, 1, shape), 0 if masked else scale * rng.uniform(0, 0.02, shape))
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=2)
    header.set_xyzt_units("mm")
    return Volume(data.astype(np.float32), affine, header)


def study(*names, **options):
    return Study("sub-1", {name: volume(seed, **options) for seed, name in enumerate(names or ("T1w", "T1Gd", "T2w"))})


# completing


def test_what_lacks_is_made_and_what_is_there_is_untouched(model):
    given = study()
    done = model.complete(given)
    assert done.made == ("FLAIR",) and done.inputs == ("T1w", "T1Gd", "T2w")
    assert done.study.modalities == ("T1w", "T1Gd", "T2w", "FLAIR")
    for name in given.modalities:
        assert done[name] is given[name]
    assert done["FLAIR"].data.std() > 0 and np.isfinite(done["FLAIR"].data).all()
    assert given.modalities == ("T1w", "T1Gd", "T2w")


def test_what_is_there_can_be_hidden_and_made(model):
    given = study("T1w", "T1Gd", "T2w", "FLAIR")
    hidden, lacking = model.complete(given, missing=["t2f"]), model.complete(given.without("FLAIR"))
    assert hidden.made == ("FLAIR",) and "FLAIR" not in hidden.inputs
    assert np.array_equal(hidden["FLAIR"].data, lacking["FLAIR"].data)  # what is hidden is not looked at
    assert not np.array_equal(hidden["FLAIR"].data, given["FLAIR"].data)


def test_only_what_is_asked_for_is_made(model):
    done = model.complete(study("T1w"), missing=["T2w"])
    assert done.made == ("T2w",) and done.study.modalities == ("T1w", "T2w")


def test_intensities_take_the_training_range(model):
    done = model.complete(study())
    scaled = done.scaled["FLAIR"]
    assert scaled.min() >= 0 and scaled.max() <= 1 and scaled.dtype == np.float32
    np.testing.assert_allclose(done["FLAIR"].data, 5 + 50 * scaled, rtol=1e-5)


def test_the_same_seed_gives_the_same_image_whatever_the_chunk(model):
    first = model.complete(study(), seed=3)["FLAIR"].data
    for chunk in (1, 4, 100):
        assert np.array_equal(model.complete(study(), seed=3, chunk=chunk)["FLAIR"].data, first)
    assert not np.array_equal(model.complete(study(), seed=4)["FLAIR"].data, first)
    assert model.method.config.chunk == any2all.tiny().chunk  # the model itself is not changed


def test_the_image_scales_with_nothing(model):
    """Intensities have no unit: ten times brighter inputs make the same image."""
    given = study()
    bright = Study("sub-1", {m: v.like(v.data * 10) for m, v in given.volumes.items()})
    a, b = (model.complete(s)["FLAIR"].data for s in (given, bright))
    np.testing.assert_allclose(a, b, atol=0.05)


def test_samples_are_averaged_and_their_spread_is_told(model):
    """Sample 0 is what one sample gives; mean and SD of two determine the other one."""
    one, two = (model.complete(study(), samples=k, seed=1, steps=6) for k in (1, 2))
    first, mean, sd = one["FLAIR"].data, two["FLAIR"].data, two.spread["FLAIR"].data
    second = 2 * mean - first
    np.testing.assert_allclose(sd, np.abs(second - first) / np.sqrt(2), atol=2e-4)
    assert sd.max() > 0.1
    assert one.spread == {} and one.scaled_spread == {}
    np.testing.assert_allclose(two.scaled_spread["FLAIR"] * 50, sd, atol=1e-4)


def test_steps_are_the_methods_choice_unless_told(model):
    """One image is the posterior mean, in one step; several are draws; the provenance says what was done."""
    steps = [
        model.complete(study(), **options).provenance["Sampler"]["Steps"]
        for options in ({}, {"samples": 2}, {"steps": 4}, {"samples": 2, "steps": 4})
    ]
    assert steps == [model.method.steps_for(1), model.method.steps_for(2), 4, 4] == [1, 3, 4, 4]


def test_the_mean_of_k_samples_is_the_mean_of_k_draws(model, monkeypatch):
    draws, draw = [], Model._draw

    def keep(self, *words):
        draws.append(draw(self, *words))
        return draws[-1]

    monkeypatch.setattr(Model, "_draw", keep)
    given = study(shape=(32, 16, 3), affine=np.diag([1.0, 1.0, 3.0, 1.0]))  # the network's own grid
    done = model.complete(given, samples=3)
    assert len(draws) == 3 and not np.array_equal(draws[0], draws[1])
    made = (np.stack(draws)[:, 3] + 1) / 2
    np.testing.assert_allclose(done.scaled["FLAIR"], made.mean(0), atol=1e-6)
    np.testing.assert_allclose(done.scaled_spread["FLAIR"], made.std(0, ddof=1), atol=1e-6)


def test_progress_counts_steps_of_all_samples(model):
    said = []
    model.complete(study(), samples=2, progress=lambda done, of: said.append((done, of)))
    assert said == [(k, 6) for k in range(1, 7)]
    said.clear()
    model.complete(study(), steps=2, progress=lambda done, of: said.append((done, of)))
    assert said == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "affine",
    [OBLIQUE, np.diag([-1.0, -1.0, 3.0, 1.0]), np.array([[0, 0, 3.0, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])],
    ids=["oblique", "LPS", "permuted"],
)
def test_the_studys_geometry_is_kept(model, affine, tmp_path):
    given = study(affine=affine)
    made = model.complete(given)["FLAIR"]
    assert np.array_equal(made.affine, given["T1w"].affine) and made.shape == given["T1w"].shape
    made.save(tmp_path / "flair.nii.gz")
    header = nib.load(tmp_path / "flair.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 2)
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm" and bytes(header["descrip"]).startswith(b"SYNTHETIC FLAIR")


def test_voxels_are_made_where_the_head_lies(model):
    """Made from a study whose voxels are stored flipped, the image is stored flipped, and nothing else changes."""
    given = study(affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    flip = np.diag([-1.0, -1.0, 3.0, 1.0])
    flip[:2, 3] = 13, 15  # the same places
    flipped = Study("sub-1", {m: Volume(v.data[::-1, ::-1], flip, v.header) for m, v in given.volumes.items()})
    a, b = (model.complete(s)["FLAIR"].data for s in (given, flipped))
    assert np.array_equal(a, b[::-1, ::-1])


def test_coarse_voxels_are_resampled_and_it_is_said(model):
    done = model.complete(study(shape=(12, 14, 4), affine=np.diag([2.0, 2.0, 4.0, 1.0])))
    assert done["FLAIR"].shape == (12, 14, 4)
    assert any("Resampled to 1.60 x 1.60 x 4.00 mm" in note for note in done.notes)
    assert not any("Resampled" in note for note in model.complete(study()).notes)


def test_a_masked_background_stays_exactly_0(model):
    given = study(masked=True)
    outside = np.logical_and.reduce([v.data == 0 for v in given.volumes.values()])
    assert 0.15 < outside.mean() < 0.9
    done = model.complete(given, samples=2)
    for image in (done["FLAIR"].data, done.scaled["FLAIR"], done.spread["FLAIR"].data):
        assert (image[outside] == 0).all() and (image[~outside] != 0).mean() > 0.3


def test_a_whole_head_keeps_its_background(model):
    done = model.complete(study())
    assert (done["FLAIR"].data >= 5).all()  # the lower end of the window, not 0


def test_what_the_model_does_not_know_is_left_and_told(model):
    given = study("T1w", "T2w", "PDw")
    done = model.complete(given)
    assert done["PDw"] is given["PDw"] and "PDw" not in done.inputs
    assert "PDw: left as it is, the model does not know it." in done.notes
    without = model.complete(given.without("PDw"))
    assert np.array_equal(done["FLAIR"].data, without["FLAIR"].data)


@pytest.mark.parametrize(
    ("names", "missing", "sentence"),
    [
        (("T1w",), ["t7"], "modality 't7' is unknown"),
        (("T1w",), ["PDw"], "the model does not know PDw; it makes T1w, T1Gd, T2w, FLAIR"),
        (("T1w", "T1Gd", "T2w", "FLAIR"), None, "nothing is missing of T1w, T1Gd, T2w, FLAIR"),
        (("T1w",), ["T1w"], "the study has T1w and T1w is to be made; give another of"),
        (("PDw",), None, "the study has PDw and T1w, T1Gd, T2w, FLAIR is to be made"),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_sentence(model, names, missing, sentence):
    with pytest.raises(InputError, match=sentence):
        model.complete(study(*names), missing=missing)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"samples": 0}, "samples=0: choose at least 1"), ({"steps": 0}, "steps=0: choose 1 to 1000"),
     ({"steps": 1001}, "steps=1001: choose 1 to 1000")],
)  # fmt: skip
def test_impossible_settings_are_refused(model, options, sentence):
    with pytest.raises(InputError, match=sentence):
        model.complete(study(), **options)


def test_provenance_says_what_made_it(folder):
    done = load(folder, device="cpu", precision="fp32").complete(study(), samples=2, seed=9, steps=2)
    about = done.provenance
    assert about["Method"] == "any2all" and about["Tool"].startswith("amodal ")
    assert about["Weights"] == {
        "Id": "tiny", "SHA256": nifti.sha256(folder / "weights.safetensors"), "Licence": "Apache-2.0",
    }  # fmt: skip
    expected = {"Steps": 2, "Seed": 9, "Samples": 2, "Precision": "fp32"}
    assert {k: about["Sampler"][k] for k in expected} == expected
    assert json.loads(json.dumps(about)) == about and done.seconds > 0


# on disk


def test_a_saved_model_makes_the_same_image(model, folder):
    again = load(folder, device="cpu", precision="fp32")
    assert (again.name, again.id, again.precision, again.grid) == ("any2all", "tiny", "fp32", model.grid)
    assert again.windows == WINDOWS and again.card == CARD and again.modalities == model.modalities
    assert np.array_equal(again.complete(study())["FLAIR"].data, model.complete(study())["FLAIR"].data)
    assert not again.method.training and not any(p.requires_grad for p in again.method.parameters())


def test_half_the_bytes_make_nearly_the_same_image(model, folder, tmp_path):
    small = model.save(tmp_path / "half", half=True)
    sizes = [(f / "weights.safetensors").stat().st_size for f in (small, folder)]
    assert sizes[0] < 0.55 * sizes[1]
    loaded = load(small, device="cpu", precision="fp32")
    assert all(p.dtype == torch.float32 for p in loaded.method.parameters())
    a, b = (m.complete(study()).scaled["FLAIR"] for m in (loaded, model))
    assert 0 < np.abs(a - b).max() < 0.02


def test_bf16_computes_nearly_the_same_image(model, folder):
    loaded = load(folder, device="cpu", precision="bf16")
    assert loaded.precision == "bf16"
    assert loaded.complete(study()).provenance["Sampler"]["Precision"] == "bf16"
    a, b = (m.complete(study()).scaled["FLAIR"] for m in (loaded, model))
    assert 0 < np.abs(a - b).mean() < 0.02


def test_a_folder_is_two_files_and_says_what_it_holds(model, folder):
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "weights.safetensors"]
    about = json.loads((folder / "model.json").read_text())
    assert about["format"] == 1 and about["method"] == "any2all" and about["card"] == CARD
    assert about["modalities"] == list(model.modalities) and about["windows"]["FLAIR"] == [5.0, 55.0]
    assert about["sha256"] == nifti.sha256(folder / "weights.safetensors")
    assert describe(folder) == {**about, "folder": str(folder)}
    assert is_model(folder) and not is_model(folder.parent)


def test_saving_over_a_model_replaces_it_whole(model, folder):
    before = (folder / "model.json").read_bytes()
    model.save(folder)
    assert (folder / "model.json").read_bytes() == before
    model.save(folder, half=True)
    assert load(folder, device="cpu").windows == WINDOWS


def edit(folder, **values):
    about = {**json.loads((folder / "model.json").read_text()), **values}
    (folder / "model.json").write_text(json.dumps({k: v for k, v in about.items() if v is not ...}))


def drop_a_weight(folder):
    state = load_file(folder / "weights.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, folder / "weights.safetensors")
    edit(folder, sha256=nifti.sha256(folder / "weights.safetensors"))


def no_safetensors(folder):
    (folder / "weights.safetensors").write_bytes(b"something else")
    edit(folder, sha256=nifti.sha256(folder / "weights.safetensors"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: edit(f, sha256="0" * 64), "model.json says 000000000000; fetch the model anew"),
        (lambda f: (f / "weights.safetensors").unlink(), "has sha256 no file"),
        (lambda f: edit(f, format=2), "model format 2; this version reads 1"),
        (lambda f: edit(f, format=...), "is no model description"),
        (lambda f: (f / "model.json").write_text("[1]"), "is no model description"),
        (lambda f: (f / "model.json").write_text("{"), "is no model description"),
        (lambda f: (f / "model.json").write_bytes(b"\xff\xfe{"), "is no model description"),
        *[(lambda f, k=k: edit(f, **{k: ...}), f"lacks {k}; fetch") for k in ("method", "config", "grid", "windows")],
        *[(lambda f, k=k: edit(f, **{k: ...}), f"lacks {k}; fetch") for k in ("card", "sha256", "modalities")],
        (lambda f: edit(f, method="gan"), "the model is of method 'gan'; this version knows any2all"),
        (lambda f: edit(f, config={}), "modalities: this setting is missing"),
        (lambda f: edit(f, grid={"size": [1, 2]}), "size=.1, 2.: expected 3 values, found 2"),
        (drop_a_weight, "are not the weights of the network in model.json"),
        (no_safetensors, "are not the weights of the network in model.json"),
        *[(lambda f, s=s: (f / f"x{s}").write_bytes(b""), f"holds x{s}, which may carry code")
          for s in (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".npy")],
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_refused(folder, change, sentence):
    change(folder)
    with pytest.raises(InputError, match=sentence) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_no_model_is_refused(tmp_path):
    for where in (tmp_path, tmp_path / "nothing" / "here" / "deep"):
        with pytest.raises(InputError, match="is no model; give a folder with model.json and weights.safetensors"):
            load(where)


# by name


@pytest.fixture
def hub(folder, monkeypatch):
    """A hub that has one model; what it was asked."""
    asked = []

    def snapshot_download(name, revision=None, allow_patterns=None):
        asked.append((name, revision, tuple(allow_patterns)))
        if name != "someone/model":
            raise ConnectionError("not reachable\nat all")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_fetches_the_two_files_of_a_revision(hub, folder):
    first = load("someone/model", device="cpu")
    second = load("someone/model@v1.2", device="cpu")
    files = ("weights.safetensors", "model.json")
    assert hub == [("someone/model", None, files), ("someone/model", "v1.2", files)]
    assert (first.id, second.id) == ("someone/model", "someone/model@v1.2")
    assert first.sha256 == nifti.sha256(folder / "weights.safetensors")


def test_a_folder_that_is_there_never_asks_the_hub(hub, folder, monkeypatch):
    (folder.parent / "someone").mkdir()
    shutil.copytree(folder, folder.parent / "someone" / "model")
    monkeypatch.chdir(folder.parent)
    assert load("someone/model", device="cpu").id == "model"
    assert load("./tiny", device="cpu").id == "tiny"
    assert describe("tiny")["method"] == "any2all"
    with pytest.raises(InputError, match="is no model"):
        load("someone")  # a folder without a model
    with pytest.raises(InputError, match="is no model"):
        load("nowhere")  # no owner: not a hub id
    assert hub == []


def test_a_hub_that_does_not_answer_is_one_sentence(hub):
    sentence = r"nobody/model is no folder here and could not be had from the hub \(ConnectionError\)"
    with pytest.raises(InputError, match=sentence) as error:
        load("nobody/model")
    assert "\n" not in str(error.value)


def test_a_hub_entry_that_is_no_model_is_refused(hub, folder):
    (folder / "model.json").unlink()
    with pytest.raises(InputError, match="someone/model is no model"):
        load("someone/model")


def test_the_default_model_is_the_one_that_comes_along(folder, monkeypatch, hub):
    monkeypatch.setitem(module.files.SHIPPED, "default", folder)
    assert load("default", device="cpu").id == "default" == load(device="cpu").id
    monkeypatch.setitem(module.files.SHIPPED, "default", folder / "not there")
    with pytest.raises(InputError, match="default is no model"):
        load("default")
    assert hub == []


@pytest.mark.parametrize(
    ("name", "modalities"),
    [("default", ("T1w", "T1Gd", "T2w", "FLAIR")), ("five-contrasts", ("T1w", "FLAIR", "T2starw", "CT", "PET"))],
)
def test_what_comes_along_is_whole_and_small_enough(name, modalities):
    model = load(name, device="cpu")
    assert model.modalities == modalities and model.id == name
    weights = module.files.find(name) / "weights.safetensors"
    assert module.files.sha256(weights) == model.sha256
    assert weights.stat().st_size < 10e6
    assert (model.outlines is not None) == (name == "five-contrasts")  # generates

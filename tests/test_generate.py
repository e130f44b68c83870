"""Subjects of nobody: outlines, the law of what is drawn, and the dataset that is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from amodal.cli.app import main
from amodal.cli.generate import metadata
from amodal.core.contract import Grid
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.data.dataset import Cache
from amodal.data.intensity import QUANTITIES
from amodal.data.volume import Study, Volume
from amodal.diffusion.process import DDPM
from amodal.methods import any2all
from amodal.methods.any2all.generate import begin_time, draw
from amodal.methods.any2all.system import Any2all
from amodal.model import Model, load
from amodal.model import generate as making
from amodal.model.outline import FACTOR, Outlines

from .diffusion.gaussian import law, world

NAMES = ("T1w", "CT", "PET")


def study(index: int) -> Study:
    """Ellipsoids, wide ones of even index and narrow ones of odd."""
    wide = 0.9 if index % 2 else 0.5
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (48, 48, 20)], indexing="ij"))
    inside = (x[0] / wide) ** 2 + x[1] ** 2 + x[2] ** 2 < 0.8
    images = {"T1w": 500 * inside + index, "CT": np.where(inside, 40.0, -1000.0), "PET": 5.0 * inside}
    volumes = {name: Volume(data.astype(np.float32), np.diag([1.5, 1.5, 2, 1])) for name, data in images.items()}
    return Study(f"sub-{index}", volumes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    return Cache.build((study(i) for i in range(11)), Grid(), NAMES, folder)


@pytest.fixture(scope="module")
def model(cache, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = dataclasses.replace(any2all.for_modalities(any2all.tiny(), NAMES), steps=2)
    made = Model(
        "any2all",
        any2all.build(config),
        windows=cache.windows(),
        quantities=cache.quantities,
        outlines=Outlines.of(cache),
    )
    return made.save(tmp_path_factory.mktemp("model") / "model")


def test_outlines_are_means_of_alike_subjects(cache):
    found = Outlines.of(cache, groups=2)
    assert found is not None and found.stacks.shape == (2, 3, 12, 12, 5)
    assert sorted(found.share.tolist()) == pytest.approx([5 / 11, 6 / 11])
    assert found.spacing.tolist() == pytest.approx([1.5, 1.5, 2.0])
    widths = [int(((stack > -0.97).any(0)).any((1, 2)).sum()) for stack in found.stacks]
    assert widths[0] != widths[1]  # not mixed
    kind = int(found.share.argmax())
    rows = [cache.stack(f"sub-{i}")[0] for i in range(0, 11, 2)]
    mean = np.mean(rows, axis=0).reshape(3, 12, FACTOR, 12, FACTOR, 5, FACTOR).mean((2, 4, 6))
    assert found.stacks[kind].numpy() == pytest.approx(mean, abs=1e-5)
    full = found.draw(3)
    assert full.shape[0] == 3 and full.shape[1] % 16 == 0 and full.shape[2] % 16 == 0
    assert torch.equal(full, found.draw(3))


def test_too_few_subjects_have_no_outline(cache):
    assert Outlines.of(cache.only("sub-0", "sub-1")) is None


def test_what_is_drawn_follows_the_prior():
    """In the Gaussian world: mean and covariance, deterministic and ancestral, from pure noise."""
    process = DDPM(1000, "cosine")
    truth = world(process)
    n = 4000
    noise = Rng([1]).normal(n, *truth.shape)[0]
    for eta, steps, bound in ((0.0, 40, 0.03), (1.0, 100, 0.03)):
        made = draw(truth.denoise, process, noise, _Stream(), steps, eta, 0.0)
        mean, cov = law(made)
        assert (mean - truth.mean).abs().max() < bound
        assert (cov - truth.cov).abs().max() < bound


def test_an_outline_moves_what_is_drawn_and_its_time_is_where_it_says():
    process = DDPM(1000, "cosine")
    t = begin_time(process, 0.6)
    assert process.at(t)[0] >= 0.6 > process.at(t + 1)[0]
    truth = world(process)
    noise = torch.zeros(1, *truth.shape)
    outline = truth.mean.reshape(1, *truth.shape).float()
    # from the mean itself without noise, the deterministic sampler stays at the mean
    made = draw(truth.denoise, process, noise, _Stream(), 20, 0.0, 0.0, outline)
    assert made == pytest.approx(outline, abs=1e-4)


class _Stream:
    """One stream for many toy samples."""

    def __init__(self):
        self.rng = Rng([3])

    def normal_like(self, x):
        return self.rng.normal(*x.shape)[0].to(x)


def test_neighbouring_slices_are_drawn_alike(model):
    method = load(model, device="cpu").method
    alone, coupled = (
        dataclasses.replace(method.config, coupling=c, eta=eta, solver="ddim") for c, eta in ((0.0, 1.0), (4.0, 1.0))
    )
    apart = []
    for config in (alone, coupled):
        method.config = config
        out = method.generate(6, (16, 16), Rng.of(0, 6))
        apart.append(float((out[1:] - out[:-1]).pow(2).mean() / out.var()))
    assert out.shape == (6, 3, 16, 16) and out.abs().max() <= 1
    assert apart[1] < 0.5 * apart[0]


def test_subjects_are_complete_in_units_and_the_same_whatever_the_number(model):
    found = load(model, device="cpu")
    one = list(making.generate(found, 1, seed=2, steps=2))
    two = list(making.generate(found, 2, seed=2, steps=2))
    assert [s.label for s in two] == ["sub-synth0001", "sub-synth0002"]
    assert two[0].modalities == NAMES
    for name in NAMES:
        assert np.array_equal(one[0][name].data, two[0][name].data)
        assert two[0][name].spacing == pytest.approx((1.5, 1.5, 2.0))
    assert not np.array_equal(two[0]["T1w"].data, two[1]["T1w"].data)
    bounds = QUANTITIES["CT"].window
    assert bounds.lo <= two[0]["CT"].data.min() and two[0]["CT"].data.max() <= bounds.hi
    assert next(making.generate(found, 1, seed=2, modalities=["pet"], steps=2)).modalities == ("PET",)


def test_the_dataset_is_valid(model, tmp_path, bids_errors):
    words = ["-n", "2", "--modality", "T1w", "PET", "--steps", "2"]
    assert main(["generate", str(tmp_path / "made"), "--model", str(model), *words]) == 0
    assert bids_errors(tmp_path / "made") == []


def test_the_dataset_is_synthetic_throughout(model, tmp_path, capsys):
    out = tmp_path / "made"
    assert (
        main(["generate", str(out), "--model", str(model), "-n", "2", "--modality", "T1w", "PET", "--steps", "2"]) == 0
    )
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*.nii.gz"))
    assert files == [
        f"sub-synth000{i}/{f}" for i in (1, 2)
        for f in (f"anat/sub-synth000{i}_desc-synth_T1w.nii.gz", f"pet/sub-synth000{i}_desc-synth_pet.nii.gz")
    ]  # fmt: skip
    for path in out.rglob("sub-*.json"):
        about = json.loads(path.read_text())
        assert about["Description"].startswith("SYNTHETIC") and about["Synthetic"]["Sampler"]["Steps"] == 2
    assert "SYNTHETIC" in (out / "README.md").read_text()
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert (out / "participants.tsv").read_text() == "participant_id\nsub-synth0001\nsub-synth0002\n"
    assert main(["generate", str(out), "--model", str(model)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_steps_that_are_told_are_those_taken(model, tmp_path, monkeypatch):
    """The method's own 2 are for completion: subjects of nobody take more, and their files say so."""
    taken = []
    real = Any2all.generate

    def generate(self, *arguments):
        taken.append(self.config.steps)
        return real(self, *arguments)

    monkeypatch.setattr(Any2all, "generate", generate)
    assert main(["generate", str(tmp_path / "made"), "--model", str(model), "-n", "1", "--modality", "T1w"]) == 0
    (sidecar,) = (tmp_path / "made").rglob("sub-*_T1w.json")
    assert taken == [making.STEPS] == [json.loads(sidecar.read_text())["Synthetic"]["Sampler"]["Steps"]]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--meta", "age=60"], "takes no --meta"),
        (["--modality", "FLAIR"], "does not know FLAIR"),
        (["--meta", "age"], "key=value"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(model, tmp_path, capsys, words, sentence):
    assert main(["generate", str(tmp_path / "x"), "--model", str(model), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_model_without_outlines_says_so(model):
    found = load(model, device="cpu")
    found.outlines = None
    with pytest.raises(InputError, match="outlines"):
        next(making.generate(found, 1))


def test_pairs_become_a_row():
    assert metadata(["age=60", "sex=F", "weight=71.5"]) == {"age": 60, "sex": "F", "weight": 71.5}

"""CT and PET keep their units: one window for the training set, kept through cache, model and completion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amodal.core.contract import Grid
from amodal.data.dataset import Cache
from amodal.data.intensity import QUANTITIES, Window
from amodal.data.volume import Study, Volume
from amodal.model import Model, load

NAMES = ("T1w", "CT", "PET")


def study(index: int, names=NAMES) -> Study:
    """A ball of tissue with bone around it; uptake rises with the index."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (32, 32, 12)], indexing="ij"))
    radius = np.sqrt((x**2).sum(0))
    images = {
        "T1w": np.where(radius < 0.8, 500 + 100 * x[0] + index, 0),
        "CT": np.where(radius < 0.7, 40 + 20 * x[1], np.where(radius < 0.8, 1100.0, -1000.0)),
        "PET": np.where(radius < 0.7, 2.0 * (index + 1) * (1 + x[2] / 2), 0.0),
    }
    volumes = {name: Volume(images[name].astype(np.float32), np.diag([1.0, 1, 1, 1])) for name in names}
    return Study(f"sub-{index}", volumes)


def test_quantities_share_one_window_and_mr_does_not(tmp_path: Path):
    cache = Cache.build([study(i) for i in range(3)], Grid(), NAMES, tmp_path / "cache")
    again = Cache.open(tmp_path / "cache")
    assert again.quantities == cache.quantities and set(cache.quantities) == {"CT", "PET"}
    assert cache.quantities["CT"] == QUANTITIES["CT"].window
    group = cache.quantities["PET"]
    assert group.lo == 0 and group.hi == pytest.approx(study(2)["PET"].data.max(), rel=0.02)
    for index in range(3):
        stack, there = cache.stack(f"sub-{index}")
        assert there.all()
        for name in ("CT", "PET"):
            truth = study(index)[name].data
            back = cache.quantities[name].leave(stack[NAMES.index(name)])
            # half precision: 1/1000 of the part of the scale that a value lies in
            allowed = 2.0 if name == "CT" else 0.01 + 0.006 * group.hi
            assert np.abs(back - np.minimum(truth, group.hi) if name == "PET" else back - truth).max() < allowed
    assert len({e.windows["T1w"] for e in cache.entries}) == 3
    assert {e.windows["PET"] for e in cache.entries} == {(group.lo, group.hi)}


def test_a_subject_without_the_quantity_does_not_matter(tmp_path: Path):
    cache = Cache.build([study(0, ("T1w",)), study(1)], Grid(), NAMES, tmp_path / "cache")
    assert cache.quantities["PET"].hi == pytest.approx(study(1)["PET"].data.max(), rel=0.02)
    assert list(cache.stack("sub-0")[1]) == [True, False, False]
    bare = Cache.build([study(0, ("T1w",))], Grid(), NAMES, tmp_path / "bare")
    assert bare.quantities == {}


class Echo(torch.nn.Module):
    """A method that says 0.25 of everything that is missing."""

    dims, modalities, sampler = 2, NAMES, "echo"

    def __init__(self):
        super().__init__()
        from amodal.methods import any2all

        self.config = any2all.for_modalities(any2all.tiny(), NAMES)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def encode_metadata(self, rows):
        return None

    def steps_for(self, samples):
        return 1

    def complete(self, batch, rng, progress=None):
        self.seen.append(batch.images)
        return torch.where(batch.present.expand_as(batch.images), batch.images, torch.full_like(batch.images, 0.25))


def test_units_go_in_by_the_group_window_and_come_back():
    quantities = {"CT": QUANTITIES["CT"].window, "PET": Window(0.0, 12.0)}
    model = Model("any2all", Echo(), windows={"T1w": (0.0, 800.0)}, quantities=quantities)
    full = model.complete(study(1), missing=["CT"])
    inside = full["CT"].data[16, 16, 6]
    assert inside == pytest.approx(float(QUANTITIES["CT"].window.leave(np.array([0.25]))[0]), rel=1e-4)  # 230 HU
    assert full["CT"].data[0, 0, 0] == -1000.0  # T1w and PET are empty there: air, not water
    full = model.complete(study(1), missing=["PET"], samples=2)
    assert full["PET"].data[16, 16, 6] == pytest.approx(7.5) and full["PET"].data[0, 0, 0] == 0
    assert full.spread["PET"].data.max() == 0
    # what came in: 40 HU in the middle is -0.2 whatever else the image holds
    seen = model.method.seen[-1][..., 16, 16]
    assert seen[:, NAMES.index("CT")].max() == pytest.approx(-0.2, abs=0.2)


def test_quantities_are_kept_with_the_model(tmp_path: Path):
    from amodal.methods import any2all

    method = any2all.build(any2all.for_modalities(any2all.tiny(), NAMES))
    quantities = {"CT": QUANTITIES["CT"].window, "PET": Window(0.0, 13.5)}
    model = Model("any2all", method, windows=dict.fromkeys(NAMES, (0.0, 1.0)), quantities=quantities)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model", device="cpu")
    assert dict(again.quantities) == quantities
    image = Volume(np.arange(1000.0).reshape(10, 10, 10), np.eye(4))
    assert again.window("PET", image) == Window(0.0, 13.5)
    assert again.window("T1w", image) != Window(0.0, 1.0)

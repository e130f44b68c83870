"""Gaps in a stack: drawn once, measured where they are, beside interpolation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from amodal.core.contract import Grid
from amodal.core.errors import InputError
from amodal.data.intensity import Window
from amodal.data.phantom import HeartConfig, heart_studies, heart_subject
from amodal.data.volume import Source, Study, Volume
from amodal.evaluate import PROTOCOLS, Plan, evaluate, stacks
from amodal.evaluate.protocols import chosen
from amodal.evaluate.space import Space

SHAPE = (24, 20, 32)


class Model:
    """Makes slices that are too bright by a tenth of the truth's range."""

    modalities, grid, name, id, sha256, precision, card = ("cine",), Grid(), "toy", "toy", "ab12", "fp32", {}
    method = SimpleNamespace(steps_for=lambda samples: 1)

    def window(self, name, volume):
        return Window.of(volume.data)


def truth(label, seed):
    """A stack whose slices change along it, faster than a line can follow."""
    rng = np.random.default_rng(seed)
    z = np.arange(SHAPE[2]) / SHAPE[2]
    plane = rng.uniform(0.2, 0.8, SHAPE[:2])[..., None]
    data = 100 * (0.5 + 0.4 * plane * np.sin(2 * np.pi * z + seed))
    data[0, 0, 0], data[-1, -1, -1] = 0, 100
    return Study(label, {"cine": Volume(data, np.diag([1.8, 1.8, 3.0, 1.0]))})


def test_gaps_are_drawn_once_for_a_name():
    gaps = {k: stacks.gap(f"sub-{k}", 8, 32) for k in range(200)}
    assert gaps[3] == stacks.gap("sub-3", 8, 32)
    assert all(len(g) == 8 and np.diff(g).tolist() == [1] * 7 and g[0] >= 0 and g[-1] < 32 for g in gaps.values())
    assert {g[0] for g in gaps.values()} == set(range(25))
    with pytest.raises(InputError, match="32 of them cannot be hidden"):
        stacks.gap("sub-1", 32, 32)


def test_rules_are_read():
    assert stacks.lengths("slices:8,16,24") == (8, 16, 24)
    assert stacks.lengths("all") == stacks.lengths("slices:") == stacks.lengths((("T1w",),)) == ()


def test_only_the_gap_is_measured_beside_interpolation(tmp_path, monkeypatch):
    made = {}

    def toy(model, volume, gone, *, samples, seed, steps):
        data = volume.data.copy()
        data[..., gone] += 10
        made[len(gone)] = gone
        return SimpleNamespace(volume=volume.like(data))

    monkeypatch.setattr(stacks, "complete_slices", toy)
    protocol = replace(PROTOCOLS["copedit-cardiac"], space=Space(), patterns="slices:4,8")
    protocol = replace(protocol, ruler=replace(protocol.ruler, metrics=("psnr", "mae"), scale=(0.0, 100.0)))
    sources = [Source(f"sub-{k}", None, {"cine": tmp_path / f"{k}.nii"}) for k in range(2)]
    for s in sources:
        s.files["cine"].write_bytes(b"data")
    protocol, tested = chosen(protocol, sources, other_data=True)
    table = evaluate(tested, Model(), tmp_path / "out", prepare=lambda s: truth(s.label, int(s.label[-1])),
                     plan=Plan(protocol=protocol))  # fmt: skip
    assert not table.failed
    mine = [s for s in table.scores if s.method == "model"]
    assert {s.pattern for s in mine} == {"4 slices", "8 slices"}
    assert [s.value for s in mine if s.metric == "mae"] == pytest.approx([0.1] * 4, abs=1e-5)
    assert [s.value for s in mine if s.metric == "psnr"] == pytest.approx([20] * 4, abs=1e-3)
    assert {s.method for s in table.scores} == {"model", "linear", "cubic"}
    errors = {
        kind: [s.value for s in table.scores if (s.method, s.metric, s.pattern) == (kind, "mae", "4 slices")]
        for kind in ("linear", "cubic")
    }
    assert np.mean(errors["cubic"]) < np.mean(errors["linear"])
    assert "linear interpolation" in (tmp_path / "out" / "report.html").read_text()


def test_an_oblique_heart_stands_upright_in_the_protocols_space():
    (study, *_) = heart_studies(heart_subject(0, 1, HeartConfig()))
    protocol, _ = chosen(PROTOCOLS["copedit-cardiac"], [Source("sub-1", None, {"cine": None})], other_data=True)
    inside = protocol.prepare(study)["cine"]
    assert inside.shape == (192, 192, 32)
    count = min(study["cine"].shape)
    spacing = max(study["cine"].spacing)
    assert inside.spacing[2] == pytest.approx(count * spacing / 32, rel=1e-5)
    with pytest.raises(InputError, match="needs subjects with cine"):
        chosen(PROTOCOLS["copedit-cardiac"], [Source("sub-1", None, {"T1w": None})])

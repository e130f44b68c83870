"""Samples that were kept back tell a model that knows what was scanned from one that does not."""

import pytest
import torch

from amodal.core.contract import Measurement
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.physics import stacking
from amodal.physics.coils import birdcage
from amodal.physics.masks import MASKS, calibration
from amodal.physics.mri import simulate

pytest.importorskip("sigpy", reason="the extra kspace is not installed")
X, Y = 64, 48
NOISE = 0.02


def head() -> torch.Tensor:
    x, y = torch.meshgrid(torch.linspace(-1, 1, X), torch.linspace(-1, 1, Y), indexing="ij")
    inside = (x / 0.8) ** 2 + (y / 0.7) ** 2 < 1
    return (inside * (0.6 + 0.3 * torch.sin(9 * x) * torch.cos(7 * y)))[None]


def scan(kind: str = "poisson", noise: float = NOISE) -> Measurement:
    image, maps = head(), birdcage((X, Y), 4)[None]
    kept = MASKS[kind]((X, Y), 3, 0.2, 0).expand(1, 1, X, Y)
    angle = torch.ones(1, X, Y, dtype=torch.complex64)
    eps = Rng.of(3, 1).normal(4, X, Y, 2)
    return Measurement(simulate(image * angle, maps, kept, noise, eps), kept, maps, noise, angle)


def weighed(measured: Measurement, magnitudes: torch.Tensor) -> tuple[float, dict[float, float]]:
    rest, held = stacking.keep_back(measured)
    found, weight = stacking.errors(measured, held, stacking.blends(rest, magnitudes))
    return weight, found


def test_a_tenth_is_kept_back_and_the_centre_stays() -> None:
    measured = scan()
    rest, held = stacking.keep_back(measured)
    share = float(held.sum() / measured.sampled.sum())
    assert 0.04 < share < 0.105
    assert not (held & rest.sampled).any() and torch.equal(held | rest.sampled, measured.sampled)
    assert not rest.kspace[:, :, held[0, 0]].any()
    assert calibration(rest.sampled[0, 0]) == calibration(measured.sampled[0, 0])


@pytest.mark.parametrize("swap", [False, True])
def test_of_lines_whole_lines_are_kept_back(swap: bool) -> None:
    sampled = MASKS["equispaced"]((X, Y), 2, 0.1, 0).expand(1, 1, X, Y)
    sampled = sampled.transpose(-1, -2) if swap else sampled
    blank = Measurement(torch.zeros(1, 1, *sampled.shape[-2:], dtype=torch.complex64), sampled)
    held = stacking.keep_back(blank, 4)[1][0, 0]
    held = held.T if swap else held
    assert held.any() and torch.equal(held, held[:1].expand_as(held))


def test_the_error_of_the_truth_is_that_of_the_noise() -> None:
    measured = scan()
    _, held = stacking.keep_back(measured)
    missed = stacking.misses(measured, held, head().to(torch.complex64))
    assert len(missed) == int(held.sum())
    assert float(missed.mean()) == pytest.approx(4 * 2 * NOISE**2, rel=0.1)  # four coils, two parts


def test_a_line_counts_once() -> None:
    lines = scan("equispaced")
    _, held = stacking.keep_back(lines)
    missed = stacking.misses(lines, held, head().to(torch.complex64))
    assert len(missed) == int(held[0, 0, 0].sum())
    assert float(missed.mean()) == pytest.approx(X * 4 * 2 * NOISE**2, rel=0.2)


def test_the_model_is_believed_unless_the_data_speak_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(**values: list[float]) -> float:
        given = {0.0: torch.zeros(1), 1.0: torch.ones(1)}
        answers = {0.0: values["alone"], 1.0: values["model"]}
        monkeypatch.setattr(stacking, "misses", lambda _, __, x: torch.tensor(answers[float(x[0])]))
        return stacking.errors(scan(), torch.ones(1, 1, X, Y, dtype=torch.bool), given)[1]

    assert says(alone=[1.0, 1.0, 1.0], model=[1.5, 0.9, 1.0]) == 1.0  # worse by less than a standard error
    assert says(alone=[1.0, 1.0, 1.0], model=[1.5, 1.4, 1.6]) == 0.0
    assert says(alone=[1.0], model=[1.2]) == 1.0  # a single line says little


def test_a_model_that_knows_is_trusted_and_one_that_does_not_is_not() -> None:
    measured = scan()
    weight, found = weighed(measured, head())
    assert weight == 1.0 and found[1.0] < 0.9 * found[0.0]
    wrong = torch.rand(1, X, Y, generator=torch.Generator().manual_seed(1))
    weight, found = weighed(measured, wrong)
    assert weight <= 0.25 and found[0.0] < found[1.0]


def test_what_a_wrong_model_leaves_unexplained_comes_from_the_data() -> None:
    measured, wrong = scan(noise=0.002), head() * 1.1
    image = stacking.blends(measured, wrong)[1.0]
    assert float((image.abs() - head()).norm()) < 0.5 * float((wrong - head()).norm())


def test_of_the_centre_alone_nothing_can_be_kept_back() -> None:
    sampled = torch.zeros(1, 1, X, Y, dtype=torch.bool)
    sampled[..., X // 2 - 8 : X // 2 + 8, Y // 2 - 8 : Y // 2 + 8] = True
    with pytest.raises(InputError, match="beside the centre"):
        stacking.keep_back(Measurement(torch.zeros(1, 1, X, Y, dtype=torch.complex64), sampled))

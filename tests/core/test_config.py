"""Configurations: JSON and back, strict reading, and settings from the command line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from amodal.core.config import from_dict, override, to_dict
from amodal.core.errors import AmodalError, InputError


@dataclass(frozen=True)
class Net:
    channels: tuple[int, ...] = (8, 16)
    attention: tuple[bool, bool] = (False, True)
    embed: int | None = None


@dataclass(frozen=True)
class Settings:
    name: str
    net: Net = Net()
    solver: Literal["ddim", "heun"] = "ddim"
    rate: float = 1e-3
    steps: int = 12
    clip: bool = True
    scales: dict[str, float] = field(default_factory=dict)
    note: Any = None


FULL = Settings("x", Net((4, 8, 16), (True, False), 32), "heun", 0.5, 3, False, {"T1w": 2.0}, [1, "two"])


def test_a_config_survives_json():
    assert from_dict(Settings, json.loads(json.dumps(to_dict(FULL)))) == FULL
    assert to_dict(FULL)["net"] == {"channels": [4, 8, 16], "attention": [True, False], "embed": 32}


def test_what_is_not_said_takes_its_default():
    assert from_dict(Settings, {"name": "x"}) == Settings("x")
    assert from_dict(Settings, {"name": "x", "net": {"embed": None}}).net == Net()


def test_a_whole_number_is_a_float_too_and_nothing_else_is_converted():
    rate = from_dict(Settings, {"name": "x", "rate": 1}).rate
    assert rate == 1.0 and type(rate) is float


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "name: this setting is missing; give it a value."),
        ({"name": "x", "step": 3}, "step: no such setting; choose one of name, net, solver, rate, steps"),
        ({"name": "x", "net": {"chanels": [1]}}, "net.chanels: no such setting; choose one of channels, attention"),
        ({"name": 3}, "name=3: expected str, found int."),
        ({"name": "x", "steps": 2.0}, "steps=2.0: expected int, found float."),
        ({"name": "x", "steps": True}, "steps=True: expected int, found bool."),
        ({"name": "x", "rate": True}, "rate=True: expected float, found bool."),
        ({"name": "x", "rate": "1e-3"}, "rate='1e-3': expected float, found str."),
        ({"name": "x", "clip": 1}, "clip=1: expected bool, found int."),
        ({"name": "x", "solver": "euler"}, "solver='euler': choose one of ddim, heun."),
        ({"name": "x", "net": 3}, "net: expected a table of settings, found 3."),
        ({"name": "x", "net": {"channels": 8}}, "net.channels=8: expected a list such as [1, 2]."),
        ({"name": "x", "net": {"channels": [8, "a"]}}, "net.channels[1]='a': expected int, found str."),
        ({"name": "x", "net": {"attention": [True]}}, "net.attention=[True]: expected 2 values, found 1."),
        ({"name": "x", "net": {"embed": "wide"}}, "net.embed='wide': expected int, found str."),
        ({"name": "x", "scales": [1]}, "scales=[1]: expected a table of settings."),
        ({"name": "x", "scales": {"T1w": None}}, "scales.T1w=None: expected float, found NoneType."),
    ],
)
def test_bad_values_are_refused_with_a_sentence(values, sentence):
    with pytest.raises(InputError) as error:
        from_dict(Settings, values)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_reach_every_level_and_leave_the_rest():
    new = override(FULL, ["net.channels=[32, 64]", "solver=ddim", "rate=2", "net.embed=null", 'name="y"', "clip=true"])
    net = Net((32, 64), (True, False), None)
    assert new == dataclasses.replace(FULL, net=net, solver="ddim", rate=2.0, name="y", clip=True)
    assert FULL.net.channels == (4, 8, 16)


def test_a_later_setting_wins():
    assert override(Settings("x"), ["steps=3", "steps=4"]).steps == 4


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("steps", "--set steps: write it as key=value"),
        ("stepz=3", "--set stepz: no such setting; choose one of name, net.channels, net.attention, net.embed, solver"),
        ("net.depth=3", "--set net.depth: no such setting"),
        ("net.channels.0=3", "--set net.channels.0: no such setting"),
        ("steps=many", "steps='many': expected int, found str."),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(setting, sentence):
    with pytest.raises(InputError) as error:
        override(Settings("x"), [setting])
    assert sentence in str(error.value)


def test_wrong_input_is_one_of_our_errors():
    assert issubclass(InputError, AmodalError) and not issubclass(InputError, ValueError)

"""Which device is chosen, and when it computes in bf16; machines are pretended."""

from __future__ import annotations

import pytest
import torch

from amodal.core.device import bf16, pick
from amodal.core.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def machine(monkeypatch):
    """`machine(cuda=2, mps=False)`: what this machine seems to have."""

    def make(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return make


@pytest.mark.parametrize(
    ("have", "asked", "found"),
    [
        ({}, "auto", "cpu"),
        ({}, "cpu", "cpu"),
        ({"cuda": 2}, "auto", "cuda"),
        ({"cuda": 2, "mps": True}, "auto", "cuda"),
        ({"mps": True}, "auto", "mps"),
        ({"cuda": 2}, "cpu", "cpu"),
        ({"cuda": 2}, "cuda:1", "cuda:1"),
        ({"mps": True}, "mps", "mps"),
    ],
)
def test_what_is_there_is_taken(machine, have, asked, found):
    machine(**have)
    assert pick(asked) == torch.device(found)


@pytest.mark.parametrize(
    ("have", "asked", "sentence"),
    [
        ({}, "cuda", "this machine has 0 CUDA devices, choose auto or cpu"),
        ({"cuda": 2}, "cuda:2", "this machine has 2 CUDA devices"),
        ({"cuda": 2}, "mps", "this machine has no such device, choose auto or cpu"),
        ({}, "gpu", "device='gpu': choose auto, cpu, cuda, cuda:N or mps"),
        ({}, "cuda:x", "device='cuda:x': choose auto"),
        ({"cuda": 1}, "cuda:-1", "device='cuda:-1': choose auto"),
        ({}, "cpu:1", "device='cpu:1': choose auto"),
        ({}, "", "device='': choose auto"),
    ],
)
def test_what_is_not_there_is_refused(machine, have, asked, sentence):
    machine(**have)
    with pytest.raises(InputError, match=sentence):
        pick(asked)


def test_precision_as_asked():
    assert bf16("bf16", CPU) and not bf16("fp32", CPU)
    assert bf16("bf16", CUDA) and not bf16("fp32", CUDA)
    with pytest.raises(InputError, match="precision='fp16': choose auto, bf16 or fp32"):
        bf16("fp16", CPU)


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_precision_on_a_gpu_follows_its_generation(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bf16("auto", CUDA) is fast


@pytest.mark.parametrize(("avx", "amx", "fast"), [(False, False, False), (True, False, True), (False, True, True)])
def test_precision_on_a_cpu_follows_its_instructions(monkeypatch, avx, amx, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert bf16("auto", CPU) is fast
    assert not bf16("auto", torch.device("mps"))

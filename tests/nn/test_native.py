"""Code that is compiled here: where it lies, who may change it, and that nothing depends on it."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amodal.nn import native, norm
from amodal.nn.layout import channels_last

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C compiler, or AMODAL_NATIVE=0")
PROBE = (
    "import torch; from torch import nn; from amodal.nn.winograd import FOUR, compiled\n"
    "print('there' if compiled((FOUR,) * 3, torch.float32) else 'absent')"
)


def probe(**environment: str) -> str:
    """Whether a process of its own has compiled code."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    return run.stdout.strip()


@needs_compiler
def test_it_is_compiled_once_into_the_users_cache(tmp_path):
    assert probe(XDG_CACHE_HOME=str(tmp_path)) == "there"
    place = tmp_path / "amodal" / "native"
    (made,) = place.iterdir()
    assert made.suffix == ".so" and place.stat().st_mode & 0o077 == 0
    before = made.stat().st_mtime_ns
    assert probe(XDG_CACHE_HOME=str(tmp_path)) == "there"
    assert made.stat().st_mtime_ns == before


@needs_compiler
def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path):
    place = tmp_path / "amodal" / "native"
    place.mkdir(parents=True)
    place.chmod(0o777)
    assert probe(XDG_CACHE_HOME=str(tmp_path)) == "absent"
    assert list(place.iterdir()) == []


def test_without_it_nothing_is_compiled_and_nothing_is_said(tmp_path):
    assert probe(XDG_CACHE_HOME=str(tmp_path), AMODAL_NATIVE="0") == "absent"
    assert probe(XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path)) == "absent"
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_is_as_good_as_none(tmp_path):
    broken = tmp_path / "bin" / "cc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert probe(XDG_CACHE_HOME=str(tmp_path), PATH=f"{broken.parent}:{os.environ['PATH']}") == "absent"


@needs_compiler
@pytest.mark.parametrize("kind, most", [(torch.float32, 1e-6), (torch.bfloat16, 0.0019)])
@pytest.mark.parametrize("size", [(48, 14, 13), (97, 40)])
@pytest.mark.parametrize("modulated", [False, True])
def test_silu_of_a_norm_in_two_passes(kind, most, size, modulated):
    torch.manual_seed(0)
    x = channels_last((torch.randn(2, 64, *size) * 3 + 20).to(kind))
    layer = nn.GroupNorm(8, 64)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    modulation = torch.randn(2, 128) if modulated else None
    with torch.no_grad():
        assert norm.compiled(x)
        found = norm.activate(x, layer, modulation)
        exact = F.silu(norm.normalise(x.double(), layer.double(), modulation))
        layer.float()
        assert found.dtype == kind
        assert float((found - exact).std() / exact.std()) < most
        # what an image is does not depend on the batch it is in, nor on the number of threads
        threads = torch.get_num_threads()
        torch.set_num_threads(3)
        alone = norm.activate(x[1:], layer, modulation if modulation is None else modulation[1:])
        torch.set_num_threads(threads)
        assert torch.equal(alone, found[1:])


@needs_compiler
def test_silu_of_anything_is_a_number():
    """e^-x of huge and tiny values."""
    x = channels_last(torch.linspace(-1, 1, 64 * 1024).reshape(1, 64, 32, 32))
    layer = nn.GroupNorm(1, 64)
    for scale in (1e-3, 1.0, 1e3, 1e30):
        nn.init.constant_(layer.weight, scale)
        with torch.no_grad():
            found, exact = norm.activate(x, layer), F.silu(norm.normalise(x.double(), layer.double()))
            layer.float()
        assert torch.allclose(found, exact.float(), rtol=1e-5, atol=1e-6 * max(1, scale))


def test_where_it_does_not_serve():
    x = channels_last(torch.randn(1, 64, 48, 16, 16))
    assert norm.compiled(x) is None  # gradients are asked for
    with torch.no_grad():
        assert norm.compiled(x.double()) is None
        assert norm.compiled(x.contiguous()) is None
        assert norm.compiled(x[:, :, :2, :2, :2]) is None  # too small to be worth it
        assert norm.compiled(channels_last(torch.randn(1, 24, 48, 16, 16))) is None

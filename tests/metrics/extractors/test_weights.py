"""Published weights are read without running them, and what is not theirs is refused by name."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from amodal.core.errors import InputError
from amodal.metrics.extractors.weights import fill, hollow, read


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3)
        self.bn = nn.BatchNorm3d(2)


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return Toy().state_dict()


def wrappings(tensors, folder):
    bare = {k: v.clone() for k, v in tensors.items()}
    parallel = {f"module.{k}": v for k, v in bare.items()}
    old = {k: v for k, v in bare.items() if not k.endswith("num_batches_tracked")}
    torch.save(bare, folder / "bare.pth")
    torch.save({"epoch": 3, "state_dict": parallel, "optimizer": {"lr": 0.1}}, folder / "parallel.pth")
    torch.save(old, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(bare, folder / "safe.safetensors")
    return sorted(folder.iterdir())


def test_every_wrapping_gives_the_same_network(tensors, tmp_path):
    for path in wrappings(tensors, tmp_path):
        found, sha256 = read(path)
        net = fill(hollow(Toy), found, path)
        assert len(sha256) == 64
        assert not net.training
        assert torch.equal(net.conv.weight, tensors["conv.weight"])
        assert not net.conv.weight.requires_grad


def test_making_a_network_draws_no_numbers():
    state = torch.get_rng_state()
    hollow(Toy)
    assert torch.equal(torch.get_rng_state(), state)


class Program:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_programs_are_not_run(tmp_path, capsys):
    torch.save({"state_dict": Program()}, tmp_path / "program.pth")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match="plain weights"):
            read(path)
    assert "run" not in capsys.readouterr().out


def test_no_file_and_no_tensors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(InputError, match="tensors by name"):
        read(tmp_path / "numbers.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("conv.weight"), "lacks conv.weight"),
        (lambda t: t.update({"head.weight": torch.zeros(1)}), "has head.weight"),
        (lambda t: t.update({"conv.weight": torch.zeros(2, 1, 5, 5, 5)}), r"conv.weight has the shape \(2, 1, 5"),
    ],
)
def test_another_networks_weights_are_refused(tensors, change, words):
    given = dict(tensors)
    change(given)
    with pytest.raises(InputError, match=words):
        fill(hollow(Toy), given, "file.pth")


def test_heads_may_be_spare(tensors):
    fill(hollow(Toy), {**tensors, "head.weight": torch.zeros(1)}, "file.pth", ("head.",))

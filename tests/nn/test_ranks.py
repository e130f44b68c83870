"""Two processes do what one does with both halves of the batch: sums, gatherings, and the gradient of a joint loss."""

from __future__ import annotations

import torch
from torch import distributed, multiprocessing

from amodal.methods.copedit.tokenizer import info_nce
from amodal.nn.quantize import Codebook
from amodal.nn.ranks import gathered, summed, world


def halves():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)


def joint(weight: torch.Tensor, anchor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return info_nce(anchor @ weight, other @ weight, torch.ones(len(anchor), dtype=torch.bool), 0.5)


def work(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part = slice(3 * rank, 3 * rank + 3)
    anchor, other = (v[part] for v in halves())
    weight = torch.eye(4, requires_grad=True)
    loss = joint(weight, anchor, other)
    loss.backward()
    torch.manual_seed(0)
    book = Codebook(5, 4)
    book.follow(anchor.T[None], torch.linspace(0, 0.9, 5))
    flags = gathered(torch.tensor([rank == 0]))
    found = {"world": world(), "sum": summed(torch.tensor([1.0 + rank])), "all": gathered(anchor), "flags": flags}
    found["loss"] = loss.detach()
    torch.save(found | {"grad": weight.grad, "codes": book.codes}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_make_one_batch(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    anchor, other = halves()
    weight = torch.eye(4, requires_grad=True)
    loss = joint(weight, anchor, other)
    loss.backward()
    assert first["world"] == 2 and first["sum"] == second["sum"] == 3
    assert first["flags"].tolist() == [True, False]
    assert torch.equal(first["all"], anchor) and torch.equal(second["all"], anchor)
    for found in (first, second):
        assert torch.allclose(found["loss"], loss, atol=1e-6)
    mean = (first["grad"] + second["grad"]) / 2  # what training does with the gradients of its processes
    assert torch.allclose(mean, weight.grad, atol=1e-6)
    assert torch.equal(first["codes"], second["codes"])  # the codebooks stay the same


def test_one_process_changes_nothing():
    x = torch.randn(3, 2)
    assert world() == 1 and gathered(x) is x and summed(x) is x

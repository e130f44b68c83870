"""The codebook: nearest codes, gradients straight through, running means, dead codes that come back."""

from __future__ import annotations

import torch

from amodal.nn import quantize
from amodal.nn.quantize import Codebook


def test_the_nearest_code_is_found(monkeypatch):
    torch.manual_seed(0)
    book, z = Codebook(50, 3), torch.randn(2, 3, 4, 5, 6)
    rows = z.movedim(1, -1)
    expected = torch.cdist(rows.reshape(-1, 3), book.codes).argmin(1).reshape(rows.shape[:-1])
    assert torch.equal(book.indices(rows)[..., 0], expected)
    assert torch.allclose(book(z), book.codes[expected].movedim(-1, 1), atol=1e-6)
    monkeypatch.setattr(quantize, "SCORES", 100)  # pieces of two vectors
    assert torch.equal(book.indices(rows)[..., 0], expected)


def test_gradients_pass_straight_through_and_codes_get_none():
    book, z = Codebook(50, 3), torch.randn(2, 3, 4, requires_grad=True)
    (book(z) * torch.arange(24.0).reshape(2, 3, 4)).sum().backward()
    assert torch.equal(z.grad, torch.arange(24.0).reshape(2, 3, 4))
    assert not book.codes.requires_grad


def test_codes_are_running_means():
    """One step from given counts and sums: N <- d N + (1 - d) n, m <- d m + (1 - d) sum, code = m / N."""
    book = Codebook(2, 2, decay=0.8, dead=0.0)
    book.codes.data = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    book.sums.copy_(book.codes)
    z = torch.tensor([[1.0, 1.0], [3.0, 1.0], [9.0, 12.0]]).T[None]  # two fall to the first code, one to the second
    used = book.follow(z, torch.zeros(2))
    assert used == 1.0
    first = torch.tensor([0.2 * 4.0, 0.2 * 2.0]) / (0.8 + 0.2 * 2)
    second = torch.tensor([8.0 + 0.2 * 9.0, 8.0 + 0.2 * 12.0]) / 1.0
    assert torch.allclose(book.codes, torch.stack([first, second]), atol=1e-6)


def test_means_converge_to_those_of_the_data():
    book = Codebook(1, 2, decay=0.9)
    z = torch.randn(1, 2, 64) + 5
    for _ in range(200):
        book.follow(z, torch.rand(1))
    assert torch.allclose(book.codes[0], z.mean((0, 2)), atol=1e-4)


def test_dead_codes_become_latents_of_the_batch():
    torch.manual_seed(0)
    book = Codebook(8, 2, decay=0.5, dead=0.1)
    book.codes.data[1:] = 1000 + torch.arange(7.0)[:, None]  # all fall to the first
    book.sums.copy_(book.codes)
    z = torch.randn(1, 2, 50)
    used = [book.follow(z, torch.rand(8)) for _ in range(8)]
    assert min(used) < 0.5
    assert book.codes.abs().max() < 10
    assert len(book.indices(z.movedim(1, -1)).unique()) >= 6


def test_it_starts_from_latents():
    book, z = Codebook(8, 2), torch.randn(3, 2, 10)
    book.start([z], torch.rand(8))
    rows = z.movedim(1, -1).reshape(-1, 2)
    assert all((rows == code).all(1).any() for code in book.codes)
    assert torch.equal(book.sums, book.codes) and torch.equal(book.counts, torch.ones(8))


def test_groups_have_codes_of_their_own():
    """Each part of the channels becomes the nearest of its own codes, whatever the other parts are."""
    torch.manual_seed(0)
    book, z = Codebook(8, 6, groups=3), torch.randn(2, 6, 5)
    out = book(z).reshape(2, 3, 2, 5)
    for group, codes in enumerate(book.codes.chunk(3)):
        rows = z[:, 2 * group : 2 * group + 2].movedim(1, -1).reshape(-1, 2)
        nearest = codes[torch.cdist(rows, codes).argmin(1)].reshape(2, 5, 2).movedim(-1, 1)
        assert torch.allclose(out[:, group], nearest, atol=1e-6)
    book.start([z], torch.rand(24))
    for group, codes in enumerate(book.codes.chunk(3)):
        rows = z[:, 2 * group : 2 * group + 2].movedim(1, -1).reshape(-1, 2)
        assert all((rows == code).all(1).any() for code in codes)
    before = (book(z) - z).square().mean()
    for _ in range(20):
        book.follow(z, torch.rand(24))
    assert (book(z) - z).square().mean() < before

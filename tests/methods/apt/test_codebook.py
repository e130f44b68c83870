"""The curves, the tables made from training slices, and which source is taken when others are missing."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

from amodal.core.rng import Rng
from amodal.methods.apt.codebook import BACKGROUND, CURVES, Codebook, Row, bend, bezier, prior, variants

NAMES = ("T1w", "T1Gd", "T2w", "FLAIR")
PATTERNS = [given for n in (1, 2, 3) for given in combinations(range(4), n)]


def pictures(n=6, size=12):
    """Slices of one modality with background, in [-1, 1]."""
    x = Rng.of(0, n, "pictures").uniform(size, size) * 1.8 - 0.9
    x[:, :2] = -1
    return x


# curves


@pytest.mark.parametrize(
    ("curve", "quarter"),
    [("rising", -0.6875), ("rising, soft", -0.546875), ("falling", 0.6875), ("falling, soft", 0.546875)],
)
def test_the_curves_are_pinned(curve, quarter):
    """B(r) by hand at r = 0, 1/4, 1/2 and 1."""
    end = CURVES[curve][3]
    found = bezier(torch.tensor([-1.0, -0.5, 0.0, 1.0]), CURVES[curve])
    assert torch.allclose(found, torch.tensor([-end, quarter, 0.0, end]), atol=1e-6)


def test_four_distinct_monotone_maps():
    x = torch.linspace(-1, 1, 201)
    maps = [bezier(x, points) for points in CURVES.values()]
    for name, y in zip(CURVES, maps):
        steps = y.diff() if name.startswith("rising") else -y.diff()
        assert (steps > -1e-7).all() and y.abs().max() <= 1
    assert all((a - b).abs().max() > 0.05 for a, b in combinations(maps, 2))


def test_equal_coordinates_would_make_but_two_maps():
    """Why the paper's points are read as heights: as points on the diagonal they all lie on one line."""
    r = torch.linspace(0, 1, 50)
    for points in CURVES.values():
        y = bezier(2 * r - 1, points)
        x = bezier(2 * r - 1, sorted(points))
        assert torch.allclose(y.abs(), x.abs(), atol=1e-6)


def test_background_stays_background():
    x = torch.tensor([-1.0, 2 * BACKGROUND - 1 - 1e-3, 0.5])
    for curve in CURVES:
        assert torch.equal(bend(x, curve)[:2], torch.tensor([-1.0, -1.0]))
        assert bend(x, curve)[2] != -1


def test_a_guess_is_scaled_from_zero_up():
    row = Row("T2w", "T1w", "rising, soft", 0.5, 1.0, 0.0)
    x = torch.tensor([-1.0, 1.0])
    assert torch.allclose(prior(x, row), torch.tensor([-1.0, 0.0]))
    assert torch.equal(prior(x, Row("T2w", "T1w", "rising, soft", 3.0, 1.0, 0.0)), torch.tensor([-1.0, 1.0]))


# fitting


def fitted(n=6, memory=4):
    """T1Gd is T1w at 0.6 of the brightness, T2w is T1w turned round, FLAIR has nothing to do with any."""
    first = pictures(n)
    gadolinium = prior(first, Row("", "", "rising, soft", 0.6, 0, 0))
    turned = bend(first, "falling")
    other = pictures(2 * n)[n:]
    images = torch.stack([first, gadolinium, turned, other], 1)
    book = Codebook(NAMES, 144, memory)
    present = torch.ones(n, 4, dtype=torch.bool)
    book.fit(images, present, lambda x: x.flatten(1) + 1, lambda i, p: F.normalize(i[:, 0].flatten(1) + 1))
    return book, images, present


@pytest.mark.parametrize("by", ["votes", "error"])
def test_fitting_finds_the_relation_that_is_there(by):
    book, images, _ = fitted()
    best = book.ranking(1, by)[0]
    assert (best.source, best.curve) == ("T1w", "rising, soft") and best.scale == pytest.approx(0.6, rel=0.02)
    assert best.error < 1e-3 and best.share == 1.0
    turned = book.ranking(2, by)[0]
    assert (turned.source, turned.curve) == ("T1w", "falling") and turned.scale == pytest.approx(1.0, rel=0.02)
    assert book.ranking(1, by)[-1].source == "FLAIR"


def test_votes_are_shares_and_nobody_votes_for_himself():
    book, _, _ = fitted()
    assert torch.allclose(book.votes.flatten(1).sum(1), torch.ones(4))
    assert (book.votes[range(4), range(4)] == 0).all()


def test_scale_is_the_ratio_of_means():
    book, images, _ = fitted()
    unit = (images + 1) / 2
    bent = (variants(images[:, 0])[:, 0] + 1) / 2  # T1w, rising
    assert book.scale[3, 0, 0].item() == pytest.approx((unit[:, 3].mean() / bent.mean()).item(), rel=1e-5)


def test_incomplete_slices_count_for_the_pairs_they_have():
    book, images, present = fitted()
    present = present.clone()
    present[:3, 1] = False
    junk = torch.where(present[..., None, None], images, torch.full_like(images, 1e3))
    again = Codebook(NAMES, 144, 4)
    again.fit(junk, present, lambda x: x.flatten(1) + 1, lambda i, p: torch.ones(len(i), 144))
    assert again.ranking(1, "votes")[0].source == "T1w" and again.ranking(1, "error")[0].error < 1e-3
    assert torch.isfinite(again.scale).all() and torch.isfinite(again.error).all()


# fallback


def by_hand():
    """A book in which everyone's ranking is the order T2w, FLAIR, T1w, T1Gd."""
    book = Codebook(NAMES, 8, 2)
    for rank, source in enumerate((2, 3, 0, 1)):
        book.votes[:, source, 3 - rank] = 0.4 - 0.1 * rank
        book.error[:, source, 3 - rank] = 0.1 + 0.1 * rank
        book.scale[:, source] = 0.5 + 0.25 * rank
    return book


@pytest.mark.parametrize("by", ["votes", "error"])
@pytest.mark.parametrize("given", PATTERNS, ids=str)
def test_every_pattern_falls_back_to_the_best_source_there_is(given, by):
    book, images = by_hand(), pictures(4)
    present = torch.zeros(4, 12, 12, dtype=torch.bool)
    present[list(given)] = True
    guess = book.guess(torch.where(present, images, torch.tensor(1e6)), present, by)
    for target in range(4):
        if target in given:
            assert torch.equal(guess[target], images[target])
        else:
            source = next(s for s in (2, 3, 0, 1) if s in given)
            row = next(r for r in book.ranking(target, by) if r.source == NAMES[source])
            assert torch.equal(guess[target], prior(images[source], row))


def test_a_hole_is_filled_voxel_by_voxel():
    book, images = by_hand(), pictures(4)
    present = torch.ones(4, 12, 12, dtype=torch.bool)
    present[0, 4:] = present[2, 8:] = False
    guess = book.guess(images, present, "votes")
    rows = {r.source: r for r in book.ranking(0, "votes")}
    assert torch.equal(guess[0, :4], images[0, :4])
    assert torch.equal(guess[0, 4:8], prior(images[2], rows["T2w"])[4:8])
    assert torch.equal(guess[0, 8:], prior(images[3], rows["FLAIR"])[8:])


def test_of_nothing_the_guess_is_grey():
    guess = by_hand().guess(pictures(4), torch.zeros(4, 12, 12, dtype=torch.bool), "votes")
    assert torch.equal(guess, torch.zeros(4, 12, 12))


# retrieval


def test_retrieval_takes_the_scales_of_the_most_similar_slices():
    book, images, _ = fitted(memory=6)
    vector = F.normalize(images[4, 0].flatten() + 1, dim=0)
    near = book.nearest(vector, 1)
    assert near.tolist() == [4]
    found = {r.source: r for r in book.ranking(3, "error", near)}["T1w"]
    k = list(CURVES).index(found.curve)
    assert found.scale == pytest.approx(float(book.own_scale[4, 3, 0, k]))
    assert found.error == pytest.approx(float(book.own_error[4, 3, 0, k]))
    assert found.scale != pytest.approx(float(book.scale[3, 0, k]), rel=1e-4)


def test_the_table_has_a_line_for_every_pair():
    rows = fitted()[0].table("votes")
    assert {(r.target, r.source) for r in rows} == {(a, b) for a in NAMES for b in NAMES if a != b}

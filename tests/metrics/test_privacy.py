"""The audit finds the copies that were put there, and says nothing against a model that copies nobody."""

import json

import numpy as np
import pytest
from scipy import ndimage

from amodal.core.errors import InputError
from amodal.metrics.extractors import Extractor
from amodal.metrics.privacy import audit

SHAPE = (26, 30, 22)
TOY = Extractor("toy", "ab" * 32, "blocks", lambda x: ndimage.zoom(x, 0.25, order=1).reshape(1, -1))


def person(seed):
    """What all have in common, and what is one's own."""
    common, own = (ndimage.gaussian_filter(np.random.default_rng(s).standard_normal(SHAPE), 2) for s in (9999, seed))
    x = common + own
    return ((x - x.min()) / np.ptp(x)).astype(np.float32)


def people(first, count, prefix="sub"):
    return [(f"{prefix}-{s}", person(s)) for s in range(first, first + count)]


TRAINING, HELD_OUT, MADE = people(0, 16), people(500, 12), people(200, 10, "made")


def noisy(x, seed=0, sd=0.02):
    return x + sd * np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32)


def findings(found, word):
    return [v for v in found.verdicts if v.name.startswith(word)]


@pytest.fixture(scope="module")
def honest():
    return audit(MADE, TRAINING, HELD_OUT, extractor=TOY)


@pytest.fixture(scope="module")
def thief():
    """Every made volume is a training volume with noise and, of one, a shift in brightness."""
    made = [(f"made-{k}", noisy(x, k)) for k, (_, x) in enumerate(TRAINING[:12])]
    made[0] = (made[0][0], 0.8 * made[0][1] + 0.1)
    return audit(made, TRAINING, HELD_OUT, extractor=TOY)


def test_an_honest_model_is_cleared(honest):
    assert {v.good for v in honest.verdicts} == {True}
    assert (honest.generated, honest.training, honest.held_out) == (10, 16, 12)
    for space in honest.spaces:
        assert not any(n.copy for n in space.neighbours)
        assert len(space.real) == 28
        assert space.pull.expected == pytest.approx(16 / 28)
        assert space.pull.p > 0.01
        assert 0.3 < space.attack.auc < 0.75


def test_a_copying_model_is_caught(thief):
    for word in ("Copies", "Nearest over second", "Pull", "Members recognised by distance"):
        assert [v.good for v in findings(thief, word)] == [False, False], word
    for space in thief.spaces:
        assert [n.training for n in space.neighbours] == [f"sub-{k}" for k in range(12)]
        assert all(n.copy and n.ratio < 0.3 and n.rank == 0 for n in space.neighbours)
        assert space.pull.share == 1
        assert space.pull.p < 0.01
    assert len(thief.shown) == 6
    assert all(s.neighbour.copy for s in thief.shown)


def test_one_copy_among_many_is_caught():
    made = [*MADE[:9], ("made-x", noisy(TRAINING[4][1]))]
    found = audit(made, TRAINING, HELD_OUT, extractor=TOY)
    for verdict in findings(found, "Copies"):
        assert verdict.good is False
        assert "1 of 10" in verdict.words
        assert "made-x to sub-4" in verdict.words
    assert found.shown[0].neighbour.training == "sub-4"
    assert [p.shape for p in found.shown[0].generated] == [(26, 30), (26, 22), (30, 22)]


def test_smooth_images_are_near_to_everybody_and_no_copies():
    mean = np.mean([x for _, x in people(300, 16)], axis=0)
    made = [(label, (0.75 * mean + 0.25 * x)) for label, x in MADE]
    found = audit(made, TRAINING, HELD_OUT, extractor=TOY)
    image = found.spaces[0]
    assert np.median([n.distance for n in image.neighbours]) < np.min(image.real)  # nearer than any two people
    assert all(v.good for v in found.verdicts if v.name.startswith(("Copies", "Nearest over")))


def test_a_model_that_makes_one_image_has_twins():
    made = [(f"made-{k}", noisy(MADE[0][1], k)) for k in range(5)]
    found = audit(made, TRAINING, extractor=TOY)
    assert [len(s.twins) for s in found.spaces] == [10, 10]
    assert all(v.good is False and "10 pairs" in v.words for v in findings(found, "Twins"))
    assert all(v.good for v in findings(found, "Copies"))


def test_volumes_of_one_subject_are_no_evidence():
    """Completions of held-out subjects lie near to their own truth; several completions of one are alike."""
    made = [(f"{label} T1w hidden {k}", noisy(x, k)) for label, x in HELD_OUT[:6] for k in range(2)]
    found = audit(made, TRAINING, HELD_OUT, extractor=TOY)
    assert {v.good for v in found.verdicts} == {True}
    assert not any(s.twins for s in found.spaces)
    assert found.spaces[0].pull.expected == pytest.approx(16 / 27)  # its own truth is out of the question


def test_who_is_in_the_training_set_is_told():
    made = [(f"{label} T1w", noisy(x)) for label, x in TRAINING[:6]]
    found = audit(made, TRAINING, HELD_OUT, extractor=TOY)
    (verdict,) = findings(found, "Who was audited")
    assert verdict.good is None
    assert "6 of the generated" in verdict.words
    assert not any(n.copy for s in found.spaces for n in s.neighbours)


def test_without_a_held_out_set_the_pull_stays_open(thief):
    found = audit(MADE, TRAINING, extractor=TOY)
    assert [v.good for v in findings(found, "Pull")] == [None, None]
    assert not findings(found, "Members")
    assert found.spaces[0].pull is None


def test_few_volumes_give_no_verdict():
    found = audit(MADE[:3], TRAINING, HELD_OUT, extractor=TOY)
    assert [v.good for v in findings(found, "Pull") + findings(found, "Nearest over")] == [None] * 4


def test_losses_are_judged():
    rng = np.random.default_rng(0)
    member, other = rng.normal(1.0, 0.1, 40), rng.normal(1.2, 0.1, 40)
    found = audit(MADE, TRAINING, extractor=TOY, losses=(member, other))
    assert [v.good for v in findings(found, "Members recognised by the model's loss")] == [False]
    assert found.losses.auc > 0.85


def test_the_result_is_plain_and_repeats(honest):
    plain = json.loads(json.dumps(honest.to_dict(), allow_nan=False))
    assert plain["spaces"][0]["neighbours"][0]["generated"] == "made-200"
    assert "shown" not in plain
    assert audit(iter(MADE), iter(TRAINING), iter(HELD_OUT), extractor=TOY).to_dict() == honest.to_dict()


def test_the_default_extractor_is_the_built_in_one():
    assert audit(MADE[:1], TRAINING[:2]).extractor == "seeded"


def test_volumes_of_other_sizes_are_compared():
    tall = [(label, np.concatenate([x, x[..., :4]], axis=2)) for label, x in TRAINING]
    assert audit(MADE, tall, extractor=Extractor("mean", "", "", lambda x: np.array([[x.mean()]]))).generated == 10


@pytest.mark.parametrize(
    ("made", "training", "words"),
    [
        ([], TRAINING, "0 generated"),
        (MADE, TRAINING[:1], "1 training"),
        ([("made-1", np.zeros(SHAPE))], TRAINING, "made-1"),
        (MADE, [("sub-1", np.full(SHAPE, np.nan)), *TRAINING], "sub-1"),
    ],
)
def test_what_cannot_be_audited_is_refused(made, training, words):
    with pytest.raises(InputError, match=words):
        audit(made, training, extractor=TOY)

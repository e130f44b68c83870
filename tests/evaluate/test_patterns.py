"""Which sets are hidden."""

import pytest

from amodal.core.errors import InputError
from amodal.evaluate.patterns import hidden_sets, parse_patterns

NAMES = ("T1w", "T1Gd", "T2w", "FLAIR")


def test_all_sets_that_leave_one():
    sets = hidden_sets("all", NAMES)
    assert len(sets) == len(set(sets)) == 14
    assert {len(s) for s in sets} == {1, 2, 3}
    assert hidden_sets("each", NAMES) == [(m,) for m in NAMES]
    assert hidden_sets("all", ("T1w",)) == hidden_sets("each", ("T1w",)) == hidden_sets("all", ()) == []


def test_random_sets_belong_to_the_name():
    drawn = {label: tuple(hidden_sets("random:3", NAMES, label)) for label in map(str, range(60))}
    assert all(len(set(s)) == 3 for s in drawn.values())
    assert drawn["7"] == tuple(hidden_sets("random:3", NAMES, "7"))
    assert {p for sets in drawn.values() for p in sets} == set(hidden_sets("all", NAMES))
    assert len(hidden_sets("random:99", NAMES, "x")) == 14


def test_named_sets_are_hidden_where_they_are_there_and_leave_something():
    sets = parse_patterns("flair+t2,t1", NAMES)
    assert sets == (("T2w", "FLAIR"), ("T1w",))
    assert hidden_sets(sets, ("T2w", "FLAIR")) == []
    assert hidden_sets(sets, ("T1w", "T2w", "FLAIR")) == [("T2w", "FLAIR"), ("T1w",)]


@pytest.mark.parametrize("bad", ["random:0", "random:x", "CT", "nothing", []])
def test_what_is_no_pattern_is_refused(bad):
    with pytest.raises(InputError):
        parse_patterns(bad, NAMES)

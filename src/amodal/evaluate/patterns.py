"""What is hidden: which sets of modalities, from which subject."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ..core.errors import InputError
from ..core.modality import MODALITIES, canonical
from ..core.rng import seed_of

Patterns = str | Sequence[str | Sequence[str]]
Sets = str | tuple[tuple[str, ...], ...]
_RULES = re.compile(r"each|all|random:[1-9]\d*")


def parse_patterns(patterns: Patterns, modalities: Sequence[str]) -> Sets:
    """A rule ("each", "all", "random:N") as it is, or the hidden sets as canonical names in canonical order.

    "each" hides one modality at a time, "all" every set that leaves one, "random:N" N of those, drawn once for each
    subject's name. InputError for what the model does not know.
    """
    if isinstance(patterns, str) and _RULES.fullmatch(patterns):
        return patterns
    listed = patterns.split(",") if isinstance(patterns, str) else patterns
    sets = []
    for pattern in listed:
        names = {canonical(n) for n in (pattern.split("+") if isinstance(pattern, str) else pattern)}
        if unknown := sorted(names - set(modalities)):
            raise InputError(
                f"{unknown[0]} cannot be hidden: the model knows {', '.join(modalities)}; choose among them."
            )
        sets.append(tuple(m for m in MODALITIES if m in names))
    if not sets:
        raise InputError(
            'no pattern to evaluate; give "each", "all", "random:2", or a list such as ["FLAIR", "T2w+FLAIR"].'
        )
    return tuple(dict.fromkeys(sets))


def hidden_sets(patterns: Sets, there: Sequence[str], label: str = "") -> list[tuple[str, ...]]:
    """The sets to hide from a subject that has `there`: each must be there, and something must be left."""
    if not isinstance(patterns, str):
        return [p for p in patterns if set(p) < set(there)]
    largest = min(1, len(there) - 1) if patterns == "each" else len(there) - 1
    sets = [p for size in range(1, largest + 1) for p in combinations(there, size)]
    if not patterns.startswith("random:"):
        return sets
    order = np.random.default_rng(seed_of(0, "patterns", label)).permutation(len(sets))
    return [sets[i] for i in sorted(order[: int(patterns.partition(":")[2])])]


def words(patterns: Sets) -> str | list[str]:
    """As it is written into results."""
    return patterns if isinstance(patterns, str) else ["+".join(p) for p in patterns]

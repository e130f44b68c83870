"""What is asked of generated subjects: `--meta` for all of them, `--like` a row of a real table for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..core.rng import seed_of
from ..data.bids import read_table
from ..methods import ASKING
from ..model import Model


def rows(
    model: Model, n: int, seed: int, meta: Mapping[str, Any], like: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row a subject, what `meta` says over what a drawn row of the table `like` says; and a sentence for every value
    unlike the training data. Subject i is asked the same whatever n. InputError: a field the model does not know."""
    asking = ASKING.get(model.name)
    if asking is None:
        if like is not None:
            raise InputError(f"{model.name} knows images alone and takes no --like; leave it out.")
        return [dict(meta)] * n, []
    asked = asking.request(model.method, meta)
    table: Sequence[Mapping[str, str]] = [{}]
    if like is not None:
        table = asking.translate(model.method, read_table(like), sidecar(like.with_suffix(".json")))
        if not any(table):
            known = ", ".join(asking.names(model.method))
            raise InputError(f"{like}: nothing in it that the model knows; give a table with some of {known}.")
    draws = [np.random.default_rng(seed_of(seed, "like", i)).integers(len(table)) for i in range(n)]
    found = [{**table[int(k)], **asked} for k in draws]
    warnings = dict.fromkeys(sentence for row in found for sentence in asking.outside(model.method, row))
    return found, list(warnings)


def sidecar(path: Path) -> dict[str, Any]:
    """What a participants.json says of the columns of its table; empty where there is none. InputError: no JSON."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no JSON can be read ({error}); mend the file or move it away.") from error
    return found if isinstance(found, dict) else {}

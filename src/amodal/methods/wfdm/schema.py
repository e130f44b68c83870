"""What may be known of a subject, and how it becomes numbers: values d and an availability mask r (section 2.2.2).

A schema is a file of the user's; the paper's 25 fields are built in (`brainscape.json`), and those of the virtual
cohort (`virtual.json`). A number goes in as it is (the network holds mean and deviation); a category as 1 .. K, a flag
as 1 no, 2 yes. Where r is 0 the value is 0 and means nothing: "not recorded" is neither "no" nor zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.config import from_dict
from ...core.errors import InputError

MISSING = ("", "n/a", "na", "nan", "none", "null", "unknown", "missing", "not recorded", "-")
NO, YES = 1.0, 2.0  # of a flag
FLAGS = dict.fromkeys(("no", "n", "false", "0", "absent"), NO) | dict.fromkeys(
    ("yes", "y", "true", "1", "present"), YES
)
UNITS: dict[tuple[str, str], float] = {  # (the table's unit, the schema's) -> factor
    ("month", "year"): 1 / 12, ("week", "year"): 7 / 365.25, ("day", "year"): 1 / 365.25,
    ("m", "cm"): 100.0, ("mm", "cm"): 0.1, ("in", "cm"): 2.54, ("g", "kg"): 1e-3, ("lb", "kg"): 0.45359237,
}  # fmt: skip
SPELLINGS = {
    "years": "year", "yr": "year", "months": "month", "weeks": "week", "days": "day", "metre": "m", "meter": "m",
    "centimetre": "cm", "centimeter": "cm", "millimetre": "mm", "inch": "in", "inches": "in", "kilogram": "kg",
    "gram": "g", "pound": "lb", "pounds": "lb", "lbs": "lb",
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One thing that may be known. `names`: other names of its column. `words`: other words for its categories, or for
    yes and no. `factor`: what a table's number is multiplied by to be in `unit` (1: it is; see `translate`)."""

    name: str
    kind: Literal["number", "category", "flag"]
    unit: str = ""
    categories: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    words: dict[str, str] = field(default_factory=dict)
    factor: float = 1.0

    def __post_init__(self) -> None:
        if (self.kind == "category") != bool(self.categories):
            raise InputError(f"field {self.name!r} is a {self.kind}; categories belong to a category, and to it alone.")
        if strange := sorted(set(self.words.values()) - set(self.categories or ("yes", "no"))):
            allowed = ", ".join(self.categories or ("yes", "no"))
            raise InputError(f"field {self.name!r}: a word stands for {strange[0]!r}; choose one of {allowed}.")

    @property
    def states(self) -> int:
        """How many values it can take besides not being known; 0 for a number."""
        return {"number": 0, "category": len(self.categories), "flag": 2}[self.kind]

    def allowed(self) -> str:
        """What may be said of it, in words."""
        unit = f" in {self.unit}" if self.unit else ""
        return {"number": f"a number{unit}", "category": ", ".join(self.categories), "flag": "yes or no"}[self.kind]


@dataclass(frozen=True)
class Schema:
    """The fields, in the order of the vectors d and r."""

    fields: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        seen = [name.lower() for f in self.fields for name in (f.name, *f.names)]
        if twice := sorted({name for name in seen if seen.count(name) > 1}):
            raise InputError(f"the schema has {twice[0]!r} twice; give each field its own names.")

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.fields)

    def place(self, column: str) -> int | None:
        """Which field a column is, by its name or another of its names, capitals aside; None: none of them."""
        wanted = column.strip().lower()
        known = {name.lower(): i for i, f in enumerate(self.fields) for name in (f.name, *f.names)}
        return known.get(wanted)


def encode(schema: Schema, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Rows of a table -> `values` [B, P] float32 and `known` bool [B, P]; what cannot be read counts as not known."""
    values, known = torch.zeros(len(rows), len(schema)), torch.zeros(len(rows), len(schema), dtype=torch.bool)
    for b, row in enumerate(rows):
        for column, said in row.items():
            place = schema.place(column)
            found = None if place is None else number(schema.fields[place], said)
            if place is not None and found is not None:
                values[b, place], known[b, place] = found, True
    return {"values": values, "known": known}


def number(field: Field, said: Any) -> float | None:
    """What a cell of a table becomes; None: nothing that is known."""
    word = str(said).strip().lower()
    if said is None or word in MISSING:
        return None
    if field.kind == "number":
        try:
            found = float(word) * field.factor
        except ValueError:
            return None
        return found if math.isfinite(found) else None
    words = {k.lower(): v for k, v in field.words.items()}
    whole = word[:-2] if word.endswith(".0") else word  # tables made from floats
    for candidate in (word, whole):
        candidate = words.get(candidate, candidate).lower()
        if field.kind == "flag" and candidate in FLAGS:
            return FLAGS[candidate]
        if candidate in (c.lower() for c in field.categories):
            return 1.0 + [c.lower() for c in field.categories].index(candidate)
    return None


def request(schema: Schema, wanted: Mapping[str, str]) -> dict[str, str]:
    """Values a user asks for (`age=60`), checked, under the schema's own names, in its own units and words.

    InputError: a field the schema does not have, or a value the field cannot take. `n/a` asks for nothing.
    """
    out: dict[str, str] = {}
    for name, said in wanted.items():
        place = schema.place(name)
        if place is None:
            raise InputError(f"--meta {name}: the model knows no such field; choose one of {', '.join(schema.names)}.")
        field = schema.fields[place]
        if field.name in out:
            raise InputError(f"--meta {name}: {field.name} is given twice; give it once.")
        if str(said).strip().lower() in MISSING:
            continue
        found = number(replace(field, factor=1.0), said)
        if found is None:
            raise InputError(f"--meta {name}={said}: {field.name} is {field.allowed()}; give it so, or n/a.")
        out[field.name] = word(field, found)
    return out


def word(field: Field, value: float) -> str:
    """A value as a person writes it, the inverse of `number`: 61, F, yes."""
    says = field.categories or ("no", "yes")
    return f"{value:g}" if field.kind == "number" else says[int(value) - 1]


def plain(schema: Schema) -> Schema:
    """The schema for tables that are in its own units, such as requests."""
    return Schema(tuple(replace(f, factor=1.0) for f in schema.fields))


def translate(schema: Schema, rows: Sequence[Mapping[str, Any]], sidecar: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of another table, with its participants.json, in the schema's own names, units and words; what it cannot
    say is left out."""
    table = adapt(plain(schema), sidecar)
    out = []
    for values, known in zip(*encode(table, rows).values()):
        pairs = zip(schema.fields, values.tolist(), known.tolist())
        out.append({f.name: word(f, value) for f, value, there in pairs if there})
    return out


def adapt(schema: Schema, sidecar: Mapping[str, Any]) -> Schema:
    """The schema with what a BIDS participants.json says of its columns: units of numbers, levels of categories.

    A level's code is understood when its description, or a part of it in brackets or before a comma, is a category or
    a known word: {"1": "male", "2": "female"}.
    """
    fields = list(schema.fields)
    for column, about in sidecar.items():
        place = schema.place(column)
        if place is None or not isinstance(about, Mapping):
            continue
        found = fields[place]
        unit = str(about.get("Units", "")).strip().lower()
        unit = SPELLINGS.get(unit, unit)
        if found.kind == "number":
            fields[place] = replace(found, factor=UNITS.get((unit, found.unit), found.factor))
        elif isinstance(levels := about.get("Levels"), Mapping):
            fields[place] = replace(found, words={**found.words, **_levels(found, levels)})
    return Schema(tuple(fields))


def _levels(field: Field, levels: Mapping[str, Any]) -> dict[str, str]:
    """Code -> category (or yes, no) for the levels whose description says which."""
    says = field.categories or ("no", "yes")
    out = {}
    for code, about in levels.items():
        text = about.get("Description", "") if isinstance(about, Mapping) else about
        for part in (str(text), str(text).split(",")[0], str(text).partition("(")[0]):
            state = number(field, part)
            if state is not None:
                out[str(code)] = says[int(state) - 1]
                break
    return out


def read(path: str | Path) -> Schema:
    """A schema from a JSON file: {"fields": [{"name": "age", "kind": "number", "unit": "year"}, ...]}."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no schema can be read ({error}); give a JSON file with a list of fields.") from error
    return from_dict(Schema, table, f"{Path(path).name}: ")


def built_in(name: str) -> Schema:
    """`brainscape`: the paper's 25 fields; `virtual`: those of the virtual cohort."""
    return read(Path(__file__).with_name(f"{name}.json"))

"""What a user may ask of a trained model: fields by name, values in range, tables of other data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import schema
from .schema import Field
from .system import WFDM


def request(method: WFDM, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Checked requests under the schema's own names; InputError for a field or a value it does not know."""
    return schema.request(method.config.schema, {k: str(v) for k, v in wanted.items()})


def translate(method: WFDM, rows: Sequence[Mapping[str, Any]], sidecar: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of a table, as its participants.json explains them, in the schema's own names, units and words."""
    return schema.translate(method.config.schema, rows, sidecar)


def names(method: WFDM) -> tuple[str, ...]:
    """The fields that can be asked for."""
    return method.config.schema.names


def outside(method: WFDM, row: Mapping[str, Any]) -> list[str]:
    """A sentence for every value unlike any that the model was trained on; none if it does not know its training."""
    told = method.net.metadata
    if not told.counts.any():
        return []
    said = schema.encode(method.config.schema, [row])
    found = []
    for i, field in enumerate(method.config.schema.fields):
        if said["known"][0, i]:
            found += _sentences(field, said["values"][0, i].item(), told.low[i].item(), told.high[i].item(),
                                told.counts[i].tolist())  # fmt: skip
    return found


def _sentences(field: Field, value: float, low: float, high: float, counts: Sequence[float]) -> list[str]:
    name, said = field.name, schema.word(field, value)
    if not sum(counts[1:]):
        return [f"{name}={said}: no training subject had {name} recorded, so it means nothing to the model."]
    if field.kind == "number" and not low <= value <= high:
        return [f"{name}={said} lies outside {low:g} to {high:g}, the range of the training data."]
    if field.kind != "number" and not counts[int(value)]:
        return [f"{name}={said}: no training subject was so."]
    return []

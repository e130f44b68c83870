"""Configurations are frozen dataclasses, read strictly: an unknown key or a wrong type is an error with a sentence."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from .errors import InputError

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Build the dataclass `kind` from JSON values; InputError on an unknown key, a missing one or a wrong type."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where.rstrip('.') or kind.__name__}: expected a table of settings, found {values!r}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(fields)):
        raise InputError(f"{where}{unknown[0]}: no such setting; choose one of {', '.join(fields)}.")
    unset = dataclasses.MISSING
    required = [n for n, f in fields.items() if f.default is unset and f.default_factory is unset]
    if missing := [n for n in required if n not in values]:
        raise InputError(f"{where}{missing[0]}: this setting is missing; give it a value.")
    return kind(**{name: _coerce(hints[name], value, where + name) for name, value in values.items()})


def override(config: C, settings: Sequence[str]) -> C:
    """Apply `key=value` settings (`net.channels=[32,64]`); values are JSON, or a bare word for a string."""
    values = to_dict(config)
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found:
            raise InputError(f"--set {setting}: write it as key=value, for example steps=25.")
        *parents, last = key.strip().split(".")
        table: Any = values
        for parent in parents:
            table = table.get(parent) if isinstance(table, dict) else None
        if not isinstance(table, dict) or last not in table:
            raise InputError(f"--set {key}: no such setting; choose one of {', '.join(_leaves(values))}.")
        try:
            table[last] = json.loads(text)
        except json.JSONDecodeError:
            table[last] = text
    return from_dict(type(config), values)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    for key, value in values.items():
        out += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return out


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where + ".")  # type: ignore[arg-type]
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where}={value!r}: choose one of {', '.join(map(str, arguments))}.")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}={value!r}: expected a list such as [1, 2].")
        variadic = len(arguments) == 2 and arguments[1] is Ellipsis
        if not variadic and len(value) != len(arguments):
            raise InputError(f"{where}={value!r}: expected {len(arguments)} values, found {len(value)}.")
        kinds = [arguments[0]] * len(value) if variadic else arguments
        return tuple(_coerce(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where}={value!r}: expected a table of settings.")
        return {str(k): _coerce(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{where}={value!r}: expected {hint.__name__}, found {type(value).__name__}.")
    return value

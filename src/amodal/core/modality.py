"""Modality names: one canonical, BIDS-like set, and one alias table that maps all others to it."""

from __future__ import annotations

from .errors import InputError

# canonical name -> (BIDS suffix, BIDS entities that belong to the name, what others call it)
_TABLE: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "T1w": ("T1w", {}, ("t1", "t1n", "t1w", "t1native", "mprage")),
    "T1Gd": (
        "T1w",
        {"ce": "gadolinium"},
        ("t1ce", "t1c", "t1gd", "t1post", "t1wce", "t1wgd", "ce-gadolinium_t1w", "t1km"),
    ),
    "T2w": ("T2w", {}, ("t2", "t2w")),
    "FLAIR": ("FLAIR", {}, ("flair", "t2f", "fl", "t2flair", "t2wflair")),
    "PDw": ("PDw", {}, ("pd", "pdw")),
    "T2starw": ("T2starw", {}, ("t2star", "t2starw", "t2s", "gre")),
    "CT": ("ct", {}, ("ct",)),
    "PET": ("pet", {}, ("pet",)),
    "cine": ("cine", {}, ("cine", "sax")),
}
MODALITIES: tuple[str, ...] = tuple(_TABLE)
ALIASES: dict[str, str] = {alias: name for name, (_, _, others) in _TABLE.items() for alias in (name.lower(), *others)}


def canonical(name: str) -> str:
    """The canonical name of a modality (`t1ce` -> `T1Gd`); InputError if nobody calls a modality that."""
    found = ALIASES.get(name.strip().lower())
    if found is None:
        known = f"{', '.join(MODALITIES)} (or a usual alias such as t1ce, t2f, pd)"
        raise InputError(f"modality {name!r} is unknown; choose one of {known}.")
    return found


def suffix(name: str) -> str:
    """The BIDS suffix of a canonical modality (`T1Gd` -> `T1w`)."""
    return _TABLE[name][0]


def entities(name: str) -> dict[str, str]:
    """The BIDS entities that are part of a canonical modality's name (`T1Gd` -> `{"ce": "gadolinium"}`)."""
    return dict(_TABLE[name][1])

"""Modality names: canonical ones, aliases of every data set, and their BIDS form."""

from __future__ import annotations

import pytest

from amodal.core.errors import InputError
from amodal.core.modality import ALIASES, MODALITIES, canonical, entities, suffix


def test_the_canonical_names_and_their_order():
    assert MODALITIES == ("T1w", "T1Gd", "T2w", "FLAIR", "PDw", "T2starw", "CT", "PET", "cine")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        *[(a, "T1w") for a in ("t1", "T1", "t1n", "T1w", "mprage", " t1 ")],
        *[(a, "T1Gd") for a in ("t1ce", "t1c", "t1gd", "T1Gd", "T1CE", "ce-gadolinium_T1w")],
        *[(a, "T2w") for a in ("t2", "t2w", "T2W")],
        *[(a, "FLAIR") for a in ("flair", "t2f", "Flair", "T2FLAIR")],
        *[(a, "PDw") for a in ("pd", "PD", "pdw")],
        *[(a, "T2starw") for a in ("t2star", "T2starw")],
        *[(a, "CT") for a in ("ct", "CT")],
        *[(a, "PET") for a in ("pet", "PET")],
        ("cine", "cine"),
    ],
)
def test_aliases(alias, name):
    assert canonical(alias) == name


def test_every_canonical_name_is_its_own_alias_and_no_alias_means_two_things():
    assert [canonical(name) for name in MODALITIES] == list(MODALITIES)
    assert all(alias == alias.lower() for alias in ALIASES)
    assert set(ALIASES.values()) == set(MODALITIES)


@pytest.mark.parametrize("name", ["", "dwi", "t3", "seg", "t1 ce"])
def test_an_unknown_name_is_refused_with_what_is_known(name):
    with pytest.raises(InputError, match="is unknown; choose one of T1w, T1Gd, T2w, FLAIR.*usual alias"):
        canonical(name)


def test_the_bids_form():
    assert [suffix(name) for name in ("T1w", "T1Gd", "T2w", "FLAIR", "PDw", "T2starw", "CT", "PET")] == [
        "T1w", "T1w", "T2w", "FLAIR", "PDw", "T2starw", "ct", "pet",
    ]  # fmt: skip
    assert entities("T1Gd") == {"ce": "gadolinium"}
    assert all(entities(name) == {} for name in MODALITIES if name != "T1Gd")


def test_what_is_handed_out_is_a_copy():
    entities("T1Gd")["ce"] = "none"
    assert entities("T1Gd") == {"ce": "gadolinium"}

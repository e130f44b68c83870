"""The methods, by name. A new one is one folder and one line here."""

from __future__ import annotations

from . import any2all, apt, cola_diff, copedit, wfdm

METHODS = {"any2all": any2all, "apt": apt, "cola_diff": cola_diff, "copedit": copedit, "wfdm": wfdm}
ASKING = {"wfdm": wfdm.asking}  # what may be asked of generated subjects: request, outside, translate, names
GUIDED = {"cola_diff": cola_diff.sources}  # config -> the modalities whose tissue maps it takes, best first
ABOUT = {"apt": apt.about}  # what a trained method says of itself on its model's card

"""The methods, by name. A new one is one folder and one line here."""

from __future__ import annotations

from . import any2all

METHODS = {"any2all": any2all}

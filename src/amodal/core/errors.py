"""The two errors a user can meet. A message is one sentence: what was seen, what is allowed, what to do."""

from __future__ import annotations


class AmodalError(Exception):
    """Something failed at run time (exit code 1 on the command line)."""


class InputError(AmodalError):
    """The input or the usage is wrong (exit code 2 on the command line); nothing was written."""

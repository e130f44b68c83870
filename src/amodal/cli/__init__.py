"""The command line. Nothing heavy is imported before a command runs, so that `amodal --help` answers at once."""

from .app import main

__all__ = ["main"]

"""Checkpoints that survive a kill at any moment: written beside, checked by sha256, then renamed. No pickle.

`checkpoints/<stage>-<step>/`: tensors.safetensors (weights, averages, moments) and state.json (where training stands).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER, TENSORS, STATE = "checkpoints", "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix/`, with the prefix taken off."""
        return {k[len(prefix) + 1 :]: v for k, v in self.tensors.items() if k.startswith(prefix + "/")}


def save(
    folder: Path, stage: int, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Write one checkpoint into `folder/checkpoints`, atomically, and drop all but the newest `keep`."""
    parent = folder / FOLDER
    final = parent / f"{stage:02d}-{step:09d}"
    partial = parent / f".partial-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_plain(tensors), partial / TENSORS)
    whole = {**state, "stage": stage, "step": step, "sha256": _sha256(partial / TENSORS)}
    (partial / STATE).write_text(json.dumps(whole, indent=1))
    for path in (partial / TENSORS, partial / STATE, partial):
        _sync(path)
    if final.exists():  # the same step made once more, after a resume
        shutil.rmtree(final)
    os.replace(partial, final)
    _sync(parent)
    for old in _all(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(folder: Path, note: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that is whole, or None; one that is damaged is passed over, and `note` is told."""
    for path in _all(folder):
        try:
            state = json.loads((path / STATE).read_text())
            if _sha256(path / TENSORS) != state["sha256"]:
                raise ValueError("its sha256 differs")
            return Saved(load_file(path / TENSORS), state)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            note(f"{path}: passed over, it is damaged ({error}).")
    return None


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and no two in one piece of memory (tied weights), as the format wants them."""
    out: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        at = plain.untyped_storage().data_ptr()
        out[name] = plain.clone() if at in taken else plain
        taken.add(at)
    return out


def _all(folder: Path) -> list[Path]:
    parent = folder / FOLDER
    return sorted((p for p in parent.iterdir() if p.name[0] != "."), reverse=True) if parent.is_dir() else []


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

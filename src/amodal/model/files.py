"""What a model's folder holds: weights.safetensors, model.json (format version, method, config, grid, windows, card,
sha256) and, after training, metrics.jsonl. It is checked before anything of it is believed, and replaced in one move.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor

from .. import __version__
from ..core.errors import InputError
from ..data.nifti import sha256

FORMAT = 1
SHIPPED = {name: Path(__file__).parents[1] / "models" / name for name in ("default", "five-contrasts")}
WEIGHTS, ABOUT = "weights.safetensors", "model.json"
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


def write(folder: Path, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Write weights and description; nothing is left half-written. The sha256 of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary, page = folder / f".{WEIGHTS}.part", folder / f".{ABOUT}.part"
    temporary.write_bytes(to_bytes(dict(state)))
    found = sha256(temporary)
    page.write_text(json.dumps({"format": FORMAT, "amodal": __version__, **about, "sha256": found}, indent=1) + "\n")
    os.replace(temporary, folder / WEIGHTS)
    os.replace(page, folder / ABOUT)
    return found


def describe(where: str | Path) -> dict[str, Any]:
    """model.json of a model, checked, with its folder; no weights are read into memory."""
    folder = find(where)
    return {**read(folder), "folder": str(folder)}


def is_model(path: str | Path) -> bool:
    """Whether a path is a model's folder."""
    return (Path(path) / "model.json").is_file()


def is_hub(where: str | Path) -> bool:
    return not Path(where).exists() and isinstance(where, str) and _HUB.fullmatch(where) is not None


def find(where: str | Path) -> Path:
    folder = SHIPPED.get(str(where)) or (_fetch(str(where)) if is_hub(where) else Path(where))
    if not is_model(folder):
        raise InputError(
            f"{where} is no model; give a folder with model.json and weights.safetensors, or one of "
            f"{', '.join(SHIPPED)}."
        )
    return folder


def _fetch(where: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = where.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[WEIGHTS, ABOUT]))
    except Exception as error:  # the hub's errors are many; the user needs one sentence
        raise InputError(
            f"{where} is no folder here and could not be had from the hub ({type(error).__name__}); "
            "give the path of a model folder."
        ) from error


def read(folder: Path) -> dict[str, Any]:
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES):
        raise InputError(
            f"{folder} holds {pickles[0]}, which may carry code; a model is safetensors and JSON only, remove the file."
        )
    page = folder / ABOUT
    try:
        about = json.loads(page.read_text())
        version = about["format"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{page} is no model description; train the model again or fetch it anew.") from error
    if version != FORMAT:
        raise InputError(
            f"{folder} has model format {version!r}; this version reads {FORMAT}, update amodal or the model."
        )
    if missing := {"method", "config", "grid", "windows", "card", "sha256", "modalities"} - set(about):
        raise InputError(f"{page} lacks {sorted(missing)[0]}; fetch the model anew.")
    weights = folder / WEIGHTS
    found = sha256(weights) if weights.is_file() else "no file"
    if found != about["sha256"]:
        stated = str(about["sha256"])[:12]
        raise InputError(f"{weights} has sha256 {found[:12]}, model.json says {stated}; fetch the model anew.")
    return about

"""Models from disk: the one that comes along, a folder, or a hub's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..core.config import from_dict
from ..core.contract import Grid
from ..core.device import bf16, pick
from ..core.errors import InputError
from ..data.intensity import Window
from ..methods import METHODS
from ..nn.layout import convert
from . import files
from .outline import Outlines
from .system import Model


def load(where: str | Path = "default", *, device: str = "auto", precision: str = "auto") -> Model:
    """A model by name: `default` or `five-contrasts`, a folder, or a Hugging Face hub id `owner/name[@revision]`.

    Only the last asks the network. InputError if the folder holds a pickle, another format version, or weights whose
    sha256 is not the stated one.
    """
    folder = files.find(where)
    about = files.read(folder)
    method = build(about)
    weights = folder / files.WEIGHTS
    try:
        state = {k: v.float() for k, v in load_file(str(weights)).items()}
        outlines = Outlines.take(state)
        method.load_state_dict(state)
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{weights} are not the weights of the network in model.json; fetch the model anew."
        ) from error
    target = pick(device)
    half = bf16(precision, target)
    convert(method, torch.bfloat16 if half else torch.float32).to(target).eval().requires_grad_(False)
    return Model(
        name=about["method"], method=method, grid=from_dict(Grid, about["grid"]), card=about["card"],
        windows={k: (float(lo), float(hi)) for k, (lo, hi) in about["windows"].items()}, sha256=about["sha256"],
        outlines=outlines, quantities={k: from_dict(Window, v) for k, v in about.get("quantities", {}).items()},
        id=str(where) if str(where) in files.SHIPPED or files.is_hub(where) else folder.name,
        precision="bf16" if half else "fp32",
    )  # fmt: skip


def build(about: Mapping[str, Any]) -> Any:
    """The untrained method (a Method and a torch.nn.Module) a model.json describes."""
    name = about["method"]
    if name not in METHODS:
        raise InputError(f"the model is of method {name!r}; this version knows {', '.join(METHODS)}.")
    module = METHODS[name]
    return module.build(from_dict(module.Config, about["config"]))

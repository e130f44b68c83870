"""Reading the image tower of BiomedCLIP (and of any CLIP that open_clip builds on a timm ViT) into our ViT.

open_clip and timm are not needed; only their key names are known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ....core.errors import InputError
from .vit import ViT

TRUNK = "visual.trunk."
NAMES = {  # theirs, after the trunk's prefix -> ours
    "cls_token": "cls",
    "pos_embed": "position",
    "patch_embed.proj": "stem",
    "norm": "norm",
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
HEAD = {"visual.head.proj.weight": "head.weight"}
FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")  # as published, in order
SAFE, OTHERS = ".safetensors", (".bin", ".pt", ".pth")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of an open_clip state dict under our names; what belongs to text is left behind."""
    out = {}
    for key, value in state.items():
        if key in HEAD:
            out[HEAD[key]] = value
        elif key.startswith(TRUNK):
            inner = key.removeprefix(TRUNK)
            block = re.match(r"blocks\.\d+\.", inner)
            prefix = block.group() if block else ""
            name, _, kind = inner.removeprefix(prefix).rpartition(".")
            whole = inner in NAMES  # a parameter of the tower itself
            out[NAMES[inner] if whole else f"{prefix}{NAMES.get(name, name)}.{kind}"] = value
    return out


def fill(vit: ViT, where: str) -> None:
    """Load `vit` with the weights at `where`: a file (safetensors, or torch's as BiomedCLIP is published, of which only
    tensors are read), a folder with one, or a hub id `owner/name`. InputError if there is none or it is another's.
    """
    path = _find(where)
    try:
        safe = path.suffix == SAFE
        state = load_file(str(path)) if safe else torch.load(path, map_location="cpu", weights_only=True)
        vit.load_state_dict(translate(state))
    except Exception as error:  # a damaged file has as many errors as it has readers; the user needs one sentence
        raise InputError(
            f"{path} does not hold the image tower that features.vit describes (BiomedCLIP: ViT-B/16 at 224, outputs "
            "512); give another file or change features.vit."
        ) from error


def _find(where: str) -> Path:
    path = Path(where)
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).is_file()), path / FILES[0])
    elif not path.exists() and _HUB.fullmatch(where):
        path = _fetch(where)
    if path.suffix not in (SAFE, *OTHERS) or not path.is_file():
        raise InputError(
            f"features.weights={where}: no weights there; give a file ({', '.join((SAFE, *OTHERS))}), a folder with "
            f"one of {', '.join(FILES)}, or a hub id owner/name."
        )
    return path


def _fetch(where: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = where.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's errors are many; the user needs one sentence
        raise InputError(
            f"features.weights={where}: no file here, and it could not be had from the hub ({type(error).__name__}); "
            "give the path of a file."
        ) from error
    return next((folder / name for name in FILES if (folder / name).is_file()), folder)

"""Published weights, read without running anything in them, checked name by name, and known by their sha256."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...core.errors import InputError

WRAPPERS = ("state_dict", "model_state_dict")  # under which some files keep their tensors
PREFIX = "module."  # of networks saved from several GPUs


def read(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a .pth, .pt or .safetensors file by name (without `module.`), and the file's sha256.

    InputError if there is no such file, or it holds anything but tensors by name: TorchScript archives and pickled
    networks are programs, and are not run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give the weights that were downloaded.")
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        safe = path.suffix == ".safetensors"
        found = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader refuses what is not tensors with errors of many kinds
        raise InputError(
            f"{path}: no tensors can be read here (a program, or a broken file); give a file of plain weights."
        ) from error
    while isinstance(found, dict) and (inner := next((k for k in WRAPPERS if k in found), None)):
        found = found[inner]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"{path}: it does not hold tensors by name; give a file of plain weights.")
    return {str(k).removeprefix(PREFIX): v for k, v in found.items()}, sha256


def fill(net: nn.Module, tensors: dict[str, Tensor], path: str | Path, spare: tuple[str, ...] = ()) -> nn.Module:
    """Put tensors into a network of the same names and shapes and freeze it.

    Names that begin as one of `spare` may be there and are left out. InputError names the first that does not fit.
    """
    wanted = net.state_dict()
    given = {k: v for k, v in tensors.items() if k in wanted or not k.startswith(spare or ("\0",))}
    counters = {k for k in wanted if k.endswith("num_batches_tracked")}  # older files have none
    missing = sorted(set(wanted) - set(given) - counters)
    extra = sorted(set(given) - set(wanted))
    if missing or extra:
        seen = f"lacks {missing[0]}" if missing else f"has {extra[0]}"
        raise InputError(f"{path}: it {seen}, so it is another network's; give the published weights of this one.")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise InputError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}; "
                "give the published weights of this network."
            )
    net.load_state_dict(given, strict=False)
    return net.eval().requires_grad_(False)


def hollow(make: type[nn.Module], *arguments: object) -> nn.Module:
    """A network without numbers in it, to be filled: none are drawn, so the random state stays as it was."""
    with torch.device("meta"):
        net = make(*arguments)
    return net.to_empty(device="cpu")

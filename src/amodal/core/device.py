"""Which device, and whether it computes in bf16."""

from __future__ import annotations

import torch

from .errors import InputError


def pick(device: str = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` as a device that is really there; InputError otherwise."""
    name, _, number = device.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") or (number and not (number.isdigit() and name == "cuda")):
        raise InputError(f"device={device!r}: choose auto, cpu, cuda, cuda:N or mps.")
    if name == "cuda" and (not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()):
        there = torch.cuda.device_count()
        raise InputError(f"device={device!r}: this machine has {there} CUDA devices, choose auto or cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device={device!r}: this machine has no such device, choose auto or cpu.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(f"{name}:{number}" if number else name)


def bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bf16; `auto`: where the hardware does."""
    if precision not in ("auto", "bf16", "fp32"):
        raise InputError(f"precision={precision!r}: choose auto, bf16 or fp32.")
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

"""Which device, whether it computes in bf16, and how its memory is kept."""

from __future__ import annotations

import ctypes
import functools
import platform

import torch

from .errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


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
    if name == "cpu":
        keep_memory()
    return torch.device(f"{name}:{number}" if number else name)


@functools.cache
def keep_memory() -> None:
    """Memory that was freed is used again, up to 2 GiB of it, not handed back to the system (glibc alone can be told).

    Else each tensor's pages are taken from the system anew and cleared, a fifth of the time of a 3-D network.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)


def bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bf16; `auto`: where the hardware does."""
    if precision not in ("auto", "bf16", "fp32"):
        raise InputError(f"precision={precision!r}: choose auto, bf16 or fp32.")
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

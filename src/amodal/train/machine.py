"""What a run asks of the machine: its devices, its precision, its signals, one clock for all processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric

from ..core.errors import InputError


def agree(fabric: Fabric, seconds: float, stop: bool) -> tuple[float, bool]:
    """The first process's clock, and whether it was told to stop: all must end and decay at the same step."""
    if fabric.world_size == 1:
        return seconds, stop
    mine = torch.tensor([seconds, float(stop)], dtype=torch.float64, device=fabric.device)
    theirs = fabric.broadcast(mine)
    return float(theirs[0]), bool(theirs[1])


@contextmanager
def signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set (once: the second one acts as usual)."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
        yield stop
        return
    usual: dict[int, Any] = {n: signal.getsignal(n) or signal.SIG_DFL for n in (signal.SIGINT, signal.SIGTERM)}

    def hear(number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(number, usual[number])

    for number in usual:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def devices(device: str) -> tuple[str, Any]:
    """`cuda:1` -> Fabric's accelerator and devices."""
    name, _, number = device.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise InputError(f"device={device!r}: choose auto, cpu, cuda, cuda:N or mps.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={device!r}: this machine has no CUDA device, choose auto or cpu.")
    return name, [int(number)] if number else 1 if name == "cpu" else "auto"


def bf16(precision: str, accelerator: str) -> bool:
    """Whether to train in bf16 (fp32 master weights); auto: where the hardware computes in it."""
    if precision != "auto":
        return precision == "bf16"
    if accelerator in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    if accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

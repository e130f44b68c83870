"""What a run asks of the machine: its devices, its precision, its signals, one clock for all processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric

from ..core.device import pick


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
    found = pick(device)
    return found.type, [found.index] if found.index is not None else 1 if found.type == "cpu" else "auto"

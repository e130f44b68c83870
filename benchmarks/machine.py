"""What the numbers of a benchmark depend on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from amodal.core.device import bf16


def machine(threads: int) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model, "amx": any("amx_bf16" in line for line in lines), "bf16": bf16("auto", torch.device("cpu")),
        "cores": os.cpu_count(), "threads": threads, "load": round(os.getloadavg()[0], 1), "torch": torch.__version__,
        "python": platform.python_version(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip

"""amodal completes multi-modal MRI with diffusion models: missing contrasts filled in, on the files' own grid.

study = amodal.read("sub-01")
full = amodal.load("default").complete(study, missing=["FLAIR"])
full["FLAIR"].save("flair.nii.gz")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Study", "Volume", "load", "read"]

if TYPE_CHECKING:
    from .data.volume import Study, Volume
    from .model import load
    from .preprocess.read import read

_WHERE = {"Study": "data.volume", "Volume": "data.volume", "load": "model", "read": "preprocess.read"}


def __getattr__(name: str) -> Any:
    # imported on first use, so that the command line can answer --help without torch
    if name not in _WHERE:
        raise AttributeError(f"module 'amodal' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(f".{_WHERE[name]}", __name__), name)

"""Reading a subject for a method: on one grid and, where the method is guided by them, with its tissue maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.volume import Source, Study
from ..methods import GUIDED
from ..preprocess.align import prepare


def read(
    source: Source, method: str, config: Any, folder: Path | None = None, given: Sequence[str] | None = None
) -> Study:
    """The study of a source as `method` with `config` takes it.

    Tissue maps are made of every modality that can guide or, where it is known what will be `given`, of the first
    alone; they are kept in `folder`.
    """
    study = prepare(source)
    sources = [name for name in GUIDED[method](config) if name in study] if method in GUIDED else []
    if given is not None:
        sources = [name for name in sources if name in given][:1]
    if not sources:
        return study
    from ..preprocess import tissue

    return tissue.segment(study, sources, folder, tissue.tumour_of(source, study))

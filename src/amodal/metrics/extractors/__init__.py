"""Fixed networks and statistics that turn volumes into feature vectors, each named by the sha256 of its weights.

`seeded` and `texture` need nothing; the others read weights that the user has downloaded, in their published formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...core.device import pick
from ...core.errors import InputError
from ..features import Features
from ..pair import Image, array
from . import i3d, inception, medicalnet, seeded, texture

Forward = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Extractor:
    """`forward`: a volume [X, Y, Z] whose black is 0 and white 1 -> [k, d], k samples (1, or one a slice)."""

    name: str
    sha256: str
    preparation: str
    forward: Forward
    standardise: bool = False


@dataclass(frozen=True)
class Row:
    """One known extractor: `build` makes the sha256 and the function, from a device or from weights and a device."""

    build: Callable[..., tuple[str, Forward]]
    preparation: str
    published: bool = True
    standardise: bool = False


TABLE: dict[str, Row] = {
    "seeded": Row(seeded.load, seeded.PREPARATION, published=False, standardise=True),
    "texture": Row(texture.load, texture.PREPARATION, published=False, standardise=True),
    "medicalnet-resnet10": Row(partial(medicalnet.load, depth=10), medicalnet.PREPARATION),
    "medicalnet-resnet50": Row(partial(medicalnet.load, depth=50), medicalnet.PREPARATION),
    "inception-v3": Row(inception.load, inception.PREPARATION),
    "i3d": Row(i3d.load, i3d.PREPARATION),
}


def load(name: str = "seeded", weights: str | Path | None = None, device: str = "cpu") -> Extractor:
    """An extractor by name, on a device; the published networks need `weights`, a local file in its published format.

    InputError if the name is unknown, or the weights are missing, not wanted, or another network's.
    """
    if name not in TABLE:
        raise InputError(f"{name!r} is no feature extractor; choose among {', '.join(TABLE)}.")
    row = TABLE[name]
    if row.published and weights is None:
        raise InputError(f"{name} needs its published weights as a local file; download them and give the path.")
    if not row.published and weights is not None:
        raise InputError(f"{name} is built in and takes no weights; leave them out.")
    sha256, forward = row.build(*([weights] if row.published else []), pick(device))
    return Extractor(name, sha256, row.preparation, forward, row.standardise)


def extract(
    extractor: Extractor,
    volumes: Iterable[tuple[str, Image]],
    *,
    each_slice: bool = False,
    subject: Callable[[str], str] = str,
) -> Features:
    """The features of (label, volume [X, Y, Z]) pairs, read one at a time; intensities 0 are black and 1 white.

    A network of slices gives the mean over a volume's slices; with `each_slice` every slice is a sample of its own, in
    the group of its subject. `subject`: label -> subject, for cohorts with several volumes of one.
    InputError names the volume that cannot be used.
    """
    rows, labels, groups = [], [], []
    for label, volume in volumes:
        found = np.asarray(extractor.forward(_volume(label, volume)), np.float64)
        found = found if each_slice else found.mean(0, keepdims=True)
        if not np.isfinite(found).all():
            raise InputError(f"{label}: its features are not finite; look whether the volume is empty.")
        rows.append(found)
        labels += [label] * len(found)
        groups += [subject(label)] * len(found)
    if not rows:
        raise InputError("no volume was given to take features of; give at least one.")
    preparation = f"{extractor.preparation}{', every slice a sample' if each_slice else ''}"
    return Features(
        np.concatenate(rows), tuple(labels), extractor.name, extractor.sha256, preparation, tuple(groups),
        extractor.standardise,
    )  # fmt: skip


def _volume(label: str, volume: Image) -> np.ndarray:
    x = array(volume)
    if x.ndim != 3 or not np.isfinite(x).all() or np.ptp(x) == 0:
        raise InputError(f"{label}: a volume of shape {x.shape} that is finite and not constant is needed.")
    return x

"""Protocols with names: how each paper's tables were measured, frozen, so that others can repeat them.

A protocol says which data set, which of its subjects, on which voxels, on which scale, what is hidden, what is measured
and how it is pooled. What a paper leaves open is listed in `assumed`. The papers' own numbers are in `numbers.json`.
`TRUST` is the protocol of the trust test, on any data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..core.config import to_dict
from ..core.errors import InputError
from ..core.rng import seed_of
from ..data.volume import Source, Study
from ..model.slices import upright
from .measure import Ruler, Slices
from .patterns import Sets
from .space import FIT, KEEP, Space

BRATS = ("T1w", "T1Gd", "T2w", "FLAIR")
IXI = ("T1w", "T2w", "PDw")
AS_IT_IS = Space()
NUMBERS = Path(__file__).parent / "numbers.json"


@dataclass(frozen=True)
class Split:
    """Which subjects are tested: of `take` (0: all) in the order of a hash of seed and name, the last `test` (0: all).
    `subjects`: how many the paper's data set has."""

    subjects: int
    test: int
    take: int = 0
    seed: int = 2025

    def order(self, labels: Sequence[str]) -> list[str]:
        """Names in an order that depends on nothing but each name and the seed."""
        return sorted(labels, key=lambda label: (seed_of(self.seed, "split", label), label))

    def tested(self, labels: Sequence[str]) -> list[str]:
        """The names of those to be tested."""
        ordered = self.order(labels)[: self.take or None]
        return ordered[-self.test :] if self.test else ordered


@dataclass(frozen=True)
class Protocol:
    """`name` and `version` together are its id. `grid`: the voxels its data come with (None: any). `patterns`: as in
    `patterns.parse_patterns`, `slices:8,16,24` (that many of a stack in a row) or "generate". `pool`: over patterns of
    the same number hidden, or each by itself. `changed`: what this run does otherwise than the protocol."""

    name: str
    version: int
    paper: str
    source: str
    data: str
    modalities: tuple[str, ...]
    patterns: Sets
    ruler: Ruler
    space: Space = AS_IT_IS
    split: Split | None = None
    grid: tuple[int, int, int] | None = None
    pool: Literal["count", "pattern"] = "pattern"
    more: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return "; ".join((f"{self.name} v{self.version}", *self.changed))

    def prepare(self, study: Study) -> Study:
        """A study on one grid, on the voxels of the protocol."""
        if self.grid is not None and not self.changed and study[study.reference].shape != self.grid:
            shape, wanted = (" x ".join(map(str, s)) for s in (study[study.reference].shape, self.grid))
            raise InputError(
                f"{study.label} has {shape} voxels and {self.name} is of data with {wanted}; "
                "give that data set, or pass --allow-other-data."
            )
        study = study.only(*self.modalities) if self.modalities else study
        return self.space.enter(upright(study) if "cine" in self.modalities else study)  # (its slices along S)


TRUST = Protocol(
    name="trust",
    version=2,
    paper="",
    source="",
    data="the user's own complete subjects",
    modalities=(),
    patterns="all",
    ruler=Ruler(),
)

_COPEDIT = "Liu et al., CoPeDiT, arXiv:2602.18400v2"
_APT = "APT: anatomical features, prior codebook and two-stage inference (paper 2)"
_COLA = "Jiang et al., CoLa-Diff, MICCAI 2023"
_WHOLE = "PSNR and SSIM over the whole image: no mask is mentioned"
_SPLIT = "which subjects: the list is not published, so the order is that of a hash of their names"
_SLICES = "slices count as parts of a subject: mean over its slices first, then over subjects"
_UNIT = Ruler(("psnr", "ssim"), (0.5, 99.5), "none", 3)
_PLANES = Ruler(("psnr", "ssim"), (0.0, 100.0), "none", 2)

PROTOCOLS: Mapping[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            name="copedit-brats",
            version=1,
            paper=_COPEDIT,
            source="Table 1; preprocessing of appendix B.1, split of Table 12",
            data="BraTS 2021, 1251 subjects, 240 x 240 x 155 of 1 mm",
            modalities=BRATS,
            patterns="all",
            ruler=_UNIT,
            space=Space((192, 192, 64), (1.0, 1.0, 90 / 64)),
            split=Split(1251, 251),
            grid=(240, 240, 155),
            pool="count",
            more=("fid", "fvd"),
            assumed=(
                _SPLIT,
                _WHOLE,
                "every pattern of equal weight, where the paper draws them",
                "the middle 90 mm by 192 mm by 192 mm, in voxels of 1 x 1 x 1.41 mm",
            ),
        ),
        Protocol(
            name="copedit-ixi",
            version=1,
            paper=_COPEDIT,
            source="Table 2; preprocessing of appendix B.1, split of Table 12",
            data="IXI, 577 subjects with T1, T2 and PD",
            modalities=IXI,
            patterns="all",
            ruler=_UNIT,
            space=Space((192, 192, 64), (0.9375, 0.9375, 1.25 * 80 / 64)),
            split=Split(577, 115),
            pool="count",
            more=("fid", "fvd"),
            assumed=(
                _SPLIT,
                _WHOLE,
                "the three images are brought to one grid first; the paper does not say so",
                "the 80 middle slices and 192 x 192 pixels are those of T2w and PDw: 180 x 180 x 100 mm",
            ),
        ),
        Protocol(
            name="copedit-cardiac",
            version=1,
            paper=_COPEDIT,
            source="Table 3; preprocessing of appendix B.1, split of Table 12",
            data="UK Biobank short-axis stacks, 31350 volumes",
            modalities=("cine",),
            patterns="slices:8,16,24",
            ruler=_UNIT,
            space=Space((192, 192, 32), (KEEP, KEEP, FIT)),
            split=Split(31350, 6270),
            pool="pattern",
            more=("fid", "fvd"),
            assumed=(_SPLIT, _WHOLE, "where the gap begins is drawn once for each subject's name"),
        ),
        Protocol(
            name="apt-brats",
            version=1,
            paper=_APT,
            source="Table 1 (one contrast missing), Table 6 (two or three); section 4.1",
            data="BraTS 2021, 2040 cases with those of its validation and test sets; 1251 have all files public",
            modalities=BRATS,
            patterns="all",
            ruler=replace(_PLANES, slices=Slices(0.5, 4)),
            space=Space((256, 256, 0), (FIT, FIT, KEEP)),
            split=Split(1251, 50),
            grid=(240, 240, 155),
            assumed=(
                _SPLIT,
                _WHOLE,
                _SLICES,
                "4 slices of each of 50 subjects, evenly through those with half of the largest slice's brain",
                "0 and 1 are the smallest and largest value of each volume",
            ),
        ),
        Protocol(
            name="apt-adni",
            version=1,
            paper=_APT,
            source="Table 1 (one contrast missing), Table 7 (two); section 4.1",
            data="ADNI, 737 scans with T1, T2 and PD",
            modalities=IXI,
            patterns="all",
            ruler=replace(_PLANES, slices=Slices(0.5, 5)),
            space=Space((256, 256, 0), (FIT, FIT, KEEP)),
            split=Split(737, 30),
            assumed=(
                _SPLIT,
                _WHOLE,
                _SLICES,
                "5 slices of each of 30 subjects, evenly through those with half of the largest slice's brain",
                "0 and 1 are the smallest and largest value of each volume",
            ),
        ),
        Protocol(
            name="cola-brats2018",
            version=1,
            paper=_COLA,
            source="Table 1, top; section 3.1",
            data="BraTS 2018, 285 subjects, 240 x 240 x 155 of 1 mm",
            modalities=BRATS,
            patterns="each",
            ruler=replace(_PLANES, slices=Slices(0.1)),
            space=Space((224, 224, 0)),
            split=Split(285, 55),
            grid=(240, 240, 155),
            assumed=(
                _SPLIT,
                _WHOLE,
                _SLICES,
                "slices with a tenth of the largest slice's brain or more",
                "0 and 1 are the smallest and largest value of each volume",
            ),
        ),
        Protocol(
            name="cola-ixi",
            version=1,
            paper=_COLA,
            source="Table 1, bottom; section 3.1",
            data="IXI, 200 subjects with T1, T2 and PD, registered to T1",
            modalities=IXI,
            patterns="each",
            ruler=replace(_PLANES, slices=Slices(0.1)),
            space=Space((224, 224, 0)),
            split=Split(200, 35, take=200),
            assumed=(
                _SPLIT,
                _WHOLE,
                _SLICES,
                "slices with a tenth of the largest slice's brain or more",
                "0 and 1 are the smallest and largest value of each volume",
                "registered by amodal where the headers do not agree, where the paper uses FSL FLIRT",
            ),
        ),
        Protocol(
            name="any2all",
            version=1,
            paper="Gan et al., Any2all, arXiv:2602.08249",
            source="Figures 4, 5 and 6; section 4.1",
            data="in-house: 226 subjects with T1, T2-FLAIR, T2*, CT and PET, registered to T1",
            modalities=("T1w", "FLAIR", "T2starw", "CT", "PET"),
            patterns=(
                ("T2starw", "FLAIR", "CT", "PET"),  # + T1w
                ("FLAIR", "CT", "PET"),  # + T1w and T2*
                ("CT", "PET"),  # all MR
                ("FLAIR",),
                ("CT",),
                ("PET",),
            ),
            ruler=replace(_PLANES, slices=Slices(0.3)),
            split=Split(226, 21),
            more=("fid",),
            assumed=(
                _SPLIT,
                _WHOLE,
                _SLICES,
                "slices with 0.3 of the largest slice's head or more, for the paper's about 100",
                "0 and 1 are the smallest and largest value of each volume, where the paper scales CT and PET by "
                "constants of its training set",
                "the figures' values cannot be read from the text, so none is printed beside",
            ),
        ),
        Protocol(
            name="wfdm-brainscape",
            version=1,
            paper="Yasinzai, Mito & Pedersen, WFDM, 2026",
            source="Tables 1, 4 and 12 to 15; sections 2.3 and 2.5",
            data="BrainScape snapshot, 45880 scans, in SRI-24 space, brain-extracted, 1 mm",
            modalities=BRATS,
            patterns="generate",
            ruler=Ruler(("msssim",), (0.0, 99.5), "none", 3),
            space=Space((192, 224, 160), (1.0, 1.0, 1.0)),
            split=Split(5393, 0),
            pool="pattern",
            more=("fid", "mmd"),
            assumed=(
                "the data given are the paper's test split: 3414 T1w, 867 T2w, 815 FLAIR and 297 T1Gd scans",
                "the upper percentile is 99.5; the paper says only that it is high",
                "as many volumes are generated as there are real ones",
                "bandwidths of the MMD: multiples of the median distance among real features; the paper gives none",
            ),
        ),
    )
}


def named(name: str) -> Protocol:
    """A protocol by its name; InputError if there is none."""
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def chosen(
    protocol: Protocol, sources: Sequence[Source], subjects: int | None = None, other_data: bool = False
) -> tuple[Protocol, list[Source]]:
    """The protocol as it will be run and the subjects it tests, in its order.

    `subjects`: only so many of them; `other_data`: the checks on the data set are left out and all subjects are tested.
    Either is written into the protocol's id, so that the run is never taken for the real one. InputError, in a
    sentence, where the data do not fit.
    """
    wanted = set(protocol.modalities)
    usable = {s.label: s for s in sources if s.problem is None and wanted <= set(s.files)}
    if not usable:
        there = sorted({m for s in sources for m in s.files})
        raise InputError(
            f"{protocol.name} needs subjects with {', '.join(protocol.modalities)}, these have at most "
            f"{', '.join(there) or 'nothing'}; give {protocol.data}."
        )
    split = protocol.split or Split(0, 0)
    if other_data:
        names = split.order(list(usable))
    elif len(usable) < split.subjects:
        raise InputError(
            f"{protocol.name} is of {split.subjects} subjects and {len(usable)} here have "
            f"{', '.join(protocol.modalities)}; give {protocol.data}, or pass --allow-other-data."
        )
    else:
        names = split.tested(list(usable))
    changed = ["other data"] if other_data else []
    if subjects is not None and subjects < len(names):
        names = names[:subjects]
        changed.append(f"{subjects} subjects")
    return replace(protocol, changed=tuple(changed)), [usable[name] for name in names]


@dataclass(frozen=True)
class Published:
    """One number of a paper. `pattern`: what was hidden (`T2w+FLAIR`, `2 missing`); `modality`: an image, or "all"."""

    pattern: str
    modality: str
    metric: str
    mean: float
    sd: float | None
    source: str


@cache
def published(name: str) -> tuple[Published, ...]:
    """The paper's own numbers of a protocol; none where it has them as figures only."""
    table = json.loads(NUMBERS.read_text(encoding="utf-8"))
    return tuple(
        Published(row["pattern"], row["modality"], metric, *_mean_sd(value), part["source"])
        for part in table.get(name, ())
        for row in part["rows"]
        for metric, value in row.items()
        if metric not in ("pattern", "modality")
    )


def _mean_sd(value: Any) -> tuple[float, float | None]:
    return (float(value[0]), float(value[1])) if type(value) is list else (float(value), None)


def about(protocol: Protocol) -> dict[str, Any]:
    """As it is written into results: every field, and the id."""
    return {"id": protocol.id, **to_dict(protocol)}

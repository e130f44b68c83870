"""Does a model give its training set away? Nearest neighbours, duplicates, and who can be recognised as a member.

Every generated volume is held against the training volumes in two spaces (coarse images and features of a network), and
its distances against those among real people: a copy is nearer to a training volume than any two people are to each
other. Where held-out volumes of the same kind are given, copying shows as a pull towards the training set that the
held-out set does not have, which smooth images (near to everybody) do not fake.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.rng import seed_of
from .extractors import Extractor, load
from .membership import Membership, membership
from .pair import Image, array

Volumes = Iterable[tuple[str, Image]]

COARSE = 32  # voxels a side of the images compared
THUMB = 128  # pixels of a picture's longer side
COPY = 0.5  # nearer than this part of the smallest distance of two real volumes: a copy
FEW = 5  # volumes of a kind below which no verdict is given
ALPHA = 0.01
LOTS = 5000  # random draws of who was trained on
SHOWN = 6  # pairs of which pictures are kept


@dataclass(frozen=True)
class Neighbour:
    """A generated volume and its nearest training volume; `rank` is the part of real distances that are smaller."""

    generated: str
    training: str
    distance: float
    ratio: float
    rank: float
    copy: bool


@dataclass(frozen=True)
class Pull:
    """The part of generated volumes whose nearest real volume was trained on, what it would be by lot, and p."""

    share: float
    expected: float
    p: float


@dataclass(frozen=True)
class Space:
    """One space's distances. `real`: of each real volume to the nearest training volume of another person.

    `ratios`: nearest over second nearest distance of the real ones, to hold against those of the neighbours.
    `twins`: pairs of generated volumes of different subjects that are copies of each other.
    """

    name: str
    neighbours: tuple[Neighbour, ...]
    real: tuple[float, ...]
    ratios: tuple[float, ...]
    threshold: float
    pull: Pull | None
    twins: tuple[tuple[str, str, float], ...]
    attack: Membership | None


@dataclass(frozen=True)
class Finding:
    """What was looked for, whether it is well (None: it cannot be said), and in words."""

    name: str
    good: bool | None
    words: str


@dataclass(frozen=True)
class Shown:
    """A suspicious pair and its middle planes (axial, coronal, sagittal), uint8 [rows, columns] in voxel order."""

    neighbour: Neighbour
    generated: tuple[np.ndarray, ...]
    training: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Audit:
    """The whole audit of one kind of volume."""

    generated: int
    training: int
    held_out: int
    extractor: str
    sha256: str
    spaces: tuple[Space, ...]
    losses: Membership | None
    verdicts: tuple[Finding, ...]
    shown: tuple[Shown, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, without the pictures; what is not finite is None."""
        return {k: _plain(v) for k, v in asdict(self).items() if k != "shown"}


@dataclass(frozen=True)
class _Set:
    """Volumes as vectors: coarse images [n, 32^3], features [n, d], and pictures."""

    labels: tuple[str, ...]
    vectors: dict[str, np.ndarray]
    pictures: tuple[tuple[np.ndarray, ...], ...]

    def subjects(self) -> np.ndarray:
        """Who each volume is of: its label up to the first space."""
        return np.array([label.split(" ")[0] for label in self.labels])


def audit(
    generated: Volumes,
    training: Volumes,
    held_out: Volumes = (),
    *,
    extractor: Extractor | None = None,
    losses: tuple[Sequence[float], Sequence[float]] | None = None,
    seed: int = 0,
) -> Audit:
    """Audit generated volumes of one modality against those a model was trained on.

    Volumes are (label, [X, Y, Z]) pairs on one grid with intensities 0 for black and 1 for white; they are read once
    and dropped. A label's first word is the subject: volumes of one subject are no evidence of copying each other.
    `held_out`: real volumes the model never saw; without them there is no pull and no attack by distance. `extractor`:
    the built-in seeded network unless given. `losses`: the model's, on members and on others (`membership.losses`).
    InputError for fewer than two training volumes or no generated one.
    """
    extractor = extractor or load()
    made, known, unseen = (_collect(v, extractor) for v in (generated, training, held_out))
    if len(known.labels) < 2 or not made.labels:
        raise InputError(
            f"{len(made.labels)} generated and {len(known.labels)} training volumes: give one and two at least."
        )
    spaces = tuple(_space(name, made, known, unseen, seed) for name in ("image", "features"))
    attack = None if losses is None else membership(*losses, seed=seed)
    return Audit(
        len(made.labels), len(known.labels), len(unseen.labels), extractor.name, extractor.sha256, spaces, attack,
        _verdicts(spaces, attack, made, known), _shown(spaces, made, known),
    )  # fmt: skip


def _collect(volumes: Volumes, extractor: Extractor) -> _Set:
    labels, images, features, pictures = [], [], [], []
    for label, volume in volumes:
        x = array(volume)
        if x.ndim != 3 or not np.isfinite(x).all() or np.ptp(x) == 0:
            raise InputError(f"{label}: a volume of shape {x.shape} that is finite and not constant is needed.")
        labels.append(label)
        images.append(_coarse(x))
        features.append(np.asarray(extractor.forward(x), float).mean(0))
        pictures.append(_planes(x))
    found = {"image": images, "features": features}
    return _Set(tuple(labels), {k: np.array(v) for k, v in found.items()}, tuple(pictures))


def _coarse(volume: np.ndarray) -> np.ndarray:
    """[32^3], z-scored, divided so that a distance is the root mean square difference in standard deviations."""
    x = F.adaptive_avg_pool3d(torch.from_numpy(np.ascontiguousarray(volume))[None], COARSE).double()
    x = (x - x.mean()) / x.std(correction=0).clamp(min=1e-12)
    return (x / x.numel() ** 0.5).flatten().numpy()


def _planes(volume: np.ndarray) -> tuple[np.ndarray, ...]:
    """The middle plane across each axis, from the last (axial) to the first (sagittal), as bytes, small."""
    out = []
    for axis in (2, 1, 0):
        plane = torch.from_numpy(np.take(volume, volume.shape[axis] // 2, axis).copy())
        rows, columns = (_pixels(n, max(volume.shape)) for n in plane.shape)
        small = F.adaptive_avg_pool2d(plane[None], (rows, columns))[0]
        out.append((small.clamp(0, 1) * 255).round().byte().numpy())
    return tuple(out)


def _pixels(voxels: int, longest: int) -> int:
    """How long an axis is drawn; one of few, thick slices as long as a head would be."""
    return max(round((voxels if 2 * voxels >= longest else 0.75 * longest) * min(THUMB / longest, 1)), 1)


def _space(name: str, made: _Set, known: _Set, unseen: _Set, seed: int) -> Space:
    spread = known.vectors[name].std(0) if name == "features" else np.ones(1)
    scale = np.where(spread > 0, spread, 1.0)
    g, t, h = (s.vectors[name] / scale if len(s.labels) else np.zeros((0, 1)) for s in (made, known, unseen))
    among = _apart(t, known, t, known)
    beyond = _apart(h, unseen, t, known) if len(h) else np.zeros((0, len(t)))
    nearest = np.sort(np.concatenate([among, beyond]), axis=1)[:, :2]
    nearest = nearest[np.isfinite(nearest).all(1)]  # real volumes with two other people to be near to
    threshold = COPY * float(nearest[:, 0].min()) if len(nearest) else math.nan
    to_known = _apart(g, made, t, known)
    to_unseen = _apart(g, made, h, unseen) if len(h) else np.zeros((len(g), 0))
    return Space(
        name,
        _neighbours(to_known, made, known, nearest[:, 0], threshold),
        tuple(map(float, nearest[:, 0])),
        tuple(_ratio(a, b) for a, b in nearest),
        threshold,
        _pull(to_known, to_unseen, seed) if len(h) else None,
        _twins(_apart(g, made, g, made), made, threshold),
        _attack(to_known, to_unseen, seed) if len(h) > 1 else None,
    )


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(square, 0))


def _apart(a: np.ndarray, first: _Set, b: np.ndarray, second: _Set) -> np.ndarray:
    """Distances of volumes of different subjects; inf for those of one."""
    return np.where(first.subjects()[:, None] == second.subjects(), np.inf, _distances(a, b))


def _ratio(first: float, second: float) -> float:
    """0 where the nearest is no distance away, nan where there is none."""
    return float(first / second) if 0 < second < math.inf else 0.0 if second == 0 else math.nan


def _neighbours(
    found: np.ndarray, made: _Set, known: _Set, real: np.ndarray, threshold: float
) -> tuple[Neighbour, ...]:
    out = []
    for label, row in zip(made.labels, found):
        first, second = (int(i) for i in np.argsort(row, kind="stable")[:2])
        rank = float((real < row[first]).mean()) if len(real) else math.nan
        ratio, copy = _ratio(row[first], row[second]), bool(row[first] < threshold)
        out.append(Neighbour(label, known.labels[first], float(row[first]), ratio, rank, copy))
    return tuple(out)


def _pull(to_training: np.ndarray, to_held_out: np.ndarray, seed: int) -> Pull:
    """Counted by the nearest real volume of each generated one; p by giving the real ones their sets at random.

    Without copying, which real volumes were trained on is as good as drawn by lot. A subject's own volumes (inf) are
    never nearest, so each generated volume has its own expectation.
    """
    both = np.concatenate([to_training, to_held_out], axis=1)
    member = np.arange(both.shape[1]) < to_training.shape[1]
    there = np.isfinite(both)
    usable = there.any(1)
    nearest = np.bincount(both[usable].argmin(1), minlength=both.shape[1]) / max(usable.sum(), 1)
    share, expected = (
        float(nearest[member].sum()),
        float((there[usable][:, member].sum(1) / there[usable].sum(1)).mean()),
    )
    rng = np.random.default_rng(seed_of(seed, "pull"))
    drawn = np.array([nearest[rng.permutation(member)].sum() for _ in range(LOTS)]) - member.mean()
    return Pull(share, expected, float((1 + (drawn >= share - expected - 1e-9).sum()) / (1 + LOTS)))


def _twins(found: np.ndarray, made: _Set, threshold: float) -> tuple[tuple[str, str, float], ...]:
    pairs = zip(*np.nonzero(np.triu(found < threshold, 1)))
    return tuple((made.labels[i], made.labels[j], float(found[i, j])) for i, j in pairs)


def _attack(to_training: np.ndarray, to_held_out: np.ndarray, seed: int) -> Membership | None:
    """Members are those with a generated volume near to them (the black-box attack of Chen et al. 2020)."""
    near = [d.min(0) for d in (to_training, to_held_out)]
    members, others = (n[np.isfinite(n)] for n in near)
    return membership(members, others, seed) if min(len(members), len(others)) > 1 else None


def _verdicts(spaces: Sequence[Space], losses: Membership | None, made: _Set, known: _Set) -> tuple[Finding, ...]:
    out = []
    for space in spaces:
        where = "in feature space" if space.name == "features" else "as coarse images"
        out += [
            _copies(space, where),
            _alike(space, where),
            _ratios(space, where),
            _pulled(space, where, len(made.labels)),
        ]
        if space.attack is not None:
            out.append(_attacked(f"Members recognised by distance, {where}", space.attack))
    if losses is not None:
        out.append(_attacked("Members recognised by the model's loss", losses))
    if own := sorted(set(made.subjects()) & set(known.subjects())):
        words = (
            f"{len(own)} of the generated volumes' subjects are in the training set ({own[0]}): audit others instead."
        )
        out.append(Finding("Who was audited", None, words))
    return tuple(out)


def _copies(space: Space, where: str) -> Finding:
    copies, name = [n for n in space.neighbours if n.copy], f"Copies, {where}"
    if not math.isfinite(space.threshold):
        return Finding(name, None, "too few real people to know how near two of them come.")
    limit = f"{COPY:g} of the smallest distance of two real people ({space.threshold:.3g})"
    if copies:
        worst = min(copies, key=lambda n: n.distance)
        words = (
            f"{len(copies)} of {len(space.neighbours)} generated volumes lie nearer to a training volume than {limit}"
        )
        return Finding(name, False, f"{words}, {worst.generated} to {worst.training} most.")
    nearest = min(n.distance for n in space.neighbours)
    words = f"none of {len(space.neighbours)} is nearer to a training volume than {limit}; the nearest is {nearest:.3g}"
    return Finding(name, True, f"{words}.")


def _alike(space: Space, where: str) -> Finding:
    """Generated volumes of different subjects that are one image: the model has collapsed, or smooths all away."""
    name, pairs = f"Twins, {where}", len(space.twins)
    limit = f"{COPY:g} of the smallest distance of two real people"
    words = f"{pairs or 'no'} pairs of generated volumes lie nearer to each other than {limit}"
    return Finding(name, None if not math.isfinite(space.threshold) else not pairs, f"{words}.")


def _ratios(space: Space, where: str) -> Finding:
    """A copy is far nearer to one training volume than to the next: its ratio is near to 0."""
    mine = [n.ratio for n in space.neighbours if math.isfinite(n.ratio)]
    name = f"Nearest over second nearest, {where}"
    if min(len(mine), len(space.ratios)) < FEW:
        return Finding(name, None, f"{FEW} generated and {FEW} real volumes are needed before anything can be said.")
    p = float(stats.mannwhitneyu(mine, space.ratios, alternative="less").pvalue)
    words = f"median {np.median(mine):.3f}, lowest {min(mine):.3f}; real people {np.median(space.ratios):.3f}"
    less = "lower than" if p < ALPHA else "not lower than"
    return Finding(name, p >= ALPHA, f"{words}: {less} among real people (one-sided Mann-Whitney, p = {p:.2g}).")


def _pulled(space: Space, where: str, count: int) -> Finding:
    name = f"Pull towards the training set, {where}"
    if space.pull is None:
        return Finding(name, None, "no held-out volumes were given, so it cannot be told from nearness to everybody.")
    share, expected = (f"{100 * part:.0f} %" for part in (space.pull.share, space.pull.expected))
    words = (
        f"of {share} of the generated volumes the nearest real volume is a training volume, by lot {expected} would be"
    )
    if count < FEW:
        return Finding(name, None, f"{words}; {FEW} are needed before more can be said.")
    return Finding(name, space.pull.p >= ALPHA, f"{words} (permutation test, p = {space.pull.p:.2g}).")


def _attacked(name: str, found: Membership) -> Finding:
    words = f"AUC {found.auc:.2f} (95 % interval {found.low:.2f} to {found.high:.2f}; 0.50 is a coin)"
    if min(found.members, found.others) < FEW:
        return Finding(name, None, f"{words}; {FEW} of each kind are needed before more can be said.")
    counts = f"{found.members} members against {found.others} others, p = {found.p:.2g}"
    return Finding(name, found.p >= ALPHA, f"{words}, {counts}.")


def _shown(spaces: Sequence[Space], made: _Set, known: _Set) -> tuple[Shown, ...]:
    """The generated volumes with the lowest rank of all spaces, beside their neighbours."""
    every = sorted((n for s in spaces for n in s.neighbours), key=lambda n: (not n.copy, n.rank, n.ratio))
    pairs = {(n.generated, n.training): n for n in reversed(every)}
    chosen = sorted(pairs.values(), key=lambda n: (not n.copy, n.rank, n.ratio))[:SHOWN]
    where = {label: i for i, label in enumerate(made.labels)}, {label: i for i, label in enumerate(known.labels)}
    return tuple(Shown(n, made.pictures[where[0][n.generated]], known.pictures[where[1][n.training]]) for n in chosen)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

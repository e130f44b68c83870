"""Does a model do what it is asked? One field is changed while the noise is held fixed, and what it should move is
measured, beside what it should leave alone.

    python benchmarks/controllability.py --model RUN [--seeds 4] [--flags 16] [--steps 20] [--guidance 2] [--out OUT]
        [--finer 2] [--tumour-radius 9 21]

For models of the virtual cohort, where the truth is known. The share of each voxel that is fluid is a polynomial of the
images, fitted on virtual subjects that no model was trained on and checked on others: the correlation with the truth
is printed and kept, and that with the age of virtual subjects of whom nothing else is changed, as they are and blurred.
So is the share that is lesion, of FLAIR alone, near and in a wider neighbourhood, and how far that differs from the
other side of the brain: each image is drawn by itself, and what is nowhere certain lies elsewhere in another contrast.

    age      30 to 85      fluid, in all and deep in the brain: correlation with the request, ml a decade; the cohort's
    sex      F, M          size of the brain: difference in per cent, beside the cohort's own
    tumour   no, yes       the highest share of lesion anywhere above a threshold set on real (virtual) subjects: rates
    ms       no, yes       volume of lesions above such a threshold: rates

Writes OUT.json and OUT.png, and prints a line a field.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from wfdm_data import RADIUS, SEED, Person, person

from amodal.core.rng import Rng
from amodal.data.intensity import Window
from amodal.model import Model, load

BRAIN, DEEP = 0.15, 8.0  # of white, brighter is brain; mm
BASE = {"age": 55, "sex": "F", "tumour": "no", "ms": "no"}
AGES = tuple(range(30, 86, 5))
AGED = (30, 50, 70, 85)
FIRST = 10  # noise
MODALITIES = ("T1w", "T2w", "FLAIR")  # that fluid is read from
LESION = "FLAIR"  # that lesions are read from
SETTINGS = ("guidance", "stress", "texture", "eta")
NEAR, WIDE, OVER = 2.5, 6.25, 4.0  # mm, of Gaussians: two looks at each image, and at the share of lesion found
SURE = 0.2  # of lesion, at least: it is one


@dataclass(frozen=True)
class Reader:
    """`whole`, `deep`: coefficients of the share of a voxel that is fluid, in all of the brain and DEEP under its
    surface (the ventricles, above all), where a blurred surface does not count; `lesion`: of the share that is lesion.
    `voxel`: its side in mm."""

    whole: np.ndarray
    deep: np.ndarray
    lesion: np.ndarray
    voxel: float

    def measure(self, images: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Volumes in ml: fluid, that deep under the surface, brain (with fluid), lesions; and the highest share of
        lesion anywhere, in per cent."""
        inside = brain(images)
        within, share = beneath(inside), np.zeros(inside.shape)
        share[within] = products(looks(images, inside, self.voxel), within) @ self.lesion
        share = ndimage.gaussian_filter(share, OVER / self.voxel)
        sums = {
            "fluid": (products(levels(images, inside), inside) @ self.whole).clip(0, 1).sum(),
            "deep fluid": self._deep(images, inside).sum(),
            "brain": inside.sum(),
            "lesions": (share > SURE).sum(),
        }
        volumes = {name: float(value) * self.voxel**3 / 1000 for name, value in sums.items()}
        return volumes | {"lesion": 100 * float(share.max())}

    def _deep(self, images: Mapping[str, np.ndarray], inside: np.ndarray) -> np.ndarray:
        where = under(inside, self.voxel)
        return (products(levels(images, where), where) @ self.deep).clip(0, 1)


def brain(images: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where the images together, smoothed, are not dark; without holes."""
    mean = sum(images[m] + 1 for m in MODALITIES) / (2 * len(MODALITIES))
    return ndimage.binary_fill_holes(ndimage.gaussian_filter(mean, 1) > BRAIN)


def under(inside: np.ndarray, voxel: float) -> np.ndarray:
    """What lies DEEP under the surface."""
    return ndimage.binary_erosion(inside, iterations=max(1, round(DEEP / voxel)))


def beneath(inside: np.ndarray) -> np.ndarray:
    """Without its outermost two voxels, where there is skull one side and not the other."""
    return ndimage.binary_erosion(inside, iterations=2)


def levels(images: Mapping[str, np.ndarray], where: np.ndarray) -> list[np.ndarray]:
    """Each image by its median at voxels `where`. A voxel's intensity is that of its tissues by their shares, but for
    the window of its image."""
    return [(images[m] + 1) / np.median(images[m][where] + 1) for m in MODALITIES]


def looks(images: Mapping[str, np.ndarray], inside: np.ndarray, voxel: float) -> list[np.ndarray]:
    """LESION by its median in the brain, smoothed there: NEAR and WIDE, and the wide one less the other side's."""
    weight, both = inside.astype(np.float32), inside & inside[::-1]
    level = np.where(inside, (images[LESION] + 1) / np.median(images[LESION][inside] + 1), 0)
    near, wide = (
        ndimage.gaussian_filter(level, w / voxel) / np.maximum(ndimage.gaussian_filter(weight, w / voxel), 0.3)
        for w in (NEAR, WIDE)
    )
    return [near, wide, np.where(both, wide - wide[::-1], 0)]


def products(images: Sequence[np.ndarray], where: np.ndarray) -> np.ndarray:
    """The products of up to two of n images at voxels `where`: [N, (n + 1) (n + 2) / 2]."""
    x = [image[where] for image in images]
    powers = [p for n in range(3) for p in itertools.combinations_with_replacement(range(len(x)), n)]
    return np.stack([np.prod([x[i] for i in p] or [np.ones_like(x[0])], 0) for p in powers], 1)


def learn(people: Sequence[Person], voxel: float) -> Reader:
    """By least squares."""
    deep = lambda inside: under(inside, voxel)  # noqa: E731
    wanted: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
        ("fluid", lambda inside: inside, lambda images, inside, where: levels(images, where)),
        ("fluid", deep, lambda images, inside, where: levels(images, where)),
        ("lesion", beneath, lambda images, inside, where: looks(images, inside, voxel)),
    ]
    found = []
    for share, place, seen in wanted:
        pairs, with_share = 0.0, 0.0
        for one in people:
            inside = brain(one.images)
            where = place(inside)
            columns = products(seen(one.images, inside, where), where)
            pairs, with_share = pairs + columns.T @ columns, with_share + columns.T @ one.shares[share][where]
        found.append(np.linalg.solve(pairs + 1e-3 * np.eye(len(pairs)), with_share))
    return Reader(*found, voxel)


def truth(one: Person, voxel: float) -> tuple[float, float]:
    """Fluid, and fluid deep under the surface, in ml."""
    deep = under(brain(one.images), voxel)
    return tuple(float(one.shares["fluid"][w].sum()) * voxel**3 / 1000 for w in (deep | True, deep))  # type: ignore


def virtual(
    index: int, model: Model, finer: int, age: float | None = None, radius: Sequence[float] = RADIUS
) -> Person:  # fmt: skip
    """Virtual subject `index`, of a seed that no model was trained on; images in [-1, 1]. `age`: not its own; `radius`:
    of tumours, in mm."""
    made = person(index, SEED, model.grid.size, model.grid.spacing[0][0], age=age, finer=finer, radius=radius)
    images = {m: Window.of(x, model.grid.percentiles).enter(x) for m, x in made.images.items()}
    return dataclasses.replace(made, images=images)


def ageing(
    reader: Reader, model: Model, finer: int, subjects: Sequence[int], radius: Sequence[float]
) -> dict[str, float]:  # fmt: skip
    """Mean correlation of what is read with age where nothing but the age of a virtual subject changes, of its images
    as they are and blurred by a voxel."""
    found: dict[str, list[float]] = {}
    for index in subjects:
        rows = []
        for age in AGED:
            images = virtual(index, model, finer, age, radius).images
            soft = {m: ndimage.gaussian_filter(x, 1.0) for m, x in images.items()}
            rows.append([reader.measure(x)[name] for x in (images, soft) for name in ("fluid", "deep fluid")])
        for name, values in zip(("fluid", "deep fluid", "fluid, blurred", "deep fluid, blurred"), zip(*rows)):
            found.setdefault(name, []).append(float(np.corrcoef(AGED, values)[0, 1]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def generated(model: Model, row: Mapping[str, Any], seed: int, steps: int) -> dict[str, np.ndarray]:
    """The images of nobody, [-1, 1]: the noise belongs to the seed alone."""
    method = model._with(steps=steps)
    wanted = torch.tensor([m in MODALITIES for m in model.modalities])
    conditions = {**method.encode_metadata([row]), "wanted": wanted}
    out = method.generate(1, model.grid.size, Rng.of(seed, 1, "controllability"), conditions)[0].numpy()
    return {m: out[model.modalities.index(m)] for m in MODALITIES}


def threshold(values: Sequence[float], truth: Sequence[bool]) -> tuple[float, float, float]:
    """The value that tells best between with and without (Youden), its hit rate and its false alarms."""
    found = []
    for cut in sorted(set(values)):
        said = np.array(values) >= cut
        hits, alarms = said[np.array(truth)].mean(), said[~np.array(truth)].mean()
        found.append((hits - alarms, float(cut), float(hits), float(alarms)))
    return max(found)[1:]


def change(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]], name: str) -> float:
    """Mean change from a to b in per cent, noise by noise."""
    return float(np.mean([100 * (y[name] - x[name]) / max(x[name], 1e-9) for x, y in zip(a, b)]))


Sweep = dict[str, list[dict[str, float]]]  # value -> what was measured, a noise each


def sweeps(
    model: Model, reader: Reader, seeds: int, flags: int, steps: int, tell: Callable[[str], None]
) -> dict[str, Sweep]:
    """Every field in turn, all others as in BASE: age with so many noises, the others with `flags`."""
    values: dict[str, Sequence[Any]] = {"age": AGES, "sex": ("F", "M"), "tumour": ("no", "yes"), "ms": ("no", "yes")}
    known = model.method.config.schema
    found: dict[str, Sweep] = {}
    kept: dict[str, dict[str, float]] = {}  # what BASE asks for is asked by every field

    def read(row: Mapping[str, Any], seed: int) -> dict[str, float]:
        key = json.dumps([row, seed])
        if key not in kept:
            kept[key] = reader.measure(generated(model, row, seed, steps))
        return kept[key]

    for field, choices in values.items():
        if known.place(field) is None:
            continue
        found[field] = {}
        for value in choices:
            row, count = {**BASE, field: value}, seeds if field == "age" else flags
            found[field][str(value)] = [read(row, FIRST + k) for k in range(count)]
            tell(f"{field}={value}")
    return found


def report(found: dict[str, Sweep], real: list[tuple[dict[str, float], dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """A row a field: what it moves, beside the cohort's own, and what it leaves alone."""
    out: dict[str, dict[str, Any]] = {}
    if "age" in found:
        ages = [r["age"] for _, r in real]
        brains = np.array([[m["brain"] for m in found["age"][str(a)]] for a in AGES])
        out["age"] = {"brain moves, %": float(100 * np.mean(np.ptp(brains, axis=0) / brains.mean(0)))}
        for name in ("fluid", "deep fluid"):
            fluid = np.array([[m[name] for m in found["age"][str(a)]] for a in AGES])  # [ages, seeds]
            cohort = [m[name] for m, _ in real]
            out["age"] |= {
                f"{name}: correlation": float(np.corrcoef(np.repeat(AGES, fluid.shape[1]), fluid.ravel())[0, 1]),
                f"{name}: at fixed noise": float(np.mean([np.corrcoef(AGES, f)[0, 1] for f in fluid.T])),
                f"{name}: cohort": float(np.corrcoef(ages, cohort)[0, 1]),
                f"{name}: ml a decade": float(10 * np.polyfit(AGES, fluid.mean(1), 1)[0]),
                f"{name}: ml a decade, cohort": float(10 * np.polyfit(ages, cohort, 1)[0]),
            }
    if "sex" in found:
        a, b = found["sex"]["F"], found["sex"]["M"]
        by = {s: np.mean([m["brain"] for m, r in real if r["sex"] == s]) for s in "FM"}
        out["sex"] = {
            "brain, %": change(a, b, "brain"), "brain, %, cohort": float(100 * (by["M"] - by["F"]) / by["F"]),
            "fluid moves, %": change(a, b, "fluid"),
        }  # fmt: skip
    for field, name in (("tumour", "lesion"), ("ms", "lesions")):
        if field in found:
            usable = [(m, r) for m, r in real if field == "tumour" or r["tumour"] == "no"]
            cut, hits, alarms = threshold([m[name] for m, _ in usable], [r[field] == "yes" for _, r in usable])
            a, b = found[field]["no"], found[field]["yes"]
            out[field] = {
                "with, asked": float(np.mean([m[name] >= cut for m in b])),
                "with, not asked": float(np.mean([m[name] >= cut for m in a])),
                "with, cohort": hits, "without, cohort": alarms, "threshold": cut,
                "fluid moves, %": change(a, b, "fluid"), "brain moves, %": change(a, b, "brain"),
            }  # fmt: skip
    return out


def picture(found: dict[str, Sweep], table: dict[str, dict[str, Any]], path: Path) -> None:
    """Fluid by age, one line a noise; the flags' lesions, off and on, one line a noise."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fields = list(found)
    figure, axes = pyplot.subplots(1, len(fields), figsize=(3.6 * len(fields), 3.4), squeeze=False)
    measures = {"age": "deep fluid", "sex": "brain", "tumour": "lesion", "ms": "lesions"}
    for axis, field in zip(axes[0], fields):
        sweep, name = found[field], measures[field]
        x = [float(v) for v in sweep] if field == "age" else list(sweep)
        lines = np.array([[m[name] for m in row] for row in sweep.values()])
        axis.plot(x, lines, color="0.7", lw=1)
        axis.plot(x, lines.mean(1), color="C0", lw=2.5, marker="o")
        if "threshold" in table[field]:
            axis.axhline(table[field]["threshold"], color="C3", ls="--", lw=1)
        axis.set(xlabel=f"{field} asked for", ylabel=name + (", %" if name == "lesion" else ", ml"))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--flags", type=int, default=16, help="noises of all fields but age")
    parser.add_argument("--steps", type=int, default=20)
    fitted = "virtual subjects that the reader is fitted to; half as many more check it"
    parser.add_argument("--subjects", type=int, default=32, help=fitted)
    parser.add_argument("--aged", type=int, default=3, help="of those that check, how many are tried at other ages")
    parser.add_argument("--finer", type=int, default=2, help="how much finer they are simulated than the model's grid")
    parser.add_argument("--tumour-radius", type=float, nargs=2, default=RADIUS, help="mm, of the virtual subjects'")
    for name in SETTINGS:
        parser.add_argument(f"--{name}", type=float, help="in place of the model's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "controllability")
    return parser.parse_args()


def main() -> None:
    choice = options()
    model = load(choice.model, device=choice.device)
    model.method.config = model._with(**{name: getattr(choice, name) for name in SETTINGS}).config
    radius, count = choice.tumour_radius, choice.subjects + choice.subjects // 2
    people = [virtual(i, model, choice.finer, radius=radius) for i in range(count)]
    voxel = model.grid.spacing[0][0]
    reader, unseen = learn(people[: choice.subjects], voxel), people[choice.subjects :]
    real = [(reader.measure(person.images), person.row) for person in people]
    there = real[choice.subjects :]
    pairs = zip(("fluid", "deep fluid"), zip(*(truth(p, voxel) for p in unseen)))
    exact = {name: float(np.corrcoef([m[name] for m, _ in there], v)[0, 1]) for name, v in pairs}
    print(f"as read against the truth on {len(unseen)} unseen virtual subjects, correlation: {exact}")
    aged = ageing(reader, model, choice.finer, range(choice.subjects, choice.subjects + choice.aged), radius)
    print(f"as read against age where nothing else changes, correlation: {aged}")
    found = sweeps(model, reader, choice.seeds, choice.flags, choice.steps, lambda what: print(what, flush=True))
    table = report(found, real)
    for field, row in table.items():
        print(f"{field:8}" + ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    choice.out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "seeds": choice.seeds,
        "flags": choice.flags,
        "steps": choice.steps,
        "subjects": choice.subjects,
        "tumour radius": list(radius),
        "reader": exact,
        "reader, ageing": aged,
    }
    config = model.method.config
    about |= {name: getattr(config, name) for name in SETTINGS} | {"weights": model.sha256}
    choice.out.with_suffix(".json").write_text(json.dumps({**about, "fields": table, "sweeps": found}, indent=1) + "\n")
    picture(found, table, choice.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

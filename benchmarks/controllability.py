"""Does a model do what it is asked? One field is changed while the noise is held fixed, and what it should move is
measured, beside what it should leave alone.

    python benchmarks/controllability.py --model RUN [--seeds 4] [--steps 20] [--out benchmarks/results/controllability]

For models of the virtual cohort, where the truth is known: two small networks, trained on virtual subjects that no
model was trained on, say what part of each voxel is fluid (from T2w) and lesion (from FLAIR). They are checked first on
other subjects; the correlations with the truth are printed and kept.

    age      30 to 85      fluid: correlation with the request, ml a decade, beside the cohort's own
    sex      F, M          size of the brain: difference in per cent, beside the cohort's own
    tumour   no, yes       largest bright lesion above a threshold set on real (virtual) subjects: rates
    ms       no, yes       volume of bright lesions above such a threshold: rates

Writes OUT.json and OUT.png, and prints a line a field.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from amodal.core.rng import Rng
from amodal.data.intensity import Window
from amodal.data.phantom import PhantomConfig, subject
from amodal.data.phantom.tissue import TISSUES
from amodal.model import Model, load
from amodal.nn.layout import convert
from amodal.nn.unet import UNet, UNetConfig

SEED = 7000  # subjects of this seed are never trained on
BRAIN = -0.94  # brighter than this in T1w or T2w: brain
BASE = {"age": 55, "sex": "F", "tumour": "no", "ms": "no"}
AGES = tuple(range(30, 86, 5))
MODALITIES = ("T1w", "T2w", "FLAIR")
READ = {"fluid": "T2w", "lesion": "FLAIR"}


@dataclass(frozen=True)
class Person:
    """A virtual subject as a model would see it: images in [-1, 1], shares of tissue, what was drawn for it."""

    images: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    row: dict[str, Any]


@dataclass(frozen=True)
class Readers:
    """Networks that read tissue off images; `ml`: of a voxel."""

    nets: dict[str, nn.Module]
    ml: float

    def measure(self, images: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Volumes in ml: fluid, brain (with fluid), lesions, the largest lesion."""
        fluid, lesion = (read(self.nets[tissue], images[name]) for tissue, name in READ.items())
        parts, count = ndimage.label(lesion > 0.5)
        largest = np.bincount(parts.ravel())[1:].max() if count else 0
        inside = (images["T1w"] > BRAIN) | (images["T2w"] > BRAIN)
        sums = {"fluid": fluid.sum(), "brain": inside.sum(), "lesions": (lesion > 0.5).sum(), "largest lesion": largest}
        return {name: float(value) * self.ml for name, value in sums.items()}


def read(net: nn.Module, image: np.ndarray) -> np.ndarray:
    """The share of a tissue in every voxel."""
    with torch.inference_mode():
        return net(torch.from_numpy(image)[None, None].float(), torch.zeros(1)).sigmoid()[0, 0].numpy()


def learn(tissue: str, people: Sequence[Person], steps: int, side: int = 48) -> nn.Module:
    """A reader, trained on patches whose brightness and sharpness vary, so that it reads generated images alike."""
    torch.manual_seed(0)
    net = convert(UNet(UNetConfig(1, 1, (24, 48, 64), 1, (False,) * 3, head_size=64, dims=3, patch=2, groups=8)))
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    draw = np.random.default_rng(0)
    for _ in range(steps):
        pairs = [patch(people[draw.integers(len(people))], tissue, side, draw) for _ in range(2)]
        x, y = (torch.from_numpy(np.stack(v))[:, None].float() for v in zip(*pairs))
        loss = distance(net(x, torch.zeros(len(x))), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def distance(logits: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Cross entropy, and Dice's, which a small lesion counts in."""
    said = logits.sigmoid()
    overlap = (2 * (said * share).sum() + 1) / (said.sum() + share.sum() + 1)
    return functional.binary_cross_entropy_with_logits(logits, share) + 1 - overlap


def patch(person: Person, tissue: str, side: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A part of an image, changed a little, and the share of the tissue in it; lesions are in half of the parts."""
    image, share = person.images[READ[tissue]], person.shares[tissue]
    centre = [draw.integers(n) for n in image.shape]
    places = np.argwhere(share > 0.5)
    if len(places) and draw.random() < 0.5:
        centre = places[draw.integers(len(places))]
    cut = tuple(
        slice(s := int(np.clip(c - side // 2, 0, max(0, n - side))), s + side) for c, n in zip(centre, image.shape)
    )
    image, share = (image[cut] + 1) / 2, share[cut]
    image = np.clip(draw.uniform(0.85, 1.15) * image ** draw.uniform(0.8, 1.25), 0, 1)
    image = ndimage.gaussian_filter(image, draw.uniform(0, 0.8))
    return np.float32(2 * image - 1), np.float32(share)


def virtual(index: int, model: Model) -> Person:
    """Virtual subject `index`, of a seed that no model was trained on."""
    shape, spacing = model.grid.size, model.grid.spacing[0][0]
    made = subject(index, SEED, PhantomConfig(shape=shape, spacing=spacing, tumour=0.5, lesions=0.5))
    images = {m: Window.of(made.images[m], model.grid.percentiles).enter(made.images[m]) for m in MODALITIES}
    shares = {
        tissue: sum((v for n, v in made.fractions.items() if TISSUES[n].group == group), np.zeros(shape, np.float32))
        for tissue, group in (("fluid", "CSF"), ("lesion", "L"))
    }
    drawn = made.parameters
    row = {"age": drawn["age"], "sex": drawn["sex"], "tumour": drawn["has_tumour"], "ms": drawn["has_ms"]}
    return Person(images, shares, row)


def generated(model: Model, row: Mapping[str, Any], seed: int, steps: int) -> dict[str, np.ndarray]:
    """The images of nobody, [-1, 1]: the noise belongs to the seed alone."""
    method = model._with(steps=steps)
    wanted = torch.tensor([m in MODALITIES for m in model.modalities])
    conditions = {**method.encode_metadata([row]), "wanted": wanted}
    out = method.generate(1, model.grid.size, Rng.of(seed, 1, "controllability"), conditions)[0].numpy()
    return {m: out[model.modalities.index(m)] for m in MODALITIES}


def threshold(values: Sequence[float], truth: Sequence[bool]) -> tuple[float, float, float]:
    """The volume that tells best between with and without (Youden), its hit rate and its false alarms."""
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


def sweeps(model: Model, readers: Readers, seeds: int, steps: int, tell: Callable[[str], None]) -> dict[str, Sweep]:
    """Every field in turn, all others as in BASE."""
    values: dict[str, Sequence[Any]] = {"age": AGES, "sex": ("F", "M"), "tumour": ("no", "yes"), "ms": ("no", "yes")}
    known = model.method.config.schema
    found: dict[str, Sweep] = {}
    for field, choices in values.items():
        if known.place(field) is None:
            continue
        found[field] = {}
        for value in choices:
            row = {**BASE, field: value}
            found[field][str(value)] = [readers.measure(generated(model, row, k, steps)) for k in range(seeds)]
            tell(f"{field}={value}")
    return found


def report(found: dict[str, Sweep], real: list[tuple[dict[str, float], dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """A row a field: what it moves, beside the cohort's own, and what it leaves alone."""
    out: dict[str, dict[str, Any]] = {}
    if "age" in found:
        fluid = np.array([[m["fluid"] for m in found["age"][str(a)]] for a in AGES])  # [ages, seeds]
        brain = np.array([[m["brain"] for m in found["age"][str(a)]] for a in AGES])
        ages, truth = [r["age"] for _, r in real], [m["fluid"] for m, _ in real]
        out["age"] = {
            "correlation": float(np.corrcoef(np.repeat(AGES, fluid.shape[1]), fluid.ravel())[0, 1]),
            "correlation at fixed noise": float(np.mean([np.corrcoef(AGES, f)[0, 1] for f in fluid.T])),
            "ml a decade": float(10 * np.polyfit(AGES, fluid.mean(1), 1)[0]),
            "ml a decade, cohort": float(10 * np.polyfit(ages, truth, 1)[0]),
            "correlation, cohort": float(np.corrcoef(ages, truth)[0, 1]),
            "brain moves, %": float(100 * np.mean(np.ptp(brain, axis=0) / brain.mean(0))),
        }
    if "sex" in found:
        a, b = found["sex"]["F"], found["sex"]["M"]
        by = {s: np.mean([m["brain"] for m, r in real if r["sex"] == s]) for s in "FM"}
        out["sex"] = {
            "brain, %": change(a, b, "brain"), "brain, %, cohort": float(100 * (by["M"] - by["F"]) / by["F"]),
            "fluid moves, %": change(a, b, "fluid"),
        }  # fmt: skip
    for field, name in (("tumour", "largest lesion"), ("ms", "lesions")):
        if field in found:
            usable = [(m, r) for m, r in real if field == "tumour" or not r["tumour"]]
            cut, hits, alarms = threshold([m[name] for m, _ in usable], [r[field] for _, r in usable])
            a, b = found[field]["no"], found[field]["yes"]
            out[field] = {
                "with, asked": float(np.mean([m[name] >= cut for m in b])),
                "with, not asked": float(np.mean([m[name] >= cut for m in a])),
                "with, cohort": hits, "without, cohort": alarms, "threshold, ml": cut,
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
    measures = {"age": "fluid", "sex": "brain", "tumour": "largest lesion", "ms": "lesions"}
    for axis, field in zip(axes[0], fields):
        sweep, name = found[field], measures[field]
        x = [float(v) for v in sweep] if field == "age" else list(sweep)
        lines = np.array([[m[name] for m in row] for row in sweep.values()])
        axis.plot(x, lines, color="0.7", lw=1)
        axis.plot(x, lines.mean(1), color="C0", lw=2.5, marker="o")
        if "threshold, ml" in table[field]:
            axis.axhline(table[field]["threshold, ml"], color="C3", ls="--", lw=1)
        axis.set(xlabel=f"{field} asked for", ylabel=f"{name}, ml")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--subjects",
        type=int,
        default=32,
        help="virtual subjects that readers learn from; half as many more check them",
    )
    parser.add_argument("--reading", type=int, default=1200, help="training steps of a reader")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "controllability")
    choice = parser.parse_args()
    model = load(choice.model, device=choice.device)
    if choice.guidance is not None:
        model.method.config = dataclasses.replace(model.method.config, guidance=choice.guidance)
    people = [virtual(i, model) for i in range(choice.subjects + choice.subjects // 2)]
    ml = float(np.prod([low for low, _ in model.grid.spacing])) / 1000
    readers = Readers({tissue: learn(tissue, people[: choice.subjects], choice.reading) for tissue in READ}, ml)
    unseen = people[choice.subjects :]
    real = [(readers.measure(person.images), person.row) for person in unseen]
    exact = {
        tissue: float(np.corrcoef([m[name] for m, _ in real], [p.shares[tissue].sum() * ml for p in unseen])[0, 1])
        for tissue, name in (("fluid", "fluid"), ("lesion", "lesions"))
    }
    print(
        "readers against the truth on unseen virtual subjects, correlation:", {k: round(v, 3) for k, v in exact.items()}
    )
    found = sweeps(model, readers, choice.seeds, choice.steps, lambda what: print(what, flush=True))
    table = report(found, real)
    for field, row in table.items():
        print(f"{field:8}" + ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    choice.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"seeds": choice.seeds, "steps": choice.steps, "subjects": choice.subjects, "readers": exact}
    about |= {"guidance": model.method.config.guidance, "weights": model.sha256}
    choice.out.with_suffix(".json").write_text(json.dumps({**about, "fields": table, "sweeps": found}, indent=1) + "\n")
    picture(found, table, choice.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

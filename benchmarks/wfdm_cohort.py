"""WFDM's generated cohort beside the real one: Frechet distance, MMD, diversity, copies (the paper's Tables 4 and 5).

    python benchmarks/wfdm_cohort.py --training RUN --model "rectified flow, 50 steps=RUN" --subjects 24
    python benchmarks/wfdm_cohort.py --model "DDPM, 1000 steps=RUN2" --model "rectified flow, 50 steps=RUN" --subjects 8

For every one of so many virtual subjects that nothing was trained on a subject is generated as its row of the table
asks (age, sex, tumour, ms), all modalities. The cohorts meet, by modality and pooled, in the features of a fixed
network that needs no download (`metrics.extractors.seeded`). `codec`: the real volumes through the model's codec, which
no prior is nearer to them than; "real": what two halves of the real cohort give. Copies are looked for among the
volumes of `--training` (the run's cache). Writes OUT/NAME.json and OUT/NAME.png; volumes are kept in --keep.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from wfdm_data import RADIUS, SEED, person

from amodal.core.rng import Rng
from amodal.data.dataset import Cache
from amodal.data.intensity import Window
from amodal.metrics import features
from amodal.metrics.diversity import POOLED, diversity
from amodal.metrics.extractors import extract
from amodal.metrics.extractors import load as extractor_named
from amodal.metrics.privacy import audit
from amodal.model import Model, load

SETTINGS = {"steps": int, "guidance": float, "stress": float, "texture": float, "eta": float}
Cohort = dict[str, dict[str, np.ndarray]]  # modality -> subject -> volume [0, 1]


def real(model: Model, count: int, finer: int, radius: Sequence[float]) -> tuple[Cohort, list[dict[str, Any]]]:
    """Virtual subjects that nothing was trained on, and their rows."""
    out: Cohort = {m: {} for m in model.modalities}
    rows, size, voxel = [], model.grid.size, model.grid.spacing[0][0]
    for index in range(count):
        made = person(index, SEED, size, voxel, model.modalities, finer=finer, radius=radius)
        for m, x in made.images.items():
            out[m][f"sub-v{index + 1:03d}"] = (Window.of(x, model.grid.percentiles).enter(x) + 1) / 2
        rows.append(made.row)
    return out, rows


def generated(
    model: Model, rows: Sequence[Mapping[str, Any]], keep: Path, changed: Mapping[str, Any]
) -> tuple[Cohort, float | None]:
    """A subject for each row, and seconds a volume (of those made now; None if all were kept)."""
    out: Cohort = {m: {} for m in model.modalities}
    method, spent = model._with(**changed), []
    keep.mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(rows):
        path = keep / f"{index:04d}.npy"
        if not path.is_file():
            begun = time.perf_counter()
            x = method.generate(1, model.grid.size, Rng.of(index, 1, "cohort"), method.encode_metadata([row]))[0]
            spent.append((time.perf_counter() - begun) / len(x))
            np.save(path, x.numpy().astype(np.float16), allow_pickle=False)
        stack = np.load(path, allow_pickle=False).astype(np.float32)
        for m, x in zip(model.modalities, stack):
            out[m][f"synth{index + 1:03d}"] = (x + 1) / 2
    return out, float(np.mean(spent)) if spent else None


def coded(model: Model, cohort: Cohort) -> Cohort:
    """The real volumes there and back through the codec."""
    codec = model.method.codec
    device = next(codec.parameters()).device
    with torch.inference_mode():
        return {
            m: {k: (codec.decode(codec.encode(_tensor(x, device)))[0, 0].float().cpu().clamp(-1, 1).numpy() + 1) / 2
                for k, x in volumes.items()}
            for m, volumes in cohort.items()
        }  # fmt: skip


def _tensor(x: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(2 * x - 1)[None, None].float().to(device)


def compare(made: Cohort, there: Cohort) -> dict[str, dict[str, Any]]:
    """Modality ("all": pooled) -> metric -> what is known of it."""
    extractor = extractor_named()
    each = {m: [extract(extractor, list(c[m].items())) for c in (made, there)] for m in made}
    each["all"] = [extract(extractor, list(_pooled(c)), subject=lambda label: label.split()[0]) for c in (made, there)]
    out = {
        m: {found.metric: found.to_dict() for found in features.compare(a, b, ("frechet", "mmd"))}
        for m, (a, b) in each.items()
    }
    varied = diversity(
        {m: list(v.values()) for m, v in made.items()}, 1.0, {m: list(v.values()) for m, v in there.items()}
    )
    for m, found in varied.items():
        out["all" if m == POOLED else m]["msssim"] = found.to_dict()
    return out


def _pooled(cohort: Cohort) -> Iterator[tuple[str, np.ndarray]]:
    for m, volumes in cohort.items():
        for label, x in volumes.items():
            yield f"{label} {m}", x


def copies(made: Cohort, training: Path, there: Cohort) -> dict[str, Any]:
    """The audit of every modality: nearest training neighbours beside distances among real subjects."""
    run = training / "cache" if (training / "cache").is_dir() else training
    cache, out = Cache.open(run), {}
    for m in made:
        known = ((label, (cache.stack(label)[0][cache.modalities.index(m)] + 1) / 2) for label in cache.labels)
        found = audit(made[m].items(), known, there[m].items()).to_dict()
        out[m] = {key: found[key] for key in ("generated", "training", "held_out", "verdicts")}
    return out


def picture(made: Cohort, there: Cohort, rows: Sequence[Mapping[str, Any]], path: Path, columns: int = 6) -> None:
    """Middle axial planes: a row a modality, real subjects on the left, those asked for alike on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(columns, len(rows))
    figure, axes = pyplot.subplots(len(made), 2 * columns, figsize=(2.2 * columns, 1.25 * len(made)), squeeze=False)
    for line, m in zip(axes, made):
        for half, cohort in enumerate((there, made)):
            for axis, row, x in zip(line[half * columns :], rows, cohort[m].values()):
                axis.imshow(x[:, :, x.shape[2] // 2].T, cmap="gray", vmin=0, vmax=1, origin="lower")
                axis.axis("off")
                if m == next(iter(made)):
                    flags = "".join(f" {name}" for name in ("tumour", "ms") if row[name] == "yes")
                    axis.set_title(f"{row['age']:.0f} {row['sex']}{flags}", fontsize=6)
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def table(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Each number with its interval, what the real cohort gives, and the number from as few volumes as that."""
    for m, row in found.items():
        said = []
        for name, v in row.items():
            low, high, floor, few = (np.nan if v[k] is None else v[k] for k in ("low", "high", "floor", "same_size"))
            said.append(f"{name} {v['value']:.4g} [{low:.3g}, {high:.3g}] (real {floor:.4g}, so few {few:.4g})")
        print(f"{m:8}" + "   ".join(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", required=True, metavar="NAME=RUN")
    parser.add_argument("--training", type=Path, help="a run whose cache holds the training volumes: look for copies")
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--finer", type=int, default=2, help="how much finer they are simulated than the model's grid")
    parser.add_argument("--tumour-radius", type=float, nargs=2, default=RADIUS, help="mm, of the unseen subjects'")
    for name, kind in SETTINGS.items():
        parser.add_argument(f"--{name}", type=kind, help="in place of the model's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--keep", type=Path, default=Path("runs/cohorts"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "wfdm_cohort")
    choice = parser.parse_args()
    choice.out.mkdir(parents=True, exist_ok=True)
    for named in choice.model:
        name, _, run = named.rpartition("=")
        model = load(run, device=choice.device, precision=choice.precision)
        there, rows = real(model, choice.subjects, choice.finer, choice.tumour_radius)
        changed = {key: getattr(choice, key) for key in SETTINGS}
        made, seconds = generated(model, rows, choice.keep / name, changed)
        used = model._with(**changed)
        result = {
            "name": name, "weights": model.sha256, "subjects": choice.subjects,
            **{key: getattr(used.config, key) for key in SETTINGS}, "sampler": used.sampler,
            "seconds a volume": seconds,
            "generated": compare(made, there), "codec": compare(coded(model, there), there),
            "copies": copies(made, choice.training, there) if choice.training else {},
        }  # fmt: skip
        told = "kept volumes" if seconds is None else f"{seconds:.2f} s a volume"
        print(f"{name}: {choice.subjects} subjects, {told}")
        table(result["generated"])
        print("the real ones through the codec:")
        table(result["codec"])
        for m, found in result["copies"].items():
            print(m, "; ".join(verdict["words"] for verdict in found["verdicts"]))
        stem = name.replace(" ", "_").replace(",", "")
        (choice.out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
        picture(made, there, rows, choice.out / f"{stem}.png")


if __name__ == "__main__":
    main()

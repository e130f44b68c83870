"""What steps, samples and the coupling of slices do to a model: `python benchmarks/steps.py [--model X] [-n 2]`.

On unseen virtual subjects with one contrast hidden: PSNR and SSIM in the head (data range 1, the truth's own window),
the stripes ratio (synthetic through truth, 1 is as in the truth), seconds. Writes benchmarks/results/steps.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from amodal.data.intensity import Window
from amodal.data.phantom import PhantomConfig, subject, to_study
from amodal.data.volume import Study
from amodal.metrics.image import head_mask, psnr, ssim, stripe_ratio
from amodal.model import Model, load

SEED = 5000  # never trained on
# steps, samples, coupling (slices), smoothing
ROWS = [
    (1, 1, 3.0, 0.0), (2, 1, 3.0, 0.0), (4, 1, 3.0, 0.0), (8, 1, 3.0, 0.0), (16, 1, 3.0, 0.0),
    (4, 1, 0.0, 0.0), (8, 1, 0.0, 0.0), (8, 1, 0.0, 0.5), (8, 1, 3.0, 0.5),
    (4, 4, 3.0, 0.0), (8, 4, 3.0, 0.0),
]  # fmt: skip


def measure(model: Model, study: Study, hidden: str, steps: int, samples: int) -> dict[str, float]:
    """One completion against its truth."""
    done = model.complete(study, [hidden], samples=samples, steps=steps)
    unit = {m: (Window.of(study[m].data, model.grid.percentiles).enter(study[m].data) + 1) / 2 for m in study}
    truth, mask = unit[hidden], head_mask(np.stack(list(unit.values())))
    made = done.scaled[hidden]
    return {
        "psnr": psnr(made, truth, 1.0, mask), "ssim": ssim(made, truth, 1.0, mask),
        "stripes": stripe_ratio(made, [truth], mask), "seconds": done.seconds,
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="default")
    options.add_argument("--hide", default="FLAIR")
    options.add_argument("-n", type=int, default=2)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "steps.json")
    args = options.parse_args()
    model = load(args.model)
    studies = [to_study(subject(i, SEED, PhantomConfig())) for i in range(args.n)]
    rows: list[dict[str, Any]] = []
    print("steps samples coupling smoothing    psnr    ssim  stripes  seconds")
    for steps, samples, coupling, smoothing in ROWS:
        model.method.config = dataclasses.replace(model.method.config, coupling=coupling, smoothing=smoothing)
        found = [measure(model, study, args.hide, steps, samples) for study in studies]
        mean = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
        rows.append({"steps": steps, "samples": samples, "coupling": coupling, "smoothing": smoothing, **mean})
        print(f"{steps:5} {samples:7} {coupling:8} {smoothing:9} {mean['psnr']:7.2f} {mean['ssim']:7.3f} "
              f"{mean['stripes']:8.2f} {mean['seconds']:8.1f}", flush=True)  # fmt: skip
    about = {"model": model.sha256, "hidden": args.hide, "subjects": args.n, "seed": SEED, "rows": rows}
    args.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()

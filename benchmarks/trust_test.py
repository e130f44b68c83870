"""The trust test of a model on an unseen virtual cohort: speed (20 subjects x 14 sets within 20 minutes on two cores),
scores, and the coverage of its intervals on subjects it was not calibrated on. Results: results/trust_test.json.

    python benchmarks/trust_test.py --work work                      speed and scores: slices of 5 mm, as in the clinic
    python benchmarks/trust_test.py --work work --coverage --size 128x128x12 --thickness 6 --samples 4 \\
        --calibration 160 --subjects 160                             calibrate on some subjects, measure on others

What an interval covers of one subject varies much (its contrast is off everywhere or nowhere), so many subjects count
more than many voxels: the second line takes three thick slices of each. Both go on where they were stopped; the seconds
are then those of the last part alone, so time on empty folders.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from pathlib import Path

from amodal.cli import main as amodal
from amodal.model import describe

HERE = Path(__file__).parent / "results" / "trust_test.json"
SEEN, UNSEEN = 4000, 5000  # seeds of the calibration and of the test cohort; the default model's are below 100


def cohort(folder: Path, n: int, seed: int, size: str, thickness: float, workers: int) -> Path:
    if not folder.exists():
        words = ["phantom", str(folder), "-n", str(n), "--seed", str(seed), "--size", size, "--workers", str(workers)]
        assert amodal([*words, "--slice-thickness", str(thickness), "-q"]) == 0
    return folder


def evaluate(data: Path, out: Path, model: str, *words: str) -> dict:
    began = time.perf_counter()
    assert amodal(["evaluate", str(data), "--model", model, "--out", str(out), *words]) == 0
    found = json.loads((out / "results.json").read_text())
    return found | {"wall": time.perf_counter() - began}


def scores(found: dict) -> list[dict]:
    """Means over all sets by modality and method, and the verdicts."""
    keep = ("modality", "metric", "method", "n", "mean", "low", "high")
    rows = [{k: row[k] for k in keep} for row in found["summary"] if row["pattern"] == "all"]
    return rows + [{"modality": v["modality"], "verdict": v["text"]} for v in found["verdicts"]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--model", default="default")
    options.add_argument("--subjects", type=int, default=20)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--coverage", action="store_true")
    options.add_argument("--calibration", type=int, default=20, help="subjects to calibrate on")
    options.add_argument("--samples", type=int, default=8)
    options.add_argument("--size", default="128x128x128", help="128x128x12: slabs, of many more subjects")
    options.add_argument("--thickness", type=float, default=5.0, help="mm of a slice; 0: as wide as high (1.5 mm)")
    args = options.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "machine": platform.machine()}
    about = describe(args.model)
    asked = {key: value for key, value in vars(args).items() if key != "work"}
    made: dict = {"sha256": about["sha256"], "machine": machine, **asked}
    if args.coverage:
        own = args.work / "model"  # so that the model given stays as it is
        shutil.copytree(about["folder"], own, dirs_exist_ok=True)
        many = ["--samples", str(args.samples), "--patterns", "random:2", "--workers", str(args.workers)]
        seen = cohort(args.work / "seen", args.calibration, SEEN, args.size, args.thickness, args.workers)
        unseen = cohort(args.work / "unseen", args.subjects, UNSEEN, args.size, args.thickness, args.workers)
        fitted = evaluate(seen, args.work / "calibration", str(own), *many, "--calibrate")
        found = evaluate(unseen, args.work / "coverage", str(own), *many)
        made |= {"calibration": fitted["calibration"], "coverage": found["coverage"]}
    else:
        data = cohort(args.work / "test", args.subjects, UNSEEN, args.size, args.thickness, args.workers)
        found = evaluate(data, args.work / "trust", args.model, "--patterns", "all", "--workers", str(args.workers))
        spent = found["seconds_by_subject"]
        made |= {"seconds": found["wall"], "seconds_by_subject": spent, "scores": scores(found)}
    there = json.loads(HERE.read_text()) if HERE.exists() else {}
    HERE.parent.mkdir(exist_ok=True)
    HERE.write_text(json.dumps(there | {"coverage" if args.coverage else "trust": made}, indent=1, default=str) + "\n")
    print(f"{made['seconds'] / 60:.1f} min" if "seconds" in made else found["coverage"])


if __name__ == "__main__":
    main()

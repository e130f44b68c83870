"""What the metrics cost beside their peers, and what the download-free extractors notice.

    python benchmarks/metrics.py speed            # SSIM, MS-SSIM, Frechet distance: ours and the peers in turn
    python benchmarks/metrics.py notice           # virtual brains made worse step by step (needs amodal[phantom])

`speed` prints medians over rounds of one process and the ratio to ours; the difference of the values stands beside it.
`notice` holds 12 virtual subjects against 24 others, unchanged and made worse, and prints every distance beside the
floor (real against real, equal sizes). Results go to `benchmarks/results/metrics_*.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import linalg, ndimage
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from amodal.data.intensity import Window
from amodal.data.phantom import PhantomConfig, subject
from amodal.metrics import distances, extractors
from amodal.metrics.features import compare
from amodal.metrics.structure import msssim, ssim

RESULTS = Path(__file__).parent / "results"
GRID = PhantomConfig(shape=(80, 96, 80), spacing=2.2, modalities=("T1w", "FLAIR"), tumour=0.0)
REAL, MADE = range(24), range(100, 112)


def naive_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """As it is usually written: the square root of a product of covariances, its imaginary part thrown away."""
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.real(linalg.sqrtm(first @ second))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


def cases() -> dict[str, dict[str, Callable[[], float]]]:
    """What is computed -> by whom -> how; ours first."""
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.random((64, 64, 64)), 2).astype(np.float32)
    truth = (truth - truth.min()) / np.ptp(truth)
    guess = (truth + 0.05 * rng.standard_normal(truth.shape)).astype(np.float32)
    x, y = (torch.from_numpy(v)[None, None] for v in (guess, truth))
    book = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    betas = tuple(np.array((0.0448, 0.2856, 0.3001)) / 0.6305)
    a, b = rng.standard_normal((60, 512)), rng.standard_normal((80, 512)) + 0.2
    return {
        "SSIM, 64^3": {
            "ours": lambda: ssim(guess, truth, 1.0),
            "scikit-image": lambda: float(structural_similarity(truth, guess, **book)),
            "torchmetrics": lambda: float(structural_similarity_index_measure(x, y, data_range=1.0)),
        },
        "MS-SSIM, 64^3, 3 scales": {
            "ours": lambda: msssim(guess, truth, 1.0, scales=3),
            "torchmetrics": lambda: float(
                multiscale_structural_similarity_index_measure(x, y, data_range=1.0, betas=betas)
            ),
        },
        "Frechet, n = 60 and 80, d = 512": {
            "ours": lambda: distances.frechet(a, b),
            "SciPy's sqrtm": lambda: naive_frechet(a, b),
        },
    }


def speed(rounds: int) -> dict[str, object]:
    """Medians of each, in turn, after a warm-up."""
    table: dict[str, object] = {}
    for case, peers in cases().items():
        values, seconds = {name: run() for name, run in peers.items()}, {name: [] for name in peers}
        for _ in range(rounds):
            for name, run in peers.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        mine = statistics.median(seconds["ours"])
        print(case)
        rows = {}
        for name, found in seconds.items():
            middle = statistics.median(found)
            rows[name] = {"median_s": middle, "ratio": middle / mine, "difference": values[name] - values["ours"]}
            print(
                f"  {name:14} {middle:9.4f} s {middle / mine:8.1f}x   value differs by {rows[name]['difference']:.1e}"
            )
        table[case] = rows
    return table


def brains(indices: range, modality: str) -> list[tuple[str, np.ndarray]]:
    """Virtual subjects in [0, 1]."""
    found = []
    for index in indices:
        image = subject(index, 0, GRID).images[modality]
        found.append((f"sub-{index}", np.clip((Window.of(image).enter(image) + 1) / 2, 0, 1)))
    return found


CHANGES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "nothing": lambda x, k: x,
    "blur 0.5 voxels": lambda x, k: ndimage.gaussian_filter(x, 0.5),
    "blur 1 voxel": lambda x, k: ndimage.gaussian_filter(x, 1.0),
    "noise 2 %": lambda x, k: np.where(x > 0, x + 0.02 * np.random.default_rng(k).standard_normal(x.shape), x),
    "noise 5 %": lambda x, k: np.where(x > 0, x + 0.05 * np.random.default_rng(k).standard_normal(x.shape), x),
    "contrast, gamma 1.3": lambda x, k: x**1.3,
    "stripes 5 %": lambda x, k: x * (1 + 0.05 * np.random.default_rng(k).standard_normal(x.shape[2])),
    "shrunk by 4 %": lambda x, k: _shrunk(x, 0.96),
    "one brain for all": lambda x, k: x,
}


def _shrunk(x: np.ndarray, factor: float) -> np.ndarray:
    center = (np.array(x.shape) - 1) / 2
    return ndimage.affine_transform(x, np.eye(3) / factor, center - center / factor, order=1)


def notice() -> dict[str, object]:
    """Distances of virtual brains made worse, beside the floor."""
    real, made = brains(REAL, "FLAIR"), brains(MADE, "FLAIR")
    table: dict[str, object] = {}
    for name in ("seeded", "texture"):
        extractor = extractors.load(name)
        truth = extractors.extract(extractor, real)
        print(name)
        rows = {}
        for change, function in CHANGES.items():
            source = [(label, made[0][1]) for label, _ in made] if change == "one brain for all" else made
            worse = [(label, np.clip(function(x, k), 0, 1).astype(np.float32)) for k, (label, x) in enumerate(source)]
            found = compare(extractors.extract(extractor, worse), truth, draws=100)
            rows[change] = {m.metric: m.to_dict() for m in found}
            words = [
                f"{m.metric} {m.same_size:8.3f} (floor {m.floor:.3f}, at most {m.floor_high:.3f})" for m in found[:3]
            ]
            words += [f"{m.metric} {m.value:.2f}" for m in found[3:]]
            print(f"  {change:20} {'  '.join(words)}")
        table[name] = rows
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "notice"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table = speed(arguments.rounds) if arguments.what == "speed" else notice()
    about = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version(),
             "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1)}  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"about": about, "results": table}, indent=1, default=float)
    (RESULTS / f"metrics_{arguments.what}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

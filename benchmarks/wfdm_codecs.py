"""WFDM's table of codecs (Table 3) with equal training: WF-SA-VAE, WF-VAE, Wavelet VAE, VAE-GAN; and the transforms.

    python benchmarks/wfdm_codecs.py DATASET --minutes 30 [--out runs/codecs] [--preset small] [--subjects 8]
    python benchmarks/wfdm_codecs.py DATASET --minutes 6 --set "size=[48,56,40]" spacing=4

Every codec is trained on DATASET (`amodal train wfdm ... --set 'stages=["codec"]'`) for the same time, or with
`--steps` for as many steps; a run that is there already is used as it is. They are then measured on virtual subjects
that nothing was trained on (`wfdm_data.py`): PSNR, SSIM, MS-SSIM and MSE of whole volumes in [0, 1], and LPIPS in
features of a fixed random network (not the paper's, so its numbers compare with one another alone). Pooled and by
modality, mean and standard error over subjects. Writes benchmarks/results/wfdm_codecs.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from wfdm_data import SEED, person

from amodal.cli import training
from amodal.codecs.losses import random_features
from amodal.codecs.wavelet_fusion import Stages
from amodal.core.config import override
from amodal.data.intensity import Window
from amodal.methods import wfdm
from amodal.metrics.image import mse, psnr
from amodal.metrics.perceptual import lpips
from amodal.metrics.structure import msssim, ssim
from amodal.model import load
from amodal.nn.count import parameters
from amodal.train.plan import Plan

CODECS = {"WF-SA-VAE": "", "WF-VAE": ":wf-vae", "Wavelet VAE": ":wavelet-vae", "VAE-GAN": ":vae-gan"}
TRANSFORMS = {"DWT, 1 stage": 1, "DWT, 2 stages": 2}


def trained(name: str, choice: argparse.Namespace) -> Any:
    """The trained codec of that name, and what is known of its training."""
    out = choice.out / name.lower().replace(" ", "-")
    if not (out / "model.json").is_file():
        plan = Plan(choice.steps, choice.minutes, choice.batch, choice.rate, warmup=50)
        settings = ('stages=["codec"]', *choice.set)
        job = training.Job("wfdm", choice.dataset, out, plan, choice.preset + CODECS[name], settings, hold_out=0,
                           resume=out.exists(), device=choice.device, quiet=True)  # fmt: skip
        training.run(job)
    model = load(out, device=choice.device, precision=choice.precision)
    return model.method.codec, model.card["training"]


def volumes(config: wfdm.Config, count: int) -> list[dict[str, np.ndarray]]:
    """Unseen virtual subjects, [-1, 1]."""
    grid, found = wfdm.grid(config), []
    for index in range(count):
        images = person(index, SEED, config.size, config.spacing, config.modalities).images
        found.append({m: Window.of(x, grid.percentiles).enter(x) for m, x in images.items()})
    return found


def scores(codec: Any, x: np.ndarray, features: Any, device: torch.device) -> dict[str, float]:
    """One volume there and back."""
    given = torch.from_numpy(x)[None, None].float().to(device)
    with torch.inference_mode():
        made = codec.decode(codec.encode(given))[0, 0].float().cpu().clamp(-1, 1).numpy()
    a, b = (made + 1) / 2, (x + 1) / 2
    found = {"psnr": psnr(a, b, 1.0), "ssim": ssim(a, b, 1.0), "msssim": msssim(a, b, 1.0), "mse": mse(a, b, 1.0)}
    return {**found, "lpips": lpips(a, b, 1.0, features, dims=3)}


def measure(codec: Any, people: list[dict[str, np.ndarray]], device: torch.device) -> dict[str, dict[str, list[float]]]:
    """Modality ("all": pooled) -> metric -> mean and standard error over subjects."""
    features = random_features(3)
    rows = [{m: scores(codec, x, features, device) for m, x in person.items()} for person in people]
    out: dict[str, dict[str, list[float]]] = {}
    for m in ("all", *people[0]):
        for metric in rows[0][next(iter(people[0]))]:
            of = [np.mean([r[metric] for r in row.values()]) if m == "all" else row[m][metric] for row in rows]
            error = float(np.std(of, ddof=1) / len(of) ** 0.5) if len(of) > 1 else float("nan")
            out.setdefault(m, {})[metric] = [float(np.mean(of)), error]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, help="of learning; default: the preset's")
    parser.add_argument("--preset", default="small", choices=["small", "published"])
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="changes to the preset, for all")
    parser.add_argument("--codecs", nargs="+", choices=list(CODECS), default=list(CODECS))
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/codecs"))
    choice = parser.parse_args()
    if choice.minutes is None and choice.steps is None:
        parser.error("give --minutes or --steps, the same for all codecs")
    config = override(wfdm.PRESETS[choice.preset](), choice.set)
    people = volumes(config, choice.subjects)
    results: dict[str, Any] = {}
    for name in choice.codecs:
        codec, about = trained(name, choice)
        device = next(codec.parameters()).device
        results[name] = {"parameters": parameters(codec)[0], "training": about, **measure(codec, people, device)}
    for name, stages in TRANSFORMS.items():
        results[name] = measure(Stages(stages), people, torch.device("cpu"))
    print(f"{'codec':16}{'PSNR':>14}{'SSIM':>18}{'MS-SSIM':>18}{'MSE':>12}{'LPIPS':>12}")
    for name, row in results.items():
        p, s, ms, e, lp = (row["all"][k] for k in ("psnr", "ssim", "msssim", "mse", "lpips"))
        print(
            f"{name:16}{p[0]:8.2f}±{p[1]:.2f}{s[0]:12.4f}±{s[1]:.4f}{ms[0]:12.4f}±{ms[1]:.4f}{e[0]:12.6f}{lp[0]:12.4f}"
        )
    path = Path(__file__).parent / "results" / "wfdm_codecs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {"preset": choice.preset, "set": choice.set, "subjects": choice.subjects, "codecs": results}, indent=1
        )
        + "\n"
    )


if __name__ == "__main__":
    main()

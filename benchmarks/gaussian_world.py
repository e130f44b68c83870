"""How near MDS and MPS come to the exact posterior as steps grow, in a world where it is known in closed form.

    python benchmarks/gaussian_world.py [--steps 10 20 50 100 200 500] [--samples 10000]

The prior is Gaussian over two modalities of two voxels, so the best denoiser is linear; one modality is given. Printed
are, for every way of conditioning and every sampler, the distance of the mean over samples from the posterior mean (in
posterior standard deviations) and of their covariance from the posterior covariance (relative, Frobenius). The last
line is what exact samples of the same number would show. Results go to `benchmarks/results/gaussian_world.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the world is the tests'

from tests.diffusion.gaussian import Streams, law, start, world

from amodal.diffusion.denoiser import Denoise
from amodal.diffusion.process import DDPM
from amodal.diffusion.samplers import ddim, heun, multistep, repaint
from amodal.physics.linear import mask
from amodal.physics.posterior import Observation, gradient, hold, project

PROCESS = DDPM(1000, "cosine")
TRUTH = world(PROCESS)
KNOWN = torch.tensor([True, True, False, False])  # both voxels of the first modality
Y = TRUTH.mean[KNOWN] + torch.tensor([0.4, -0.5], dtype=torch.float64)
MEAN, COV = TRUTH.posterior(KNOWN, Y)

Sampler = Callable[[Denoise, Tensor, Tensor], Tensor]
SAMPLERS: dict[str, Sampler] = {  # name -> (denoise, x, times) -> sample
    "ddim": lambda d, x, t: ddim(d, PROCESS, x, t),
    "ddim, eta 0.85": lambda d, x, t: ddim(d, PROCESS, x, t, Streams(1), 0.85),
    "ancestral": lambda d, x, t: ddim(d, PROCESS, x, t, Streams(1), 1.0),
    "heun": lambda d, x, t: heun(d, PROCESS, x, t),
    "multistep": lambda d, x, t: multistep(d, PROCESS, x, t),
    "repaint x10": lambda d, x, t: repaint(d, PROCESS, x, t, Streams(1), 10),
}


def conditionings(n: int) -> dict[str, tuple[Denoise, tuple[str, ...]]]:
    """Name -> (denoiser bent towards what is given, the samplers that are run with it)."""
    images = torch.zeros(n, 2, 2, dtype=torch.float64)
    images[:, 0] = Y
    present = torch.tensor([[[True], [False]]]).expand(n, 2, 1)
    seen = Observation(mask(present), images)
    usual = tuple(name for name in SAMPLERS if name != "repaint x10")
    return {
        "MDS, project": (project(TRUTH.denoise, present, images), tuple(SAMPLERS)),
        "MDS, hold": (hold(TRUTH.denoise, present, images, PROCESS.end), usual),
        "MPS, 1 iteration": (gradient(TRUTH.denoise, PROCESS, seen, 1), usual),
        "MPS, 4 iterations": (gradient(TRUTH.denoise, PROCESS, seen, 4), usual),
    }


def errors(samples: Tensor) -> dict[str, float]:
    """Of samples [n, 2] of the missing modality."""
    mean, cov = law(samples)
    distances = {"mean": (mean - MEAN).norm() / COV.trace().sqrt(), "covariance": (cov - COV).norm() / COV.norm()}
    return {name: round(value.item(), 4) for name, value in distances.items()}


def exact(n: int) -> dict[str, float]:
    """The errors of n independent draws from the posterior itself."""
    eps = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return errors(MEAN + eps @ torch.linalg.cholesky(COV).T)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100, 200, 500])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gaussian_world.json")
    choice = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'mean / covariance error at':42}" + "".join(f"{n:>16}" for n in choice.steps))
    for conditioning, (denoise, samplers) in conditionings(choice.samples).items():
        for sampler in samplers:
            line = f"{conditioning + ', ' + sampler:42}"
            for steps in choice.steps:
                x = SAMPLERS[sampler](denoise, start(TRUTH, choice.samples), PROCESS.grid(steps))
                found = errors(x[:, 1])
                rows.append({"conditioning": conditioning, "sampler": sampler, "steps": steps, **found})
                line += f"{found['mean']:8.3f} {found['covariance']:7.3f}"
            print(line, flush=True)
    floor = exact(choice.samples)
    print(f"{'exact samples':42}{floor['mean']:8.3f} {floor['covariance']:7.3f}")
    about = {"process": "DDPM(1000, cosine)", "samples": choice.samples}
    choice.out.parent.mkdir(parents=True, exist_ok=True)
    choice.out.write_text(json.dumps({**about, "exact": floor, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What the network is told: which modalities are given, which is wanted, and where the tissues lie (CoLa-Diff, 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.contract import Batch
from ...core.rng import Rng

CLASSES = 4  # fluid, grey matter, white matter, tumour: 1 to 4 in a tissue map, 0 is outside
SOURCES = ("T1w", "T1Gd", "T2w", "PDw", "T2starw")  # whose tissue map is believed first


@dataclass(frozen=True)
class Task:
    """One image to be made from each sample. `given` bool [N, M]: what it is made from; `target` [N]: the modality
    that is made; `guided` bool [N]: whether a tissue map may be used."""

    given: Tensor
    target: Tensor
    guided: Tensor

    def vector(self, source: Tensor) -> Tensor:
        """What the time embedding is told besides: [N, 2 M + 1]; `source` [N], -1 where no tissue map was found."""
        wanted = torch.nn.functional.one_hot(self.target, self.given.shape[1])
        return torch.cat([self.given, wanted, (source >= 0)[:, None]], dim=1).float()


def drawn(present: Tensor, may_learn: Tensor, rng: Rng, drop: float) -> Task:
    """A task of training for each sample: a target that may be learned, others given, many more often than few.

    present, may_learn: bool [B, M]. With probability `drop` nothing is given, and likewise no tissue map is used.
    """
    device, (_, m) = present.device, present.shape
    order, u = rng.uniform(m).to(device), rng.uniform(4).to(device)
    target = torch.where(may_learn, order, torch.full_like(order, -1.0)).argmax(1)
    wanted = torch.nn.functional.one_hot(target, m).bool()
    others = present & ~wanted
    rank = torch.where(others, rng.uniform(m).to(device), torch.full_like(order, 2.0)).argsort(1).argsort(1)
    left = others.sum(1)
    count = 1 + (u[:, 0] ** 0.6 * left).floor().clamp(max=(left - 1).clamp(min=0))
    given = (rank < count[:, None]) & others & (u[:, 1:2] >= drop)
    return Task(given, target, u[:, 2] >= drop)


def source_of(task: Task, known: Mapping[str, Tensor], modalities: tuple[str, ...]) -> Tensor:
    """Whose tissue map is used: the first of SOURCES that is given and has one; [N], -1 for none.

    Never the target's: what is wanted is not given.
    """
    has = (known["density"][..., 1] > 0).any(2)
    usable = task.given & has & task.guided[:, None]
    first = [SOURCES.index(name) if name in SOURCES else len(SOURCES) for name in modalities]
    rank = torch.tensor(first, device=usable.device).expand_as(usable)
    rank = torch.where(usable & (rank < len(SOURCES)), rank, torch.full_like(rank, len(SOURCES)))
    best = rank.argmin(1)
    return torch.where(rank.gather(1, best[:, None])[:, 0] < len(SOURCES), best, torch.full_like(best, -1))


def guidance(batch: Batch, source: Tensor) -> Tensor:
    """One image a tissue class, [N, CLASSES, X, Y] in [-1, 1]: where it is, and how like its mean a voxel is.

    Within the class the image lies in [0, 1], outside in [-1, 0]; in both parts it rises with the density
    exp(-(x - mean)^2 / 2 variance) of the class at the voxel's intensity. -1 where there is no brain, and everywhere
    without a tissue map. `batch.metadata`: "tissue" [N, M, X, Y], "density" [N, M, CLASSES, 2] (mean, SD).
    """
    known = batch.metadata or {}
    rows, at = torch.arange(len(source), device=source.device), source.clamp(min=0)
    image, tissue = batch.images[rows, at], known["tissue"][rows, at].long()
    mean, sd = known["density"][rows, at].float().unbind(-1)  # [N, CLASSES]
    image, mean, sd = image[:, None].float(), mean[..., None, None], sd[..., None, None]
    density = torch.exp(-0.5 * ((image - mean) / sd.clamp(min=1e-3)) ** 2) * (sd > 0)
    inside = tissue[:, None] == torch.arange(1, CLASSES + 1, device=source.device)[:, None, None]
    brain = (tissue > 0)[:, None] & (source >= 0)[:, None, None, None]
    return torch.where(brain, inside.float() + density - 1, torch.full_like(density, -1.0))

"""What completed images are worth to a task: one small segmentation network, trained on real data, without a modality,
and with that modality completed (CoPeDiT, section 4.4 and Table 9).

The three arms share the network, the subjects, the order of patches and every setting; only the images differ, in
training and in testing alike. Dice is measured on subjects that no arm was trained on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.contract import Progress
from ..core.errors import AmodalError, InputError
from ..core.rng import seed_of
from ..data.nifti import sha256
from ..data.volume import Source, Study
from ..metrics.statistics import Score, summarise
from ..report.evaluation import Evaluation, evaluation_page
from ..report.page import write
from . import store
from .measure import head_of
from .paired import Paired, compare_all
from .plan import environment
from .protocols import Split

REAL, MISSING, COMPLETED = "real", "missing", "completed"
ARMS = (REAL, MISSING, COMPLETED)
_MULTIPLE = 8  # voxels per axis of what the network is given: three times halved


@dataclass(frozen=True)
class Task:
    """`regions`: name -> label numbers. `hidden`: what the second arm lacks and the third has completed. `share`: of
    the subjects that are trained on. `patch`: voxels per axis. The rest is how the network is made and trained."""

    regions: Mapping[str, tuple[int, ...]]
    hidden: tuple[str, ...]
    share: float = 0.8
    channels: tuple[int, ...] = (16, 32, 64, 128)
    patch: int = 64
    batch: int = 2
    iterations: int = 2000
    rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """One subject: real images [M, X, Y, Z] in [0, 1], the hidden completed [H, X, Y, Z], regions bool [R, X, Y, Z]."""

    label: str
    real: np.ndarray
    completed: np.ndarray
    regions: np.ndarray


@dataclass(frozen=True)
class Found:
    """Dice of every tested subject, region and arm, and the arms compared in pairs."""

    scores: tuple[Score, ...]
    comparisons: tuple[Paired, ...]
    failed: Mapping[str, str]
    files: Mapping[str, Path]


def downstream(
    sources: Sequence[Source], model: Any, out: str | Path, task: Task, *, prepare: Callable[[Source], Study],
    regions_of: Callable[[Source, Study], np.ndarray], steps: int | None = None, data: str = "",
    progress: Progress | None = None,
) -> Found:  # fmt: skip
    """Complete every subject, train the three arms, test them; writes results.csv, results.json and report.html.

    What is completed is kept in `out/subjects`. InputError where MONAI is absent, or no subject can be used.
    """
    folder, failed = Path(out), {}
    cases: list[Path] = []
    total = len(sources) + len(ARMS)
    _need_network()
    names = tuple(m for m in model.modalities if m in _common(sources))
    if not set(task.hidden) < set(names):
        raise InputError(
            f"{'+'.join(task.hidden)} cannot be taken away: all subjects have {', '.join(names) or 'nothing'} of what "
            "the model knows, and one must be left."
        )
    about = {"task": {**asdict(task), "names": names}, "model": model.sha256, "steps": steps}
    for done, source in enumerate(sources):
        try:
            cases.append(_case(folder, source, model, task, names, prepare, regions_of, steps, about))
        except Exception as error:  # one subject's fault must not cost the others
            failed[source.label] = str(error) if isinstance(error, AmodalError) else f"{type(error).__name__}: {error}"
        if progress is not None:
            progress(done + 1, total)
    if len(cases) < 2:
        why = next(iter(failed.values()), "give more subjects with images and labels.")
        raise InputError(f"{len(cases)} subjects could be used and at least 2 are needed, better 50: {why}")
    learn, held = _split(cases, task)
    scores: list[Score] = []
    for k, arm in enumerate(ARMS):
        net = train(arm, learn, task, names, _device(model))
        scores += [s for path in held for s in tested(net, arm, load(path), task, names)]
        if progress is not None:
            progress(len(sources) + k + 1, total)
    files = {s.label: s.files for s in sources}
    return _write(folder, tuple(scores), failed, about, model, data, len(learn), files)


def train(arm: str, learn: Sequence[Path], task: Task, names: Sequence[str], device: torch.device) -> torch.nn.Module:
    """One arm's network after `task.iterations` steps on patches, whose order is the same for all arms."""
    torch.manual_seed(seed_of(task.seed, "network"))
    inputs = len(names) - (len(task.hidden) if arm == MISSING else 0)
    net = network(inputs, len(task.regions), task.channels).to(device)
    learner = torch.optim.AdamW(net.parameters(), task.rate)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(learner, max(task.iterations, 1))
    cases = [load(path) for path in learn]
    net.train()
    for step in range(task.iterations):
        draw = np.random.default_rng(seed_of(task.seed, "patch", step))
        pairs = [patch(cases[int(draw.integers(len(cases)))], arm, task, names, draw) for _ in range(task.batch)]
        images, regions = (torch.from_numpy(np.stack(x)).to(device) for x in zip(*pairs))
        learner.zero_grad(set_to_none=True)
        loss(net(images), regions).backward()
        learner.step()
        rates.step()
    return net.eval()


def tested(net: torch.nn.Module, arm: str, case: Case, task: Task, names: Sequence[str]) -> list[Score]:
    """Dice of each region that the subject has."""
    images = torch.from_numpy(images_of(case, arm, task, names))[None]
    short = [-n % _MULTIPLE for n in images.shape[2:]]
    padded = torch.nn.functional.pad(images, [n for extra in reversed(short) for n in (0, extra)])
    with torch.inference_mode():
        out = net(padded.to(next(net.parameters()).device))[0].cpu().numpy() > 0
    found = out[(slice(None), *(slice(0, n) for n in images.shape[2:]))]
    return [
        Score(case.label, "+".join(task.hidden), region, "dice", arm, dice(found[r], case.regions[r]))
        for r, region in enumerate(task.regions)
        if case.regions[r].any()
    ]


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Twice the overlap over the sum of the sizes (Dice 1945); 1 where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0


def loss(logits: Tensor, regions: Tensor) -> Tensor:
    """Cross-entropy of each voxel and region plus 1 - soft Dice of each region over the batch."""
    truth = regions.to(logits)
    axes = (0, *range(2, logits.ndim))
    p = torch.sigmoid(logits)
    overlap, size = (p * truth).sum(axes), p.sum(axes) + truth.sum(axes)
    soft = (2 * overlap + 1) / (size + 1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, truth) + (1 - soft).mean()


def network(inputs: int, outputs: int, channels: Sequence[int]) -> torch.nn.Module:
    """MONAI's residual U-Net, instance norm; InputError where MONAI is absent."""
    _need_network()
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=3,
        in_channels=inputs,
        out_channels=outputs,
        channels=tuple(channels),
        strides=(2,) * (len(channels) - 1),
        num_res_units=1,
        norm="instance",
    )


def patch(
    case: Case, arm: str, task: Task, names: Sequence[str], draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A cube of images and regions; half of them around a voxel of a region, where there is one."""
    inside = np.argwhere(case.regions.any(0)) if draw.random() < 0.5 else np.empty((0, 3), int)
    shape = case.regions.shape[1:]
    at = inside[draw.integers(len(inside))] if len(inside) else draw.integers(0, shape)
    flip = draw.random(3) < 0.5
    size = np.minimum(task.patch, shape)
    low = np.clip(at - size // 2, 0, np.array(shape) - size)
    part = (slice(None), *(slice(a, a + n) for a, n in zip(low, size)))
    out = []
    for whole in (images_of(case, arm, task, names), case.regions):
        cube = np.zeros((len(whole), *(task.patch,) * 3), whole.dtype)
        cube[(slice(None), *(slice(0, n) for n in size))] = whole[part]
        out.append(np.ascontiguousarray(np.flip(cube, tuple(1 + a for a in range(3) if flip[a]))))
    return out[0], out[1]


def images_of(case: Case, arm: str, task: Task, names: Sequence[str]) -> np.ndarray:
    """The images an arm sees, float32."""
    gone = [names.index(m) for m in task.hidden]
    if arm == MISSING:
        return np.delete(case.real, gone, axis=0)
    images = case.real.copy()
    if arm == COMPLETED:
        images[gone] = case.completed
    return images


def load(path: Path) -> Case:
    """A kept case."""
    with np.load(path, allow_pickle=False) as file:
        real, completed = (file[k].astype(np.float32) for k in ("real", "completed"))
        return Case(path.parent.name, real, completed, file["regions"])


def _case(
    folder: Path, source: Source, model: Any, task: Task, names: tuple[str, ...],
    prepare: Callable[[Source], Study], regions_of: Callable[[Source, Study], np.ndarray], steps: int | None,
    about: Mapping[str, Any],
) -> Path:  # fmt: skip
    """One subject, completed and kept; taken from the folder where it was made in the same way."""
    place = folder / "subjects" / store.safe(source.label)
    made = {"about": about, "inputs": store.inputs(source)}
    if store.read(place / "case.json") == store.plain(made) and (place / "case.npz").is_file():
        return place / "case.npz"
    study = prepare(source).only(*names)
    regions = regions_of(source, study)
    real = np.stack([(model.window(m, study[m]).enter(study[m].data) + 1) / 2 for m in names])
    full = model.complete(study.without(*task.hidden), missing=list(task.hidden), seed=task.seed, steps=steps)
    completed = np.stack([np.asarray(full.scaled[m], np.float32) for m in task.hidden])
    box = _box(head_of(list(real)))
    place.mkdir(parents=True, exist_ok=True)
    temporary = place / f".case.{os.getpid()}.npz"
    half = (x[(slice(None), *box)].astype(np.float16) for x in (real, completed))
    np.savez_compressed(temporary, real=next(half), completed=next(half), regions=regions[(slice(None), *box)])
    os.replace(temporary, place / "case.npz")
    write(place / "case.json", store.to_json(made))
    return place / "case.npz"


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    ranges = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return tuple(slice(int(r[0]), int(r[-1]) + 1) for r in ranges)


def _split(cases: Sequence[Path], task: Task) -> tuple[list[Path], list[Path]]:
    """Who is trained on and who is tested: by a hash of the names, so that neither depends on the order of files."""
    by_name = {path.parent.name: path for path in cases}
    ordered = [by_name[name] for name in Split(0, 0, seed=task.seed).order(list(by_name))]
    count = min(max(round(task.share * len(ordered)), 1), len(ordered) - 1)
    return ordered[:count], ordered[count:]


def _common(sources: Sequence[Source]) -> set[str]:
    """What all subjects have."""
    return set.intersection(*(set(s.files) for s in sources)) if sources else set()


def _device(model: Any) -> torch.device:
    return next(model.method.parameters()).device


def _need_network() -> None:
    try:
        import monai.networks.nets  # noqa: F401
    except ImportError:
        raise InputError(
            "the segmentation network is MONAI's, which is not installed; pip install 'amodal[downstream]'."
        ) from None


def _write(
    folder: Path, scores: tuple[Score, ...], failed: Mapping[str, str], about: Mapping[str, Any], model: Any, data: str,
    trained: int, images: Mapping[str, Mapping[str, Path]],
) -> Found:  # fmt: skip
    comparisons = tuple(
        c for pair in ((COMPLETED, MISSING), (REAL, COMPLETED), (REAL, MISSING)) for c in compare_all(scores, *pair)
    )
    others = sorted({s.subject for s in scores})
    content = {
        "run": about,
        "protocol": {"id": "downstream v1", **about["task"]},
        "models": {"model": {"id": model.id, "method": model.name, "sha256": model.sha256}},
        "data": data,
        "tested_method": COMPLETED,
        "trained_on": trained,
        "subjects": {label: {m: sha256(path) for m, path in images[label].items()} for label in others},
        "tested": others,
        "failed": failed,
        "summary": [asdict(s) for s in summarise(scores)],
        "comparisons": [asdict(c) for c in comparisons],
        "environment": environment(),
    }
    files = {name: folder / name for name in ("results.csv", "results.json", "report.html")}
    write(files["results.csv"], store.to_csv(scores))
    write(files["results.json"], store.with_scores(content, scores))
    lead = (
        f"A small segmentation network was trained on {trained} subjects three times: on what was acquired, without "
        f"{'+'.join(about['task']['hidden'])}, and with it completed by the model. Dice in {len(others)} others."
    )
    shown = Evaluation(
        scores, failed=failed, comparisons=comparisons, others=ARMS, lead=lead, title="What is it worth downstream?",
        kind="downstream", part="Region", who="Trained on",
        notes=[f"{c.difference.modality}: {c.words}" for c in comparisons if c.difference.method != REAL],
        protocol={k: content[k] for k in ("protocol", "models", "environment")},
    )  # fmt: skip
    evaluation_page(files["report.html"], shown)
    return Found(scores, comparisons, failed, files)

"""The one training loop: a list of stages, each a list of players, on Lightning Fabric.

A step is a pure function of the weights and its own number: batches, random streams and dropout are all keyed by it. A
run that was killed therefore goes on from its newest checkpoint as if nothing had happened (bit for bit on the CPU in
fp32, when `steps` is given; a rate that follows the clock cannot be repeated).

Two players (a codec and its critic): `forward` runs once per micro-batch; each player's loss is then differentiated
with respect to that player's parameters alone, so nothing leaks into the other's gradients; then the players step in
order. All gradients belong to the weights before the step. For a critic that judges detached reconstructions this is
the usual alternation exactly, since neither its loss nor its weights depend on the codec's step.

Several processes: gradients are averaged by the engine, so that a method's modules stay plain. Rank r of w takes the
micro-batches r, w + r, ...: w processes do what `accumulate` = w does on one.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import AdamW

from ..core.config import to_dict
from ..core.contract import Batch, Player, Stage
from ..core.device import bf16, pick
from ..core.errors import AmodalError, InputError
from ..core.rng import Rng, seed_of
from . import checkpoint, log, machine, optim
from .ema import Ema
from .plan import RATE, Clock, Plan, of_stage, over, progress

__all__ = ["FitResult", "Plan", "fit", "holds_run"]

Data = Callable[[int], Batch]  # number of the micro-batch -> batch, a pure function
Validate = Callable[[Module, int, Path], Mapping[str, float]]  # (method with averaged weights, step, run folder)
PATIENCE = 10  # steps in a row without a finite loss before the run is given up


@dataclass(frozen=True)
class FitResult:
    """What training left. `ema`: the whole state of the method with averaged weights, on the CPU (what to publish).
    `steps` and `seconds` count all stages and all resumed parts; `stopped`: a signal ended it early."""

    steps: int
    seconds: float
    loss: float
    folder: Path
    ema: dict[str, Tensor]
    stopped: bool = False


@dataclass(frozen=True)
class _Learner:
    """A player with its parameters and its optimiser."""

    player: Player
    parameters: tuple[Parameter, ...]
    optimizer: AdamW


@dataclass(frozen=True)
class _Run:
    """What stays the same during one call of `fit`."""

    fabric: Fabric
    method: Module
    stages: tuple[Stage, ...]
    data: Data
    folder: Path
    plan: Plan
    validate: Validate | None
    line: log.Line
    metrics: TextIO
    stop: threading.Event
    clock: Clock


@dataclass(frozen=True)
class _Part:
    """One stage of a run: its players, the names of what they train, and their averages."""

    index: int
    stage: Stage
    plan: Plan
    learners: tuple[_Learner, ...]
    names: Mapping[Parameter, str]
    ema: Ema


def fit(
    method: Module,
    data: Data,
    folder: str | Path,
    plan: Plan,
    *,
    device: str = "auto",
    strategy: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    validate: Validate | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train `method` through its stages; it is left holding the averaged weights.

    `data(k)` gives micro-batch k. `device`: auto (all GPUs, else the CPU), cpu, cuda, cuda:N, mps. `strategy`: auto,
    ddp, or another of Fabric's data-parallel ones. `resume` goes on from the newest whole checkpoint in `folder`.
    SIGINT and SIGTERM save a checkpoint and end the run. InputError: `folder` holds a run and neither `resume` nor
    `overwrite` is given. AmodalError: the loss stayed non-finite.
    """
    if "fsdp" in strategy or "deepspeed" in strategy:
        raise InputError(f"strategy={strategy!r}: sharded weights are not supported, choose auto or ddp.")
    if not resume and not overwrite and holds_run(Path(folder)):
        raise InputError(f"{folder}: holds a training run already; give --resume to go on with it or --overwrite.")
    accelerator, devices = machine.devices(device)
    precision = "bf16-mixed" if bf16(plan.precision, pick(device)) else "32-true"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # what it was asked to do is no news
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)  # type: ignore[arg-type]
    work = partial(run, method=method, data=data, folder=Path(folder), plan=plan)
    return FitResult(*fabric.launch(partial(work, resume=resume, validate=validate, quiet=quiet)))


def holds_run(folder: Path) -> bool:
    """Whether `folder` holds checkpoints or metrics of a training run."""
    return (folder / checkpoint.FOLDER).exists() or (folder / log.METRICS).exists()


def run(
    fabric: Fabric,
    method: Module,
    data: Data,
    folder: Path,
    plan: Plan,
    resume: bool,
    validate: Validate | None,
    quiet: bool,
) -> tuple[int, float, float, Path, dict[str, Tensor], bool]:
    """What every process does, once Fabric has started it; the values of a FitResult."""
    line = log.Line(quiet=quiet or fabric.global_rank > 0)
    method.to(fabric.device).train()
    torch.backends.cudnn.benchmark = True  # crops keep their size, so it pays to look for the fastest kernels
    if plan.channels_last:
        optim.channels_last(method)
    stages: tuple[Stage, ...] = method.stages()  # type: ignore[operator]
    saved = _open(fabric, folder, plan, resume, line, [s.name for s in stages])
    clock, first = Clock(), 0
    if saved is not None:
        method.load_state_dict(saved.part("weights"))
        clock, first = Clock(**saved.state["clock"]), int(saved.state["stage"])
    elif fabric.world_size > 1:
        method.load_state_dict(fabric.broadcast({k: v.cpu() for k, v in method.state_dict().items()}))
    where = folder / log.METRICS if fabric.global_rank == 0 else Path(os.devnull)
    stopped = False
    with machine.signals() as stop, where.open("a") as metrics:
        this = _Run(fabric, method, stages, data, folder, plan, validate, line, metrics, stop, clock)
        for index in range(first, len(stages)):
            if stopped := _train(this, _part(this, index), saved if index == first else None):
                break
            clock.begun = clock.seconds
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in method.state_dict().items()}
    return clock.total, clock.seconds, clock.smooth, folder, state, stopped


def _part(run: _Run, index: int) -> _Part:
    stage = run.stages[index]
    plan = of_stage(run.plan, stage)
    known = {p: name for name, p in run.method.named_parameters()}
    names: dict[Parameter, str] = {}
    learners = []
    for player in stage.players:
        parameters = tuple(p for p in dict.fromkeys(player.parameters()) if p.requires_grad)
        for p in parameters:
            if p in names:
                raise ValueError(f"{stage.name}: {known[p]} belongs to two players; a parameter has one")
            names[p] = known[p]
        learners.append(
            _Learner(player, parameters, optim.adamw(parameters, plan.rate or RATE, plan.betas, plan.weight_decay))
        )
    return _Part(index, stage, plan, tuple(learners), names, Ema({name: p for p, name in names.items()}, plan.ema))


def _train(run: _Run, part: _Part, saved: checkpoint.Saved | None) -> bool:
    """Train one stage, and leave the averaged weights in the method; whether a signal ended it."""
    plan, clock, step = part.plan, run.clock, 0
    if saved is not None:
        step = _restore(part, saved)
    elif part.stage.begin is not None:
        _begin(run, part.stage.begin)
    kept, start = step, time.monotonic() - clock.seconds
    while True:
        clock.seconds, stopped = machine.agree(run.fabric, time.monotonic() - start, run.stop.is_set())
        if stopped or over(plan, step, clock):
            break
        rate = (plan.rate or RATE) * optim.factor(step, progress(plan, step, clock), plan.warmup, plan.decay)
        values = _step(run, part, step, rate)
        step, clock.total = step + 1, clock.total + 1
        clock.seconds = time.monotonic() - start
        _record(run, part.stage, step, values, rate)
        if step % plan.validate_every == 0:
            _validate(run, part, step)
        if step % plan.save_every == 0:
            kept = _save(run, part, step)
    if step > kept:
        if not stopped and step % plan.validate_every:
            _validate(run, part, step)
        _save(run, part, step)
    part.ema.apply()
    what = "stopped by a signal, saved" if stopped else "done"
    run.line.note(f"{part.stage.name}: {what} at step {step}, loss {clock.smooth:.4f}")
    return stopped


def _begin(run: _Run, begin: Callable[[Data], None]) -> None:
    """What a stage fixes before its first step: by the first process, for all."""
    run.method.eval()
    if run.fabric.global_rank == 0:
        with torch.no_grad(), run.fabric.autocast():
            begin(lambda k: run.data(k).to(run.fabric.device))
    run.method.train()
    values = (*run.method.parameters(), *run.method.buffers())  # a stage may begin as a copy of another's network
    for value in values if run.fabric.world_size > 1 else ():
        value.data.copy_(run.fabric.broadcast(value.data))


def _restore(part: _Part, saved: checkpoint.Saved) -> int:
    """Put averages and moments back; the step they were saved at."""
    part.ema.load(saved.part("ema"))
    for learner in part.learners:
        optim.restore(learner.optimizer, part.names, saved.part(f"moments/{learner.player.name}"))
    return int(saved.state["step"])


def _step(run: _Run, part: _Part, step: int, rate: float) -> dict[str, float]:
    """One optimisation step of every player; its numbers."""
    fabric, plan, learners = run.fabric, run.plan, part.learners
    losses = [torch.zeros((), device=fabric.device) for _ in learners]
    values: dict[str, float] = {}
    for micro in range(plan.accumulate):
        index = (step * plan.accumulate + micro) * fabric.world_size + fabric.global_rank
        batch = run.data(index).to(fabric.device)
        rng = Rng.of(plan.seed, len(batch), "train", part.stage.name, index)
        torch.manual_seed(seed_of(plan.seed, "dropout", part.stage.name, index))
        with fabric.autocast():
            out = part.stage.forward(batch, rng)
        for i, learner in enumerate(learners):
            with fabric.autocast():
                loss, logs = learner.player.loss(out)
            if loss.requires_grad:  # a critic may rest at first
                share = loss / plan.accumulate
                share.backward(inputs=list(learner.parameters), retain_graph=i + 1 < len(learners))
            losses[i] += loss.detach().float() / plan.accumulate
            for key, value in logs.items():
                key = f"{learner.player.name}/{key}" if len(learners) > 1 else key
                values[key] = values.get(key, 0.0) + float(value) / plan.accumulate
    return _update(run, part, step, rate, torch.stack(losses), values)


def _update(run: _Run, part: _Part, step: int, rate: float, losses: Tensor, logs: dict[str, float]) -> dict[str, float]:
    """Average over processes, clip, and let every player step: or none, if a number is not finite."""
    fabric, learners = run.fabric, part.learners
    if fabric.world_size > 1:
        mean: Callable[[Tensor], Tensor] = partial(fabric.all_reduce, reduce_op="mean")  # type: ignore[assignment]
        losses = mean(losses)
        for a in learners:
            optim.average(a.parameters, mean)
    norms = [torch.nn.utils.clip_grad_norm_(a.parameters, run.plan.clip).to(losses) for a in learners]
    loss, norm = torch.stack([losses, torch.stack(norms)]).tolist()  # the one wait for the device
    if taken := all(map(math.isfinite, loss + norm)):
        for a in learners:
            optim.step(a.optimizer, rate)
        part.ema.update(step)
    for a in learners:
        a.optimizer.zero_grad(set_to_none=True)
    values = {"loss": loss[0], **logs, "grad_norm": norm[0], **({} if taken else {"skipped": 1.0})}
    for a, x, y in zip(learners, loss, norm) if len(learners) > 1 else ():
        values |= {f"{a.player.name}/loss": x, f"{a.player.name}/grad_norm": y}
    return values


def _record(run: _Run, stage: Stage, step: int, values: Mapping[str, float], rate: float) -> None:
    """Log one step; AmodalError when too many in a row had no finite loss."""
    plan, clock, loss, taken = run.plan, run.clock, values["loss"], "skipped" not in values
    if taken:
        clock.smooth = loss if math.isnan(clock.smooth) else 0.98 * clock.smooth + 0.02 * loss
    clock.bad = 0 if taken else clock.bad + 1
    if step % plan.log_every == 0 or not taken:
        where = {"stage": stage.name, "step": step}
        log.append(run.metrics, {**where, **values, "rate": rate, "seconds": round(clock.seconds, 3)})
    if clock.bad >= PATIENCE:
        raise AmodalError(
            f"{stage.name}: no finite loss in {PATIENCE} steps up to step {step}; lower the rate and train again."
        )
    left = None if plan.minutes is None else 60 * plan.minutes - (clock.seconds - clock.begun)
    run.line.step(stage.name, step, plan.steps, clock.smooth, left)


def _validate(run: _Run, part: _Part, step: int) -> None:
    """Let the caller judge the averaged weights, on the first process, while the others wait."""
    if run.validate is not None and run.fabric.global_rank == 0:
        with part.ema.swapped(run.method) as method, torch.no_grad():
            values = {f"validation/{k}": float(v) for k, v in run.validate(method, step, run.folder).items()}
        log.append(run.metrics, {"stage": part.stage.name, "step": step, **values})
        shown = "  ".join(f"{k.removeprefix('validation/')} {v:.4g}" for k, v in values.items())
        run.line.note(f"{part.stage.name} {step}  validation  {shown}")
    run.fabric.barrier()


def _save(run: _Run, part: _Part, step: int) -> int:
    """Write a checkpoint (first process only); the step it was made at."""
    if run.fabric.global_rank == 0:
        tensors = {f"weights/{k}": v for k, v in run.method.state_dict().items()}
        tensors |= {f"ema/{k}": v for k, v in part.ema.shadow.items()}
        for a in part.learners:
            tensors |= {f"moments/{a.player.name}/{k}": v for k, v in optim.moments(a.optimizer, part.names).items()}
        os.fsync(run.metrics.fileno())  # the curve must reach as far as the checkpoint does
        state = {"plan": to_dict(run.plan), "stages": [s.name for s in run.stages], "clock": dict(vars(run.clock))}
        checkpoint.save(run.folder, part.index, step, tensors, state, run.plan.keep)
    run.fabric.barrier()
    return step


def _open(
    fabric: Fabric, folder: Path, plan: Plan, resume: bool, line: log.Line, stages: list[str]
) -> checkpoint.Saved | None:
    """Ready the run's folder: clear it, or find the checkpoint to go on from and cut metrics.jsonl back to it."""
    saved = checkpoint.newest(folder, line.note) if resume else None
    if saved is not None and saved.state["stages"] != stages:
        raise InputError(f"{folder}: holds stages {saved.state['stages']}, not {stages}; resume with the same method.")
    fabric.barrier()
    if fabric.global_rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if saved is None:
            shutil.rmtree(folder / checkpoint.FOLDER, ignore_errors=True)
            (folder / log.METRICS).unlink(missing_ok=True)
        else:
            log.truncate(folder / log.METRICS, stages, saved.state["stage"], saved.state["step"])
    fabric.barrier()
    if saved is not None:
        line.note(f"resumed at {stages[saved.state['stage']]} step {saved.state['step']}")
        if changed := [k for k, v in to_dict(plan).items() if saved.state["plan"].get(k) != v]:
            line.note(f"the plan has changed since: {', '.join(changed)}; training goes on by the new one")
    elif resume:
        line.note(f"{folder}: no checkpoint to resume from, starting anew")
    return saved

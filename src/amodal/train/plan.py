"""How long and how fast to train, and where training stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ..core.contract import Stage
from ..core.errors import InputError

RATE = 2e-4  # of learning, where nobody says otherwise

_POSITIVE = (
    "steps",
    "minutes",
    "batch",
    "rate",
    "accumulate",
    "clip",
    "save_every",
    "validate_every",
    "log_every",
    "keep",
)


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train. `steps` and `minutes` are those of a stage whose share is 1; with both, whichever
    comes first ends it. `rate`: that of the stage, or else RATE, if it is None.

    `batch`: samples per process and micro-batch, for `data` and the random streams. `decay` follows step / steps, or
    the clock if only `minutes` is given. `keep`: checkpoints kept. `log_every`: steps per line of metrics.jsonl.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 16
    rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 200
    decay: Literal["none", "cosine", "linear"] = "cosine"
    accumulate: int = 1
    clip: float = 1.0
    ema: float = 0.999
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    channels_last: bool = True
    seed: int = 0
    save_every: int = 500
    validate_every: int = 1000
    log_every: int = 1
    keep: int = 2

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise InputError("the plan has no end: give steps or minutes (or both, and the first to come ends it).")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}={value}: choose a number above 0.")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema={self.ema}: choose a number from 0 to below 1.")


def of_stage(plan: Plan, stage: Stage) -> Plan:
    """The plan of one stage: its share of the time, its rate."""
    return replace(
        plan,
        steps=None if plan.steps is None else max(1, round(plan.steps * stage.share)),
        minutes=None if plan.minutes is None else plan.minutes * stage.share,
        rate=plan.rate or stage.rate or RATE,
    )


@dataclass
class Clock:
    """Where training stands; this is what state.json holds."""

    total: int = 0  # steps of all stages
    seconds: float = 0.0  # of all stages and all parts of the run
    begun: float = 0.0  # seconds when this stage began
    smooth: float = math.nan  # running mean of the loss
    bad: int = 0  # steps in a row without a finite loss


def over(plan: Plan, step: int, clock: Clock) -> bool:
    """Whether a stage has had its steps or its minutes."""
    if plan.steps is not None and step >= plan.steps:
        return True
    return plan.minutes is not None and clock.seconds - clock.begun >= 60 * plan.minutes


def progress(plan: Plan, step: int, clock: Clock) -> float:
    """How much of the stage is done, from 0 to 1."""
    if plan.steps is not None:
        return step / plan.steps
    return (clock.seconds - clock.begun) / (60 * (plan.minutes or math.inf))  # neither given: refused by Plan

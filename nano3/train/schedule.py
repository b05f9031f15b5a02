"""Warmup-Stable-Decay learning rate by tokens (report section 2.4) or by optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nano3.config.schema import ScheduleConfig

DECAY_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1.0 - math.cos(math.pi * progress)) / 2.0,
    "sqrt": math.sqrt,
    "none": lambda progress: 0.0,
}
"""Share of the way from peak_lr to min_lr at a progress in [0, 1] through the decay."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of tokens or of optimizer steps.

    Raises:
        ValueError: the settings contradict each other.
    """

    cfg: ScheduleConfig
    """Shape and bounds."""
    horizon: float
    """Tokens or steps at which min_lr is reached."""
    unit: Literal["tokens", "steps"] = "tokens"
    """What positions count."""

    def __post_init__(self) -> None:
        cfg, unit = self.cfg, self.unit
        if self.decays and not 0.0 <= cfg.min_lr <= cfg.peak_lr:
            raise ValueError(
                f"schedule.min_lr is {cfg.min_lr}; it must lie between 0 and schedule.peak_lr {cfg.peak_lr}"
            )
        if not 0.0 <= cfg.stable_fraction <= 1.0:
            raise ValueError(f"schedule.stable_fraction is {cfg.stable_fraction}; it must lie between 0 and 1")
        if self.decays and self.horizon <= 0:
            raise ValueError(f"schedule.horizon_{unit} is {self.horizon}; it must be positive")
        if cfg.decay not in DECAY_SHAPES:
            raise ValueError(f"schedule.decay is {cfg.decay!r}; valid: {', '.join(DECAY_SHAPES)}")
        if cfg.start_lr and not (self.warmup and cfg.start_lr <= cfg.peak_lr):
            raise ValueError(
                f"schedule.start_lr is {cfg.start_lr}: it needs a warm-up (schedule.warmup_tokens or "
                f"schedule.warmup_steps) that rises from it to schedule.peak_lr {cfg.peak_lr}"
            )
        if self.decays and self.warmup > cfg.stable_fraction * self.horizon:
            raise ValueError(
                f"schedule.warmup_{unit} {self.warmup} reaches into the decay, which begins at schedule."
                f"stable_fraction {cfg.stable_fraction} of {self.horizon} {unit}: train for longer, or "
                f"--set schedule.warmup_{unit}={int(cfg.stable_fraction * self.horizon / 2)}"
            )

    @property
    def decays(self) -> bool:
        """Whether the rate falls at all; otherwise the horizon decides nothing."""
        return self.cfg.decay != "none"

    @property
    def warmup(self) -> int:
        """Tokens or steps of warm-up."""
        wanted = self.cfg.warmup_steps if self.unit == "steps" else self.cfg.warmup_tokens
        most = self.cfg.warmup_limit * self.horizon
        return min(wanted, int(most)) if most else wanted

    def lr(self, position: float) -> float:
        """Learning rate at so many tokens or steps: warm-up from start_lr, peak, decay, then min_lr for ever."""
        cfg = self.cfg
        if position < self.warmup:
            return cfg.start_lr + (cfg.peak_lr - cfg.start_lr) * (position / self.warmup)
        decay_start = cfg.stable_fraction * self.horizon
        if position <= decay_start or not self.decays:
            return cfg.peak_lr
        if position > self.horizon:
            return cfg.min_lr
        progress = (position - decay_start) / (self.horizon - decay_start)
        return cfg.peak_lr + (cfg.min_lr - cfg.peak_lr) * DECAY_SHAPES[cfg.decay](progress)


def build_schedule(cfg: ScheduleConfig, train_tokens: int, train_steps: int = 0) -> Schedule:
    """The schedule of a run of `train_steps` optimizer steps, or of `train_tokens` tokens where that is 0.

    A horizon of 0 in `cfg` means the end of the run: its start on the horizon + its length.

    Raises:
        ValueError: the decay ends with the run, whose length is not given in what the schedule counts; or as
            `Schedule`.
    """
    run = "steps" if train_steps else "tokens"
    unit = cfg.unit or run
    start, horizon = getattr(cfg, f"start_{unit}"), getattr(cfg, f"horizon_{unit}")
    if not horizon and unit == run:
        horizon = start + (train_steps or train_tokens)
    if not horizon and cfg.decay != "none":
        raise ValueError(
            f"schedule.horizon_{unit} is 0, so the decay ends with the run, but its length is train.{run} = "
            f"{train_steps or train_tokens}: set schedule.horizon_{unit}, or count the schedule in {run}"
        )
    return Schedule(cfg, horizon, unit)

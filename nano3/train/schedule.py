"""Warmup-Stable-Decay learning rate by tokens (report section 2.4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
    """Learning rate as a function of tokens.

    Raises:
        ValueError: the settings contradict each other.
    """

    cfg: ScheduleConfig
    """Shape and bounds."""
    horizon: float
    """Tokens at which min_lr is reached."""

    def __post_init__(self) -> None:
        cfg = self.cfg
        if self.decays and not 0.0 <= cfg.min_lr <= cfg.peak_lr:
            raise ValueError(
                f"schedule.min_lr is {cfg.min_lr}; it must lie between 0 and schedule.peak_lr {cfg.peak_lr}"
            )
        if not 0.0 <= cfg.stable_fraction <= 1.0:
            raise ValueError(f"schedule.stable_fraction is {cfg.stable_fraction}; it must lie between 0 and 1")
        if cfg.warmup_tokens < 0 or self.horizon <= 0:
            raise ValueError(
                f"schedule.warmup_tokens {cfg.warmup_tokens} and the horizon of {self.horizon} tokens must be positive"
            )
        if cfg.decay not in DECAY_SHAPES:
            raise ValueError(f"schedule.decay is {cfg.decay!r}; valid: {', '.join(DECAY_SHAPES)}")
        if self.decays and cfg.warmup_tokens > cfg.stable_fraction * self.horizon:
            raise ValueError(
                f"schedule.warmup_tokens {cfg.warmup_tokens} reaches into the decay, which begins at schedule."
                f"stable_fraction {cfg.stable_fraction} of {self.horizon} tokens: train for longer, or "
                f"--set schedule.warmup_tokens={int(cfg.stable_fraction * self.horizon / 2)}"
            )

    @property
    def decays(self) -> bool:
        """Whether the rate falls at all; otherwise the horizon decides nothing."""
        return self.cfg.decay != "none"

    def lr(self, tokens: float) -> float:
        """Learning rate at position `tokens` on the horizon: warm-up from 0, peak, decay, then min_lr for ever."""
        cfg = self.cfg
        if tokens < cfg.warmup_tokens:
            return cfg.peak_lr * (tokens / cfg.warmup_tokens)
        decay_start = cfg.stable_fraction * self.horizon
        if tokens <= decay_start or not self.decays:
            return cfg.peak_lr
        if tokens > self.horizon:
            return cfg.min_lr
        progress = (tokens - decay_start) / (self.horizon - decay_start)
        return cfg.peak_lr + (cfg.min_lr - cfg.peak_lr) * DECAY_SHAPES[cfg.decay](progress)


def build_schedule(cfg: ScheduleConfig, train_tokens: int) -> Schedule:
    """The schedule of a run of `train_tokens`; a horizon of 0 in `cfg` means start_tokens + train_tokens."""
    return Schedule(cfg, cfg.horizon_tokens or cfg.start_tokens + train_tokens)

"""When a run of reinforcement learning ends early: it would only learn to do worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano3.config.errors import UserError
from nano3.config.policy import StopConfig


class TrainingStoppedError(UserError):
    """A stop rule ended the run. `since`: number of steps before the trouble began; `fault`: kind of the fault in which
    groups ended, where that was it."""

    def __init__(self, reason: str, since: int, fault: str = "") -> None:
        super().__init__(reason)
        self.since, self.fault = since, fault

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.since, self.fault)


class StopRules:
    """Judges each step by what its rollouts came to; its state is part of a checkpoint."""

    def __init__(self, cfg: StopConfig) -> None:
        self.cfg = cfg
        self._shares: dict[str, list[float]] = {"truncated": [], "zero_variance": []}
        self._faults_in_a_row: dict[str, int] = {}

    def note_faults(self, faults: Sequence[tuple[str, str]], step: int) -> None:
        """Take in the environment and the fault of each group of a step in order, empty where there is none.

        Raises:
            TrainingStoppedError: too many in a row.
        """
        for environment, fault in faults:
            n = self._faults_in_a_row.get(environment, 0) + 1 if fault else 0
            self._faults_in_a_row[environment] = n
            if self.cfg.faults and n >= self.cfg.faults:
                raise TrainingStoppedError(
                    f"{n} groups in a row of environment {environment} ended in a fault, the last one in: {fault} "
                    "(stop.faults)",
                    step,
                    fault,
                )

    def note_shares(self, truncated: float, zero_variance: float, step: int) -> None:
        """Take in the shares of a step (its number, from 0).

        Raises:
            TrainingStoppedError: one is too large over the last steps.
        """
        words = {
            "truncated": "of the samples reached their limit of tokens (rollout.max_tokens)",
            "zero_variance": "of the groups had equal rewards, from which nothing is learnt",
        }
        for name, share in (("truncated", truncated), ("zero_variance", zero_variance)):
            kept = self._shares[name]
            kept.append(share)
            del kept[: -self.cfg.window]
            mean, bound = sum(kept) / len(kept), getattr(self.cfg, name)
            if len(kept) == self.cfg.window and mean > bound:
                raise TrainingStoppedError(
                    f"{mean:.0%} {words[name]} over the last {len(kept)} steps, more than stop.{name} = {bound:g}",
                    step + 1 - len(kept),
                )

    def note_mismatch(self, largest: float, step: int) -> None:
        """Take in the largest |log-probability in the trainer - in the sampler| of a step.

        Raises:
            TrainingStoppedError: it is above the bound, or no number.
        """
        if self.cfg.mismatch and not largest <= self.cfg.mismatch:
            raise TrainingStoppedError(
                f"trainer and sampler differed by {largest:.3g} nats at a token, more than stop.mismatch = "
                f"{self.cfg.mismatch:g}",
                step,
            )

    def safe_step(self, steps: int) -> int | None:
        """Up to which step no later judgement on shares will find that trouble began; `steps`: done so far. None: no
        share is judged."""
        judged = self.cfg.truncated < 1 or self.cfg.zero_variance < 1
        return max(0, steps + 1 - self.cfg.window) if judged else None

    def state(self) -> dict[str, Any]:
        """JSON values for `restore`."""
        return {"shares": self._shares, "faults_in_a_row": self._faults_in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state()`."""
        self._shares = {name: list(shares) for name, shares in state["shares"].items()}
        self._faults_in_a_row = dict(state["faults_in_a_row"])

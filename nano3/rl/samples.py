"""Samples of a policy and their groups, kept as the tokens that were drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from nano3.rl.environments.base import Message, Reward, Rollout, Task

if TYPE_CHECKING:
    from nano3.rl.batch import TrainingSample


@dataclass
class Segment:
    """One sequence of tokens as the policy saw and wrote it: a prompt, answers, and what was given between them."""

    ids: np.ndarray
    """(T,) int32, the prompt included."""
    drawn: np.ndarray
    """(T,) bool: drawn from the policy; not prompts, results of tools, or tokens that closed the thinking part."""
    forced: np.ndarray
    """(T,) bool: written by the thinking budget."""
    log_probs: np.ndarray
    """(T,) float32 under the distribution that each token was drawn from; 0 where it was not."""
    experts: np.ndarray | None = None
    """(MoE blocks, T - 1, K)."""

    @classmethod
    def of_prompt(cls, ids: Sequence[int]) -> Segment:
        """Nothing but what the policy is given."""
        none = np.zeros(len(ids), bool)
        return cls(np.array(ids, np.int32), none, none, np.zeros(len(ids), np.float32))

    def append(self, other: Segment) -> None:
        """Tokens that follow."""
        for name in ("ids", "drawn", "forced", "log_probs"):
            setattr(self, name, np.concatenate([getattr(self, name), getattr(other, name)]))

    @property
    def after_prompt(self) -> np.ndarray:
        """The tokens from the first one of an answer on."""
        answered = self.drawn | self.forced
        return self.ids[answered.argmax() :] if answered.any() else self.ids[:0]


def after_prompts(segments: Sequence[Segment]) -> np.ndarray:
    """The tokens from the first answer of each sequence on, one sequence after the other."""
    return np.concatenate([np.zeros(0, np.int32), *(segment.after_prompt for segment in segments)])


@dataclass
class Sample:
    """One rollout: messages as the environment sees them, and the sequences of tokens that the policy saw and wrote.

    What was drawn is never made to text and back: results of tools are rendered behind it. After a user's message the
    template leaves out the reasoning of the turns before, as a served model sees it; then a new sequence begins, with
    that rendering as its prompt. The tokens drawn before stay in the sequence that they were drawn in.
    """

    task: Task
    index: int
    """In its group."""
    seed: int
    """Of the first turn."""
    segments: list[Segment]
    messages: list[Message] = field(default_factory=list)
    """All that followed the task's prompt."""
    truncated: bool = False
    """Its last answer was cut off by its limit."""
    turns: int = 0
    weights_version: int = 0
    """Of the weights that wrote its last turn."""
    reward: Reward | None = None
    fault: str = ""
    """Why it has no reward, in a word or two: the environment's fault, or the engine's."""
    fault_message: str = ""
    thinking_open: bool = False
    """The next answer begins inside a thinking part."""

    @property
    def rollout(self) -> Rollout:
        """What the environment measures."""
        return Rollout(tuple(self.messages), self.truncated, after_prompts(self.segments))

    @property
    def n_tokens(self) -> int:
        """Of all sequences, prompts included."""
        return sum(len(segment.ids) for segment in self.segments)

    @property
    def n_drawn(self) -> int:
        """Tokens drawn from the policy."""
        return sum(int(segment.drawn.sum()) for segment in self.segments)

    def training_samples(self, advantage: float) -> list[TrainingSample]:
        """For the policy's loss, one for each sequence. A truncated sample has no token that is trained on (overlong
        filtering)."""
        from nano3.rl.batch import TrainingSample  # loads torch, for which a look at saved rollouts need not wait

        name = f"{self.task.id} sample {self.index}"
        return [
            TrainingSample(
                segment.ids, np.zeros_like(segment.drawn) if self.truncated else segment.drawn, segment.log_probs,
                advantage, f"{name} sequence {number}" if number else name, segment.experts,
            )
            for number, segment in enumerate(self.segments)
        ]  # fmt: skip


@dataclass(frozen=True)
class Group:
    """All samples of one prompt."""

    environment: str
    task: Task
    samples: list[Sample]

    @property
    def fault(self) -> str:
        """Kind of the first fault: such a group is dropped, since its baseline would lack a reward. Empty: none."""
        return next((sample.fault for sample in self.samples if sample.fault), "")

    @property
    def finished(self) -> bool:
        """Whether each of its samples has a reward or a fault."""
        return all(sample.reward is not None or sample.fault for sample in self.samples)

    @property
    def fault_message(self) -> str:
        """Of that fault."""
        return next((sample.fault_message for sample in self.samples if sample.fault), "")

    @property
    def rewards(self) -> list[float]:
        """Of a group without a fault."""
        return [sample.reward.value for sample in self.samples if sample.reward is not None]

    @property
    def as_saved(self) -> Group:
        """What is kept of it on disk: all but the experts of its tokens."""
        samples = [
            replace(sample, segments=[replace(segment, experts=None) for segment in sample.segments])
            for sample in self.samples
        ]
        return Group(self.environment, self.task, samples)

    @property
    def pass_rate(self) -> float:
        """Share of its samples that solve the task."""
        return sum(bool(sample.reward and sample.reward.passed) for sample in self.samples) / len(self.samples)


def pass_rates(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """Pass rate by task id, by environment, of groups without a fault: what a Curriculum begins with."""
    found: dict[str, dict[str, float]] = {}
    for group in groups:
        if not group.fault:
            found.setdefault(group.environment, {})[group.task.id] = group.pass_rate
    return found


def faults(groups: Sequence[Group]) -> Counter[str]:
    """How many groups were dropped, by environment and kind of fault, the engine's included."""
    return Counter(f"{group.environment}: {group.fault}" for group in groups if group.fault)

"""Rollouts of a step as a jsonl file: to be read by people, and to be measured again without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.files import write_atomic
from nano3.reading import parse_json
from nano3.rl.environments.base import Environment, EnvironmentFaultError, Reward, Rollout
from nano3.rl.environments.registry import Source
from nano3.rl.rollout import Group, Sample, after_prompt

FOLDER = "rollouts"


@dataclass(frozen=True)
class SavedSample:
    """One line."""

    step: int
    environment: str
    source: Source
    """Of the environment's code, as it was."""
    task: str
    index: int
    seed: int
    messages: tuple[Mapping[str, Any], ...]
    """After the task's prompt."""
    truncated: bool
    ids: np.ndarray
    """(T,) int32."""
    drawn: np.ndarray
    """(T,) bool."""
    forced: np.ndarray
    """(T,) bool."""
    log_probs: np.ndarray
    """(T,) float32."""
    weights_version: int
    reward: Reward | None
    fault: str

    @property
    def rollout(self) -> Rollout:
        """What its environment measures."""
        return Rollout(self.messages, self.truncated, after_prompt(self.ids, self.drawn | self.forced))


def rollouts_path(folder: Path, step: int) -> Path:
    """A step's file in a run's folder."""
    return folder / FOLDER / f"step-{step:06d}.jsonl"


def save_rollouts(folder: Path, step: int, groups: Sequence[Group], sources: Mapping[str, Source]) -> Path:
    """Write a step's samples, whole or not at all; the same step's of before are replaced.

    Args:
        folder: of the run.
        step: number of the optimizer step.
        groups: what was drawn.
        sources: where each environment's code comes from, by its name.
    """
    lines = [
        json.dumps(_line(step, group, sample, sources[group.environment]))
        for group in groups
        for sample in group.samples
    ]
    path = rollouts_path(folder, step)
    write_atomic(path, "".join(f"{line}\n" for line in lines))
    return path


def read_rollouts(path: Path) -> Iterator[SavedSample]:
    """Samples of a file, in order.

    Raises:
        UserError: a line that is no saved sample.
        OSError: the file cannot be read.
    """
    for number, line in enumerate(path.read_text().split("\n"), start=1):
        if not line:
            continue
        try:
            yield _sample(parse_json(line))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}, line {number}: no saved rollout ({error})") from error


def rescore(path: Path, environment: Environment) -> Iterator[tuple[SavedSample, Reward | EnvironmentFaultError]]:
    """Each sample of an environment in a file, with the reward that it gets now, or why it gets none.

    Raises:
        UserError: as `read_rollouts`, or the environment has no such task.
    """
    tasks = {task.id: task for task in environment.tasks()}
    for saved in read_rollouts(path):
        if saved.environment != environment.name:
            continue
        if saved.task not in tasks:
            raise UserError(f"{path}: environment {environment.name} has no task {saved.task}; is it of the same rows?")
        try:
            yield saved, environment.verify(tasks[saved.task], saved.rollout)
        except EnvironmentFaultError as error:
            yield saved, error


def _line(step: int, group: Group, sample: Sample, source: Source) -> dict[str, Any]:
    reward = sample.reward
    return {
        "step": step, "environment": group.environment, "source": asdict(source), "task": sample.task.id,
        "index": sample.index, "seed": sample.seed, "reward": None if reward is None else asdict(reward),
        "fault": sample.fault, "fault_message": sample.fault_message, "truncated": sample.truncated,
        "messages": sample.messages, "weights_version": sample.weights_version, "ids": sample.ids.tolist(),
        "drawn": sample.drawn.astype(int).tolist(), "forced": sample.forced.astype(int).tolist(),
        # Nine digits give back each float32.
        "log_probs": [float(f"{value:.9g}") for value in sample.log_probs],
    }  # fmt: skip


def _sample(row: Mapping[str, Any]) -> SavedSample:
    reward = row["reward"]
    return SavedSample(
        row["step"], row["environment"], Source(**row["source"]), row["task"], row["index"], row["seed"],
        tuple(row["messages"]), row["truncated"], np.array(row["ids"], np.int32), np.array(row["drawn"], bool),
        np.array(row["forced"], bool), np.array(row["log_probs"], np.float32), row["weights_version"],
        None if reward is None else Reward(**reward), row["fault"],
    )  # fmt: skip

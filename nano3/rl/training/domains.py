"""The environments of a run under the names that its settings give them, with their training and held-out tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nano3.config.errors import UserError
from nano3.config.rlvr import EnvironmentsConfig
from nano3.rl.environments.base import Environment, Message, MultiTurn, Reward, Rollout, Task
from nano3.rl.environments.registry import Source, load_environment, options_of


class Named:
    """An environment under another name: two of one kind in a run are told apart."""

    def __init__(self, environment: Environment, name: str) -> None:
        self.environment, self.name = environment, name

    def tasks(self) -> Sequence[Task]:
        """All tasks."""
        return self.environment.tasks()

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """The reward of a finished rollout."""
        return self.environment.verify(task, rollout)


class NamedMultiTurn(Named):
    """The same of one that answers the model."""

    environment: MultiTurn

    def step(self, task: Task, rollout: Rollout) -> Sequence[Message]:
        """The messages that follow."""
        return self.environment.step(task, rollout)


@dataclass(frozen=True)
class Domain:
    """One environment of a run."""

    environment: Environment
    source: Source
    """Where its code comes from."""
    weight: float
    """Share of the prompts, not normalised."""
    train: Mapping[str, Task]
    """By id."""
    heldout: Sequence[Task]
    """None of them is trained on."""
    heldout_environment: Environment
    """That of the held-out tasks, under the same name."""
    options: Mapping[str, Any]
    """With which it was made."""

    def fingerprint(self) -> str:
        """All that decides its training tasks and rewards, for a profile that is used again."""
        tasks = [[task.id, task.messages, task.truth, task.tools] for task in self.train.values()]
        told = [self.source.spec, self.source.sha256, dict(self.source.requires), tasks]
        return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]


def open_domains(cfg: EnvironmentsConfig, heldout_tasks: int) -> dict[str, Domain]:
    """The environments of a run by name.

    Args:
        cfg: which.
        heldout_tasks: most held-out tasks of each.

    Raises:
        UserError: no environment is named, one cannot be made, or held-out tasks leave none to train on.
    """
    if not cfg.weights:
        raise UserError("environments.weights is empty: name environments, such as --set environments.weights.math=1")
    return {name: _open(cfg, name, heldout_tasks) for name in cfg.weights}


def _open(cfg: EnvironmentsConfig, name: str, heldout_tasks: int) -> Domain:
    spec, given = cfg.specs.get(name, name), dict(cfg.options.get(name, {}))
    known = options_of(spec)
    makes_tasks = "split" in known and not given.keys() & {"rows", "split"}
    own = {"n": cfg.tasks, "seed": cfg.seed} if makes_tasks else {}
    options = {key: value for key, value in own.items() if key in known} | given
    made, source = load_environment(spec, **options)
    if not makes_tasks:
        environment = _named(made, name)
        train, heldout = _parted(list(made.tasks()), cfg.heldout_fraction, name)
        return Domain(environment, source, cfg.weights[name], train, heldout[:heldout_tasks], environment, options)
    train = {task.id: task for task in made.tasks()}
    other = made
    if heldout_tasks:
        other, _ = load_environment(spec, **options | {"n": heldout_tasks, "split": "heldout"})
    heldout = list(other.tasks()) if heldout_tasks else []
    return Domain(_named(made, name), source, cfg.weights[name], train, heldout, _named(other, name), options)


def _named(environment: Environment, name: str) -> Environment:
    return NamedMultiTurn(environment, name) if isinstance(environment, MultiTurn) else Named(environment, name)


def _parted(tasks: Sequence[Task], fraction: float, name: str) -> tuple[dict[str, Task], list[Task]]:
    """Given tasks by a hash of their ids: to train on, and held out."""

    def is_heldout(task: Task) -> bool:
        return int.from_bytes(hashlib.sha256(task.id.encode()).digest()[:8], "big") / 2**64 < fraction

    train = {task.id: task for task in tasks if not is_heldout(task)}
    if not train:
        raise UserError(
            f"environment {name}: all of its {len(tasks)} tasks are held out; lower environments.heldout_fraction"
        )
    return train, [task for task in tasks if is_heldout(task)]

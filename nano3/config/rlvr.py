"""Typed settings of `nano3 rlvr` (report section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nano3.config.checks import check
from nano3.config.policy import HeldoutTasksConfig, PolicyConfig


@dataclass(frozen=True)
class EnvironmentsConfig:
    """Where tasks and rewards come from; see nano3.rl.environments.registry."""

    weights: dict[str, float] = field(default_factory=dict)
    """Share of each step's prompts by environment, under a name of your choice; normalised to sum 1."""
    specs: dict[str, str] = field(default_factory=dict)
    """What each environment is: a name such as `math`, `generate:NAME?levels=3-5`, or `module:object`. An environment
    that is named like it needs no entry."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Arguments of each environment, as rows = "tasks.jsonl"."""
    tasks: int = 400
    """Training tasks of each environment that makes its own, unless its options say n."""
    heldout_fraction: float = 0.1
    """Share of the tasks set aside for the scores before and after, by a hash of the task's id, in environments of
    given tasks; those that make tasks have held-out ones of their own."""
    workers: int = 4
    """Threads in which environments answer and measure."""
    seconds: float = 600.0
    """For one answer or reward of an environment; without it in time the prompt's group is dropped."""
    seed: int = 0
    """Seed of the tasks that environments make."""

    def __post_init__(self) -> None:
        check("environments", self, ">=", 1, "tasks", "workers")
        check("environments", self, ">", 0, "seconds")
        check("environments", self, ">=", 0, "heldout_fraction")
        check("environments", self, "<", 1, "heldout_fraction")
        for name, weight in self.weights.items():
            if not weight > 0:
                raise ValueError(f"environments.weights.{name} is {weight}; a share must be above 0")
        for name in self.options:
            # One of a preset that another choice of weights leaves out is no error.
            if name not in self.weights and name not in self.specs:
                raise ValueError(f"environments.options.{name}: there is no environments.weights.{name}")


@dataclass(frozen=True)
class CurriculumConfig:
    """Which tasks a step draws: by pass rate, from a Gaussian whose mean falls linearly over the run."""

    sampling: Literal["gaussian", "uniform"] = "gaussian"
    """uniform: all tasks alike, without a profile; for comparison."""
    start_mean: float = 0.75
    """The Gaussian's mean, a pass rate, at the first step."""
    end_mean: float = 0.25
    """Its mean at the last step."""
    sigma: float = 0.15
    """Its width."""
    bins: int = 10
    """Of pass rates from 0 to below 1."""
    most_draws: int = 0
    """Draws after which a task rests until all of its environment have as many; 0: any number."""
    stall_steps: int = 50
    """Steps without a rise of the mean reward after which pass rates are measured anew; 0: never."""
    stall_rise: float = 0.01
    """Least rise from one such stretch to the next that counts as one, of mean reward less the profile's pass rates."""
    profile: str = ""
    """Profile of an earlier `nano3 rlvr profile` or run, file or run folder; empty: made before the first step."""
    profile_samples: int = 16
    """Samples of each task that its pass rate is measured with."""

    def __post_init__(self) -> None:
        check("curriculum", self, ">=", 1, "bins", "profile_samples")
        check("curriculum", self, "<=", 128, "profile_samples")
        check("curriculum", self, ">", 0, "sigma")
        check("curriculum", self, ">=", 0, "start_mean", "end_mean", "most_draws", "stall_steps")
        check("curriculum", self, "<=", 1, "start_mean", "end_mean")


@dataclass(frozen=True)
class RlvrConfig(PolicyConfig):
    """All settings of `nano3 rlvr`."""

    environments: EnvironmentsConfig = field(default_factory=EnvironmentsConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    heldout: HeldoutTasksConfig = field(default_factory=HeldoutTasksConfig)

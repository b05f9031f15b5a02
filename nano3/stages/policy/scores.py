"""Held-out tasks of a run's environments, answered before its first step and after its last one.

heldout.json: {"samples": of each task, "before": {ENVIRONMENT: {TASK: mean reward}}, "after": {...}}; after the run
also the tables of `Score`. A judge's feedback has {MEASURE: {ENVIRONMENT: {TASK: mean}}} on both sides, see
nano3.stages.policy.quality.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.config.policy import HeldoutTasksConfig
from nano3.config.rlhf import AnyPolicyConfig
from nano3.eval.intervals import bootstrap_means, middle95
from nano3.files import write_atomic
from nano3.reading import read_json
from nano3.rl.rollout import RolloutWorker
from nano3.rl.samples import Group, faults
from nano3.rl.training.domains import Domain
from nano3.rl.training.profile import chunk_size
from nano3.stages.run_folder import say
from nano3.train.world import World, attempt

FILE = "heldout.json"
STEP = -1_000_000
"""In place of a step's number, for the seeds: the same before and after."""
Means = dict[str, dict[str, float]]
"""Mean over a task's samples by its id, by environment."""


@dataclass(frozen=True)
class Score:
    """An environment's held-out tasks before and after the run; values are means over a task's samples."""

    environment: str
    tasks: int
    before: float
    after: float
    low: float
    """95 % interval of the difference, tasks resampled (paired bootstrap)."""
    high: float
    measure: str = "reward"

    @property
    def verdict(self) -> str:
        """rose or fell where the interval leaves out 0."""
        return "rose" if self.low > 0 else "fell" if self.high < 0 else "no clear change"


def ask_heldout(cfg: AnyPolicyConfig, domains: Mapping[str, Domain], worker: RolloutWorker, world: World) -> Means:
    """Mean reward of each held-out task, on the main rank; groups with a fault are left out. Every rank must call."""
    groups = draw_heldout(cfg, domains, worker, world)
    tell_faults(groups, world)
    return gather(
        domains, world, [(g.environment, g.task.id, sum(g.rewards) / len(g.samples)) for g in groups if not g.fault]
    )


def draw_heldout(
    cfg: AnyPolicyConfig, domains: Mapping[str, Domain], worker: RolloutWorker, world: World
) -> list[Group]:
    """This rank's share of the groups of held-out tasks. Every rank must call."""
    asked = [(each.heldout_environment, task) for each in domains.values() for task in each.heldout]
    if world.is_main:
        say(f"asking {len(asked):,} held-out tasks")
    mine = range(world.rank, len(asked), world.size)
    sampler = worker.with_group(cfg.heldout.samples)
    groups: list[Group] = []
    size = chunk_size(cfg, cfg.heldout.samples)

    def draw() -> None:
        for start in range(0, len(mine), size):
            places = mine[start : start + size]
            groups.extend(sampler.draw([asked[i] for i in places], cfg.rollout.seed, STEP, places))

    world.agree(attempt(draw))
    return groups


def tell_faults(groups: Sequence[Group], world: World) -> None:
    """Say how many held-out tasks have no reward, by kind of fault. Every rank must call."""
    dropped = sum(world.to_main(faults(groups)), Counter[str]())
    for kind, n in dropped.items():
        say(f"{n:,} held-out tasks have no reward: {kind}")


def gather(domains: Mapping[str, Domain], world: World, own: Sequence[tuple[str, str, float]]) -> Means:
    """All ranks' values on the main rank; `own`: (environment, task, value) of each of this one's. Every rank calls."""
    found: Means = {name: {} for name, domain in domains.items() if domain.heldout}
    for part in world.to_main(list(own)):
        for name, task, value in part:
            found[name][task] = value
    return found


def compare(before: Means, after: Means, measure: str = "reward") -> list[Score]:
    """Scores of the environments over the tasks that have a value on both sides."""
    scores = []
    for name in before.keys() & after.keys():
        tasks = sorted(before[name].keys() & after[name].keys())
        if not tasks:
            continue
        pair = np.array([(before[name][task], after[name][task]) for task in tasks])
        differences = pair[:, 1] - pair[:, 0]
        low, high = middle95(bootstrap_means(differences.tolist(), seed=0))
        means = float(pair[:, 0].mean()), float(pair[:, 1].mean())
        scores.append(Score(name, len(tasks), *means, low, high, measure))
    order = list(before)
    return sorted(scores, key=lambda score: order.index(score.environment))


def read_before(run_dir: Path) -> dict[str, Any] | None:
    """What was measured before the first step; None where nothing was."""
    try:
        return read_json(run_dir / FILE)["before"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def read_settings(run_dir: Path) -> dict[str, Any]:
    """All that RUN/heldout.json says; empty where nothing was measured."""
    return {} if read_before(run_dir) is None else read_json(run_dir / FILE)


def check_same(cfg: HeldoutTasksConfig, run_dir: Path, **more: Any) -> None:
    """Refuse settings under which a resumed run would compare other answers than those from before its first step.

    Args:
        cfg: of the resumed run.
        run_dir: RUN.
        more: further settings of [heldout] by name.

    Raises:
        UserError: heldout.samples, or one of these, is another.
    """
    kept = read_settings(run_dir)
    if not kept or not cfg.tasks:
        return
    for name, value in {"samples": cfg.samples, **more}.items():
        if kept.get(name) != value:
            raise UserError(
                f"heldout.{name} is {value}; those from before the run are of {kept.get(name)}: leave it as it was"
            )


def write_heldout(run_dir: Path, before: Any, after: Any = None, scores: Iterable[Score] = (), **settings: Any) -> None:
    """Keep the values of both sides, their comparison, and the settings of [heldout] that these are of."""
    table: dict[str, Any] = {**settings, "before": before}
    if after is not None:
        table |= {"after": after, "scores": [asdict(score) | {"verdict": score.verdict} for score in scores]}
    write_atomic(run_dir / FILE, json.dumps(table, indent=1) + "\n")

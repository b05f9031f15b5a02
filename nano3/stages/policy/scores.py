"""Held-out tasks of a run's environments, answered before its first step and after its last one.

heldout.json: {"samples": of each task, "before": {ENVIRONMENT: {TASK: mean reward}}, "after": {...}}; after the run
also the tables of `Score`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.config.rlvr import RlvrConfig
from nano3.eval.intervals import bootstrap_means, middle95
from nano3.files import write_atomic
from nano3.reading import read_json
from nano3.rl.rollout import RolloutWorker
from nano3.rl.samples import Group, faults
from nano3.rl.training.domains import Domain
from nano3.rl.training.profile import CHUNK
from nano3.stages.run_folder import say
from nano3.train.world import World, attempt

FILE = "heldout.json"
STEP = -1_000_000
"""In place of a step's number, for the seeds: the same before and after."""
Rewards = dict[str, dict[str, float]]
"""Mean reward of a task's samples by its id, by environment."""


@dataclass(frozen=True)
class Score:
    """An environment's held-out tasks before and after the run; rewards are means over a task's samples."""

    environment: str
    tasks: int
    before: float
    after: float
    low: float
    """95 % interval of the difference, tasks resampled (paired bootstrap)."""
    high: float

    @property
    def verdict(self) -> str:
        """rose or fell where the interval leaves out 0."""
        return "rose" if self.low > 0 else "fell" if self.high < 0 else "no clear change"


def ask_heldout(cfg: RlvrConfig, domains: Mapping[str, Domain], worker: RolloutWorker, world: World) -> Rewards:
    """Mean reward of each held-out task, on the main rank; groups with a fault are left out. Every rank must call."""
    asked = [(each.heldout_environment, task) for each in domains.values() for task in each.heldout]
    mine = range(world.data.rank, len(asked), world.data.size)
    sampler = worker.with_group(cfg.heldout.samples)
    groups: list[Group] = []

    def draw() -> None:
        for start in range(0, len(mine), CHUNK):
            places = mine[start : start + CHUNK]
            groups.extend(sampler.draw([asked[i] for i in places], cfg.rollout.seed, STEP, places))

    world.agree(attempt(draw))
    own = [(g.environment, g.task.id, sum(g.rewards) / len(g.samples)) for g in groups if not g.fault], faults(groups)
    found: Rewards = {name: {} for name, domain in domains.items() if domain.heldout}
    dropped = Counter[str]()
    for rewards, of_rank in world.to_main(own):
        dropped.update(of_rank)
        for name, task, reward in rewards:
            found[name][task] = reward
    for kind, n in dropped.items():
        say(f"{n:,} held-out tasks have no reward: {kind}")
    return found


def compare(before: Rewards, after: Rewards) -> list[Score]:
    """Scores of the environments over the tasks that have a reward on both sides."""
    scores = []
    for name in before.keys() & after.keys():
        tasks = sorted(before[name].keys() & after[name].keys())
        if not tasks:
            continue
        pair = np.array([(before[name][task], after[name][task]) for task in tasks])
        differences = pair[:, 1] - pair[:, 0]
        low, high = middle95(bootstrap_means(differences.tolist(), seed=0))
        scores.append(Score(name, len(tasks), float(pair[:, 0].mean()), float(pair[:, 1].mean()), low, high))
    order = list(before)
    return sorted(scores, key=lambda score: order.index(score.environment))


def read_before(run_dir: Path) -> Rewards | None:
    """What was measured before the first step; None where nothing was."""
    try:
        return read_json(run_dir / FILE)["before"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def check_same(cfg: RlvrConfig, run_dir: Path) -> None:
    """Refuse settings under which a resumed run would compare other answers than those from before its first step.

    Raises:
        UserError: heldout.samples is another.
    """
    if read_before(run_dir) is None or not cfg.heldout.tasks:
        return
    samples = read_json(run_dir / FILE).get("samples")
    if samples != cfg.heldout.samples:
        raise UserError(
            f"heldout.samples is {cfg.heldout.samples}; those from before the run are of {samples}: leave it as it was"
        )


def write_scores(run_dir: Path, samples: int, before: Rewards, after: Rewards | None = None) -> list[Score]:
    """Keep the rewards of both sides and their comparison, which is returned; `samples`: of each task."""
    table: dict[str, Any] = {"samples": samples, "before": before}
    scores = compare(before, after) if after is not None else []
    if after is not None:
        table |= {"after": after, "scores": [asdict(score) | {"verdict": score.verdict} for score in scores]}
    write_atomic(run_dir / FILE, json.dumps(table, indent=1) + "\n")
    return scores

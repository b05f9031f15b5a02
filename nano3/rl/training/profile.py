"""Pass rates of tasks under a model, from before it is trained on them (report section 3.2): the curriculum's start.

profile.json:

    {"fingerprint": {"model": HASH, "environments": {NAME: HASH}, "sampling": {...}},
     "samples": samples of each task,
     "rates": {ENVIRONMENT: {TASK: pass rate}},
     "truncated": {ENVIRONMENT: share of samples that reached their limit},
     "faults": {"ENVIRONMENT: KIND": groups that were dropped}}
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.policy import StopConfig
from nano3.config.rlhf import AnyPolicyConfig
from nano3.config.rlvr import RlvrConfig
from nano3.files import write_atomic
from nano3.model.hf.files import weight_files
from nano3.reading import read_json
from nano3.rl.environments.base import Environment, Task
from nano3.rl.rollout import RolloutWorker
from nano3.rl.samples import Group
from nano3.rl.training.domains import Domain
from nano3.rl.training.measured_groups import MeasuredGroup, MeasuredGroups
from nano3.rl.training.stops import StopRules
from nano3.train.world import World, attempt

FILE = "profile.json"
CHUNK = 64
"""Most tasks that are drawn at a time, where one fills the engine."""
HELD_TOKENS = 1 << 24
"""Most tokens of samples that are held at a time, at some 14 bytes each."""
MOST = 0.5
"""Share of an environment's tasks that never pass, or always do, from which it is called too hard or too easy."""


@dataclass(frozen=True)
class Profile:
    """Measured pass rates."""

    fingerprint: dict[str, Any]
    """Of all that decides them."""
    samples: int
    """Of each task."""
    rates: dict[str, dict[str, float]]
    """By task id, by environment."""
    truncated: dict[str, float] = field(default_factory=dict)
    """Share of the samples that reached their limit of tokens, by environment."""
    faults: dict[str, int] = field(default_factory=dict)
    """Groups that were dropped, by environment and kind."""

    def write(self, path: Path) -> None:
        """As JSON."""
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Profile:
        """One that `write` wrote; `path`: the file, or a folder that holds it as profile.json.

        Raises:
            UserError: it is none.
        """
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"{path}: no such profile; make one with nano3 rlvr profile")
        found = read_json(path)
        try:
            return cls(**found)
        except TypeError as error:
            raise UserError(f"{path} is no profile of nano3 rlvr: {error}") from error

    def verdicts(self) -> list[Verdict]:
        """What the rates say of each environment."""
        return [Verdict.of(name, list(rates.values())) for name, rates in self.rates.items()]


@dataclass(frozen=True)
class Verdict:
    """What an environment's pass rates say before any training."""

    environment: str
    tasks: int
    mean: float
    never: float
    """Share of the tasks that no sample solved."""
    always: float
    """Share of the tasks that all samples solved; these are not drawn."""

    @classmethod
    def of(cls, environment: str, rates: list[float]) -> Verdict:
        """From the rates of its tasks."""
        n = max(1, len(rates))
        never, always = sum(rate == 0 for rate in rates) / n, sum(rate == 1 for rate in rates) / n
        return cls(environment, len(rates), sum(rates) / n, never, always)

    @property
    def word(self) -> str:
        """too hard, too easy or fits."""
        if not self.tasks:
            return "nothing measured"
        return "too hard" if self.never > MOST else "too easy" if self.always > MOST else "fits"

    def line(self) -> str:
        """One line for the user."""
        advice = {
            "too hard": ": easier tasks, or more training on answers before this, would teach more",
            "too easy": ": harder tasks would teach more",
        }
        return (
            f"{self.environment}: pass rate {self.mean:.0%} over {self.tasks:,} tasks; {self.never:.0%} never pass, "
            f"{self.always:.0%} always: {self.word}{advice.get(self.word, '')}"
        )


def fingerprint(cfg: RlvrConfig, domains: Mapping[str, Domain], model: Path) -> dict[str, Any]:
    """All that decides pass rates: the weights in the folder `model`, tasks and rewards, and how samples are drawn."""
    rollout = cfg.rollout
    names = ("max_tokens", "max_turns", "temperature", "top_p", "thinking", "thinking_budget")
    sampling = {name: getattr(rollout, name) for name in names}
    return {
        "model": folder_hash(model),
        "environments": {name: domain.fingerprint() for name, domain in domains.items()},
        "sampling": sampling | {"context": cfg.context, "samples": cfg.curriculum.profile_samples},
    }


def folder_hash(folder: Path) -> str:
    """Of the weights and the architecture in a Hugging Face folder."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *weight_files(folder)]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def check_fingerprint(profile: Profile, wanted: Mapping[str, Any], where: str) -> None:
    """Raise UserError, naming what differs, unless the profile is one of this run."""
    given = profile.fingerprint
    differ = [name for name in ("model", "sampling") if given.get(name) != wanted[name]]
    theirs = given.get("environments", {})
    differ += [f"environment {name}" for name, own in wanted["environments"].items() if theirs.get(name) != own]
    if differ:
        raise UserError(
            f"{where} was measured with another {', another '.join(differ)}: measure it anew with nano3 rlvr profile, "
            "or leave curriculum.profile out"
        )


def measure(
    cfg: AnyPolicyConfig,
    domains: Mapping[str, Domain],
    worker: RolloutWorker,
    number: int,
    world: World,
    say: Callable[[str], None] = lambda line: None,
    of: Mapping[str, Any] | None = None,
    file: Path | None = None,
) -> Profile:
    """Draw curriculum.profile_samples answers to every training task and count those that pass; every rank must call.

    Args:
        cfg: of the run.
        domains: environments by name.
        worker: of an engine with the weights that are profiled.
        number: of profiles made before this one in the run; decides the seeds.
        world: the ranks, which share out the tasks.
        say: hears of progress.
        of: fingerprint to note.
        file: where the profile is written when it is whole. Each group is written down beside it as soon as it is
            measured, and what an interrupted try left there is not measured again.

    Raises:
        TrainingStoppedError: too many groups of an environment in a row ended in a fault; on every rank.
    """
    tasks = [(domain.environment, task) for domain in domains.values() for task in domain.train.values()]
    decided_by = {"fingerprint": of or {}, "seed": cfg.rollout.seed, "profiles": number}
    kept = MeasuredGroups(file, decided_by, world)
    if kept.before and world.is_main:
        say(f"profile: {len(kept.before):,} of {len(tasks):,} tasks are measured already")
    order = random.Random(cfg.rollout.seed).sample(range(len(tasks)), len(tasks))
    left = [i for i in order if (tasks[i][0].name, tasks[i][1].id) not in kept.before]
    draw = partial(_draw, cfg, worker.with_group(cfg.curriculum.profile_samples), tasks, -1 - number, kept)
    try:
        size = chunk_size(cfg, cfg.curriculum.profile_samples)
        found = [*kept.before.values(), *_in_parts(draw, left, size, world, say, cfg.stop)]
        profile = _profile_of(cfg, domains, found, of or {})
        if world.is_main and file is not None:
            profile.write(file)
            kept.remove()
        return profile
    finally:
        kept.close()


def chunk_size(cfg: AnyPolicyConfig, samples: int) -> int:
    """Tasks of which so many samples each are drawn at a time: enough to fill the engine, few enough to be held."""
    by_memory = HELD_TOKENS // (samples * cfg.context)
    return max(1, math.ceil(cfg.rollout.sequences / samples), min(CHUNK, by_memory))


def _draw(
    cfg: AnyPolicyConfig,
    sampler: RolloutWorker,
    tasks: Sequence[tuple[Environment, Task]],
    step: int,
    kept: MeasuredGroups,
    rules: StopRules,
    places: Sequence[int],
) -> list[MeasuredGroup]:
    """Measure the tasks at these places. `step`: below 0, no step of a run: the seeds of its rollouts are others."""

    def write(group: Group) -> None:
        kept.add(MeasuredGroup.of(group))

    groups = sampler.draw([tasks[i] for i in places], cfg.rollout.seed, step, places, write)
    rules.note_faults([(group.environment, group.fault) for group in groups], 0)
    return [MeasuredGroup.of(group) for group in groups]


def _in_parts(
    draw: Callable[[StopRules, Sequence[int]], list[MeasuredGroup]],
    left: Sequence[int],
    size: int,
    world: World,
    say: Callable[[str], None],
    stop: StopConfig,
) -> list[MeasuredGroup]:
    """What all ranks measure, each its share of the places `left`, `size` at a time; a stop of one is one of all."""
    mine = left[world.rank :: world.size]
    rules, found = StopRules(stop), list[MeasuredGroup]()
    most = math.ceil(len(left) / world.size)
    for part, start in enumerate(range(0, most, size)):
        world.agree(attempt(lambda start=start: found.extend(draw(rules, mine[start : start + size]))))
        if world.is_main and part % 4 == 3:
            say(f"profile: {min(len(mine), start + size):,} of {len(mine):,} tasks")
    return list({group.key: group for part in world.gather(found) for group in part}.values())


def _profile_of(
    cfg: AnyPolicyConfig, domains: Mapping[str, Domain], found: Sequence[MeasuredGroup], of: Mapping[str, Any]
) -> Profile:
    """All groups together, in the order of the tasks, whatever rank drew them and when."""
    by_key = {group.key: group for group in found}
    rates: dict[str, dict[str, float]] = {}
    shares: dict[str, float] = {}
    dropped = Counter[str]()
    for name, domain in domains.items():
        groups = [by_key[name, task] for task in domain.train]
        rates[name] = {group.task: group.pass_rate for group in groups if not group.fault}
        shares[name] = sum(group.truncated for group in groups) / max(1, sum(group.samples for group in groups))
        dropped.update(f"{name}: {group.fault}" for group in groups if group.fault)
    return Profile(dict(of), cfg.curriculum.profile_samples, rates, shares, dict(dropped))

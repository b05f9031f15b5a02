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
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.rlhf import AnyPolicyConfig
from nano3.config.rlvr import RlvrConfig
from nano3.files import write_atomic
from nano3.reading import read_json
from nano3.rl.rollout import RolloutWorker
from nano3.rl.samples import Group, faults, pass_rates
from nano3.rl.training.domains import Domain
from nano3.train.world import World, attempt

FILE = "profile.json"
CHUNK = 64
"""Tasks that are drawn at a time."""
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
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
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
    """
    tasks = [(domain.environment, task) for domain in domains.values() for task in domain.train.values()]
    order = random.Random(cfg.rollout.seed).sample(range(len(tasks)), len(tasks))
    mine = order[world.data.rank :: world.data.size]
    sampler = worker.with_group(cfg.curriculum.profile_samples)
    own_rates: dict[str, dict[str, float]] = {}
    own_faults, own_truncated = Counter[str](), Counter[tuple[str, bool]]()

    def draw() -> None:
        for start in range(0, len(mine), CHUNK):
            places = mine[start : start + CHUNK]
            # Steps below 0 are no steps of the run: the seeds of its rollouts are others.
            groups = sampler.draw([tasks[i] for i in places], cfg.rollout.seed, -1 - number, places)
            for name, of_tasks in pass_rates(groups).items():
                own_rates.setdefault(name, {}).update(of_tasks)
            own_faults.update(faults(groups))
            own_truncated.update(_truncated(groups))
            if world.is_main and start // CHUNK % 4 == 3:
                say(f"profile: {start + len(places):,} of {len(mine):,} tasks")

    world.agree(attempt(draw))
    found = world.gather((own_rates, dict(own_faults), own_truncated))
    rates: dict[str, dict[str, float]] = {name: {} for name in domains}
    for own, _, _ in found:
        for name, of_tasks in own.items():
            rates[name] |= of_tasks
    # In the order of the tasks, whatever rank drew them.
    rates = {name: {task: rates[name][task] for task in domains[name].train if task in rates[name]} for name in domains}
    truncated = sum((part for _, _, part in found), Counter[tuple[str, bool]]())
    shares = {name: truncated[name, True] / max(1, truncated[name, True] + truncated[name, False]) for name in domains}
    dropped = sum((Counter(part) for _, part, _ in found), Counter[str]())
    return Profile(dict(of or {}), cfg.curriculum.profile_samples, rates, shares, dict(dropped))


def _truncated(groups: list[Group]) -> Counter[tuple[str, bool]]:
    return Counter((group.environment, sample.truncated) for group in groups for sample in group.samples)

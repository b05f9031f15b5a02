"""The trainer's data in reinforcement learning: each step draws tasks, samples answers, and packs them with advantages.

What a step of metrics.jsonl says beside the loss's own metrics, all of the groups drawn in it:

    reward, reward/ENV              mean reward of the samples
    pass_rate, pass_rate/ENV        share of the samples that solve their task
    zero_variance                   share of the groups whose rewards are all equal
    truncated                       share of the samples that reached their limit of tokens
    drawn_pass_rate                 mean of the profile's pass rates of the tasks drawn
    drawn_bins                      tasks drawn by environment: a list of counts by these pass rates, in bins
    target_mean                     mean of the curriculum's Gaussian
    answer_tokens, turns            mean of a sample: tokens that it drew, and answers
    groups, dropped                 groups drawn, and of them those that ended in a fault
    faults/ENV: KIND                the same by environment and kind
    dlogp_*, rounding_*             the probe of the weight sync (nano3.rl.sync)
    mismatch_largest                largest |log-probability in the trainer - in the sampler| of a trained token
    clock: rollout_seconds, sync_seconds, update_seconds, drawn_tokens_per_second
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nano3.config.errors import UserError
from nano3.config.rlhf import AnyPolicyConfig
from nano3.engine.protocol import ServersGoneError
from nano3.rl.advantage import group_advantages
from nano3.rl.batch import PolicyBatch, TrainingSample, pack_samples
from nano3.rl.curriculum import Curriculum, CurriculumSettings
from nano3.rl.feedback.comparison import JudgeStoppedError
from nano3.rl.feedback.scoring import Feedback
from nano3.rl.grpo import GRPOLoss
from nano3.rl.rollout import RolloutWorker
from nano3.rl.rollout_files import cut_rollouts, save_rollouts
from nano3.rl.samples import Group
from nano3.rl.sync import MismatchError, SyncReport, WeightSync
from nano3.rl.training.domains import Domain
from nano3.rl.training.facts import GroupFacts, drawn_bins, mean_of, step_figures
from nano3.rl.training.profile import Profile, measure
from nano3.rl.training.reference import with_reference
from nano3.rl.training.stops import StopRules, TrainingStoppedError
from nano3.train.feed import PausedError
from nano3.train.world import World, attempt


@dataclass(frozen=True)
class Sampling:
    """What draws samples with the weights as they are."""

    worker: RolloutWorker
    sync: WeightSync
    reference: Any = None
    """The model that the KL term compares with."""


class PolicySteps:
    """Step source of on-policy reinforcement learning; see nano3.train.feed.StepSource.

    Every rank draws its share of a step's prompts; what is decided is decided from the facts of all ranks, so all
    decide alike. Ranks that train on the same rows are given each other's samples.
    """

    ahead = False
    shared_state = True

    def __init__(
        self,
        cfg: AnyPolicyConfig,
        domains: dict[str, Domain],
        loss: GRPOLoss,
        run_dir: Path,
        world: World,
        say: Callable[[str], None] = lambda line: None,
        feedback: Feedback | None = None,
    ) -> None:
        """Call `begin` or `restore`, then `open`, before the first step.

        Args:
            cfg: of the run.
            domains: environments by name.
            loss: of the trainer; its largest mismatch is reported and judged.
            run_dir: where rollouts and further profiles are written.
            world: the ranks.
            say: hears what the user should know, on the main rank.
            feedback: gives the rewards, where environments have none.
        """
        self.cfg, self.domains, self.loss, self.run_dir, self.world = cfg, domains, loss, run_dir, world
        self.feedback = feedback
        self.say = say if world.is_main else lambda line: None
        self.rules = StopRules(cfg.stop)
        self.curriculum: Curriculum | None = None
        self.profiles = 1
        """Made so far."""
        self._sampling: Sampling | None = None
        self._values: dict[str, Any] = {}
        self._clock: dict[str, float] = {}
        self._given_at = self._mismatch = 0.0
        self._done = 0

    @property
    def shown(self) -> Sequence[str]:
        """What the display shows first."""
        rates = [f"pass_rate/{name}" for name in self.domains] if len(self.domains) > 1 else []
        first = ["reward", *rates, "zero_variance"] if self.feedback is None else ["reward", *self.feedback.shown]
        return [*first, "truncated", "entropy"]

    @property
    def server_seconds(self) -> float:
        """How long a server of the rollouts may take for one answer; 0: none draws them."""
        return self.cfg.rollout.server_seconds if self.cfg.rollout.servers else 0.0

    @property
    def safe_step(self) -> int | None:
        """Up to which step training is known to have gone well: the stop rules look back no further."""
        return self.rules.safe_step(self._done)

    def begin(self, profile: Profile | None) -> None:
        """Before the first step of a run; without a profile all tasks are drawn alike."""
        own, domains = self.cfg.curriculum, self.domains
        settings = CurriculumSettings(
            self.cfg.train.steps, self.cfg.rollout.prompts, own.start_mean, own.end_mean, own.sigma, own.bins,
            own.most_draws, own.stall_steps if profile else 0, own.stall_rise, self.cfg.rollout.seed,
        )  # fmt: skip
        # Where no rate is known all tasks lie in one bin, from which those drawn least come first.
        rates = profile.rates if profile else {name: dict.fromkeys(each.train, 0.0) for name, each in domains.items()}
        for name in domains:
            if not rates.get(name):
                kinds = [kind for kind in (profile.faults if profile else {}) if kind.startswith(f"{name}: ")]
                why = f" ({', '.join(kinds)})" if kinds else ""
                raise UserError(f"environment {name}: none of its tasks has a pass rate{why}; mend it or leave it out")
        rates = {name: rates[name] for name in domains}
        self.curriculum = Curriculum(settings, rates, {name: domains[name].weight for name in rates})

    def open(self, sampling: Sampling) -> None:
        """Give it what draws samples, once the model has its weights."""
        self._sampling = sampling

    def step(self, n: int) -> list[PolicyBatch]:
        """Draw, measure and pack the samples of step `n`.

        Raises:
            TrainingStoppedError: a stop rule holds, or engine and trainer disagree.
            PausedError: the judge does not answer, or no server of the rollouts does.
        """
        sampling, curriculum = self._opened
        report = self._sync(sampling, n)
        if curriculum.stalled:
            self._profile_again(sampling, curriculum, n)
        started = time.perf_counter()
        target, rates = curriculum.mean, curriculum.rates
        groups, facts = self._drawn(sampling, curriculum, n)
        seconds = time.perf_counter() - started
        self._values = step_figures(facts, self.domains) | self._judge_calls() | self._probe(report)
        if self.cfg.curriculum.sampling == "gaussian":
            drawn = mean_of([rates[fact.environment][fact.task] for fact in facts])
            bins = drawn_bins(facts, rates, curriculum.settings.bins)
            self._values |= {"target_mean": target, "drawn_pass_rate": drawn, "drawn_bins": bins}
        tokens = sum(fact.drawn_tokens for fact in facts)
        self._clock = {
            "rollout_seconds": seconds, "sync_seconds": report.seconds, "drawn_tokens_per_second": tokens / seconds,
        }  # fmt: skip
        self._judge(facts, n)
        good = [fact for fact in facts if not fact.fault]
        # Over what the profile expects of these tasks: the curriculum draws harder ones as it goes on.
        curriculum.note_reward(mean_of([fact.reward - rates[fact.environment][fact.task] for fact in good]))
        batches = self._pack(groups, self._chosen(facts), sampling)
        self._done = n + 1
        self._given_at = time.perf_counter()
        return batches

    def measured(self) -> tuple[dict[str, Any], dict[str, float]]:
        """Figures of the step that was trained last; see the module."""
        found = self.world.gather(self.loss.take_largest_mismatch())
        largest = math.nan if any(map(math.isnan, found)) else max(found)
        self._mismatch = largest
        update = {"update_seconds": time.perf_counter() - self._given_at}
        return self._values | {"mismatch_largest": largest}, self._clock | update

    def judge_update(self) -> None:
        """Judge the step that was trained last, which the next one or the end of the run waits for.

        Raises:
            TrainingStoppedError: its rollouts were too far from what the trainer computes.
        """
        self.rules.note_mismatch(self._mismatch, max(0, self._done - 1))

    def state(self) -> dict[str, Any]:
        """The curriculum, what the stop rules remember, the last step's mismatch, and the number of profiles."""
        assert self.curriculum is not None, "a run has begun"
        mismatch = self._mismatch if math.isfinite(self._mismatch) else None
        return {
            "curriculum": self.curriculum.state(), "rules": self.rules.state(), "profiles": self.profiles,
            "mismatch": mismatch,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.curriculum = Curriculum.restore(state["curriculum"])
        batches = self.curriculum.settings.batches
        if batches != self.cfg.train.steps:
            self.say(f"the curriculum's mean goes on falling as over {batches} steps, not {self.cfg.train.steps}")
        self.rules.restore(state["rules"])
        self.profiles, self._done = state["profiles"], self.curriculum.number
        if self.world.is_main:
            cut_rollouts(self.run_dir, self._done)
        mismatch = state.get("mismatch", 0.0)
        self._mismatch = math.nan if mismatch is None else mismatch

    def close(self) -> None:
        """The engine stays open: the stage asks it for the scores after the run."""

    @property
    def _opened(self) -> tuple[Sampling, Curriculum]:
        assert self._sampling is not None, "open"
        assert self.curriculum is not None, "begin or restore"
        return self._sampling, self.curriculum

    def _sync(self, sampling: Sampling, n: int) -> SyncReport:
        self.judge_update()
        try:
            return sampling.sync.sync()
        except MismatchError as error:
            raise TrainingStoppedError(str(error), n) from error
        except ServersGoneError as error:
            raise PausedError(str(error)) from error

    def _profile_again(self, sampling: Sampling, curriculum: Curriculum, n: int) -> None:
        self.say(f"step {n + 1}: the reward has stalled, pass rates are measured anew")
        try:
            profile = measure(self.cfg, self.domains, sampling.worker, self.profiles, self.world, self.say)
        except TrainingStoppedError as stop:
            raise TrainingStoppedError(str(stop), n) from stop
        except ServersGoneError as error:
            raise PausedError(str(error)) from error
        self.profiles += 1
        curriculum.profile({name: rates for name, rates in profile.rates.items() if name in curriculum.rates})
        for verdict in profile.verdicts():
            self.say(verdict.line())
        self._on_main(lambda: profile.write(self.run_dir / f"profile-step-{n + 1}.json"))

    def _drawn(self, sampling: Sampling, curriculum: Curriculum, n: int) -> tuple[dict[int, Group], list[GroupFacts]]:
        """As `_draw`; where judge or servers stop, what was drawn is undone: the step can be asked for again."""
        before = copy.deepcopy(curriculum.state())
        if self.feedback is not None:
            self.feedback.take_calls()  # those of held-out prompts are no step's
        try:
            return self._draw(sampling, curriculum, n)
        except (JudgeStoppedError, ServersGoneError) as error:
            self.curriculum = Curriculum.restore(before)
            raise PausedError(str(error)) from error

    def _draw(self, sampling: Sampling, curriculum: Curriculum, n: int) -> tuple[dict[int, Group], list[GroupFacts]]:
        """This rank's groups by place, and the facts of all ranks' in order of place."""
        groups: dict[int, Group] = {}
        facts: list[GroupFacts] = []
        drawn = curriculum.draw()
        for round_ in range(1 + self.cfg.rollout.refill):
            places = range(len(facts), len(facts) + len(drawn))
            mine = [place for place in places if place % self.world.size == self.world.rank]
            tasks = [self._task(*drawn[place - places.start]) for place in mine]
            found = self._rollouts(sampling.worker, tasks, n, mine)
            self._score(found)
            groups |= found
            own = [GroupFacts.of(place, group, self._terms(group)) for place, group in found.items()]
            facts += sorted((fact for part in self.world.gather(own) for fact in part), key=lambda fact: fact.place)
            missing = self._quotas(facts) - Counter(fact.environment for fact in facts if fact.teaches)
            if not missing or round_ == self.cfg.rollout.refill:
                break
            drawn = curriculum.draw_more(missing, [(fact.environment, fact.task) for fact in facts])
        self._save(groups, n)
        return groups, facts

    def _rollouts(
        self, worker: RolloutWorker, tasks: Sequence[tuple[Any, Any]], n: int, places: Sequence[int]
    ) -> dict[int, Group]:
        """This rank's groups by place; an error of one rank is raised on all."""
        found: list[Group] = []
        drawing = partial(worker.draw, tasks, self.cfg.rollout.seed, n, places)
        self.world.agree(attempt(lambda: found.extend(drawing())))
        return dict(zip(places, found, strict=True))

    def _score(self, groups: dict[int, Group]) -> None:
        """Have the judge give this rank's rewards. It stops on all ranks where it stops on one."""
        if self.feedback is None:
            return
        score, stopped = self.feedback.score, list[str]()

        def judge() -> None:
            try:
                score(list(groups.values()))
            except JudgeStoppedError as error:
                stopped.append(str(error))

        self.world.agree(attempt(judge))
        if reasons := [reason for part in self.world.gather(stopped) for reason in part]:
            raise JudgeStoppedError(reasons[0])

    def _terms(self, group: Group) -> dict[str, float]:
        return {} if self.feedback is None or group.fault else self.feedback.terms(group)

    def _judge_calls(self) -> dict[str, float]:
        if self.feedback is None:
            return {}
        return {"judge_calls": sum(self.world.gather(self.feedback.take_calls()))}

    def _task(self, name: str, task: str) -> tuple[Any, Any]:
        domain = self.domains[name]
        return domain.environment, domain.train[task]

    def _save(self, groups: dict[int, Group], n: int) -> None:
        if not self.cfg.rollout.save:
            return
        written = {place: group.as_saved for place, group in groups.items()}
        together = {place: group for part in self.world.to_main(written) for place, group in part.items()}
        sources = {name: domain.source for name, domain in self.domains.items()}
        ordered = [together[place] for place in sorted(together)]
        self._on_main(lambda: save_rollouts(self.run_dir, n + 1, ordered, sources))

    def _on_main(self, write: Callable[[], Any]) -> None:
        """What the main rank alone does; an error there, as of a full disk, ends all ranks."""
        self.world.agree(attempt(write if self.world.is_main else lambda: None))

    @staticmethod
    def _probe(report: SyncReport) -> dict[str, float]:
        clock = ("weights_version", "sync_seconds")
        return {name: float(value) for name, value in report.metrics().items() if name not in clock}

    def _judge(self, facts: Sequence[GroupFacts], n: int) -> None:
        self.rules.note_faults([(fact.environment, fact.fault) for fact in facts], n)
        if all(fact.fault for fact in facts):
            first = facts[0]
            what = f"{first.environment}: {first.fault}" + (f", {first.fault_message}" if first.fault_message else "")
            raise TrainingStoppedError(
                f"all {len(facts)} groups of step {n + 1} ended in a fault ({what})", n, first.fault
            )
        self.rules.note_shares(self._values["truncated"], self._values["zero_variance"], n)

    def _chosen(self, facts: Sequence[GroupFacts]) -> set[int]:
        """Places of the groups that are trained on: with refills those first from which something is learnt."""
        good = sorted((fact for fact in facts if not fact.fault), key=lambda fact: (not fact.teaches, fact.place))
        places = set[int]()
        for name, quota in self._quotas(facts).items():
            places |= {fact.place for fact in [fact for fact in good if fact.environment == name][:quota]}
        return places

    def _quotas(self, facts: Sequence[GroupFacts]) -> Counter[str]:
        """Groups of each environment in the step, as its first draw had them: refills do not change the shares."""
        return Counter(fact.environment for fact in facts if fact.place < self.cfg.rollout.prompts)

    def _pack(self, groups: dict[int, Group], chosen: set[int], sampling: Sampling) -> list[PolicyBatch]:
        samples = self._samples({place: groups[place] for place in groups.keys() & chosen})
        own = self.cfg.train
        settings = own.pack_length, own.micro_batch_size, self.cfg.model.pad_id
        ids_limit = sampling.worker.engine.ids_limit
        batches: list[PolicyBatch] = []

        def pack(micro_batches: int) -> None:
            batches[:] = pack_samples(samples, *settings, micro_batches, self.cfg.objective.kl_coef, ids_limit)

        self.world.agree(attempt(lambda: pack(0)))
        most = max(self.world.gather(len(batches)))
        if len(batches) < most:
            pack(most)
        if sampling.reference is not None:
            temperature, shared = self.cfg.rollout.temperature, self.loss.shared
            batches = [with_reference(batch, sampling.reference, temperature, shared) for batch in batches]
        return batches

    def _samples(self, groups: dict[int, Group]) -> list[TrainingSample]:
        """Those of all ranks that train on the same rows as this one, in order of place."""
        found: list[tuple[int, TrainingSample]] = []
        for place, group in groups.items():
            advantages = group_advantages(torch.tensor([group.rewards], dtype=torch.float64))[0].tolist()
            for sample, advantage in zip(group.samples, advantages, strict=True):
                found += [(place, each) for each in sample.training_samples(advantage)]
        together = [each for rank in self.world.of_same_data(found) for each in rank]
        return [sample for _, sample in sorted(together, key=lambda each: each[0])]

"""Rollouts: groups of samples by the generation engine, in one turn or several, kept as the tokens that were drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.data.chat.encoder import ChatEncoder, ChatPrompt
from nano3.data.chat.parsing.output_parser import parse_output
from nano3.engine.output import Output
from nano3.engine.protocol import GenerationEngine, run
from nano3.engine.request import Request, Sampling, ThinkingBudget
from nano3.engine.sequence_sampler import derive_seed
from nano3.rl.asking import ask_all
from nano3.rl.batch import TrainingSample
from nano3.rl.environments.base import Environment, Message, MultiTurn, Reward, Rollout, Task

TOKENS_TO_ANSWER = 1
"""Room that a turn needs in the context."""
PROMPT, ENGINE = "prompt too long", "engine"
"""Kinds of faults that are not the environment's."""


@dataclass(frozen=True)
class RolloutSettings:
    """How samples are drawn."""

    group: int = 16
    """Samples of a prompt."""
    max_tokens: int = 49_152
    """Of one turn's answer."""
    max_turns: int = 16
    """Answers of one sample."""
    temperature: float = 1.0
    top_p: float = 1.0
    thinking_budget: int | None = None
    """Tokens after which thinking is closed; what is written to close it is not trained on."""
    return_experts: bool = False
    """Keep the experts of each token, for router replay."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template, as enable_thinking."""
    workers: int = 4
    """Threads in which environments answer and measure."""
    environment_seconds: float = 600.0
    """For one answer or reward of an environment; without it in time, the sample has a fault."""


@dataclass
class Sample:
    """One rollout: messages as the environment sees them, and the sequence of tokens that the policy saw and wrote.

    A later turn's prompt is the sequence so far with what follows rendered behind it: nothing that was drawn is ever
    made to text and back.
    """

    task: Task
    index: int
    """In its group."""
    seed: int
    """Of the first turn."""
    ids: np.ndarray
    """(T,) int32, the first prompt included."""
    drawn: np.ndarray
    """(T,) bool: drawn from the policy; not prompts, results of tools, or tokens that closed the thinking part."""
    log_probs: np.ndarray
    """(T,) float32 under the distribution that each token was drawn from; 0 where it was not."""
    forced: np.ndarray
    """(T,) bool: written by the thinking budget."""
    messages: list[Message] = field(default_factory=list)
    """All that followed the task's prompt."""
    truncated: bool = False
    """Its last answer was cut off by its limit."""
    turns: int = 0
    weights_version: int = 0
    """Of the weights that wrote its last turn."""
    experts: np.ndarray | None = None
    """(MoE blocks, T - 1, K)."""
    reward: Reward | None = None
    fault: str = ""
    """Why it has no reward, in a word or two: the environment's fault, or the engine's."""
    fault_message: str = ""
    thinking_open: bool = False
    """The next answer begins inside a thinking part."""

    @property
    def rollout(self) -> Rollout:
        """What the environment measures."""
        return Rollout(tuple(self.messages), self.truncated, after_prompt(self.ids, self.drawn | self.forced))

    def training_sample(self, advantage: float) -> TrainingSample:
        """For the policy's loss. A truncated sample has no token that is trained on (overlong filtering)."""
        trained = np.zeros_like(self.drawn) if self.truncated else self.drawn
        name = f"{self.task.id} sample {self.index}"
        return TrainingSample(self.ids, trained, self.log_probs, advantage, name, self.experts)


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
    def rewards(self) -> list[float]:
        """Of a group without a fault."""
        return [sample.reward.value for sample in self.samples if sample.reward is not None]

    @property
    def pass_rate(self) -> float:
        """Share of its samples that solve the task."""
        return sum(bool(sample.reward and sample.reward.passed) for sample in self.samples) / len(self.samples)


def seed_of(run_seed: int, step: int, prompt: int, sample: int = 0, turn: int = 0) -> int:
    """The engine's seed of one turn of one sample: from its place in the run alone, so that a run that was interrupted
    draws what it would have drawn.

    Args:
        run_seed: of the run.
        step: number of the optimizer step.
        prompt: place of the prompt in the step's batch.
        sample: in its group.
        turn: from 0. Samples of a first turn are one request, whose outputs the engine gives seeds of their own.
    """
    digest = hashlib.blake2b(json.dumps([run_seed, step, prompt, turn]).encode(), digest_size=8).digest()
    return derive_seed(int.from_bytes(digest, "little"), sample)


class RolloutWorker:
    """Draws groups from one engine."""

    def __init__(self, engine: GenerationEngine, settings: RolloutSettings, encoder: ChatEncoder | None = None) -> None:
        """
        Args:
            engine: of the rollouts; without requests of others.
            settings: how samples are drawn.
            encoder: None: by the engine's tokenizer and its template.
        """
        self.engine, self.settings = engine, settings
        self.encoder = encoder or ChatEncoder(engine.tokenizer)

    def draw(self, tasks: Sequence[tuple[Environment, Task]], run_seed: int, step: int) -> list[Group]:
        """A group for each task, with rewards.

        Turns are taken together: all samples answer, then all environments do. A prompt that leaves no room for an
        answer and a request on which the engine fails are faults of their groups.

        Raises:
            UserError: that holds for all groups.
        """
        groups = self._first_turn(tasks, run_seed, step)
        environments = [environment for environment, _ in tasks]
        going = [(i, sample) for i, group in enumerate(groups) for sample in group.samples]
        while going:
            going = self._next_turn(self._step(environments, going), run_seed, step)
        if groups and all(group.fault in (PROMPT, ENGINE) for group in groups):
            raise UserError(f"rollouts: {next(s.fault_message for s in groups[0].samples if s.fault)}")
        self._measure([(environments[i], sample) for i, group in enumerate(groups) for sample in group.samples])
        return groups

    def _step(
        self, environments: Sequence[Environment], going: Sequence[tuple[int, Sample]]
    ) -> list[tuple[tuple[int, Sample], Sequence[Message]]]:
        """The samples that go on, with what their environments answered."""
        asked = [
            (i, sample, environment) for i, sample in going
            if isinstance(environment := environments[i], MultiTurn) and not (sample.truncated or sample.fault)
        ]  # fmt: skip
        found = self._ask([(s, partial(environment.step, s.task, s.rollout)) for _, s, environment in asked])
        answered = []
        for (i, sample, _), messages in zip(asked, found, strict=True):
            if messages and not _are_messages(messages):
                sample.fault, sample.fault_message = "no messages", f"step gave {messages!r:.200}"
            elif messages:
                answered.append(((i, sample), messages))
        return answered

    def _measure(self, samples: Sequence[tuple[Environment, Sample]]) -> None:
        asked = [(environment, sample) for environment, sample in samples if not sample.fault]
        found = self._ask([(s, partial(environment.verify, s.task, s.rollout)) for environment, s in asked])
        for (_, sample), reward in zip(asked, found, strict=True):
            if isinstance(reward, Reward):
                sample.reward = reward
            elif not sample.fault:
                sample.fault, sample.fault_message = "no reward", f"verify gave {reward!r:.200}"

    def _ask(self, questions: Sequence[tuple[Sample, Callable[[], Any]]]) -> list[Any]:
        """The environments' answers; None where there is a fault, which is noted in the sample."""
        own = self.settings
        answers = ask_all([question for _, question in questions], own.workers, own.environment_seconds)
        for (sample, _), answer in zip(questions, answers, strict=True):
            sample.fault, sample.fault_message = answer.fault, answer.message
        return [answer.value for answer in answers]

    def _first_turn(self, tasks: Sequence[tuple[Environment, Task]], run_seed: int, step: int) -> list[Group]:
        prompts = [self.encoder.encode(task.messages, task.tools, **self.settings.template) for _, task in tasks]
        groups = [
            Group(environment.name, task, [
                _begun(task, k, seed_of(run_seed, step, i, k), prompt) for k in range(self.settings.group)
            ])
            for i, ((environment, task), prompt) in enumerate(zip(tasks, prompts, strict=True))
        ]  # fmt: skip
        asked, requests = [], []
        for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            room = self._room(len(prompt.ids))
            if room < TOKENS_TO_ANSWER:
                _refuse_prompt(group, len(prompt.ids), self.engine.max_context)
                continue
            seed = seed_of(run_seed, step, i)
            requests.append(self._request(f"rollout-{step}-{i}", prompt.ids, prompt, seed, room, self.settings.group))
            asked.append(group)
        for group, outputs in zip(asked, run(self.engine, requests), strict=True):
            for sample, output in zip(group.samples, outputs, strict=True):
                self._add(sample, output)
        return groups

    def _next_turn(
        self, answered: Sequence[tuple[tuple[int, Sample], Sequence[Message]]], run_seed: int, step: int
    ) -> list[tuple[int, Sample]]:
        """The samples that the environment answered and that had room for another turn, which they have taken."""
        going, requests = [], []
        for (i, sample), messages in answered:
            if sample.turns >= self.settings.max_turns:
                continue
            try:
                following = self.encoder.encode_following(messages, sample.task.tools, **self.settings.template)
            except UserError as error:
                sample.fault, sample.fault_message = "no messages", str(error)
                continue
            room = self._room(len(sample.ids) + len(following.ids))
            if room < TOKENS_TO_ANSWER:
                sample.truncated = True
                continue
            _append_given(sample, following, messages)
            seed = seed_of(run_seed, step, i, sample.index, sample.turns)
            name = f"rollout-{step}-{i}-{sample.index}-{sample.turns}"
            requests.append(self._request(name, tuple(sample.ids.tolist()), following, seed, room, 1))
            going.append((i, sample))
        for (_, sample), [output] in zip(going, run(self.engine, requests), strict=True):
            self._add(sample, output)
        return going

    def _room(self, used: int) -> int:
        return min(self.settings.max_tokens, self.engine.max_context - used)

    def _request(self, name: str, ids: tuple[int, ...], prompt: ChatPrompt, seed: int, room: int, n: int) -> Request:
        own = self.settings
        budget = own.thinking_budget
        thinking = None if budget is None else ThinkingBudget(budget, open=prompt.thinking_open)
        sampling = Sampling(
            temperature=own.temperature, top_p=own.top_p, seed=seed, max_tokens=room, thinking=thinking
        )  # fmt: skip
        return Request(name, ids, sampling, n, return_experts=own.return_experts)

    def _add(self, sample: Sample, output: Output) -> None:
        """The answer of one turn."""
        if output.finish == "error":
            sample.fault, sample.fault_message = ENGINE, f"the engine fails on task {sample.task.id}: {output.error}"
            return
        forced = output.forced
        sample.ids = np.concatenate([sample.ids, output.token_ids])
        sample.drawn = np.concatenate([sample.drawn, ~forced])
        sample.forced = np.concatenate([sample.forced, forced])
        log_probs = np.where(forced, np.float32(0), output.sampled_log_probs)
        sample.log_probs = np.concatenate([sample.log_probs, log_probs])
        sample.truncated = output.finish == "length"
        sample.weights_version, sample.experts = output.weights_version, output.experts
        sample.messages.append(_message(output.text, sample, sample.truncated))
        sample.turns += 1


def after_prompt(ids: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """The tokens from the first one of an answer on, of (T,) ids and (T,) bool."""
    return ids[answered.argmax() :] if answered.any() else ids[:0]


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


def _begun(task: Task, index: int, seed: int, prompt: ChatPrompt) -> Sample:
    n = len(prompt.ids)
    ids, none = np.array(prompt.ids, np.int32), np.zeros(n, bool)
    return Sample(task, index, seed, ids, none, np.zeros(n, np.float32), none, thinking_open=prompt.thinking_open)


def _append_given(sample: Sample, following: ChatPrompt, messages: Sequence[Message]) -> None:
    """What the policy sees, but did not write."""
    n = len(following.ids)
    sample.ids = np.concatenate([sample.ids, np.array(following.ids, np.int32)])
    sample.drawn = np.concatenate([sample.drawn, np.zeros(n, bool)])
    sample.forced = np.concatenate([sample.forced, np.zeros(n, bool)])
    sample.log_probs = np.concatenate([sample.log_probs, np.zeros(n, np.float32)])
    sample.messages += messages
    sample.thinking_open = following.thinking_open


def _message(text: str, sample: Sample, cut_off: bool) -> Message:
    """An answer as an assistant message."""
    ids: Callable[[], str] = iter(f"call_{sample.turns}_{i}" for i in range(len(text) + 1)).__next__
    parsed = parse_output(
        text, sample.task.tools, cut_off=cut_off, thinking_open=sample.thinking_open, new_id=ids
    )  # fmt: skip
    message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
    if parsed.reasoning:
        message["reasoning_content"] = parsed.reasoning
    if parsed.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in parsed.tool_calls
        ]
    return message


def _are_messages(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(message, Mapping) for message in value)


def _refuse_prompt(group: Group, tokens: int, context: int) -> None:
    for sample in group.samples:
        sample.fault = PROMPT
        sample.fault_message = (
            f"the prompt of task {group.task.id} has {tokens} tokens, which leaves no room for an answer in a context "
            f"of {context}; leave the task out, or raise the context"
        )

"""Rollouts: groups of samples by the generation engine, in one turn or several, kept as the tokens that were drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.data.chat.encoder import ChatEncoder, ChatPrompt
from nano3.data.chat.parsing.output_parser import parse_output
from nano3.engine.output import Output
from nano3.engine.protocol import GenerationEngine, run
from nano3.engine.request import Request, Sampling, ThinkingBudget
from nano3.engine.sequence_sampler import derive_seed
from nano3.rl.batch import TrainingSample
from nano3.rl.environments.base import Environment, EnvironmentFaultError, Message, MultiTurn, Reward, Rollout, Task

TOKENS_TO_ANSWER = 1
"""Room that a turn needs in the context."""


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
    """Kind of the environment's fault, where it has no reward."""
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

        Turns are taken together: all samples answer, then all environments do.

        Raises:
            UserError: a prompt leaves no room for an answer, or the engine fails on a request.
        """
        groups = self._first_turn(tasks, run_seed, step)
        with ThreadPoolExecutor(self.settings.workers, thread_name_prefix="nano3-environment") as pool:
            environments = [environment for environment, _ in tasks]
            going = [(i, sample) for i, group in enumerate(groups) for sample in group.samples]
            while going:
                steps = list(pool.map(lambda entry: _following(environments[entry[0]], entry[1]), going))
                answered = [(entry, found) for entry, found in zip(going, steps, strict=True) if found]
                going = self._next_turn(answered, run_seed, step)
            all_samples = [(environments[i], sample) for i, group in enumerate(groups) for sample in group.samples]
            list(pool.map(lambda entry: _measure(*entry), all_samples))
        return groups

    def _first_turn(self, tasks: Sequence[tuple[Environment, Task]], run_seed: int, step: int) -> list[Group]:
        prompts = [self.encoder.encode(task.messages, task.tools, **self.settings.template) for _, task in tasks]
        requests = []
        for i, (prompt, (_, task)) in enumerate(zip(prompts, tasks, strict=True)):
            room = self._room(len(prompt.ids))
            if room < TOKENS_TO_ANSWER:
                raise UserError(
                    f"rollouts: the prompt of task {task.id} has {len(prompt.ids)} tokens, which leaves no room for an "
                    f"answer in a context of {self.engine.max_context}; leave the task out, or raise the context"
                )
            seed = seed_of(run_seed, step, i)
            requests.append(self._request(f"rollout-{step}-{i}", prompt.ids, prompt, seed, room, self.settings.group))
        outputs = run(self.engine, requests)
        groups = []
        for i, ((environment, task), prompt) in enumerate(zip(tasks, prompts, strict=True)):
            samples = []
            for k, output in enumerate(outputs[i]):
                sample = _begun(task, k, seed_of(run_seed, step, i, k), prompt)
                self._add(sample, output)
                samples.append(sample)
            groups.append(Group(environment.name, task, samples))
        return groups

    def _next_turn(
        self, answered: Sequence[tuple[tuple[int, Sample], Sequence[Message]]], run_seed: int, step: int
    ) -> list[tuple[int, Sample]]:
        """The samples that the environment answered and that had room for another turn, which they have taken."""
        going, requests = [], []
        for (i, sample), messages in answered:
            if sample.turns >= self.settings.max_turns:
                continue
            following = self.encoder.encode_following(messages, sample.task.tools, **self.settings.template)
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
            raise UserError(f"rollouts: the engine fails on task {sample.task.id}: {output.error}")
        forced = output.forced
        sample.ids = np.concatenate([sample.ids, output.token_ids])
        sample.drawn = np.concatenate([sample.drawn, ~forced])
        sample.forced = np.concatenate([sample.forced, forced])
        log_probs = np.where(forced, np.float32(0), output.sampled_log_probs)
        sample.log_probs = np.concatenate([sample.log_probs, log_probs])
        sample.truncated = output.finish == "length"
        sample.weights_version, sample.experts = output.weights_version, output.experts
        sample.messages.append(_message(output.text, sample))
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
    """How many groups were dropped, by environment and kind of fault."""
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


def _message(text: str, sample: Sample) -> Message:
    """An answer as an assistant message."""
    ids: Callable[[], str] = iter(f"call_{sample.turns}_{i}" for i in range(len(text) + 1)).__next__
    parsed = parse_output(text, sample.task.tools, thinking_open=sample.thinking_open, new_id=ids)
    message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
    if parsed.reasoning:
        message["reasoning_content"] = parsed.reasoning
    if parsed.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in parsed.tool_calls
        ]
    return message


def _following(environment: Environment, sample: Sample) -> Sequence[Message]:
    """What the environment answers; nothing where the rollout is over."""
    if sample.truncated or not isinstance(environment, MultiTurn):
        return []
    return _guarded(sample, lambda: environment.step(sample.task, sample.rollout)) or []


def _measure(environment: Environment, sample: Sample) -> None:
    if not sample.fault:
        sample.reward = _guarded(sample, lambda: environment.verify(sample.task, sample.rollout))


def _guarded(sample: Sample, ask: Callable[[], Any]) -> Any:
    """What an environment says; its faults are noted, those that it did not foresee by the name of their type."""
    try:
        return ask()
    except EnvironmentFaultError as error:
        sample.fault, sample.fault_message = error.kind, str(error)
    except Exception as error:
        sample.fault, sample.fault_message = type(error).__name__, str(error)
    return None

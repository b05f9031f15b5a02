"""Rollouts: groups of samples by the generation engine, in one turn or several, kept as the tokens that were drawn."""

from __future__ import annotations

import hashlib
import json
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
from nano3.rl.environments.base import Environment, Message, MultiTurn, Reward, Task
from nano3.rl.samples import Group, Sample, Segment

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
        groups = []
        for i, ((environment, task), prompt) in enumerate(zip(tasks, prompts, strict=True)):
            samples = [_begun(task, k, seed_of(run_seed, step, i, k), prompt) for k in range(self.settings.group)]
            groups.append(Group(environment.name, task, samples))
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
                prompt = self._prompt_after(sample, messages)
            except UserError as error:
                sample.fault, sample.fault_message = "no messages", str(error)
                continue
            room = self._room(len(prompt.ids))
            if room < TOKENS_TO_ANSWER:
                sample.truncated = True
                continue
            _give(sample, prompt, messages)
            seed = seed_of(run_seed, step, i, sample.index, sample.turns)
            name = f"rollout-{step}-{i}-{sample.index}-{sample.turns}"
            requests.append(self._request(name, prompt.ids, prompt, seed, room, 1))
            going.append((i, sample))
        for (_, sample), [output] in zip(going, run(self.engine, requests), strict=True):
            self._add(sample, output)
        return going

    def _prompt_after(self, sample: Sample, messages: Sequence[Message]) -> ChatPrompt:
        """The whole prompt of the next turn: the sequence so far with the messages rendered behind it, unless a user's
        message is among them that makes the template render otherwise what came before.

        Raises:
            UserError: messages out of form.
        """
        tools, template = sample.task.tools, self.settings.template
        following = self.encoder.encode_following(messages, tools, **template)
        joined = ChatPrompt((*sample.segments[-1].ids.tolist(), *following.ids), following.thinking_open)
        if not any(message["role"] == "user" for message in messages):
            return joined
        rendered = self.encoder.encode([*sample.task.messages, *sample.messages, *messages], tools, **template)
        same = self.engine.tokenizer.decode(joined.ids) == self.engine.tokenizer.decode(rendered.ids)
        return joined if same else rendered

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
        log_probs = np.where(forced, np.float32(0), output.sampled_log_probs)
        sample.segments[-1].append(Segment(output.token_ids, ~forced, forced, log_probs))
        sample.segments[-1].experts = output.experts
        sample.truncated, sample.weights_version = output.finish == "length", output.weights_version
        sample.messages.append(_message(output.text, sample, sample.truncated))
        sample.turns += 1


def _begun(task: Task, index: int, seed: int, prompt: ChatPrompt) -> Sample:
    return Sample(task, index, seed, [Segment.of_prompt(prompt.ids)], thinking_open=prompt.thinking_open)


def _give(sample: Sample, prompt: ChatPrompt, messages: Sequence[Message]) -> None:
    """The prompt of a further turn: behind the sequence where it continues it, else as a new one."""
    ids = sample.segments[-1].ids
    if np.array_equal(prompt.ids[: len(ids)], ids):
        sample.segments[-1].append(Segment.of_prompt(prompt.ids[len(ids) :]))
    else:
        sample.segments.append(Segment.of_prompt(prompt.ids))
    sample.messages += messages
    sample.thinking_open = prompt.thinking_open


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

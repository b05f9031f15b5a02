"""Rollouts: groups of samples by the generation engine, in one turn or several, kept as the tokens that were drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.data.chat.encoder import ChatEncoder, ChatPrompt
from nano3.data.chat.parsing.output_parser import parse_output
from nano3.engine.output import Output
from nano3.engine.protocol import GenerationEngine
from nano3.engine.request import Request, Sampling, ThinkingBudget
from nano3.engine.sequence_sampler import derive_seed
from nano3.rl.asking import Asker
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
    max_context: int | None = None
    """Of prompt and answers together; None: all that the engine holds."""
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
    overlap: bool = False
    """Draw on while environments answer: for slow ones, as a model that plays the user. Else the engine waits for them
    (not for rewards), so that its passes hold the same sequences in every run; without that, log-probabilities of an
    engine that is not exact differ in their last bits from run to run."""


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

    def with_group(self, group: int) -> RolloutWorker:
        """One that draws so many samples of a prompt, by the same engine."""
        return RolloutWorker(self.engine, replace(self.settings, group=group), self.encoder)

    def draw(
        self,
        tasks: Sequence[tuple[Environment, Task]],
        run_seed: int,
        step: int,
        places: Sequence[int] = (),
        finished: Callable[[Group], None] = lambda group: None,
    ) -> list[Group]:
        """A group for each task, with rewards.

        Each sample takes its next turn as soon as its environment answered, beside those that are still being drawn;
        what is drawn depends on its place alone, not on who was first. A prompt that leaves no room for an answer and a
        request on which the engine fails are faults of their groups.

        Args:
            tasks: with their environments.
            run_seed, step: for `seed_of`.
            places: of the tasks in the step's batch, for `seed_of`; empty: 0, 1 and so on.
            finished: is given each group as soon as all its samples have a reward or a fault.

        """
        prompts = [self.prompt(task) for _, task in tasks]
        places = places or range(len(tasks))
        groups = []
        for place, (environment, task), prompt in zip(places, tasks, prompts, strict=True):
            seeds = [seed_of(run_seed, step, place, k) for k in range(self.settings.group)]
            samples = [_begun(task, k, seed, prompt) for k, seed in enumerate(seeds)]
            groups.append(Group(environment.name, task, samples))
        _Drawing(self, [environment for environment, _ in tasks], run_seed, step, places).run(prompts, groups, finished)
        return groups

    def prompt_after(self, sample: Sample, messages: Sequence[Message]) -> ChatPrompt:
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

    def prompt(self, task: Task) -> ChatPrompt:
        """Of a task's first turn."""
        return self.encoder.encode(task.messages, task.tools, **self.settings.template)

    def fits(self, used: int) -> bool:
        """Whether so many tokens leave room for an answer."""
        return self.room(used) >= TOKENS_TO_ANSWER

    def room(self, used: int) -> int:
        """Most tokens of an answer after so many."""
        return min(self.settings.max_tokens, self.context - used)

    @property
    def context(self) -> int:
        """Most tokens of prompt and answers together."""
        return min(self.engine.max_context, self.settings.max_context or self.engine.max_context)

    def request(self, name: str, prompt: ChatPrompt, seed: int, n: int) -> Request:
        """Of one turn, for `n` samples."""
        own = self.settings
        budget = own.thinking_budget
        thinking = None if budget is None else ThinkingBudget(budget, open=prompt.thinking_open)
        sampling = Sampling(
            temperature=own.temperature, top_p=own.top_p, seed=seed, max_tokens=self.room(len(prompt.ids)),
            thinking=thinking,
        )  # fmt: skip
        return Request(name, prompt.ids, sampling, n, return_experts=own.return_experts)


class _Drawing:
    """One step's samples, each at its own turn: drawn by the engine, or waiting for an answer of its environment."""

    def __init__(
        self,
        worker: RolloutWorker,
        environments: Sequence[Environment],
        run_seed: int,
        step: int,
        places: Sequence[int],
    ) -> None:
        self._worker, self._engine, self._settings = worker, worker.engine, worker.settings
        self._environments, self._run_seed, self._step, self._places = environments, run_seed, step, places
        self._asker = Asker(self._settings.workers, self._settings.environment_seconds)
        self._drawn: dict[str, dict[int, tuple[Output, int, Sample]]] = {}
        """By request: its unfinished outputs by index, whose samples they are and the place of their group."""
        self._stepping = 0
        """Environments whose answers are to come."""

    def run(self, prompts: Sequence[ChatPrompt], groups: Sequence[Group], finished: Callable[[Group], None]) -> None:
        """All of them to their ends; `finished` is given each group when it is there."""
        running = list(groups)
        try:
            for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
                self._first_turn(i, prompt, group)
            while self._drawn or self._asker.busy:
                if self._drawn:
                    self._draw()
                self._hear()
                for group in [group for group in running if group.finished]:
                    running.remove(group)
                    finished(group)
            for group in running:
                finished(group)
        except BaseException:
            for request_id in self._drawn:
                self._engine.abort(request_id)
            raise

    def _first_turn(self, i: int, prompt: ChatPrompt, group: Group) -> None:
        if not self._worker.fits(len(prompt.ids)):
            _refuse_prompt(group, len(prompt.ids), self._worker.context)
            return
        seed = seed_of(self._run_seed, self._step, self._places[i])
        self._ask_engine(f"rollout-{self._step}-{i}", prompt, seed, i, group.samples)

    def _ask_engine(self, name: str, prompt: ChatPrompt, seed: int, i: int, samples: Sequence[Sample]) -> None:
        self._engine.add(self._worker.request(name, prompt, seed, len(samples)))
        self._drawn[name] = {index: (Output(index), i, sample) for index, sample in enumerate(samples)}

    def _draw(self) -> None:
        """One step of the engine."""
        for update in self._engine.step():
            outputs = self._drawn.get(update.request_id, {})
            if update.index not in outputs:
                continue
            output, i, sample = outputs[update.index]
            output.add(update)
            if update.finish is None:
                continue
            del outputs[update.index]
            if not outputs:
                del self._drawn[update.request_id]
            self._take(i, sample, output)

    def _hear(self) -> None:
        """What environments said since."""
        heard = list(self._asker.answers(wait=not self._drawn))
        while not self._settings.overlap and self._stepping > sum(of == self._go_on for (of, _, _), _ in heard):
            heard += self._asker.answers(wait=True)
        for (of, i, sample), answer in sorted(heard, key=lambda found: (found[0][1], found[0][2].index)):
            self._stepping -= of == self._go_on
            sample.fault, sample.fault_message = answer.fault, answer.message
            if not answer.fault:
                of(i, sample, answer.value)

    def _take(self, i: int, sample: Sample, output: Output) -> None:
        """The answer of one turn; then it is the environment's."""
        _add_answer(sample, output)
        environment = self._environments[i]
        if sample.fault:
            return
        over = sample.truncated or sample.turns >= self._settings.max_turns
        if over or not isinstance(environment, MultiTurn):
            self._measure(i, sample)
        else:
            self._stepping += 1
            self._asker.ask((self._go_on, i, sample), partial(environment.step, sample.task, sample.rollout))

    def _go_on(self, i: int, sample: Sample, messages: Any) -> None:
        """What the environment answered, and the next turn, where there is one and room for it."""
        if not messages:
            self._measure(i, sample)
            return
        try:
            if not _are_messages(messages):
                raise UserError(f"step gave {messages!r:.200}")
            prompt = self._worker.prompt_after(sample, messages)
        except UserError as error:
            sample.fault, sample.fault_message = "no messages", str(error)
            return
        if not self._worker.fits(len(prompt.ids)):
            sample.truncated = True
            self._measure(i, sample)
            return
        _give(sample, prompt, messages)
        seed = seed_of(self._run_seed, self._step, self._places[i], sample.index, sample.turns)
        name = f"rollout-{self._step}-{i}-{sample.index}-{sample.turns}"
        self._ask_engine(name, prompt, seed, i, [sample])

    def _measure(self, i: int, sample: Sample) -> None:
        self._asker.ask((_reward, i, sample), partial(self._environments[i].verify, sample.task, sample.rollout))


def _reward(i: int, sample: Sample, reward: Any) -> None:
    if isinstance(reward, Reward):
        sample.reward = reward
    else:
        sample.fault, sample.fault_message = "no reward", f"verify gave {reward!r:.200}"


def _add_answer(sample: Sample, output: Output) -> None:
    """The tokens of one turn and their message."""
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

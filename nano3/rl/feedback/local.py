"""A judge that is a model on this machine, with an engine of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nano3.config.errors import UserError
from nano3.data.chat.encoder import ChatEncoder, ChatPrompt
from nano3.data.chat.parsing.output_parser import parse_output
from nano3.data.preferences.prompt import judge_prompt
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.output import Output
from nano3.engine.protocol import GenerationEngine, run
from nano3.engine.request import Request, Sampling, ThinkingBudget
from nano3.engine.sizing import Sizes
from nano3.model.find import model_folder
from nano3.model.hf.folder import load
from nano3.rl.feedback.comparison import Comparison, JudgeStoppedError, Verdict
from nano3.rl.genrm import parse_judgement

GIB = 1 << 30


@dataclass(frozen=True)
class LocalSettings:
    """How a local judge answers."""

    max_tokens: int = 1024
    """Of an answer, its reasoning included; one that reaches it cannot be read."""
    temperature: float = 0.0
    """0: the most probable judgement."""
    seed: int = 0
    """Of draws above temperature 0; each comparison has its own seed, whatever it is batched with."""
    thinking: bool = True
    """The template's enable_thinking."""
    thinking_budget: int | None = None
    """Tokens after which its thinking is closed."""
    memory: float = 1.0
    """GiB for the engine's states, keys and values, beside the weights."""
    sequences: int = 64
    """Comparisons that run at once."""
    max_context: int | None = None
    """Most tokens of a comparison and its judgement; None: the model's."""


class LocalJudge:
    """Judges with a generation engine: all comparisons of a step in one run of it."""

    def __init__(self, engine: GenerationEngine, settings: LocalSettings | None = None) -> None:
        """`engine`: of the judge alone."""
        self.calls = 0
        self.engine, self.settings = engine, settings or LocalSettings()
        self._encoder = ChatEncoder(engine.tokenizer)

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """See PairJudge. A comparison that leaves no room for a judgement, and a judgement that was cut off, cannot be
        read.

        Raises:
            UserError: there is room for none of the first ones that it is asked for, so that its context is no use.
        """
        prompts = [self._prompt(each) for each in comparisons]
        rooms = [self.engine.max_context - len(prompt.ids) for prompt in prompts]
        if comparisons and not self.calls and max(rooms) < 1:
            shortest = min(len(prompt.ids) for prompt in prompts)
            raise UserError(
                f"judge: the shortest of {len(prompts)} comparisons has {shortest} tokens, which leaves no room "
                f"for a judgement in a context of {self.engine.max_context}; raise the judge's context"
            )
        asked = [i for i, room in enumerate(rooms) if room > 0]
        outputs = run(self.engine, [self._request(i, prompts[i], rooms[i]) for i in asked])
        verdicts = [Verdict(None, "the comparison is longer than the judge's context")] * len(comparisons)
        for i, (output,) in zip(asked, outputs, strict=True):
            verdicts[i] = _verdict(output, prompts[i])
        if isinstance(self.engine, Engine):
            # States kept from before round otherwise than those of a run that is resumed here.
            self.engine.cache.clear()
        self.calls += len(comparisons)
        return verdicts

    def _prompt(self, asked: Comparison) -> ChatPrompt:
        messages = judge_prompt(asked.task.messages, asked.response_1, asked.response_2)
        return self._encoder.encode(messages, enable_thinking=self.settings.thinking)

    def _request(self, i: int, prompt: ChatPrompt, room: int) -> Request:
        own = self.settings
        budget = own.thinking_budget
        thinking = None if budget is None else ThinkingBudget(budget, open=prompt.thinking_open)
        digest = hashlib.blake2b(json.dumps([own.seed, prompt.ids]).encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little") >> 1
        sampling = Sampling(
            temperature=own.temperature, seed=seed, max_tokens=min(own.max_tokens, room), thinking=thinking
        )
        return Request(f"judge-{i}", prompt.ids, sampling)


def open_local_judge(
    source: str | Path, settings: LocalSettings | None = None, device: torch.device | str | None = None
) -> tuple[LocalJudge, str]:
    """A judge of the model in a run folder or Hugging Face folder, and its sizes in a line.

    The engine reserves `settings.memory` and no more, so that the judge can share a machine with the policy's trainer.

    Args:
        source: the folder.
        settings: None: the defaults.
        device: where it runs; None: a GPU where there is one.

    Raises:
        UserError: no model there, or memory for not even one comparison.
    """
    settings = settings or LocalSettings()
    folder = model_folder(source)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load(folder, device=device).requires_grad_(False)
    engine = Engine(
        model, Tokenizer.load(folder), memory=int(settings.memory * GIB), max_sequences=settings.sequences,
        max_context=settings.max_context,
    )  # fmt: skip
    return LocalJudge(engine, settings), _sizes(model, engine.sizes)


def _sizes(model: torch.nn.Module, sizes: Sizes) -> str:
    weights = list(model.parameters())
    millions = sum(weight.numel() for weight in weights) / 1e6
    taken = sum(weight.numel() * weight.element_size() for weight in weights) / GIB
    return (
        f"judge: {millions:.1f} M parameters, {taken:.2f} GiB of weights and {sizes.total_bytes / GIB:.2f} GiB for "
        f"{sizes.max_sequences} sequences of {sizes.max_context} tokens"
    )


def _verdict(output: Output, prompt: ChatPrompt) -> Verdict:
    if output.finish == "error":
        raise JudgeStoppedError(f"judge: the engine fails: {' '.join(output.error.split())}")
    cut_off = output.finish == "length"
    said = parse_output(output.text, cut_off=cut_off, thinking_open=prompt.thinking_open)
    judgement = None if cut_off else parse_judgement(said.content)
    return Verdict(judgement, output.text, output.weights_version)

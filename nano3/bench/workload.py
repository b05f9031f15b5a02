"""What `nano3 bench train`, `prefill`, `decode` and `rl` measure: the work of one timed run, the same for all sides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nano3.config.errors import UserError

Kind = Literal["train", "prefill", "decode", "rl", "throughput"]
SEED = 0
"""Of a preset's random weights."""
FIRST_ID = 5
"""Random tokens come from here on: the ids below are special in most vocabularies."""
RL_ROWS = 16
"""Samples that an update of the policy takes through the model at once."""


@dataclass(frozen=True)
class Case:
    """The work of one timed run."""

    kind: Kind
    batch: int
    """Sequences that go together."""
    length: int
    """Tokens of each sequence, or of its prompt."""
    output: int = 0
    """Tokens that each sequence gets, when decoding and in rl."""
    forward_only: bool = False
    """train: a forward pass without the backward pass."""
    group: int = 1
    """rl: samples of each prompt."""
    requests: int = 0
    """throughput: requests in all, `batch` at a time; 0: as many."""

    @property
    def sequences(self) -> int:
        """Sequences that the timed part works on."""
        return (self.requests or self.batch) * self.group

    @property
    def tokens(self) -> int:
        """Tokens that the timed part works on; in rl those that are drawn, and then trained on."""
        return self.sequences * (self.length if self.kind in ("train", "prefill") else self.output)

    @property
    def name(self) -> str:
        """The case in a few words."""
        if self.kind == "rl":
            return f"{self.batch} x {self.group} samples of {self.output:,} tokens"
        if self.kind == "throughput":
            return f"{self.batch} at a time"
        if self.kind == "decode":
            return f"{self.batch} sequence{'s' if self.batch > 1 else ''}"
        return f"{self.length:,} tokens" if self.batch == 1 else f"{self.batch} x {self.length:,} tokens"


@dataclass(frozen=True)
class Job:
    """What one process is to do: which side it is, on which model, and how."""

    side: str
    """nano3, transformers, llama.cpp or ceilings."""
    kind: Kind
    model: str = ""
    """A preset, a TOML file of sizes or a folder; for llama.cpp the GGUF file."""
    pattern: str = ""
    """Other blocks than the preset's."""
    dtype: str = "auto"
    threads: int = 1
    experts: int = 0
    """Other than the preset's number; 0: that."""
    device: str = "cpu"
    """Where nano3 computes, or what the ceilings are of."""
    memory: int = 0
    """throughput: bytes for sequences; 0: most of what is free."""
    own: bool = False
    """llama.cpp: the file is the user's, in whatever type."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def prompts(case: Case, vocab_size: int) -> list[list[int]]:
    """Random tokens, (batch or requests, length), the same for every side and run."""
    draw, first = random.Random(case.batch), min(FIRST_ID, vocab_size - 1)
    return [draw.choices(range(first, vocab_size), k=case.length) for _ in range(case.requests or case.batch)]


def advantages(case: Case) -> list[float]:
    """Random ones of all samples, the same for every side and run."""
    draw = random.Random(case.batch)
    return [draw.choice([-1.0, 1.0]) for _ in range(case.sequences)]


def train_cases(batch: int, seq_lens: str, forward_only: bool) -> list[Case]:
    """One step over `batch` sequences of each length of a list such as `1024,4096`. Raises UserError."""
    _positive("--batch", batch)
    lengths = _numbers("--seq-len", seq_lens)
    # The loss is that of the next token, so one token alone has none.
    if min(lengths) < 2:
        raise UserError(f"--seq-len is {min(lengths)}; it must be at least 2")
    return [Case("train", batch, length, forward_only=forward_only) for length in lengths]


def prefill_cases(lengths: str) -> list[Case]:
    """One prompt of each length of a list such as `4096,16384`. Raises UserError."""
    return [Case("prefill", 1, length) for length in _numbers("--prompt-tokens", lengths)]


def decode_cases(sequences: str, prompt: int, output: int) -> list[Case]:
    """`output` tokens for each of so many sequences, for each number of a list such as `1,8,32`. Raises UserError."""
    _positive("--prompt-tokens", prompt)
    _positive("--output-tokens", output)
    return [Case("decode", batch, prompt, output) for batch in _numbers("--sequences", sequences)]


def rl_cases(prompts: int, group: int, prompt: int, output: int) -> list[Case]:
    """One step: `group` samples of `output` tokens for each prompt, and an update on them. Raises UserError."""
    _positive("--prompts", prompts)
    _positive("--prompt-tokens", prompt)
    _positive("--output-tokens", output)
    if not 2 <= group <= 128:
        raise UserError(f"--group is {group}; it must be from 2 to 128")
    return [Case("rl", prompts, prompt, output, group=group)]


def _numbers(option: str, text: str) -> Sequence[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: not a list of whole numbers such as 1,8,32") from None
    for number in numbers:
        _positive(option, number)
    return list(dict.fromkeys(numbers))


def _positive(option: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{option} is {value}; it must be at least 1")

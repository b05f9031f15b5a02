"""Typed settings of `nano3 sft` (report section 3.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from nano3.config.checks import check
from nano3.config.lora import LoraConfig
from nano3.config.model import ModelConfig
from nano3.config.schema import (
    BalanceConfig,
    CheckpointConfig,
    ExportConfig,
    LengthConfig,
    LogConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    ScoringConfig,
)


@dataclass(frozen=True)
class ChatDataConfig:
    """Conversations to train on, and how they become sequences."""

    blend: dict[str, float] = field(default_factory=dict)
    """Share of the tokens by data set, in percent; normalised to sum 1. A small set with a large share is gone through
    many times."""
    sources: dict[str, list[str]] = field(default_factory=dict)
    """What each data set reads: jsonl, json and Parquet files, folders of them, `hub:ORG/NAME[@REVISION][::SPLIT]`
    (package: datasets), `generate:NAME`, which a data set of that name needs not say, or `preferences:` and one of the
    former, for preference pairs that become judgements to write."""
    tokenizer: str = ""
    """Empty: that of the model. Else a tokenizer.json or a folder with one, for a model that comes without."""
    pack_length: int = 512
    """Tokens in one training sequence. Whole rows are packed into it and do not see each other."""
    too_long: Literal["drop", "cut"] = "drop"
    """Rows longer than pack_length: drop leaves them out, cut trains on their beginning. Both are counted."""
    bad_rows: Literal["reject", "error"] = "reject"
    """Rows that cannot be read or that the filters refuse: reject counts them by reason and writes them to
    rejects.jsonl; error ends the run at the first one."""
    generated_rows: int = 4000
    """Tasks of each generated data set: a row each, unless its source puts several in a row (`?turns=3`).
    `generate:preferences` makes half as many pairs, a row in each order."""
    heldout_fraction: float = 0.05
    """Share of the tasks set aside for the held-out loss, chosen by a hash of what a conversation asks first: no task
    is both trained on and held out."""
    seed: int = 1234
    """Seed of the generated rows, the split, the reasoning control, the order and the adapters' initial values."""

    def __post_init__(self) -> None:
        check("data", self, ">=", 2, "pack_length")
        check("data", self, ">=", 1, "generated_rows")
        check("data", self, ">=", 0, "heldout_fraction")
        check("data", self, "<", 1, "heldout_fraction")
        for name, share in self.blend.items():
            if share < 0:
                raise ValueError(f"data.blend.{name} is {share}; a share must be at least 0")

    @property
    def seq_len(self) -> int:
        """pack_length, by the name that other stages have for it."""
        return self.pack_length


@dataclass(frozen=True)
class FilterConfig:
    """Which conversations are refused by what their assistant wrote (report section 3.1.3)."""

    ngram: int = 16
    """Words of an n-gram whose repetition is counted, in the reasoning, the words and the calls' arguments of each
    message; occurrences that overlap count once."""
    window: int = 1024
    """Words of the window that is slid over the text."""
    window_repeats: int = 4
    """Most times that an n-gram may occur within a window; 0 switches this filter off."""
    trace_repeats: int = 16
    """Most times that an n-gram may occur in all of a message; 0 switches this filter off."""
    keywords: list[str] = field(default_factory=list)
    """Words and phrases that refuse a conversation, whatever their case, as whole words."""
    patterns: list[str] = field(default_factory=list)
    """Regular expressions that refuse a conversation where they match, `(?i)` for any case."""

    def __post_init__(self) -> None:
        check("filters", self, ">=", 1, "ngram", "window")
        check("filters", self, ">=", 0, "window_repeats", "trace_repeats")
        if self.window < self.ngram:
            raise ValueError(f"filters.window is {self.window}; it must hold an n-gram of {self.ngram} words")
        if not all(keyword.strip() for keyword in self.keywords):
            raise ValueError("filters.keywords holds an empty text: it would refuse nothing or everything")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"filters.patterns: {pattern!r} is no regular expression: {error}") from error


@dataclass(frozen=True)
class ReasoningConfig:
    """Reasoning control: rows that teach a model to answer without reasoning, or after a part of it."""

    strip_fraction: float = 0.1
    """Share of the rows with reasoning that lose it: the form that enable_thinking = false asks for."""
    truncate_fraction: float = 0.03
    """Share of the rows with reasoning that keep its beginning, followed by the answer as it was: what a thinking
    budget leaves."""
    budgets: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048, 4096, 8192, 16384, 32768])
    """Tokens that are kept of a truncated reasoning: one of those shorter than it is drawn for each row."""

    def __post_init__(self) -> None:
        check("reasoning", self, ">=", 0, "strip_fraction", "truncate_fraction")
        if self.strip_fraction + self.truncate_fraction > 1:
            raise ValueError(
                f"reasoning.strip_fraction {self.strip_fraction} and truncate_fraction {self.truncate_fraction} are "
                "more than 1 together"
            )
        if self.truncate_fraction and not self.budgets:
            raise ValueError("reasoning.budgets is empty: give lengths in tokens, or set reasoning.truncate_fraction=0")
        if not all(budget >= 0 for budget in self.budgets):
            raise ValueError(f"reasoning.budgets is {self.budgets}; each must be at least 0")


@dataclass(frozen=True)
class AnswerConfig:
    """Held-out tasks of the generated data sets that the model answers at the end of the run."""

    tasks: int = 160
    """Most tasks of each data set; 0 asks none."""
    max_tokens: int = 256
    """Most tokens of an answer, reasoning included."""

    def __post_init__(self) -> None:
        check("answers", self, ">=", 0, "tasks")
        check("answers", self, ">=", 1, "max_tokens")


@dataclass(frozen=True)
class SftConfig:
    """All settings of `nano3 sft`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: ChatDataConfig = field(default_factory=ChatDataConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    reasoning: ReasoningConfig = field(default_factory=ReasoningConfig)
    train: LengthConfig = field(default_factory=LengthConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    heldout: ScoringConfig = field(default_factory=ScoringConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)
    answers: AnswerConfig = field(default_factory=AnswerConfig)

    def __post_init__(self) -> None:
        self.train.check_sizes(self.model.chunk_size)
        self.lora.check_passes(self.train, self.parallel.context)

    @property
    def lengths(self) -> dict[int, float]:
        """Length of the sequences of a step to its share of the steps: always the one."""
        return {self.data.pack_length: 1.0}

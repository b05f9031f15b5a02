"""Typed settings of `nano3 rlhf genrm` (report section 3.3): a supervised start, then GRPO, both on preference pairs.

`[warm_start]` holds the settings of the first as `nano3 sft` has them; those of the second have the names that
`nano3 rlvr` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from nano3.config.checks import check
from nano3.config.own_chats import PREFERENCES
from nano3.config.policy import HeldoutTasksConfig, PolicySections
from nano3.config.rlvr import CurriculumConfig, EnvironmentsConfig, RlvrConfig
from nano3.config.schema import BalanceConfig, CheckpointConfig, LengthConfig, OptimizerConfig, ScheduleConfig
from nano3.config.sft import AnswerConfig, ChatDataConfig, FilterConfig, ReasoningConfig, SftConfig

ENVIRONMENT = "genrm"
"""Name of the environment, and of the data set of the supervised start."""


WARM_START, GRPO = "warm-start", "grpo"
"""Run folders of the two parts, in that of the run."""


@dataclass(frozen=True)
class PairsConfig:
    """Preference pairs to train on, each in both orders."""

    sources: list[str] = field(default_factory=lambda: ["generate:preferences"])
    """Files, folders, `hub:ORG/NAME[:CONFIG][@REVISION][::SPLIT]`, or `generate:preferences` with options for made
    pairs."""
    generated_pairs: int = 2000
    """Made pairs of each such source to train on."""
    heldout_fraction: float = 0.1
    """Share of the given prompts set aside for the scores, chosen by a hash; no prompt is both trained on and held
    out. Made pairs have held-out ones of their own."""
    bad_rows: Literal["reject", "error"] = "reject"
    """Rows that are no preference: reject counts them and writes them to pairs/rejects.jsonl; error ends the run at the
    first one."""
    seed: int = 0
    """Seed of made pairs and of the split."""

    def __post_init__(self) -> None:
        check("data", self, ">=", 1, "generated_pairs")
        check("data", self, ">", 0, "heldout_fraction")
        check("data", self, "<", 1, "heldout_fraction")
        if not self.sources:
            raise ValueError("data.sources is empty: give preference pairs with --data PATH")


@dataclass(frozen=True)
class WarmStartConfig:
    """The supervised start: as `nano3 sft`, on judgements written out."""

    pack_length: int = 4096
    """Tokens in one training sequence; whole rows are packed into it."""
    too_long: Literal["drop", "cut"] = "drop"
    """Rows longer than pack_length: drop leaves them out, cut trains on their beginning."""
    seed: int = 1234
    """Seed of the order."""
    train: LengthConfig = field(default_factory=LengthConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check("warm_start", self, ">=", 2, "pack_length")


@dataclass(frozen=True)
class EquationConfig:
    """Weights of Equation 1 of the report."""

    c1: float = 10.0
    """Of a violated format."""
    c2: float = 1.0
    """Of how far the ranking is off."""

    def __post_init__(self) -> None:
        check("reward", self, ">=", 0, "c1", "c2")


@dataclass(frozen=True)
class JudgingConfig:
    """Held-out pairs that the model judges after the supervised start and after GRPO."""

    pairs: int = 512
    """Most of them, each in one order."""
    temperature: float = 0.0
    """0: the most probable judgement, as a judge gives it in `nano3 rlhf`."""
    memory: float = 1.0
    """GiB for the engine's states, keys and values."""
    sequences: int = 64
    """Pairs that are judged at once."""

    def __post_init__(self) -> None:
        check("judging", self, ">=", 1, "pairs", "sequences")
        check("judging", self, ">=", 0, "temperature")
        check("judging", self, ">", 0, "memory")


@dataclass(frozen=True)
class GenrmConfig(PolicySections):
    """All settings of `nano3 rlhf genrm`; the sections that are no others' are those of GRPO."""

    data: PairsConfig = field(default_factory=PairsConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    reward: EquationConfig = field(default_factory=EquationConfig)
    judging: JudgingConfig = field(default_factory=JudgingConfig)

    def __post_init__(self) -> None:
        self.rollout.check_one_turn()
        try:
            self.sft("")
        except ValueError as error:
            raise ValueError(f"warm_start: {error}") from error
        self.rlvr("")

    def sft(self, pairs: str) -> SftConfig:
        """The supervised start as a run of `nano3 sft` on the pairs in a file."""
        own = self.warm_start
        data = ChatDataConfig(
            {ENVIRONMENT: 1.0}, {ENVIRONMENT: [PREFERENCES + pairs]}, pack_length=own.pack_length,
            too_long=own.too_long, heldout_fraction=0.0, seed=own.seed,
        )  # fmt: skip
        return SftConfig(
            model=self.model, data=data, filters=FilterConfig(window_repeats=0, trace_repeats=0),
            reasoning=ReasoningConfig(strip_fraction=float(not self.rollout.thinking), truncate_fraction=0.0),
            train=own.train, lora=self.lora, optimizer=own.optimizer, schedule=own.schedule, balance=own.balance,
            checkpoint=own.checkpoint, export=self.export, parallel=self.parallel, log=self.log,
            answers=AnswerConfig(tasks=0),
        )  # fmt: skip

    def rlvr(self, pairs: str) -> RlvrConfig:
        """GRPO as a run of `nano3 rlvr` on the pairs in a file: all alike, since the report gives no curriculum."""
        environments = EnvironmentsConfig(
            {ENVIRONMENT: 1.0}, options={ENVIRONMENT: {"rows": pairs, "c1": self.reward.c1, "c2": self.reward.c2}},
            heldout_fraction=0.0, seed=self.data.seed,
        )  # fmt: skip
        sections = {section.name: getattr(self, section.name) for section in fields(PolicySections)}
        return RlvrConfig(
            **sections, environments=environments, curriculum=CurriculumConfig(sampling="uniform"),
            heldout=HeldoutTasksConfig(tasks=0),
        )  # fmt: skip

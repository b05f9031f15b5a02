"""Typed settings of `nano3 rlhf` (report section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nano3.config.checks import check
from nano3.config.generate import PREFIX
from nano3.config.policy import HeldoutTasksConfig, PolicyConfig
from nano3.config.rlvr import CurriculumConfig, EnvironmentsConfig, RlvrConfig

PROMPTS = "nano3.rl.feedback.prompts:Prompts"


@dataclass(frozen=True)
class PromptsConfig:
    """What the policy is asked."""

    weights: dict[str, float] = field(default_factory=dict)
    """Share of each step's prompts by set, under a name of your choice; normalised to sum 1."""
    sources: dict[str, str] = field(default_factory=dict)
    """Where each set comes from: a file or folder of jsonl, json or Parquet with prompts, conversations or preferences,
    `hub:ORG/NAME[:CONFIG][@REVISION][::SPLIT]`, or `generate:NAME?levels=3-5`. A set that is named like a generator
    needs no entry."""
    tasks: int = 400
    """Training prompts of each generated set."""
    heldout_fraction: float = 0.1
    """Share of the prompts of each file that is set aside for the scores before and after, by a hash of the prompt."""
    seed: int = 0
    """Seed of the generated prompts."""

    def __post_init__(self) -> None:
        check("prompts", self, ">=", 1, "tasks")
        check("prompts", self, ">=", 0, "heldout_fraction")
        check("prompts", self, "<", 1, "heldout_fraction")
        for name, weight in self.weights.items():
            if not weight > 0:
                raise ValueError(f"prompts.weights.{name} is {weight}; a share must be above 0")

    def source(self, name: str) -> str:
        """Where a set comes from."""
        return self.sources.get(name, PREFIX + name)


@dataclass(frozen=True)
class JudgeConfig:
    """Who compares the answers. A setting that a kind of judge does not have plays no part."""

    spec: str = ""
    """`rules` (knows nano3's generated tasks), the URL of an OpenAI-compatible server, the run folder or Hugging Face
    folder of a generative reward model, `module:object`, or a name of the entry points `nano3.judges`."""
    max_tokens: int = 4096
    """Most tokens of a judgement, its reasoning included. Of a folder and a URL."""
    temperature: float = 0.0
    """0: the most probable judgement. Of a folder."""
    thinking: bool = True
    """The template's enable_thinking. Of a folder."""
    thinking_budget: int = 0
    """Tokens after which its thinking is closed; 0: no budget. Of a folder."""
    memory: float = 1.0
    """GiB for the states, keys and values of its engine, beside its weights. Of a folder."""
    sequences: int = 64
    """Judgements that are written at once. Of a folder."""
    max_context: int = 0
    """Most tokens of a comparison and its judgement; 0: the model's. Of a folder."""
    seed: int = 0
    """Of the draws above temperature 0. Of a folder."""
    model: str = ""
    """Name of the model to ask; empty: the first that the server lists. Of a URL, whose key is in
    NANO3_JUDGE_API_KEY."""
    cache: str = ""
    """File in which answers are kept, so that nothing is asked twice; empty: judge.jsonl of the run folder.
    Of a URL."""
    workers: int = 8
    """Comparisons that are asked for at once. Of a URL."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of a `module:object` or entry point that is a class."""
    tries: int = 5
    """Times that a judge which does not answer is asked before the run saves a checkpoint and ends with exit code 3.
    A URL is also asked again within each of them, as the network fails for seconds at a time."""
    wait: float = 60.0
    """Seconds between them."""

    def __post_init__(self) -> None:
        check("judge", self, ">=", 1, "max_tokens", "sequences", "workers", "tries")
        check("judge", self, ">=", 0, "temperature", "thinking_budget", "max_context", "wait")
        check("judge", self, ">", 0, "memory")


@dataclass(frozen=True)
class LengthControlConfig:
    """Rewards of shorter answers to the same prompt rise, those of longer ones fall (report, Equations 3 to 6)."""

    enabled: bool = True
    """false: the judge's scores alone."""
    think_weight: float = 0.5
    """Of the adjustment for the length of the reasoning."""
    answer_weight: float = 0.5
    """Of that for the length of the final answer."""
    think_bonus: float = 0.5
    """For the shortest reasoning, where the judge's score reaches the quantile; 0: none."""
    answer_bonus: float = 0.5
    """The same for the shortest final answer."""
    quantile: float = 0.8
    """Of the judge's scores of the answers to a prompt."""

    def __post_init__(self) -> None:
        names = ("think_weight", "answer_weight", "think_bonus", "answer_bonus", "quantile")
        check("length_control", self, ">=", 0, *names)
        check("length_control", self, "<=", 1, "quantile")


@dataclass(frozen=True)
class HeldoutPromptsConfig(HeldoutTasksConfig):
    """Held-out prompts that the model answers before the first step and after the last one."""

    judge: str = ""
    """Who scores them: as judge.spec, with the settings of [judge]. Empty: `rules` where these can judge all prompts,
    else the judge of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks and self.samples < 2:
            raise ValueError("heldout.samples is 1; a comparison needs 2 or more answers to a prompt")


@dataclass(frozen=True)
class RlhfConfig(PolicyConfig):
    """All settings of `nano3 rlhf`."""

    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    length_control: LengthControlConfig = field(default_factory=LengthControlConfig)
    heldout: HeldoutPromptsConfig = field(default_factory=HeldoutPromptsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rollout.check_one_turn()

    @property
    def environments(self) -> EnvironmentsConfig:
        """The sets of prompts as environments, under their names."""
        own = self.prompts
        specs = dict.fromkeys(own.weights, PROMPTS)
        options = {name: {"source" if _is_made(own.source(name)) else "rows": own.source(name)} for name in own.weights}
        return EnvironmentsConfig(
            own.weights, specs, options, own.tasks, heldout_fraction=own.heldout_fraction, seed=own.seed
        )

    @property
    def curriculum(self) -> CurriculumConfig:
        """Prompts have no pass rate: each is drawn once before one is drawn again."""
        return CurriculumConfig("uniform", stall_steps=0)


AnyPolicyConfig = RlvrConfig | RlhfConfig
"""Settings of any stage of reinforcement learning."""


def _is_made(source: str) -> bool:
    return source.startswith(PREFIX)

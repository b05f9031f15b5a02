"""Typed settings that the stages of reinforcement learning share: how samples are drawn, how the policy is updated."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from nano3.config.checks import check
from nano3.config.lora import LoraConfig
from nano3.config.model import ModelConfig
from nano3.config.schema import (
    CheckpointConfig,
    ExpertBiasConfig,
    ExportConfig,
    LogConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
)


@dataclass(frozen=True)
class RolloutConfig:
    """How samples are drawn."""

    prompts: int = 128
    """Prompts of a step."""
    group: int = 16
    """Samples of each prompt."""
    max_tokens: int = 49_152
    """Most tokens of one answer; one that reaches them is truncated: no gradient, but a part of the baseline."""
    max_turns: int = 16
    """Most answers of one sample, where its environment answers back."""
    max_context: int = 0
    """Most tokens of prompt and answers together; 0: train.pack_length, the most that can be trained on."""
    temperature: float = 1.0
    """Of the rollouts; the loss divides its logits by it too."""
    top_p: float = 1.0
    """Nucleus of the rollouts. Below 1 the log-probabilities of sampler and trainer differ, and the run is refused at
    its first weight sync unless [sync] allows it."""
    thinking: bool = True
    """The template's enable_thinking."""
    thinking_budget: int = 0
    """Tokens after which thinking is closed; what closes it is not trained on. 0: no budget."""
    replay_experts: bool = False
    """Train with the experts that each token had in its rollout (router replay)."""
    refill: int = 0
    """Most times that further prompts are drawn in a step for groups that were dropped or whose rewards are all equal,
    from which nothing is learnt (dynamic sampling, arXiv 2503.14476). 0: such groups just count as nothing."""
    sequences: int = 64
    """Most sequences that the engine, or each server, runs at once."""
    servers: list[str] = field(default_factory=list)
    """Addresses of servers that draw the samples, such as http://10.0.0.2:8000: `nano3 serve --weights-folder DIR`, or
    vLLM in its development mode. Empty: the engine in the trainer's process. A key is read from NANO3_API_KEY."""
    server_weights: str = ""
    """Folder through which they get the weights, on a disk that they see at the same path; empty: RUN/served."""
    server_seconds: float = 3600.0
    """For one answer of a server, and for its taking the weights; without it in time, the server is lost for a step."""
    memory: float = 0.0
    """GiB for the engine's states, keys and values; 0: a part of what training leaves free."""
    overlap: bool = False
    """Draw on while environments answer, for slow ones such as a model that plays the user; log-probabilities may then
    differ in their last bits from run to run."""
    save: bool = True
    """Write each step's samples to RUN/rollouts."""
    seed: int = 0
    """Seed of the samples and of the order of the tasks."""

    def __post_init__(self) -> None:
        check("rollout", self, ">=", 1, "prompts", "max_tokens", "max_turns", "sequences")
        check("rollout", self, ">=", 2, "group")
        check("rollout", self, "<=", 128, "group")
        check("rollout", self, ">", 0, "temperature", "top_p", "server_seconds")
        check("rollout", self, "<=", 1, "top_p")
        check("rollout", self, ">=", 0, "max_context", "thinking_budget", "refill", "memory")
        self._check_servers()

    def _check_servers(self) -> None:
        for url in self.servers:
            if not re.fullmatch(r"https?://[^\s/?#@]+(/.*)?", url):
                raise ValueError(f"rollout.servers: {url!r} is no address; give such as http://10.0.0.2:8000")
        if twice := [url for url in self.servers if self.servers.count(url) > 1]:
            raise ValueError(f"rollout.servers names {twice[0]} twice")
        if self.servers and self.replay_experts:
            raise ValueError("rollout.replay_experts: servers do not tell the experts of their tokens; leave it out")

    def check_one_turn(self) -> None:
        """Refuse a number of turns where each prompt is answered once. Raises ValueError."""
        if self.max_turns != type(self).max_turns:
            raise ValueError("rollout.max_turns: a prompt of this stage is answered once")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The policy's loss: token-level GRPO with an asymmetric clip and masked importance sampling."""

    clip_low: float = 0.2
    """The ratio of probabilities is cut below 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio of probabilities is cut above 1 + clip_high."""
    importance_low: float = 0.5
    """Tokens whose probability in the trainer is less than so many times that in the sampler are not trained on."""
    importance_high: float = 5.0
    """Nor are those where it is more than so many times."""
    sequence_threshold: float = 2.0
    """Largest mean of exp(|log-probability in the trainer - in the sampler|) of a sample that is trained on; 0: any."""
    kl_coef: float = 0.0
    """Coefficient of the divergence from the model that the run started with; above 0 that model stays in memory."""

    def __post_init__(self) -> None:
        check("objective", self, ">=", 0, "clip_low", "clip_high", "importance_low", "sequence_threshold", "kl_coef")
        check("objective", self, ">=", 1, "importance_high")


@dataclass(frozen=True)
class PolicyTrainConfig:
    """Size of the run and numerics. A step is one update on the samples of rollout.prompts groups."""

    steps: int = 100
    """Updates of the run."""
    pack_length: int = 2048
    """Places of a packed row: samples are laid into it whole, and do not see each other."""
    micro_batch_size: int = 4
    """Most rows in one forward pass of one rank."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype of training and rollouts; weights stay float32. auto: bfloat16 where it is fast."""
    checkpoint_activations: Literal["none", "block"] = "none"
    """block: recompute each block in the backward pass."""
    sequence_chunk: int = 0
    """Most tokens of one pass through a block; needs checkpoint_activations = "block". 0: whole rows."""
    freeze: list[str] = field(default_factory=lambda: ["*.gate.weight"])
    """Weights that stay as they are: every router's, whose expert biases go on moving (report section 3.2)."""

    def __post_init__(self) -> None:
        check("train", self, ">=", 1, "steps", "micro_batch_size")
        check("train", self, ">=", 0, "sequence_chunk")
        check("train", self, ">=", 2, "pack_length")
        if self.sequence_chunk and self.checkpoint_activations != "block":
            raise ValueError(
                f'train.sequence_chunk is {self.sequence_chunk}: it needs train.checkpoint_activations = "block"'
            )

    @property
    def tokens(self) -> int:
        """A run's length is in steps."""
        return 0


@dataclass(frozen=True)
class SyncConfig:
    """Largest mismatch of engine and trainer, on a probe after each update; a greater one ends the run."""

    mean: float = 0.0
    """Mean of |log-probability in the trainer - in the engine|, in nats. 0 in both: 1e-5 and 1e-4 in float32, what
    rounding explains in bfloat16."""
    largest: float = 0.0
    """The largest of them."""

    def __post_init__(self) -> None:
        check("sync", self, ">=", 0, "mean", "largest")
        if bool(self.mean) != bool(self.largest):
            raise ValueError("sync.mean and sync.largest: give both or neither")


@dataclass(frozen=True)
class StopConfig:
    """When a run ends early, with the reason and exit code 3."""

    window: int = 10
    """Steps over which shares are taken."""
    truncated: float = 0.5
    """Largest share of samples that reach their limit of tokens; 1: any."""
    zero_variance: float = 0.9
    """Largest share of groups whose rewards are all equal; 1: any."""
    mismatch: float = 0.0
    """Largest |log-probability in the trainer - in the sampler| of a trained token of a step, in nats; 0: any. The
    probe of [sync] is the sharper test."""
    faults: int = 64
    """Groups of one environment in a row that end in a fault; 0: any number."""

    def __post_init__(self) -> None:
        check("stop", self, ">=", 1, "window")
        check("stop", self, ">=", 0, "truncated", "zero_variance", "mismatch", "faults")
        check("stop", self, "<=", 1, "truncated", "zero_variance")


@dataclass(frozen=True)
class HeldoutTasksConfig:
    """Held-out tasks that the model answers before the first step and after the last one."""

    tasks: int = 100
    """Of each environment, at the most; 0: none."""
    samples: int = 4
    """Answers to each task, drawn as rollouts are."""

    def __post_init__(self) -> None:
        check("heldout", self, ">=", 0, "tasks")
        check("heldout", self, ">=", 1, "samples")
        check("heldout", self, "<=", 128, "samples")


@dataclass(frozen=True)
class PackedRows:
    """The rows of a step, by the name that other stages have for their data."""

    seq_len: int


@dataclass(frozen=True)
class PolicySections:
    """Sections of every verb that updates a policy, `nano3 rlhf genrm` among them."""

    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: PolicyTrainConfig = field(default_factory=PolicyTrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    balance: ExpertBiasConfig = field(default_factory=ExpertBiasConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True)
class PolicyConfig(PolicySections):
    """What a stage of reinforcement learning has, beside where its tasks and rewards come from."""

    def __post_init__(self) -> None:
        if 0 < self.train.sequence_chunk < self.model.chunk_size:
            raise ValueError(
                f"train.sequence_chunk is {self.train.sequence_chunk}; it must be 0 or at least model.chunk_size, "
                f"{self.model.chunk_size}"
            )
        self.lora.check_passes(self.train, self.parallel.context)
        if self.rollout.max_context > self.train.pack_length + 1:
            raise ValueError(
                f"rollout.max_context is {self.rollout.max_context}: a sample of that length has no room in a row of "
                f"train.pack_length = {self.train.pack_length}"
            )
        if self.schedule.unit == "tokens":
            raise ValueError("schedule: the length of this stage is in steps: use the keys that end in _steps")

    @property
    def data(self) -> PackedRows:
        """The rows of a step."""
        return PackedRows(self.train.pack_length)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the rows of a step."""
        return (self.train.pack_length,)

    @property
    def context(self) -> int:
        """Most tokens of a sample."""
        return self.rollout.max_context or self.train.pack_length

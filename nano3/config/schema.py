"""Typed settings of a pretraining run: one frozen dataclass a section, its documentation beside each field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nano3.config.model import ModelConfig


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes sequences."""

    blend: dict[str, float] = field(default_factory=lambda: {"python-stdlib": 100.0})
    """Share of the tokens by category, in percent; normalised to sum 1."""
    sources: dict[str, list[str]] = field(default_factory=dict)
    """Files, folders or prepared shard folders of each category; `python-stdlib` needs none."""
    sources_file: str = ""
    """TOML file with a [sources] table, merged over `sources` (the blend file)."""
    tokenizer: str = "train"
    """`train` (byte-level BPE of model.vocab_size on the blend), `mistral` (131072 entries), or a tokenizer.json or folder."""
    cache_dir: str = ""
    """Where prepared token shards are kept; empty means $XDG_CACHE_HOME/nano3 or ~/.cache/nano3."""
    seq_len: int = 512
    """Tokens in one training sequence; documents are packed into it and do not see each other."""
    heldout_fraction: float = 0.05
    """Share of documents set aside for the held-out loss, chosen by a hash of their content."""
    seed: int = 1234
    """Seed of the data order and of the split."""


@dataclass(frozen=True)
class TrainConfig:
    """Size of the run and numerics."""

    tokens: int = 4_000_000
    """Tokens to train on in this run."""
    batch_size: int = 32
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: int = 8
    """Sequences in one forward pass of one rank; gradients accumulate up to batch_size."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; weights are kept in float32. auto: bfloat16 where the device has bf16 matrix units, else float32."""
    checkpoint_activations: Literal["none", "block"] = "none"
    """block: recompute each block in the backward pass; activations then grow with one block, not with all."""
    compile: bool = False
    """Compile each block with torch.compile (about a minute before the first step)."""
    seed: int = 0
    """Seed of the initial weights."""
    continue_state: bool = False
    """With --from a run folder: take optimizer moments and the token counter too (phase 2 after phase 1)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (report section 2.4)."""

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Term added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms, biases, A_log, dt_bias and D have none."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Warmup-Stable-Decay by tokens (report section 2.4)."""

    peak_lr: float = 1e-3
    """Learning rate after warm-up."""
    min_lr: float = 1e-5
    """Learning rate at the end of the horizon."""
    warmup_tokens: int = 100_000
    """Tokens of linear warm-up from 0."""
    stable_fraction: float = 0.8
    """Share of the horizon after which decay begins."""
    horizon_tokens: int = 0
    """Tokens at which min_lr is reached; 0 means train.tokens. Phases 1 and 2 share one horizon."""
    start_tokens: int = 0
    """Position of this run's first token on the horizon (23.5e12 in phase 2)."""
    decay: Literal["linear", "cosine", "sqrt"] = "linear"
    """Shape of the decay; sqrt is 1 - sqrt(progress)."""


@dataclass(frozen=True)
class BalanceConfig:
    """Expert load balancing (report section 2.4)."""

    bias_rate: float = 1e-3
    """Step of the aux-loss-free expert bias, after each optimizer step; 0 switches it off."""
    loss_coef: float = 1e-4
    """Coefficient of the standard load-balancing loss; 0 switches it off."""


@dataclass(frozen=True)
class HeldoutConfig:
    """Held-out loss during training."""

    every_tokens: int = 500_000
    """Tokens between two evaluations; 0 means only at the end."""
    tokens: int = 131_072
    """Held-out tokens scored at each evaluation; the last one scores final_tokens."""
    final_tokens: int = 0
    """Held-out tokens scored at the end of the run; 0 means all of them."""
    seq_len: int = 0
    """Sequence length of the held-out evaluation; 0 means data.seq_len."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Full training state on disk."""

    every_tokens: int = 1_000_000
    """Tokens between two checkpoints; 0 means only at the end."""
    keep: int = 2
    """Newest checkpoints kept; older ones are removed after a newer one is complete."""
    asynchronous: bool = True
    """Write in the background while training goes on."""


@dataclass(frozen=True)
class ParallelConfig:
    """Parallelism under torchrun."""

    fsdp: bool = True
    """Shard weights and optimizer over the ranks (FSDP2); off: every rank keeps a full copy."""


@dataclass(frozen=True)
class LogConfig:
    """What a run reports."""

    every_steps: int = 1
    """Optimizer steps between two lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write TensorBoard events to RUN/tensorboard (extra: trackers)."""
    wandb: str = ""
    """Weights & Biases project to log to (extra: trackers); empty: none."""


@dataclass(frozen=True)
class SampleConfig:
    """Text sampled from the model at the end of the run."""

    prompts: list[str] = field(default_factory=lambda: ["def ", "import "])
    """Beginnings to continue; an empty list samples nothing."""
    tokens: int = 96
    """Tokens to sample for each prompt."""
    temperature: float = 0.7
    """Softmax temperature; 0 is greedy."""
    top_p: float = 0.95
    """Nucleus: sample from the smallest set of tokens with this probability."""


@dataclass(frozen=True)
class PretrainConfig:
    """All settings of `nano3 pretrain` (and of every stage that trains on packed text)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        per_pass = self.train.micro_batch_size
        if per_pass < 1 or self.train.batch_size % per_pass:
            raise ValueError(f"train.batch_size {self.train.batch_size} is not a multiple of train.micro_batch_size {per_pass}")

"""Typed settings of a pretraining run: one frozen dataclass a section, its documentation beside each field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nano3.config.checks import check
from nano3.config.generate import GenerateConfig
from nano3.config.model import ModelConfig
from nano3.config.sections.parallel import ParallelConfig

SCHEDULE_TOKENS = ("warmup_tokens", "horizon_tokens", "start_tokens")
SCHEDULE_STEPS = ("warmup_steps", "horizon_steps", "start_steps")


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
    """`train` (byte-level BPE of model.vocab_size), `train:qwen2` (the same with a split that llama.cpp has, for `nano3
    export --gguf`), `mistral` (131072 entries), or a tokenizer.json or folder."""
    cache_dir: str = ""
    """Where prepared token shards are kept; empty means $XDG_CACHE_HOME/nano3 or ~/.cache/nano3."""
    seq_len: int = 512
    """Tokens in one training sequence; documents are packed into it and do not see each other."""
    whole_documents: list[str] = field(default_factory=list)
    """Categories whose documents are never cut: rows are padded instead, and documents longer than the longest row are
    left out. Generated texts are always so."""
    heldout_fraction: float = 0.05
    """Share of documents set aside for the held-out loss, chosen by a hash of their content."""
    seed: int = 1234
    """Seed of the data order and of the split."""
    order_seed: int = 0
    """Seed of the data order alone, for a run that goes on with the same held-out text; 0 means seed."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    """Texts made for the sources `generate:document-qa` and `generate:retrieval`."""

    def __post_init__(self) -> None:
        check("data", self, ">=", 2, "seq_len")
        check("data", self, ">=", 0, "heldout_fraction")
        check("data", self, "<", 1, "heldout_fraction")
        for category, share in self.blend.items():
            if share < 0:
                raise ValueError(f"data.blend.{category} is {share}; a share must be at least 0")
        if not sum(self.blend.values()):
            raise ValueError("data.blend gives no category a share above 0")
        for category in self.whole_documents:
            if not self.blend.get(category):
                raise ValueError(f"data.whole_documents: {category!r} has no share in data.blend")


@dataclass(frozen=True)
class LengthConfig:
    """Size of the run and numerics, whatever the stage."""

    tokens: int = 4_000_000
    """Tokens to train on in this run, unless `steps` is set."""
    steps: int = 0
    """Optimizer steps of this run, whatever their tokens; 0: as many as `tokens` take."""
    batch_size: int = 32
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: int = 8
    """Most sequences in one forward pass of one rank; gradients accumulate up to batch_size."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; weights stay float32. auto: bfloat16 where the device has bf16 matrix units, else float32."""
    checkpoint_activations: Literal["none", "block"] = "none"
    """block: recompute each block in the backward pass; activations then grow with one block, not with all."""
    sequence_chunk: int = 0
    """Most tokens of one pass through a block: longer sequences go in pieces that carry its state, with the same
    gradients and less memory; needs checkpoint_activations = "block". 0: whole sequences."""
    freeze: list[str] = field(default_factory=list)
    """Weights that stay as they are: patterns such as `*.gate.weight` (every router), matched against nano3's names
    of parameters and the published ones. Expert biases, which no gradient moves, go on moving."""

    def __post_init__(self) -> None:
        check("train", self, ">=", 1, "tokens", "batch_size", "micro_batch_size")
        check("train", self, ">=", 0, "steps", "sequence_chunk")
        if self.sequence_chunk and self.checkpoint_activations != "block":
            raise ValueError(
                f'train.sequence_chunk is {self.sequence_chunk}: it needs train.checkpoint_activations = "block"'
            )

    def check_sizes(self, chunk_size: int) -> None:
        """Refuse sizes that do not go together, or not with a model whose scan takes `chunk_size` tokens at a time.

        Raises:
            ValueError: the line says which.
        """
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"train.batch_size {self.batch_size} is not a multiple of train.micro_batch_size "
                             f"{self.micro_batch_size}")  # fmt: skip
        if 0 < self.sequence_chunk < chunk_size:
            raise ValueError(
                f"train.sequence_chunk is {self.sequence_chunk}; it must be 0 or at least model.chunk_size, "
                f"{chunk_size}: every piece keeps the states of all Mamba-2 blocks"
            )


@dataclass(frozen=True)
class TrainConfig(LengthConfig):
    """Size of the run and numerics."""

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

    def __post_init__(self) -> None:
        check("optimizer", self, ">=", 0, "beta1", "beta2", "weight_decay", "clip_norm")
        check("optimizer", self, "<", 1, "beta1", "beta2")
        check("optimizer", self, ">", 0, "eps")


@dataclass(frozen=True)
class ScheduleConfig:
    """Warmup-Stable-Decay by tokens (report section 2.4) or by optimizer steps.

    The keys that end in `_tokens` and those that end in `_steps` exclude each other. Without either the schedule
    counts what the run's length is given in.
    """

    peak_lr: float = 1e-3
    """Learning rate after warm-up."""
    min_lr: float = 1e-5
    """Learning rate at the end of the horizon."""
    start_lr: float = 0.0
    """Learning rate at which warm-up starts."""
    warmup_tokens: int = 0
    """Tokens of linear warm-up from start_lr."""
    warmup_steps: int = 0
    """The same in optimizer steps."""
    warmup_limit: float = 0.0
    """Largest share of the horizon that warm-up may take: a short run has a short warm-up. 0: no limit."""
    stable_fraction: float = 0.8
    """Share of the horizon after which decay begins."""
    horizon_tokens: int = 0
    """Tokens at which min_lr is reached; 0 means the end of the run. Phases 1 and 2 share one horizon."""
    horizon_steps: int = 0
    """The same in optimizer steps."""
    start_tokens: int = 0
    """Position of this run's first token on the horizon (23.5e12 in phase 2)."""
    start_steps: int = 0
    """Position of this run's first optimizer step on a horizon in steps."""
    decay: Literal["linear", "cosine", "sqrt", "none"] = "linear"
    """Shape of the decay; sqrt is 1 - sqrt(progress); none keeps peak_lr to the end, and min_lr plays no part."""

    def __post_init__(self) -> None:
        check("schedule", self, ">=", 0, "peak_lr", "min_lr", "start_lr", *SCHEDULE_TOKENS, *SCHEDULE_STEPS)
        check("schedule", self, ">=", 0, "stable_fraction", "warmup_limit")
        check("schedule", self, "<=", 1, "stable_fraction", "warmup_limit")
        in_tokens, in_steps = (
            [f"schedule.{key} = {getattr(self, key)}" for key in keys if getattr(self, key)]
            for keys in (SCHEDULE_TOKENS, SCHEDULE_STEPS)
        )
        if in_tokens and in_steps:
            raise ValueError(
                f"a schedule counts tokens or steps, not both: {', '.join(in_tokens)} and {', '.join(in_steps)}; "
                "set one kind to 0"
            )

    @property
    def unit(self) -> Literal["tokens", "steps", ""]:
        """What the schedule counts, as its own keys say it; empty where they do not."""
        if any(getattr(self, key) for key in SCHEDULE_STEPS):
            return "steps"
        return "tokens" if any(getattr(self, key) for key in SCHEDULE_TOKENS) else ""


@dataclass(frozen=True)
class ExpertBiasConfig:
    """Expert load balancing without a loss term."""

    bias_rate: float = 1e-3
    """Step of the aux-loss-free expert bias, after each optimizer step; 0 switches it off."""

    def __post_init__(self) -> None:
        check("balance", self, ">=", 0, "bias_rate")


@dataclass(frozen=True)
class BalanceConfig(ExpertBiasConfig):
    """Expert load balancing (report section 2.4)."""

    loss_coef: float = 1e-4
    """Coefficient of the standard load-balancing loss; 0 switches it off."""
    loss_type: Literal["aux_loss", "seq_aux_loss"] = "aux_loss"
    """aux_loss: over the tokens of a micro-batch together, with the choices really made; seq_aux_loss: of each packed
    row alone, then the mean over rows, with the choices that the scores would make without the selection bias (report
    section 3.1.6). Megatron's names. Padding is in neither."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("balance", self, ">=", 0, "loss_coef")


@dataclass(frozen=True)
class ScoringConfig:
    """When held-out text is scored, and how much of it, whatever the stage."""

    every_tokens: int = 500_000
    """Tokens between two evaluations; 0: tokens call for none. There is one at the end in any case."""
    every_steps: int = 0
    """Optimizer steps between two evaluations, beside those of every_tokens; 0: steps call for none."""
    tokens: int = 131_072
    """Held-out tokens scored at each evaluation: sequences at even distances in the text. The last one scores
    final_tokens."""
    final_tokens: int = 0
    """Held-out tokens scored at the end of the run, from the start of the text; 0 means all of them."""

    def __post_init__(self) -> None:
        check("heldout", self, ">=", 0, "every_tokens", "every_steps", "tokens", "final_tokens")


@dataclass(frozen=True)
class HeldoutConfig(ScoringConfig):
    """Held-out loss during training."""

    seq_len: int = 0
    """Sequence length of the held-out evaluation; 0 means data.seq_len."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("heldout", self, ">=", 0, "seq_len")


@dataclass(frozen=True)
class CheckpointConfig:
    """Full training state on disk."""

    every_tokens: int = 1_000_000
    """Tokens between two checkpoints; 0: tokens call for none. There is one at the end in any case."""
    every_steps: int = 0
    """Optimizer steps between two checkpoints, beside those of every_tokens; 0: steps call for none."""
    keep: int = 2
    """Newest checkpoints kept; older ones are removed after a newer one is complete."""
    asynchronous: bool = True
    """Write in the background while training goes on."""

    def __post_init__(self) -> None:
        check("checkpoint", self, ">=", 0, "every_tokens", "every_steps")
        check("checkpoint", self, ">=", 1, "keep")


@dataclass(frozen=True)
class ExportConfig:
    """The Hugging Face folder that a run leaves."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights on disk; router, A_log, D and dt_bias are float32 in any case. The published ones are
    bfloat16; float32 loses nothing of what was trained and takes twice the room."""


@dataclass(frozen=True)
class LogConfig:
    """What a run reports."""

    every_steps: int = 1
    """Optimizer steps between two lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write TensorBoard events to RUN/tensorboard (package: tensorboard)."""
    wandb: str = ""
    """Weights & Biases project to log to (package: wandb); empty: none."""
    mlflow: str = ""
    """MLflow experiment to log to, on the server that MLFLOW_TRACKING_URI names (package: mlflow); empty: none."""
    trackio: str = ""
    """trackio project to log to (package: trackio); empty: none."""

    def __post_init__(self) -> None:
        check("log", self, ">=", 1, "every_steps")


@dataclass(frozen=True)
class SampleConfig:
    """Text sampled from the model at the end of the run."""

    prompts: list[str] = field(default_factory=list)
    """Beginnings to continue; an empty list takes the first words of two held-out texts."""
    tokens: int = 96
    """Tokens to sample for each prompt; 0 samples nothing."""
    temperature: float = 0.7
    """Softmax temperature; 0 is greedy."""
    top_p: float = 0.95
    """Nucleus: sample from the smallest set of tokens with this probability."""

    def __post_init__(self) -> None:
        check("sample", self, ">=", 0, "tokens", "temperature")
        check("sample", self, ">", 0, "top_p")
        check("sample", self, "<=", 1, "top_p")


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
    export: ExportConfig = field(default_factory=ExportConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        self.train.check_sizes(self.model.chunk_size)

    @property
    def prepared_data(self) -> DataConfig:
        """`data` as it is prepared, with what follows from other sections."""
        return self.data

    @property
    def lengths(self) -> dict[int, float]:
        """Length of the sequences of a step to its share of the steps, and so of the tokens."""
        return {self.data.seq_len: 1.0}

    @property
    def heldout_lengths(self) -> list[int]:
        """Sequence lengths at which held-out text is scored; the first gives the score of the run."""
        return [self.heldout.seq_len or self.data.seq_len]

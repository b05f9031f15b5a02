"""The settings that the training loop reads, whatever the stage: each stage's own configuration has these sections."""

from __future__ import annotations

from typing import Literal, Protocol

from nano3.config.schema import (
    CheckpointConfig,
    ExpertBiasConfig,
    LogConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
)


class TrainSection(Protocol):
    """Length of the run and numerics; see nano3.config.schema.TrainConfig for the meaning of each."""

    @property
    def tokens(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def dtype(self) -> Literal["auto", "bfloat16", "float32"]: ...
    @property
    def checkpoint_activations(self) -> Literal["none", "block"]: ...
    @property
    def sequence_chunk(self) -> int: ...
    @property
    def freeze(self) -> list[str]: ...


class TrainerConfig(Protocol):
    """A frozen dataclass of sections, these among them. Whatever other sections it has decide a run's identity too:
    see nano3.train.checkpoint.run_identity."""

    @property
    def train(self) -> TrainSection: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def balance(self) -> ExpertBiasConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...
    @property
    def parallel(self) -> ParallelConfig: ...
    @property
    def log(self) -> LogConfig: ...

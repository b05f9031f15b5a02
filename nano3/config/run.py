"""What the settings of every training stage have, for code that serves them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from nano3.config.model import ModelConfig
from nano3.config.schema import LengthConfig, LogConfig, ParallelConfig, ScheduleConfig


class SequenceSettings(Protocol):
    """A `data` section."""

    @property
    def seq_len(self) -> int: ...


class RunConfig(Protocol):
    """A frozen dataclass of sections, these among them: nano3.config.schema.PretrainConfig and its like."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def model(self) -> ModelConfig: ...
    @property
    def data(self) -> SequenceSettings: ...
    @property
    def train(self) -> LengthConfig: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def parallel(self) -> ParallelConfig: ...
    @property
    def log(self) -> LogConfig: ...
    @property
    def lengths(self) -> Mapping[int, float]:
        """Length of the sequences of a step to its share of the steps."""
        ...

"""Optional trackers beside metrics.jsonl: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nano3.config.schema import LogConfig
from nano3.train.metrics import CLOCK

Tracker = Callable[[dict[str, Any]], None]


def open_trackers(
    cfg: LogConfig, run_dir: Path, settings: dict[str, Any]
) -> tuple[list[Tracker], list[Callable[[], None]]]:
    """Trackers that `cfg` asks for, each taking a metrics line, and what to call at the end.

    Raises:
        ValueError: a tracker's package is not installed.
    """
    trackers: list[Tracker] = []
    closers: list[Callable[[], None]] = []
    if cfg.tensorboard:
        module = _import("torch.utils.tensorboard", "log.tensorboard", "tensorboard")
        writer = module.SummaryWriter(str(run_dir / "tensorboard"))
        trackers.append(lambda line: _to_tensorboard(writer, line))
        closers.append(writer.close)
    if cfg.wandb:
        wandb = _import("wandb", "log.wandb", "wandb")
        run = wandb.init(project=cfg.wandb, dir=str(run_dir), name=run_dir.name, config=settings, resume="allow")
        trackers.append(lambda line: run.log(_scalars(line), step=line["step"]))
        closers.append(run.finish)
    return trackers, closers


def _import(module: str, key: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"{key} needs the package {package}, which is not installed: pip install 'nano3[trackers]'"
        ) from None


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a metrics line as `kind/name`."""
    values = {**line, **line.get(CLOCK, {})}
    return {
        f"{line['kind']}/{key}": float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "tokens")
    }


def _to_tensorboard(writer: Any, line: dict[str, Any]) -> None:
    for name, value in _scalars(line).items():
        writer.add_scalar(name, value, global_step=line["step"])

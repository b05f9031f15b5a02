"""Optional trackers beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow and trackio."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from nano3.config.errors import UserError
from nano3.config.schema import LogConfig
from nano3.train.tracking.metrics import CLOCK

Log = Callable[[dict[str, float], int], None]
Opened = tuple[Log, Callable[[], None]]
"""What takes the numbers of a line and its step, and what to call at the end."""


def check_trackers(cfg: LogConfig) -> None:
    """Refuse what `cfg` asks for where its package is missing.

    Raises:
        UserError: it is; the message has the command that installs it.
    """
    for name in _wanted(cfg):
        _import(name)


def open_trackers(
    cfg: LogConfig, run_dir: Path, settings: dict[str, Any]
) -> tuple[list[Callable[[dict[str, Any]], None]], list[Callable[[], None]]]:
    """Trackers that `cfg` asks for, each taking a metrics line, and what to call at the end.

    Raises:
        UserError: a tracker's package is not installed.
    """
    opened = [_TRACKERS[name][1](_import(name), getattr(cfg, name), run_dir, settings) for name in _wanted(cfg)]
    return [_taking_lines(log) for log, _ in opened], [close for _, close in opened]


def _wanted(cfg: LogConfig) -> list[str]:
    return [name for name in _TRACKERS if getattr(cfg, name)]


def _import(name: str) -> ModuleType:
    module = _TRACKERS[name][0]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"log.{name} needs the package {name}, which is not installed: pip install {name}") from None


def _taking_lines(log: Log) -> Callable[[dict[str, Any]], None]:
    return lambda line: log(_scalars(line), line["step"])


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a metrics line as `kind/name`."""
    values = {**line, **line.get(CLOCK, {})}
    return {
        f"{line['kind']}/{key}": float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "tokens")
    }


def _tensorboard(module: Any, wanted: bool, run_dir: Path, settings: dict[str, Any]) -> Opened:
    writer = module.SummaryWriter(str(run_dir / "tensorboard"))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, global_step=step)

    return log, writer.close


def _wandb(wandb: Any, project: str, run_dir: Path, settings: dict[str, Any]) -> Opened:
    run = wandb.init(project=project, dir=str(run_dir), name=run_dir.name, config=settings, resume="allow")
    return lambda values, step: run.log(values, step=step), run.finish


def _trackio(trackio: Any, project: str, run_dir: Path, settings: dict[str, Any]) -> Opened:
    run = trackio.init(project=project, name=run_dir.name, config=settings, resume="allow")
    return lambda values, step: run.log(values, step=step), run.finish


def _mlflow(mlflow: Any, experiment: str, run_dir: Path, settings: dict[str, Any]) -> Opened:
    mlflow.set_experiment(experiment)
    mlflow.start_run(run_name=run_dir.name)
    mlflow.log_params(settings)
    return lambda values, step: mlflow.log_metrics(values, step=step), mlflow.end_run


_TRACKERS: dict[str, tuple[str, Callable[[Any, Any, Path, dict[str, Any]], Opened]]] = {
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "wandb": ("wandb", _wandb),
    "mlflow": ("mlflow", _mlflow),
    "trackio": ("trackio", _trackio),
}
"""Setting of the section log, which is also the package's name, to its module and what opens it."""

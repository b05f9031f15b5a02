"""Where a run's folder goes."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from nano3.config.errors import UserError
from nano3.stages.new_run import check_new_run

RUNS = Path("runs")
CONFIG = "config.toml"


def choose_run_dir(out: Path | None, name: str, resume: bool) -> Path:
    """The folder of a run: `out`, or the first free runs/NAME, runs/NAME-2, ...; with `resume`, the newest of them.

    Raises:
        UserError: there is nothing to resume, `out` already holds something, or ranks could not agree on a name.
    """
    if out is None and _world_size() > 1:
        raise UserError("under torchrun the ranks must share one run folder: give --out DIR")
    if resume:
        return _existing(out, name)
    run_dir = out or next(path for path in _candidates(name) if not path.exists())
    if is_main_rank():
        check_new_run(run_dir)
    return run_dir


def is_main_rank() -> bool:
    """Whether this process is the one that prints results; torchrun tells the others by RANK."""
    return os.environ.get("RANK", "0") == "0"


def _existing(out: Path | None, name: str) -> Path:
    if out is not None:
        if not (out / CONFIG).is_file():
            raise UserError(f"{out} holds no run to resume (no {CONFIG} in it)")
        return out
    newest = None
    for path in itertools.takewhile(Path.exists, _candidates(name)):
        newest = path if (path / CONFIG).is_file() else newest
    if newest is None:
        raise UserError(f"no run to resume in {RUNS / name}: give its folder with --out DIR")
    return newest


def _candidates(name: str) -> itertools.chain[Path]:
    return itertools.chain([RUNS / name], (RUNS / f"{name}-{i}" for i in itertools.count(2)))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))

"""What a run writes down and shows: metrics.jsonl, trackers, charts and the display."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.schema import LogConfig
from nano3.train.balance import load_stats
from nano3.train.position import Position
from nano3.train.step import StepResult
from nano3.train.tracking import charts
from nano3.train.tracking.metrics import MetricsWriter, cut_metrics
from nano3.train.tracking.progress import Progress
from nano3.train.tracking.redraw import Redraw
from nano3.train.tracking.trackers import open_trackers

OWN = ("kind", "step", "tokens", "clock", "seq_len", "lr", "grad_norm", "load_max_over_mean", "load_variation")
"""Keys of a line about a step that the trainer writes itself: no metric of a loss may have such a name."""


class Record:
    """The measurements of one run; only the main rank writes.

    Args:
        run_dir: the run folder.
        shown: metric of the loss that the chart of the loss draws.
        progress: where messages go.
        is_main: whether this rank writes.
    """

    def __init__(self, run_dir: Path, shown: str, progress: Progress, is_main: bool) -> None:
        self.run_dir, self.shown, self.progress, self.is_main = run_dir, shown, progress, is_main
        self._metrics: MetricsWriter | None = None
        self._trackers: list[Callable[[dict[str, Any]], None]] = []
        self._closers: list[Callable[[], None]] = []
        self._redraw = Redraw(self.path, self.charts, shown)

    @property
    def charts(self) -> Path:
        """RUN/charts."""
        return self.run_dir / "charts"

    @property
    def path(self) -> Path:
        """RUN/metrics.jsonl."""
        return self.run_dir / "metrics.jsonl"

    def cut(self, step: int, keep: Collection[str] = ()) -> None:
        """Drop what was measured after `step`, for a run that resumes there; see `cut_metrics`."""
        if self.is_main:
            cut_metrics(self.path, step, keep)

    def open(self, cfg: LogConfig, settings: dict[str, Any], fresh: bool) -> None:
        """Begin to write; `settings` are for the trackers, a `fresh` run begins with an empty file."""
        if fresh:
            self.path.unlink(missing_ok=True)
        self._trackers, self._closers = open_trackers(cfg, self.run_dir, settings)
        self._metrics = MetricsWriter(self.path)

    def step(self, position: Position, result: StepResult, lr: float, seq_len: int, clock: dict[str, float]) -> None:
        """A line about a step that was done.

        Raises:
            UserError: a metric of the loss has a name of the trainer's own.
        """
        if taken := [name for name in result.metrics if name in OWN]:
            raise UserError(f"the loss reports a metric named {taken[0]}, which is a name of the trainer's own")
        stats = load_stats(result.loads)
        values = {
            "seq_len": seq_len,
            **result.metrics,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "load_max_over_mean": stats.max_over_mean,
            "load_variation": stats.variation,
        }
        self.write(position, "train", values, clock)

    def write(
        self, position: Position, kind: str, values: dict[str, Any], clock: dict[str, float] | None = None
    ) -> None:
        """One line, to metrics.jsonl and the trackers; a number that is not finite is null."""
        if self._metrics is None:
            return
        values = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
        self._metrics.write(kind, position.step, position.tokens, values, clock)
        line = {"kind": kind, "step": position.step, **values, "clock": clock or {}}
        for track in self._trackers:
            track(line)

    def sync(self) -> None:
        """Make every line survive a power failure."""
        if self._metrics is not None:
            self._metrics.sync()

    def redraw(self) -> None:
        """Have the charts drawn as things are, at most once a minute; training goes on meanwhile."""
        if self._metrics is not None:
            self._redraw.poke()

    def close(self) -> None:
        """Close the files and draw the charts."""
        self._redraw.close()
        for close in self._closers:
            close()
        if self._metrics is not None:
            self._metrics.close()
            try:
                charts.draw(self.path, self.charts, self.shown)
            except OSError as error:
                self.progress.say(f"no charts: {error}")

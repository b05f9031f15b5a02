"""RULER's results as charts: length by depth where one needle is asked for, length by task over all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.eval.charts import Grid, heat_maps
from nano3.eval.ruler.run import AVERAGE, Plan, length_text

if TYPE_CHECKING:
    from nano3.eval.store import Result, Store

DEPTH_BINS = 10
DEPTH_CHART, TASK_CHART = "depth.png", "tasks.png"


def draw(plan: Plan, store: Store, result: Result) -> list[Path]:
    """Draw tasks.png and, for tasks with one needle, depth.png into the store's folder; what was drawn."""
    drawn = []
    if result.scores:
        drawn.append(_task_chart(plan, result, store.folder / TASK_CHART))
    grids = depth_grids(plan, store)
    if grids:
        title = f"{result.name}, {result.model}: needles by length and depth"
        drawn.append(
            heat_maps(grids, store.folder / DEPTH_CHART, title, "context, tokens", "depth of the needle, %", "score")
        )
    return drawn


def _task_chart(plan: Plan, result: Result, path: Path) -> Path:
    values = {(score.task, score.length): score.value for score in result.scores}
    tasks = [task for task in (*plan.tasks, AVERAGE) if any(key[0] == task for key in values)]
    rows = [[values.get((task, length), math.nan) for length in plan.lengths] for task in tasks]
    grid = Grid("", tasks, [length_text(length) for length in plan.lengths], rows)
    return heat_maps([grid], path, f"{result.name}, {result.model}", "context, tokens", "", "score")


def depth_grids(plan: Plan, store: Store) -> list[Grid]:
    """Mean score by tenth of the haystack and length, a grid for each task whose samples have a depth."""
    grids = []
    for task in plan.tasks:
        rows = [
            row for row in store.rows.values()
            if row["task"] == task and row["depth"] is not None and row["length"] in plan.lengths
            and row["index"] < plan.samples
        ]  # fmt: skip
        if rows:
            values = [[_mean(rows, length, part) for length in plan.lengths] for part in range(DEPTH_BINS)]
            labels = [f"{100 * part // DEPTH_BINS}-{100 * (part + 1) // DEPTH_BINS}" for part in range(DEPTH_BINS)]
            grids.append(Grid(task, labels, [length_text(length) for length in plan.lengths], values))
    return grids


def _mean(rows: Sequence[dict], length: int, part: int) -> float:
    found = [
        row["score"] for row in rows
        if row["length"] == length and min(DEPTH_BINS - 1, int(row["depth"] * DEPTH_BINS)) == part
    ]  # fmt: skip
    return 100 * sum(found) / len(found) if found else math.nan

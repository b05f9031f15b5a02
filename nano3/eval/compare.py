"""Results of several stages side by side, with bootstrap intervals and differences from the first or the one before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nano3.eval.compare_stage import HELDOUT, RowKey, Stage, is_share, unit
from nano3.eval.intervals import (
    bootstrap_means,
    difference_of_few,
    difference_of_others,
    mean_of_means,
    middle95,
    told_interval,
)
from nano3.eval.ruler.catalogue import SOURCES
from nano3.eval.ruler.run import AVERAGE_METRIC, GROWING

if TYPE_CHECKING:
    import numpy as np

FEW = 10
"""Samples, or pairs of them, from which the bootstrap is used."""
FREE = (*GROWING, "model", "identity", "limit")
"""Settings in which stages differ anyway."""


@dataclass
class Cell:
    """One stage's number, and how far it lies from another's, its baseline."""

    value: float
    n: int | None
    low: float | None = None
    high: float | None = None
    """95 % interval."""
    change: float | None = None
    """Value less the baseline's; None where there is none."""
    change_low: float | None = None
    change_high: float | None = None
    paired: bool = False
    """The difference is of the same samples, one by one."""

    @property
    def differs(self) -> bool:
        """The interval of the difference leaves out zero."""
        low, high = self.change_low, self.change_high
        return low is not None and high is not None and (low > 0 or high < 0)


@dataclass
class Row:
    """One number of every stage."""

    key: RowKey
    higher_is_better: bool
    cells: list[Cell | None]
    """By stage; None where a stage does not have it."""


def compare(stages: Sequence[Stage], seed: int = 0, *, previous: bool = False) -> list[Row]:
    """A row for each number that any of the stages has, with intervals and differences from a baseline.

    Args:
        stages: in the order of the columns.
        seed: of the bootstrap.
        previous: the baseline of each stage is the one before it that has the number, not the first stage.
    """
    keys = sorted({key for stage in stages for key in stage.scores}, key=_order(stages))
    rows = []
    for key in keys:
        cells = [_cell(stage, key, seed) for stage in stages]
        for place in range(1, len(stages)):
            known = [before for before in range(place) if cells[before] is not None]
            base = known[-1] if previous and known else 0
            _set_change((stages[base], stages[place]), key, (cells[base], cells[place]), seed)
        score = next(stage.scores[key] for stage in stages if key in stage.scores)
        rows.append(Row(key, score.get("higher_is_better", True), cells))
    return rows


def notes(stages: Sequence[Stage]) -> list[str]:
    """What a reader must know: other settings than the first stage's, and what is not complete."""
    said = []
    first = {result["kind"]: result for result in reversed(stages[0].results)}
    for stage in stages:
        said += _other_heldout(stages[0], stage)
        said += stage.lost
        for result in stage.results:
            if not result.get("complete", True):
                said.append(f"{stage.label}: {result['name']} is not complete")
            other = first.get(result["kind"])
            if other is None or other is result:
                continue
            said += _other_tasks(stages[0].label, other, stage.label, result)
            for key, before, now in _different(other, result):
                said.append(f"{stage.label}: {result['name']} was run with {key} {now} ({stages[0].label}: {before})")
    return said


def document(stages: Sequence[Stage], rows: Sequence[Row]) -> dict[str, Any]:
    """The comparison as JSON."""
    table = []
    for row in rows:
        cells = {
            stage.label: None if cell is None else {**vars(cell), "differs": cell.differs}
            for stage, cell in zip(stages, row.cells, strict=True)
        }
        table.append({**vars(row.key), "higher_is_better": row.higher_is_better, "stages": cells})
    return {"stages": [stage.label for stage in stages], "rows": table, "notes": notes(stages)}


def _order(stages: Sequence[Stage]) -> Any:
    """Kinds, tasks and metrics as the results have them, the lengths ascending."""
    place: dict[tuple[str, str, str], int] = {}
    for stage in stages:
        for key in stage.scores:
            place.setdefault((key.kind, key.task, key.metric), len(place))
    return lambda key: (place[key.kind, key.task, key.metric], key.length or 0)


def _draws(groups: Sequence[Sequence[float]] | None, unit: float, seed: int) -> np.ndarray | None:
    """Bootstrap means of a number; None where it has no samples, or too few."""
    return None if groups is None or _too_few(groups) else _means(groups, unit, seed)


def _cell(stage: Stage, key: RowKey, seed: int) -> Cell | None:
    score = stage.scores.get(key)
    if score is None:
        return None
    groups = _groups(stage, key)
    cell = Cell(float(score["value"]), score.get("n"))
    drawn = _draws(groups, unit(key), seed)
    if drawn is not None:
        cell.low, cell.high = middle95(drawn)
    elif groups is not None and is_share(key):
        _, low, high = mean_of_means(groups)
        cell.low, cell.high = 100 * low, 100 * high
    else:
        cell.low, cell.high = told_interval(score, is_share(key))
    if is_share(key) and cell.low is not None and cell.high is not None:
        cell.low, cell.high = max(0.0, cell.low), min(100.0, cell.high)
    return cell


def _set_change(stages: tuple[Stage, Stage], key: RowKey, cells: tuple[Cell | None, Cell | None], seed: int) -> None:
    """Enter how the second stage differs from the first, its baseline."""
    first, cell = cells
    if first is None or cell is None:
        return
    if key.metric == AVERAGE_METRIC and _parts(stages[0], key) != _parts(stages[1], key):
        return  # means over other tasks say nothing about each other
    cell.change = cell.value - first.value
    pairs = _pairs(*stages, key)
    cell.paired = pairs is not None
    ends = _of_pairs(pairs, key, seed) if pairs is not None else _of_others(stages, key, seed)
    if ends is None and first.low is not None and first.high is not None and cell.low is not None:
        # Newcombe's method 10: the two intervals put together.
        high = cell.value if cell.high is None else cell.high
        ends = (
            cell.change - math.hypot(cell.value - cell.low, first.high - first.value),
            cell.change + math.hypot(high - cell.value, first.value - first.low),
        )
    if ends is not None:
        cell.change_low, cell.change_high = ends


def _of_pairs(pairs: Sequence[Sequence[float]], key: RowKey, seed: int) -> tuple[float, float] | None:
    """Interval of the mean difference of pairs; None of a few that are no shares."""
    if not _too_few(pairs):
        return middle95(_means(pairs, unit(key), seed))
    return _percent(difference_of_few(pairs)) if is_share(key) else None


def _of_others(stages: tuple[Stage, Stage], key: RowKey, seed: int) -> tuple[float, float] | None:
    """Interval of the difference where the samples are not the same; None where there are none, or few that are no
    shares."""
    before, now = (_groups(stage, key) for stage in stages)
    # Two stages that are not paired are drawn apart, by other seeds.
    drawn = _draws(before, unit(key), seed), _draws(now, unit(key), seed + 104729)
    if drawn[0] is not None and drawn[1] is not None:
        return middle95(drawn[1] - drawn[0])
    if before is not None and now is not None and is_share(key):
        return _percent(difference_of_others(before, now))
    return None


def _means(groups: Sequence[Sequence[float]], unit: float, seed: int) -> np.ndarray:
    """Bootstrap means: of each group's mean, the mean over groups."""
    drawn = [unit * bootstrap_means(group, seed + 7919 * number) for number, group in enumerate(groups)]
    return sum(drawn[1:], drawn[0]) / len(drawn)


def _too_few(groups: Sequence[Sequence[float]]) -> bool:
    """The bootstrap would make an interval too narrow of these: it draws what is there, and nothing else."""
    return min(map(len, groups)) < FEW or all(min(group) == max(group) for group in groups)


def _percent(ends: tuple[float, float]) -> tuple[float, float]:
    return 100 * ends[0], 100 * ends[1]


def _groups(stage: Stage, key: RowKey) -> list[list[float]] | None:
    """The samples that a number is of, by task; None where it has none."""
    parts = _parts(stage, key) if key.metric == AVERAGE_METRIC else [key]
    if not parts or any(part not in stage.samples for part in parts):
        return None
    return [_in_order(stage.samples[part]) for part in parts]


def _pairs(first: Stage, other: Stage, key: RowKey) -> list[list[float]] | None:
    """Differences sample by sample, by task; None unless both stages answered the same samples."""
    if key.metric == AVERAGE_METRIC:
        groups = [_pairs(first, other, part) for part in _parts(first, key)]
        known = [group[0] for group in groups if group is not None]
        return known if known and len(known) == len(groups) else None
    mine, theirs_ = first.samples.get(key), other.samples.get(key)
    if not mine or not theirs_ or mine.keys() != theirs_.keys() or not _same_questions(first, other, key):
        return None
    return [[theirs_[index] - mine[index] for index in sorted(mine)]]


def _same_questions(first: Stage, other: Stage, key: RowKey) -> bool:
    """Seed, generators and the sources of the task are the same."""
    found = [next((r for r in stage.results if r["kind"] == key.kind), None) for stage in (first, other)]
    if found[0] is None or found[1] is None:
        return False
    before, now = (result.get("settings") or {} for result in found if result is not None)
    if any(before.get(name) != now.get(name) for name in ("seed", "version")):
        return False
    sources = [settings.get("sources") or {} for settings in (before, now)]
    every = {*sources[0], *sources[1]}
    used = SOURCES.get(key.task, every) if key.kind == "ruler" else every
    return all(sources[0].get(name) == sources[1].get(name) for name in used)


def _different(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    before, now = first.get("settings") or {}, other.get("settings") or {}
    return [
        (key, before.get(key), now.get(key))
        for key in dict.fromkeys([*before, *now])
        if key not in FREE and not _agree(before.get(key), now.get(key))
    ]


def _agree(before: Any, now: Any) -> bool:
    """The same; of tables: in the entries that both have, since other tasks have other sources."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return all(before[name] == now[name] for name in before if name in now)
    return before == now


def _other_heldout(first: Stage, stage: Stage) -> list[str]:
    """A note where the bits per byte of two runs are of other texts, told by their bytes at some length."""
    for key, score in stage.scores.items():
        before, now = first.scores.get(key, {}).get("bytes"), score.get("bytes")
        if key.task == HELDOUT and before and now and before != now:
            return [f"{stage.label}: held-out texts differ: {now:,} bytes, {before:,} bytes in {first.label}"]
    return []


def _other_tasks(first: str, other: Mapping[str, Any], label: str, result: Mapping[str, Any]) -> list[str]:
    before, now = ((r.get("settings") or {}).get("tasks") for r in (other, result))
    if before == now or not before or not now:
        return []
    return [f"{label}: {result['name']} has other tasks ({len(now)}; {first}: {len(before)}): no means to compare"]


def _parts(stage: Stage, key: RowKey) -> list[RowKey]:
    """The numbers that a mean over tasks is of."""
    parts = [k for k in stage.scores if (k.kind, k.length) == (key.kind, key.length) and k.metric != AVERAGE_METRIC]
    return sorted(parts, key=lambda k: (k.task, k.metric))


def _in_order(values: Mapping[int, float]) -> list[float]:
    return [values[index] for index in sorted(values)]

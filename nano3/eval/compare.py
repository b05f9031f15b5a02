"""Results of several stages side by side, with bootstrap intervals and differences from the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.eval.heldout_tasks import KIND, heldout_scores
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
from nano3.eval.store import RESULT, RESULT_REMEDY, SAMPLES, SHARES, read_object, read_samples
from nano3.report import read_lines

if TYPE_CHECKING:
    import numpy as np

METRICS, HELDOUT, BITS = "metrics.jsonl", "held-out", "bits_per_byte"
FEW = 10
"""Samples, or pairs of them, from which the bootstrap is used."""
FREE = (*GROWING, "model", "identity", "limit")
"""Settings in which stages differ anyway."""


@dataclass(frozen=True)
class RowKey:
    """What a row of the comparison is about."""

    kind: str
    task: str
    length: int | None
    metric: str


@dataclass
class Cell:
    """One stage's number, and how far it lies from the first stage's."""

    value: float
    n: int | None
    low: float | None = None
    high: float | None = None
    """95 % interval."""
    change: float | None = None
    """Value less the first stage's; None for that itself, and where it has none."""
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


@dataclass
class Stage:
    """What one argument of the command brings."""

    label: str
    results: list[dict[str, Any]] = field(default_factory=list)
    """Contents of result.json."""
    samples: dict[RowKey, dict[int, float]] = field(default_factory=dict)
    """Scores of single samples by index, where result.json is the mean of them."""
    scores: dict[RowKey, dict[str, Any]] = field(default_factory=dict)
    """Scores of result.json."""
    lost: list[str] = field(default_factory=list)
    """What is to be noted of samples that are not in their file any more."""


def load_stage(argument: str) -> Stage:
    """The stage behind PATH or LABEL=PATH: a result folder, a folder of result folders, or a training run.

    Raises:
        UserError: nothing to compare there, or a file out of form.
    """
    label, path = _label(argument)
    stage = Stage(label)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a result folder of nano3 eval, or a training run")
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    for folder in folders:
        if (folder / RESULT).is_file():
            _add_result(stage, folder)
    _add_heldout(stage, path / METRICS)
    for name, measure, score in heldout_scores(path):
        stage.scores[RowKey(KIND, name, None, measure)] = score
    if not stage.scores:
        raise UserError(f"{path}: no {RESULT} with scores here or one folder below; run nano3 eval first")
    return stage


def compare(stages: Sequence[Stage], seed: int = 0) -> list[Row]:
    """A row for each number that any of the stages has, with intervals and differences from the first stage."""
    keys = sorted({key for stage in stages for key in stage.scores}, key=_order(stages))
    rows = []
    for key in keys:
        draws = [_draws(stage, key, seed, place) for place, stage in enumerate(stages)]
        cells = [_cell(stage, key, drawn) for stage, drawn in zip(stages, draws, strict=True)]
        for place in range(1, len(stages)):
            _set_change(stages, key, cells, draws, place, seed)
        known = next(stage.scores[key] for stage in stages if key in stage.scores)
        rows.append(Row(key, known.get("higher_is_better", True), cells))
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


def _label(argument: str) -> tuple[str, Path]:
    label, equals, path = argument.partition("=")
    if equals and label and not Path(argument).exists():
        return label, Path(path)
    return Path(argument).resolve().name, Path(argument)


def _add_result(stage: Stage, folder: Path) -> None:
    result = read_object(folder / RESULT, RESULT_REMEDY)
    try:
        kind = result["kind"]
        scores = {RowKey(kind, s["task"], s.get("length"), s["metric"]): s for s in result["scores"]}
        values = {key: float(s["value"]) for key, s in scores.items()}
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{folder / RESULT}: not a result of nano3 eval ({type(error).__name__}: {error})") from error
    result.setdefault("name", kind)
    stage.results.append(result)
    by_task: dict[tuple[str, int | None], dict[int, dict[str, Any]]] = {}
    for (task, length, index), row in read_samples(folder / SAMPLES).items():
        by_task.setdefault((task, length), {})[index] = row
    lost = _lost(result, scores, by_task)
    if lost:
        there, all_ = (sum(numbers) for numbers in zip(*lost.values(), strict=True))
        stage.lost.append(f"{folder}: {SAMPLES} has {there} of {all_} samples; intervals are those of {RESULT}")
    for key, score in scores.items():
        if key in stage.scores:
            raise UserError(
                f"{folder.parent} holds several results of {kind} on {key.task}: give their folders one by one"
            )
        stage.scores[key] = score
        if key in lost:
            continue
        found = _values(by_task.get((key.task, key.length), {}), key.metric, score.get("n") or 0)
        if found and math.isclose(100 * sum(found.values()) / len(found), values[key], abs_tol=1e-6):
            stage.samples[key] = found


def _lost(
    result: Mapping[str, Any], scores: Mapping[RowKey, Mapping[str, Any]],
    by_task: Mapping[tuple[str, int | None], Mapping[int, Any]],
) -> dict[RowKey, tuple[int, int]]:  # fmt: skip
    """(samples that are there, samples that there were) of each score whose samples are not all there."""
    # Other numbers, such as a group's of lm-eval, have no samples of their own.
    single = (result.get("settings") or {}).get("tasks" if result["kind"] == "ruler" else "versions") or ()
    found = {}
    for key, score in scores.items():
        there, all_ = len(by_task.get((key.task, key.length), ())), score.get("n") or 0
        if key.task in single and key.metric != AVERAGE_METRIC and there < all_:
            found[key] = (there, all_)
    return found


def _values(rows: Mapping[int, Mapping[str, Any]], metric: str, n: int) -> dict[int, float]:
    """A metric of the first `n` samples by index; a larger evaluation may have gone on in the folder."""
    found = {}
    for index, row in rows.items():
        metrics = row.get("metrics") or {}
        # Behind a metric of the harness may stand its filter: "exact_match (strict-match)".
        value = metrics.get(metric, metrics.get(metric.partition(" (")[0], row.get("score")))
        if index < n and isinstance(value, int | float):
            found[index] = float(value)
    return found


def _add_heldout(stage: Stage, file: Path) -> None:
    """The last held-out bits per byte of a training run, at each sequence length that it was scored in."""
    lines = [line for line in read_lines(file) if line.get("kind") == "heldout" and BITS in line]
    for seq_len, line in {line.get("seq_len"): line for line in lines}.items():
        score = {"value": line[BITS], "n": None, "stderr": None, "higher_is_better": False, "bytes": line.get("bytes")}
        stage.scores.setdefault(RowKey("heldout", HELDOUT, seq_len, BITS), score)


def _order(stages: Sequence[Stage]) -> Any:
    """Kinds, tasks and metrics as the results have them, the lengths ascending."""
    place: dict[tuple[str, str, str], int] = {}
    for stage in stages:
        for key in stage.scores:
            place.setdefault((key.kind, key.task, key.metric), len(place))
    return lambda key: (place[key.kind, key.task, key.metric], key.length or 0)


def _draws(stage: Stage, key: RowKey, seed: int, place: int) -> np.ndarray | None:
    """Bootstrap means of a stage's number; other draws for each stage. None where it has no samples, or too few."""
    groups = _groups(stage, key)
    if groups is None or _too_few(groups):
        return None
    return _mean([
        100 * bootstrap_means(group, seed + 104729 * place + 7919 * number) for number, group in enumerate(groups)
    ])  # fmt: skip


def _cell(stage: Stage, key: RowKey, drawn: np.ndarray | None) -> Cell | None:
    score = stage.scores.get(key)
    if score is None:
        return None
    groups = _groups(stage, key)
    cell = Cell(float(score["value"]), score.get("n"))
    if drawn is not None:
        cell.low, cell.high = middle95(drawn)
    elif groups is not None:
        _, low, high = mean_of_means(groups)
        cell.low, cell.high = 100 * low, 100 * high
    else:
        cell.low, cell.high = told_interval(score, _is_share(key))
    if _is_share(key) and cell.low is not None and cell.high is not None:
        cell.low, cell.high = max(0.0, cell.low), min(100.0, cell.high)
    return cell


def _is_share(key: RowKey) -> bool:
    return key.kind == "ruler" or key.metric.startswith(SHARES)


def _set_change(
    stages: Sequence[Stage], key: RowKey, cells: Sequence[Cell | None], draws: Sequence[np.ndarray | None], place: int,
    seed: int,
) -> None:  # fmt: skip
    """Enter how one stage differs from the first."""
    first, cell = cells[0], cells[place]
    if first is None or cell is None:
        return
    if key.metric == AVERAGE_METRIC and _parts(stages[0], key) != _parts(stages[place], key):
        return  # means over other tasks say nothing about each other
    cell.change = cell.value - first.value
    pairs = _pairs(stages[0], stages[place], key)
    if pairs is not None:
        ends = difference_of_few(pairs) if _too_few(pairs) else None
        cell.change_low, cell.change_high = _percent(ends) if ends else middle95(pairs_draws(pairs, seed))
        cell.paired = True
        return
    mine, others = draws[place], draws[0]
    if mine is not None and others is not None:
        cell.change_low, cell.change_high = middle95(mine - others)
        return
    before, now = _groups(stages[0], key), _groups(stages[place], key)
    if before is not None and now is not None:
        cell.change_low, cell.change_high = _percent(difference_of_others(before, now))
        return
    if first.low is not None and first.high is not None and cell.low is not None and cell.high is not None:
        # Newcombe's method 10: the two intervals put together.
        cell.change_low = cell.change - math.hypot(cell.value - cell.low, first.high - first.value)
        cell.change_high = cell.change + math.hypot(cell.high - cell.value, first.value - first.low)


def pairs_draws(groups: Sequence[Sequence[float]], seed: int) -> np.ndarray:
    """Bootstrap means of paired differences, -100 to 100: the mean over groups of each group's mean."""
    drawn = [100 * bootstrap_means(group, seed + 7919 * number) for number, group in enumerate(groups)]
    return _mean(drawn)


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


def _mean(drawn: Sequence[np.ndarray]) -> np.ndarray:
    return sum(drawn[1:], drawn[0]) / len(drawn)


def _in_order(values: Mapping[int, float]) -> list[float]:
    return [values[index] for index in sorted(values)]

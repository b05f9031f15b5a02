"""What one argument of a comparison brings: scores of result folders and training runs, and their samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.eval.heldout_tasks import KIND, heldout_scores
from nano3.eval.ruler.run import AVERAGE_METRIC
from nano3.eval.store import RESULT, RESULT_REMEDY, SAMPLES, SHARES, read_object, read_samples
from nano3.report import read_lines

METRICS, HELDOUT, BITS = "metrics.jsonl", "held-out", "bits_per_byte"


@dataclass(frozen=True)
class RowKey:
    """What a row of the comparison is about."""

    kind: str
    task: str
    length: int | None
    metric: str


def is_share(key: RowKey) -> bool:
    """A mean of right and wrong answers, in percent."""
    return key.kind == "ruler" or key.metric.startswith(SHARES)


def unit(key: RowKey) -> float:
    """What the mean of samples is multiplied by."""
    return 100.0 if is_share(key) else 1.0


@dataclass
class Stage:
    """What one argument of the command brings."""

    label: str
    results: list[dict[str, Any]] = field(default_factory=list)
    """Contents of result.json."""
    samples: dict[RowKey, dict[int, float]] = field(default_factory=dict)
    """Values of single samples by index, where result.json is the mean of them: shares of right answers from 0 to 1."""
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
        if found and math.isclose(unit(key) * sum(found.values()) / len(found), values[key], abs_tol=1e-6):
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

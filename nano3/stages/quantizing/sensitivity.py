"""`nano3 quantize sensitivity`: which parts of a model lose most by FP8 (report section 4)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.sft import SftConfig
from nano3.data.chat.calibration import Drawn, draw_rows
from nano3.eval.intervals import bootstrap_means, middle95
from nano3.model.hf.folder import load
from nano3.progress import Progress
from nano3.quantize.policy import Policy
from nano3.quantize.rows import CalibrationRows
from nano3.quantize.sensitivity import By, HeldoutRows, list_parts, measure
from nano3.quantize.sensitivity_chart import draw
from nano3.report import write_result
from nano3.stages.quantizing.rows import Calibration, settings_of
from nano3.stages.quantizing.stage import prepare
from nano3.stages.run_folder import say
from nano3.stages.sft_tokenizer import find_tokenizer

SEED = 0
"""Of the bootstrap."""
OWN_HELDOUT = 0.25
"""Share of a user's own conversations that the loss is measured on."""


def main(source: str | Path, calibration: Calibration, heldout: int, by: By) -> dict[str, Any]:
    """Measure every part alone.

    Args:
        source: run folder or Hugging Face folder, unquantized.
        calibration: what the scales of inputs are found with; of the same conversations others are held out.
        heldout: rows to measure the loss on, at most.
        by: what is quantized together.

    Returns:
        The ranking, as one JSON object.

    Raises:
        UserError: a model or conversations that cannot be used.
    """
    folder, selection = prepare(source, Policy())
    rows, measured = _rows(Path(source), folder, calibration, heldout)
    if max(rows.largest_id, measured.largest_id) >= selection.cfg.vocab_size:
        raise UserError(f"{folder}: its tokenizer has tokens that its {selection.cfg.vocab_size} embeddings lack")
    parts = list_parts(selection.cfg, by)
    model = load(folder)
    progress = Progress(len(parts), float(len(parts)), "parts", "parts")
    try:
        ranking = measure(model, rows, measured, parts, _interval, lambda name: progress.sample(1.0, name))
    except ValueError as error:
        raise UserError(f"{folder}: a weight {error}: this model cannot be quantized") from None
    finally:
        progress.close()
    return {"model": str(source), "by": by, "calibration_rows": len(rows)} | asdict(ranking)


def write(found: dict[str, Any], folder: Path) -> list[Path]:
    """result.json and sensitivity.png in a folder, which is made."""
    return [write_result(found, folder), draw(found, folder / "sensitivity.png")]


def _rows(source: Path, folder: Path, calibration: Calibration, count: int) -> tuple[CalibrationRows, HeldoutRows]:
    cfg, what = settings_of(source, calibration)
    if calibration.paths:
        cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, heldout_fraction=OWN_HELDOUT))
    tokenizer = find_tokenizer("", folder)
    seen = draw_rows(cfg, tokenizer, calibration.samples)
    other = draw_rows(_with_enough(cfg, count), tokenizer, count, heldout=True)
    for drawn, purpose in ((seen, "to calibrate with"), (other, "held out, to measure the loss on")):
        _check(drawn, what, purpose)
    try:
        measured = HeldoutRows(*([row[: calibration.length] for row in rows] for rows in (other.rows, other.targets)))
    except ValueError as error:
        raise UserError(f"{what}: {error}: give a greater --length") from None
    rows = CalibrationRows(seen.rows, calibration.length)
    say(f"{what}: {len(rows):,} rows to calibrate with, {len(measured):,} held out ({measured.targets:,} targets)")
    if refused := seen.refused + other.refused:
        say(f"note: {refused:,} rows were left out; the first: {seen.first_problem or other.first_problem}")
    if len(measured) < count:
        say(f"note: {count:,} held-out rows were asked for, there are no more")
    return rows, measured


def _interval(shares: list[float]) -> tuple[float, float]:
    """95 %, by bootstrap."""
    return middle95(bootstrap_means(shares, SEED))


def _with_enough(cfg: SftConfig, heldout: int) -> SftConfig:
    """So many made rows that the wanted number of them is held out."""
    share = cfg.data.heldout_fraction
    made = math.ceil(heldout / share) if share else cfg.data.generated_rows
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, generated_rows=made))


def _check(drawn: Drawn, what: str, purpose: str) -> None:
    if not drawn.rows:
        first = f"; {drawn.refused} were left out, the first: {drawn.first_problem}" if drawn.first_problem else ""
        raise UserError(f"{what}: no row {purpose}{first}: give conversations with --calibrate")

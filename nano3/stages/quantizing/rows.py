"""Which conversations a model is calibrated with (report section 4: 1,000 of the sft data)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nano3.config.errors import UserError
from nano3.config.own_chats import own_chats
from nano3.config.presets import SFT, load_sft, stage_of
from nano3.config.sft import SftConfig
from nano3.data.chat.calibration import draw_rows
from nano3.quantize.rows import CalibrationRows
from nano3.reading import read_json, read_toml
from nano3.stages.run_folder import say
from nano3.stages.sft_tokenizer import find_tokenizer

SAMPLES, LENGTH = 1000, 4096
"""Rows by default (report section 4), and tokens at which they are cut."""
CONFIG, START = "config.toml", "start.json"
MOST_STAGES = 20
"""Runs that are looked back through."""


@dataclass(frozen=True)
class Calibration:
    """Where the rows come from."""

    paths: Sequence[str] = ()
    """Files, folders, `hub:...` or `generate:NAME`; none: what the model's sft run was trained on, else tasks that
    nano3 makes."""
    samples: int = SAMPLES
    length: int = LENGTH


def calibration_rows(source: Path, folder: Path, calibration: Calibration) -> CalibrationRows:
    """Rows as token ids, by the model's own tokenizer and chat template; what they are is told."""
    cfg, what = settings_of(source, calibration)
    tokenizer = find_tokenizer("", folder)
    drawn = draw_rows(cfg, tokenizer, calibration.samples)
    if not drawn.rows:
        first = f"; the first: {drawn.first_problem}" if drawn.first_problem else ""
        raise UserError(f"{what}: no row to calibrate with, {drawn.refused} were left out{first}")
    rows = CalibrationRows(drawn.rows, calibration.length)
    sets = ", ".join(f"{name} {count:,}" for name, count in drawn.by_set.items())
    say(f"calibration: {len(rows):,} rows of {what} ({sets}), {rows.tokens:,} tokens")
    if len(rows) < calibration.samples:
        say(f"note: {calibration.samples:,} rows were asked for, no more can be used")
    if drawn.refused:
        say(f"note: {drawn.refused:,} rows were left out; the first: {drawn.first_problem}")
    return rows


def settings_of(source: Path, calibration: Calibration) -> tuple[SftConfig, str]:
    """The conversations to take rows from as settings of sft, and their name for messages.

    Raises:
        UserError: `length` leaves nothing to predict, or settings that cannot be used.
    """
    if calibration.length < 2:
        raise UserError(f"--length {calibration.length}: a row needs at least 2 tokens")
    if calibration.paths:
        cfg, what = load_sft("tiny", own_chats(list(calibration.paths))), ", ".join(calibration.paths)
        data = dataclasses.replace(cfg.data, heldout_fraction=0.0)
    else:
        cfg, what = _of_run(source)
        data = cfg.data
    data = dataclasses.replace(
        data, pack_length=calibration.length, too_long="cut", generated_rows=calibration.samples, tokenizer=""
    )
    return dataclasses.replace(cfg, data=data), what


def _of_run(source: Path) -> tuple[SftConfig, str]:
    """Those of the newest sft run that the model went through, as run folders tell; else those of the tiny preset."""
    run = source if (source / CONFIG).is_file() else source.parent
    for _ in range(MOST_STAGES):
        try:
            if stage_of(read_toml(run / CONFIG)) == SFT:
                return load_sft(str(run / CONFIG)), f"the data of {run}"
            run = Path(read_json(run / START)["from"])
        except (OSError, UserError, LookupError, TypeError):
            break
    return load_sft("tiny"), "the tasks that nano3 makes"

"""The encoded rows in the run folder of `nano3 sft`: made by the main rank, or taken as they are."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from nano3.config.errors import UserError
from nano3.config.sft import SftConfig
from nano3.data.chat.identity import rows_identity
from nano3.data.chat.rows import Rows
from nano3.data.chat.sets import REJECTS, SetReport, open_sets, set_sources, write_sets
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.files import LOCK, atomic_folder, write_atomic
from nano3.installation import which_nano3
from nano3.reading import read_json
from nano3.stages.run_folder import say
from nano3.train.world import World, attempt

ROWS, REPORT = "rows", "data.json"
"""In the run folder: the encoded rows, and what became of each data set."""
MADE = "made.json"
"""In the folder of the rows: what they were made of, and what became of each data set."""
BEAT_SECONDS = 60.0
"""Time between two signs of life: far below the time after which a rank gives up waiting for another."""


def prepare_rows(
    cfg: SftConfig, tokenizer: Tokenizer, run_dir: Path, fresh: bool, world: World
) -> tuple[list[SetReport], dict[str, Rows]]:
    """The rows of each data set: the main rank encodes them, the others read them.

    Rows that are there already are taken where settings, tokenizer and files are those that they were made of.

    Raises:
        UserError: as `write_sets` and `open_sets`, on every rank. What a run wrote that could not begin (`fresh`) is
            removed again.
        FileNotFoundError: a path that is not there.
    """
    reports: list[SetReport] = []
    # Before the first checkpoint the folder has nothing that is worth keeping where the data cannot be used.
    empty = fresh and not (run_dir / "config.toml").exists()
    try:
        if world.is_main:
            say(which_nano3())
            say(f"preparing data: {', '.join(set_sources(cfg.data))}")
        on_main(world, lambda: reports.extend(_rows(cfg, tokenizer, run_dir)))
        return reports, open_sets(cfg.data, run_dir / ROWS)
    except BaseException:
        if world.is_main and empty:
            _take_back(run_dir)
        raise


def on_main(world: World, action: Callable[[], object], seconds: float = BEAT_SECONDS) -> None:
    """Carry out `action` on the main rank while the others wait, however long it takes; every rank must call.

    torch.distributed lets a rank wait for half an hour at the most, so the main rank gives a sign every `seconds`.

    Raises:
        UserError: on the other ranks, for any error of the action; the main rank raises that itself.
    """
    error = None
    if world.size == 1:
        action()
    elif world.is_main:
        done = threading.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="nano3-beat") as pool:
            beats = pool.submit(_beat, world, done, seconds)
            try:
                error = attempt(action)
            finally:
                done.set()
            beats.result()
    else:
        while not world.from_main(None):
            pass
    world.agree(error)


def _beat(world: World, done: threading.Event, seconds: float) -> None:
    while not done.wait(seconds):
        world.from_main(False)
    world.from_main(True)


def _rows(cfg: SftConfig, tokenizer: Tokenizer, run_dir: Path) -> list[SetReport]:
    """What became of each data set; its rows lie in the run folder afterwards."""
    identity = rows_identity(cfg, tokenizer)
    reports = _kept(cfg, run_dir / ROWS, identity)
    if reports is None:
        with atomic_folder(run_dir / ROWS) as folder, (run_dir / REJECTS).open("w", encoding="utf-8") as rejects:
            reports = write_sets(cfg, tokenizer, folder, rejects, say)
            made = {"identity": identity, "sets": [report.values() for report in reports]}
            (folder / MADE).write_text(json.dumps(made) + "\n", encoding="utf-8")
    else:
        say("the rows are there: made of the same files by the same settings")
    write_atomic(run_dir / REPORT, json.dumps([report.values() for report in reports], indent=1) + "\n")
    return reports


def _kept(cfg: SftConfig, folder: Path, identity: str) -> list[SetReport] | None:
    """What became of each data set when the rows in `folder` were made; None where they are none of these."""
    if not (folder / MADE).is_file():
        return None
    try:
        made = read_json(folder / MADE)
        if made["identity"] != identity:
            return None
        open_sets(cfg.data, folder)
        return [SetReport.of(values) for values in made["sets"]]
    except (UserError, OSError, LookupError, TypeError, ValueError):
        return None  # damaged: they are made again


def _take_back(run_dir: Path) -> None:
    """Remove what a run wrote that could not begin, and the folder if nothing else is in it."""
    shutil.rmtree(run_dir / ROWS, ignore_errors=True)
    for name in (REJECTS, REPORT, LOCK):
        (run_dir / name).unlink(missing_ok=True)
    with suppress(OSError):
        run_dir.rmdir()

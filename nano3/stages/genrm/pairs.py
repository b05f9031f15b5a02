"""The preference pairs of a run, split and written down before it begins, so that all its parts read the same ones.

RUN/pairs: train.jsonl and heldout.jsonl in the plain layout (nano3.data.preferences.layouts), rejects.jsonl.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.config.genrm import PairsConfig
from nano3.data.chat.records import check_spec
from nano3.data.preferences.layouts import read_pairs
from nano3.data.preferences.made import is_made, made_pairs
from nano3.data.preferences.pair import PreferencePair, split_pairs
from nano3.files import atomic_folder

PAIRS = "pairs"
TRAIN, HELDOUT, REJECTS = "train.jsonl", "heldout.jsonl", "rejects.jsonl"


@dataclass(frozen=True)
class Pairs:
    """What the sources of a run hold."""

    train: list[PreferencePair]
    heldout: list[PreferencePair]
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Rows that are no preference, by file and line, and why they are none."""

    def line(self) -> str:
        """For the user."""
        line = f"{len(self.train):,} pairs to train on, {len(self.heldout):,} held out"
        return line + (f"; {len(self.refused):,} rows left out: {': '.join(self.refused[0])}" if self.refused else "")


def check_sources(cfg: PairsConfig) -> None:
    """
    Raises:
        UserError: a source that is not there, or pairs that cannot be made so.
    """
    for spec in cfg.sources:
        if spec.startswith(PREFIX):
            made_pairs(spec, 0)
        else:
            check_spec(spec, "data.sources")


def gather_pairs(cfg: PairsConfig, most_heldout: int) -> Pairs:
    """The pairs of all sources, none twice; those to train on share no prompt with those held out.

    Args:
        cfg: which, and how they are split.
        most_heldout: held-out pairs to keep; made ones are made to that number, by equal parts of the sources.

    Raises:
        UserError: a source that cannot be read, a bad row where data.bad_rows is "error", or nothing to train on or to
            hold out.
    """
    train, heldout, refused = [], [], []
    note = (lambda name, why: refused.append((name, why))) if cfg.bad_rows == "reject" else None
    each = -(-most_heldout // len(cfg.sources))
    for spec in cfg.sources:
        if is_made(spec):
            train += made_pairs(spec, cfg.generated_pairs, cfg.seed, "train")
            heldout += made_pairs(spec, each, cfg.seed, "heldout")
        else:
            sides = split_pairs(list(read_pairs(spec, note)), cfg.heldout_fraction, cfg.seed)
            train, heldout = train + sides[0], heldout + sides[1]
    heldout = _different(heldout)
    asked = {_prompt(pair) for pair in heldout}
    train = [pair for pair in _different(train) if _prompt(pair) not in asked]
    for name, found in (("train on", train), ("hold out", heldout)):
        if not found:
            first = f"; the first of {len(refused)} bad rows is {': '.join(refused[0])}" if refused else ""
            raise UserError(f"{', '.join(cfg.sources)}: no pairs to {name}{first}")
    if len(heldout) > most_heldout:
        chosen = sorted(random.Random(cfg.seed).sample(range(len(heldout)), most_heldout))
        heldout = [heldout[i] for i in chosen]
    return Pairs(train, heldout, refused)


def write_pairs(pairs: Pairs, run_dir: Path) -> None:
    """All of them, appearing together."""
    rejects = [{"row": name, "detail": why} for name, why in pairs.refused]
    with atomic_folder(run_dir / PAIRS) as folder:
        for name, rows in (
            (TRAIN, [pair.row() for pair in pairs.train]),
            (HELDOUT, [pair.row() for pair in pairs.heldout]),
            (REJECTS, rejects),
        ):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name).write_text(text, encoding="utf-8")


def heldout_pairs(run_dir: Path) -> list[PreferencePair]:
    """Those that `write_pairs` wrote."""
    return list(read_pairs(str(run_dir / PAIRS / HELDOUT)))


def training_file(run_dir: Path) -> str:
    """The file of the pairs to train on."""
    return str((run_dir / PAIRS / TRAIN).resolve())


def _different(pairs: list[PreferencePair]) -> list[PreferencePair]:
    return list({pair.id: pair for pair in pairs}.values())


def _prompt(pair: PreferencePair) -> str:
    return json.dumps(pair.prompt, sort_keys=True)

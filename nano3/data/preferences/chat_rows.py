"""Preference pairs as a source of chat data: each becomes two rows, one in each order, that show a judge its work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nano3.config.own_chats import PREFERENCES
from nano3.data.chat.records import Record, check_spec
from nano3.data.preferences.layouts import read_pair_records
from nano3.data.preferences.made import is_made, made_pairs
from nano3.data.preferences.pair import PreferencePair, in_both_orders, split_pairs
from nano3.data.preferences.prompt import training_row
from nano3.data.tasks.source import Split
from nano3.data.texts.skipped import Skipped

ORDERS = 2
"""Rows of a pair."""


def is_preferences(spec: str) -> bool:
    """Whether a source names preference pairs: `generate:preferences`, or `preferences:` and a file, folder or hub."""
    return is_made(spec) or spec.startswith(PREFERENCES)


def check_preferences(spec: str, setting: str) -> None:
    """
    Raises:
        UserError: pairs cannot be made so, or there is nothing at the path; the latter names the setting.
    """
    if is_made(spec):
        made_pairs(spec, 0)
    else:
        check_spec(spec.removeprefix(PREFERENCES), setting)


def preference_records(spec: str, rows: int, heldout_fraction: float, seed: int, skipped: Skipped) -> Iterator[Record]:
    """Rows of chat data of all pairs; both rows of a pair, and all pairs of a prompt, are on one side of the split.

    Args:
        spec: one of `is_preferences`.
        rows: of made pairs, to train on.
        heldout_fraction: share of the made rows beside these, and of the prompts of given pairs.
        seed: of made pairs, and of the split of given ones.
        skipped: counts the files of a folder that are no records.

    Raises:
        FileNotFoundError: nothing at that path.
        UserError: a file that holds no records, or so many pairs cannot be made.
    """
    if is_made(spec):
        yield from _made(spec, rows, heldout_fraction, seed)
        return
    for record, found in read_pair_records(spec.removeprefix(PREFERENCES), skipped):
        if isinstance(found, PreferencePair):
            held_out = bool(split_pairs([found], heldout_fraction, seed)[1])
            yield from _records(found, record.label, record.number, held_out)
        else:
            yield replace(record, value=None, problem=found)


def _made(spec: str, rows: int, heldout_fraction: float, seed: int) -> Iterator[Record]:
    counts: dict[Split, int] = {"train": rows, "heldout": round(rows * heldout_fraction)}
    for split, count in counts.items():
        label = spec if split == "train" else f"{spec} held out"
        for number, pair in enumerate(made_pairs(spec, -(-count // ORDERS), seed, split), start=1):
            yield from _records(pair, label, number, split == "heldout")


def _records(pair: PreferencePair, label: str, number: int, held_out: bool) -> Iterator[Record]:
    for label_, each in zip((label, f"{label} swapped"), in_both_orders([pair]), strict=True):
        yield Record(label_, number, training_row(each), heldout=held_out)

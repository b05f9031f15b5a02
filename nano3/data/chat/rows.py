"""Encoded rows of one data set in a folder: written once, then read at any place without loading the rest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano3.config.errors import UserError
from nano3.files import write_atomic
from nano3.reading import read_json

TOKENS, INDEX, LABELS = "tokens.bin", "index.npz", "labels.json"
TRAINED = np.uint32(1 << 31)
"""Bit of a stored token that the model is trained to write."""


@dataclass(frozen=True)
class EncodedRow:
    """A row to train on: token ids, cut after the last one that is trained."""

    label: str
    """File or data set that it came from."""
    record: int
    """Number of the record there, from 1."""
    turn: int
    """User turn of the conversation, from 0."""
    ids: np.ndarray
    """(n,) uint32."""
    trained: np.ndarray
    """(n,) bool: the model is trained to write this token."""
    task: int
    """64-bit hash of what is asked (nano3.data.chat.maker.task_of): its rows are all trained on, or all held out."""

    @property
    def places(self) -> int:
        """Tokens that it takes in a packed row: its last one is only predicted."""
        return len(self.ids) - 1


class RowWriter:
    """Writes rows to a folder; they can be read once it is closed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._file = folder, (folder / TOKENS).open("wb")
        self._labels: dict[str, int] = {}
        self._index: list[tuple[int, int, int, int, int, bool]] = []
        self._hash = hashlib.blake2b(digest_size=8)

    def add(self, row: EncodedRow, heldout: bool = False) -> None:
        """Append one row, to be trained on or held out."""
        words = row.ids.astype(np.uint32) | np.where(row.trained, TRAINED, np.uint32(0))
        data = words.tobytes()
        self._file.write(data)
        self._hash.update(data)
        label = self._labels.setdefault(row.label, len(self._labels))
        self._index.append((len(words), label, row.record, row.turn, row.task, heldout))

    def close(self) -> None:
        """Write the index; nothing may be added any more."""
        self._file.close()
        columns = list(zip(*self._index, strict=True)) or [()] * 6
        lengths, labels, records, turns, tasks, heldout = columns
        with (self._folder / INDEX).open("wb") as file:
            np.savez(
                file,
                ends=np.cumsum(np.array(lengths, np.int64)),
                labels=np.array(labels, np.int32),
                records=np.array(records, np.int64),
                turns=np.array(turns, np.int32),
                tasks=np.array(tasks, np.uint64),
                heldout=np.array(heldout, bool),
            )
        about = {"labels": list(self._labels), "fingerprint": self._hash.hexdigest()}
        write_atomic(self._folder / LABELS, json.dumps(about) + "\n")


class Rows:
    """The rows in a folder that `RowWriter` wrote.

    Attributes:
        places: (rows,) int64, tokens that each takes in a packed row.
        tasks: (rows,) uint64, see `EncodedRow.task`.
        heldout: (rows,) bool, whether it is held out.
        fingerprint: hash of all ids and masks.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError for a folder whose tokens are cut short."""
        with np.load(folder / INDEX) as index:
            ends = index["ends"]
            self._labels, self._records, self._turns = index["labels"], index["records"], index["turns"]
            self.tasks: np.ndarray = index["tasks"]
            self.heldout: np.ndarray = index["heldout"]
        about = read_json(folder / LABELS)
        self._names: list[str] = about["labels"]
        self.fingerprint: str = about["fingerprint"]
        self._starts = np.concatenate([np.zeros(1, np.int64), ends])
        self.places: np.ndarray = np.diff(self._starts) - 1
        size = int(self._starts[-1])
        self._words = np.memmap(folder / TOKENS, np.uint32, "r") if size else np.zeros(0, np.uint32)
        if len(self._words) != size:
            raise UserError(f"{folder / TOKENS}: is damaged, it holds {len(self._words):,} of {size:,} tokens")

    def __len__(self) -> int:
        return len(self.places)

    def tokens(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids (n,) int64 of a row, and whether each is trained, (n,) bool."""
        words = np.asarray(self._words[self._starts[row] : self._starts[row + 1]])
        return (words & ~TRAINED).astype(np.int64), (words & TRAINED) != 0

    def name(self, row: int) -> str:
        """File, record and turn of a row, for messages."""
        return row_name(self._names[self._labels[row]], int(self._records[row]), int(self._turns[row]))


def row_name(label: str, record: int, turn: int) -> str:
    """`chats.jsonl:12`, or with a later user turn `chats.jsonl:12 turn 2`."""
    return f"{label}:{record}" + (f" turn {turn + 1}" if turn else "")

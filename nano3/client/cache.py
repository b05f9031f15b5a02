"""Answers kept on disk, each as soon as it is there: a request that was answered is not sent again."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError

SUFFIX = ".sqlite"
MOUNTS = Path("/proc/self/mounts")
LOCAL_TYPES = ("apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "overlay", "ramfs", "tmpfs",
               "xfs", "zfs")  # fmt: skip
"""File systems of this machine alone, on whose memory all processes that use a file can look together."""
BUSY_SECONDS = 60.0
"""How long another process that writes the same file is waited for."""
_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, seconds REAL NOT NULL, body BLOB NOT NULL) WITHOUT ROWID"
)


def answer_key(model: str, messages: Any, sampling: Mapping[str, Any], prompt: str, sample: int) -> bytes:
    """What decides an answer, as 16 bytes.

    Args:
        model: its name; not the server's address, which may change.
        messages: what is said.
        sampling: everything else in the request.
        prompt: version of the prompt, as its hash.
        sample: number of the independent answer.
    """
    text = json.dumps([model, messages, sampling, prompt, sample], sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class AnswerCache:
    """A SQLite file that one process writes, and others beside it that are only read.

    On a disk of this machine it has a write-ahead log. On any other file system, as that of a cluster, where such a
    log must not lie, it has a rollback journal, and an answer is handed to the system and not waited for until it is
    on the disk: that would take all places of the requests for some 15 ms.
    """

    def __init__(self, path: Path, others: Sequence[Path] = ()) -> None:
        """Open, or begin, a file.

        Args:
            path: answers are written into it.
            others: answers are looked for in them too, if they are there.

        Raises:
            UserError: a file is damaged or no such file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._own = path, _opened(path)
        there = [other for other in others if other.is_file() and other != path]
        self._files = {path: self._own} | {other: _opened(other) for other in there}

    def get(self, key: bytes) -> tuple[Any, float] | None:
        """The answer's JSON value and how many seconds it took; None where there is none.

        Raises:
            UserError: a file is damaged or cannot be read.
        """
        for path, database in self._files.items():
            try:
                row = database.execute("SELECT body, seconds FROM answers WHERE key = ?", (key,)).fetchone()
                if row:
                    return json.loads(zlib.decompress(row[0])), row[1]
            except (sqlite3.Error, zlib.error, ValueError) as error:
                raise _unusable(path, error) from error
        return None

    def put(self, key: bytes, body: Any, seconds: float) -> None:
        """Keep an answer; it is on disk when this returns, even if the process is killed then.

        Raises:
            UserError: the file cannot be written, as where the disk is full.
        """
        packed = zlib.compress(json.dumps(body).encode("utf-8", "surrogatepass"), 1)
        try:
            self._own.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, seconds, packed))
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error

    def close(self) -> None:
        """Close all files."""
        for database in self._files.values():
            database.close()


def _unusable(path: Path, error: Exception) -> UserError:
    """The error for a file of which another try may make more (a full disk, a lock, no permission), or that is
    damaged."""
    if isinstance(error, sqlite3.OperationalError):
        return UserError(f"{path}: {error}; what was answered before is kept: give the same command again")
    return UserError(f"{path}: no file of answers ({error}); delete it, and they are asked for again")


def _opened(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        local = is_local(path)
        database.execute(f"PRAGMA journal_mode={'WAL' if local else 'TRUNCATE'}")
        database.execute(f"PRAGMA synchronous={'NORMAL' if local else 'OFF'}")
        database.execute(_TABLE)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    return database


def is_local(path: Path) -> bool:
    """Whether a file lies on a disk of this machine; also where the system does not tell."""
    kinds: dict[Path, str] = {}
    with suppress(OSError):
        for line in MOUNTS.read_text("utf-8", "replace").splitlines():
            _, place, kind, *_ = line.split()
            kinds[Path(place.replace("\\040", " "))] = kind
    place = path.resolve()
    kind = next((kinds[folder] for folder in (place, *place.parents) if folder in kinds), LOCAL_TYPES[0])
    return kind in LOCAL_TYPES

"""Token shards on disk: memory-mapped ids, an index of documents, checksums, atomic writes.

A prepared folder holds `manifest.json`, a `tokenizer/` folder, and for each shard k
`shard-k.bin` (ids, uint16 where the vocabulary fits, else uint32), `shard-k.idx` (per document: end in tokens, bytes
of text, content hash, end of its name; then the names) and `shard-k.json` (sizes, checksums, and where in the inputs
the next shard begins). The json file is written last: a shard without it does not exist.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nano3.config.errors import UserError
from nano3.data.texts.find import CURATION
from nano3.data.texts.skipped import Skipped
from nano3.files import check_free, write_atomic
from nano3.reading import parse_json, read_json

MANIFEST, PLAN = "manifest.json", "plan.json"
"""What a prepared folder holds, and what it is going to hold."""
FORMAT = "nano3-shards-1"
INDEX_COLUMNS = 4
DTYPES = ("uint16", "uint32")
SHARD_TOKENS = 1 << 24
"""Tokens after which a shard is closed, at the end of a document."""


@dataclass(frozen=True)
class EncodedDocument:
    """One document ready to be stored."""

    name: str
    ids: np.ndarray
    n_bytes: int
    """Length of the text in UTF-8."""
    content_hash: int
    """64-bit hash of the text."""


@dataclass(frozen=True)
class ShardMeta:
    """The json file of one shard."""

    tokens: int
    documents: int
    bytes: int
    dtype: str
    bin_crc32: int
    idx_crc32: int
    next_input: int
    """Position in the list of inputs after this shard's last document..."""
    next_item: int
    """...and the number of items of that input read so far."""
    skipped: dict[str, int]
    """Documents left out, from the first input up to here."""
    named: dict[str, list[str]] = field(default_factory=dict)
    """Names of some of them, by reason."""

    def left_out(self) -> Skipped:
        """What was left out up to here, by reason."""
        return Skipped(Counter(self.skipped), dict(self.named))


@dataclass(frozen=True)
class Manifest:
    """What a complete prepared folder holds."""

    key: str
    """Hash of inputs, tokenizer and settings."""
    shards: int
    documents: int
    tokens: int
    bytes: int
    dtype: str
    vocab_size: int
    skipped: dict[str, int] = field(default_factory=dict)
    """Documents left out, and files left out while folders were searched."""
    named: dict[str, list[str]] = field(default_factory=dict)
    """Names of some of those files, by reason."""
    sources: list[str] = field(default_factory=list)
    format: str = FORMAT

    def left_out(self) -> Skipped:
        """What was left out, by reason."""
        return Skipped(Counter(self.skipped), dict(self.named))


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest stored type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    """Path of one of a shard's three files."""
    return folder / f"shard-{number:05d}.{suffix}"


def write_shard(
    folder: Path,
    number: int,
    documents: list[EncodedDocument],
    dtype: np.dtype,
    reached: tuple[int, int],
    skipped: Skipped,
) -> ShardMeta:
    """Store documents as shard `number`; `reached` is the position (input, item) where the next shard goes on."""
    ids = np.concatenate([document.ids for document in documents]).astype(dtype)
    names = [document.name.encode("utf-8", "surrogateescape") for document in documents]
    index = np.array(
        [
            np.cumsum([len(document.ids) for document in documents]),
            [document.n_bytes for document in documents],
            [document.content_hash for document in documents],
            np.cumsum([len(name) for name in names]),
        ],
        dtype="<u8",
    )
    binary, index_bytes = ids.astype(dtype.newbyteorder("<")).tobytes(), index.tobytes() + b"".join(names)
    meta = ShardMeta(
        tokens=len(ids),
        documents=len(documents),
        bytes=sum(document.n_bytes for document in documents),
        dtype=dtype.name,
        bin_crc32=zlib.crc32(binary),
        idx_crc32=zlib.crc32(index_bytes),
        next_input=reached[0],
        next_item=reached[1],
        skipped=dict(skipped.counts),
        named=skipped.names,
    )
    write_atomic(shard_path(folder, number, "bin"), binary)
    write_atomic(shard_path(folder, number, "idx"), index_bytes)
    write_atomic(shard_path(folder, number, "json"), json.dumps(asdict(meta), sort_keys=True).encode())
    return meta


def read_meta(folder: Path, number: int) -> ShardMeta | None:
    """The json file of a shard, None when there is no such shard.

    Raises:
        UserError: the file cannot be understood.
    """
    path = shard_path(folder, number, "json")
    if not path.is_file():
        return None
    try:
        return _typed(ShardMeta, read_json(path))
    except (ValueError, TypeError) as error:
        raise damaged(path, "it is not what was written") from error


Written = TypeVar("Written", ShardMeta, Manifest)
_FITS: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int and value >= 0,
    "str": lambda value: isinstance(value, str),
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    "dict[str, int]": lambda value: isinstance(value, dict) and all(map(_FITS["int"], value.values())),
    "dict[str, list[str]]": lambda value: isinstance(value, dict) and all(map(_FITS["list[str]"], value.values())),
}
"""By the type of a field, whether a JSON value is of it."""


def _typed(kind: type[Written], values: Any) -> Written:
    """What these JSON values are of. Raises TypeError where they are not those of its fields."""
    made = kind(**values)
    wrong = [each.name for each in fields(made) if not _FITS[str(each.type)](getattr(made, each.name))]
    if wrong or made.dtype not in DTYPES:
        raise TypeError(f"{(wrong or ['dtype'])[0]} is of another type")
    return made


def damaged(path: Path, what: str) -> UserError:
    """The error for a file that differs from what was written."""
    return UserError(f"{path} is damaged ({what}): delete it and run the same command (or `nano3 data prepare`) again")


def finished_shards(folder: Path) -> list[ShardMeta]:
    """Metas of the complete shards from 0 on, up to the first missing one."""
    metas: list[ShardMeta] = []
    while True:
        number = len(metas)
        meta = read_meta(folder, number)
        if meta is None or not all(shard_path(folder, number, suffix).is_file() for suffix in ("bin", "idx")):
            return metas
        metas.append(meta)


def check_out(folder: Path) -> None:
    """Raise UserError for a folder that holds something other than prepared data, finished or not."""
    if not any((place / PLAN).is_file() for place in (folder, *folder.glob("*/"))):
        check_free(folder)


def is_prepared(folder: Path) -> bool:
    """Whether a folder says it is a complete prepared folder."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Contents of manifest.json.

    Raises:
        UserError: not a prepared folder, or one of another version of nano3.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(_not_prepared(folder))
    try:
        table = parse_json(path.read_bytes())
    except ValueError as error:
        raise damaged(path, "it is not what was written") from error
    try:
        if table.get("format") != FORMAT:
            raise UserError(
                f"{path} has format {table.get('format')!r}, this nano3 reads {FORMAT!r}: prepare the data again"
            )
        return _typed(Manifest, table)
    except (TypeError, AttributeError) as error:
        raise damaged(path, "it is not what was written") from error


def _not_prepared(folder: Path) -> str:
    """What a folder is instead of a prepared one, and what to do."""
    if not folder.exists():
        return f"{folder}: no such folder; `nano3 data prepare PATHS --out {folder}` would make it"
    if not folder.is_dir():
        return f"{folder} is a file: `nano3 data prepare {folder} --out DIR` makes a prepared folder of a text"
    if (folder / PLAN).is_file():
        return f"{folder} is not prepared to its end: give the command that began it again"
    if inner := [str(place.parent) for place in sorted(folder.glob(f"*/{MANIFEST}"))]:
        return f"{folder} holds several prepared folders: name one of {', '.join(inner)}"
    if (folder / CURATION).is_file():
        shown = f"`nano3 data report {folder}` shows it"
        return f"{folder} is curated, not prepared: {shown}, `nano3 data prepare {folder} --out DIR` prepares it"
    return f"{folder} holds no prepared data: `nano3 data prepare {folder} --out DIR` makes it of texts"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Mark a folder as complete."""
    write_atomic(folder / MANIFEST, (json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n").encode())


class ShardFolder:
    """The documents of a complete prepared folder, by number, memory-mapped.

    Attributes:
        lengths: (documents,) int64, tokens of each document.
        n_bytes: (documents,) int64, bytes of its text.
        hashes: (documents,) uint64, hash of its text.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open and verify.

        Raises:
            UserError: no prepared folder, or a shard that is missing, cut short or changed (the message names it).
        """
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._shards = [_Shard(self.folder, number) for number in range(self.manifest.shards)]
        self._first = np.cumsum([0, *(len(shard.ends) for shard in self._shards)])
        self.lengths = _joined([np.diff(shard.ends, prepend=0) for shard in self._shards], np.int64)
        self.n_bytes = _joined([shard.n_bytes for shard in self._shards], np.int64)
        self.hashes = _joined([shard.hashes for shard in self._shards], np.uint64)

    def __len__(self) -> int:
        return int(self._first[-1])

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Ids [start, stop) of one document, a view of the file in its stored type."""
        shard, number = self._locate(document)
        first = int(shard.ends[number - 1]) if number else 0
        last = int(shard.ends[number])
        return shard.ids[first + start : last if stop is None else min(first + stop, last)]

    def name(self, document: int) -> str:
        """Name of one document."""
        shard, number = self._locate(document)
        return shard.name(number)

    def _locate(self, document: int) -> tuple[_Shard, int]:
        shard = int(np.searchsorted(self._first, document, side="right")) - 1
        return self._shards[shard], document - int(self._first[shard])


class _Shard:
    """One verified shard."""

    def __init__(self, folder: Path, number: int) -> None:
        meta = read_meta(folder, number)
        if meta is None:
            raise damaged(folder / MANIFEST, f"{shard_path(folder, number, 'json').name} is missing")
        dtype = np.dtype(meta.dtype)
        self.ids = _verified(shard_path(folder, number, "bin"), meta.tokens * dtype.itemsize, meta.bin_crc32).view(
            dtype.newbyteorder("<")
        )
        index = _verified(shard_path(folder, number, "idx"), None, meta.idx_crc32)
        columns = index[: meta.documents * INDEX_COLUMNS * 8].view("<u8").reshape(INDEX_COLUMNS, meta.documents)
        self.ends = columns[0].astype(np.int64)
        self.n_bytes, self.hashes, self._name_ends = columns[1], columns[2], columns[3]
        self._names = index[meta.documents * INDEX_COLUMNS * 8 :]

    def name(self, number: int) -> str:
        start = int(self._name_ends[number - 1]) if number else 0
        return self._names[start : int(self._name_ends[number])].tobytes().decode("utf-8", "surrogateescape")


def _verified(path: Path, size: int | None, crc32: int) -> np.ndarray:
    """The bytes of a file, mapped, after a check of size and checksum."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run the same command (or `nano3 data prepare`) again")
    found = path.stat().st_size
    if size is not None and found != size:
        raise damaged(path, f"{found} bytes, {size} expected")
    data = np.memmap(path, dtype=np.uint8, mode="r") if found else np.zeros(0, np.uint8)
    if zlib.crc32(data.data) != crc32:
        raise damaged(path, "checksum differs")
    return np.asarray(data)


def _joined(columns: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(column.astype(dtype) for column in columns)])

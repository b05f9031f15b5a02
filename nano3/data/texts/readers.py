"""Documents from files: plain text, JSON lines and Parquet, each plain, gzip or Zstandard."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nano3.config.typed import nearest
from nano3.data.texts import containers, parts
from nano3.data.texts.compressed import open_bytes
from nano3.data.texts.containers import UnusableError, bare_suffix, json_lines, open_parquet, told_of
from nano3.data.texts.skipped import Skipped
from nano3.reading import decode, is_lfs_pointer, parse_json

VERSION = 2
"""Raised with every change of the texts that files give, so that prepared data are made anew."""
PROBED_RECORDS = 1000
"""Records read before a missing field is taken for a mistake of the user."""

NAMED_FIELDS = 30
"""Fields that are named where a file has no text."""


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    name: str
    """Path below the folder the user named, with the record's number for jsonl and parquet."""
    text: str


class Input(Protocol):
    """A source of documents that comes in one piece: a file, or the embedded corpus."""

    @property
    def name(self) -> str:
        """Name in messages."""
        ...

    @property
    def size(self) -> int:
        """Bytes to read, for the progress bar."""
        ...

    def identity(self) -> str:
        """Text that changes when the content does (for the cache)."""
        ...

    def documents(self, skipped: Skipped) -> Iterator[Document | None]:
        """All documents in order, None in place of each one that is skipped and counted."""
        ...


@dataclass(frozen=True)
class InputFile:
    """One file of the user's."""

    path: Path
    name: str
    text_field: str
    size: int
    mtime_ns: int
    found: bool = False
    """It was found in a folder; else the user named it, and means it to be read."""

    def identity(self) -> str:
        """Absolute path, size, time of change, field, how it is meant, and the version of the readers here."""
        named = "" if self.found else "\0named"
        return f"{self.path.resolve()}\0{self.size}\0{self.mtime_ns}\0{self.text_field}\0{VERSION}{named}"

    def documents(self, skipped: Skipped) -> Iterator[Document | None]:
        """Documents of the file; see `Input`. One that was found in a folder is left out where it cannot be read:
        a damaged one from there on.

        Raises:
            ValueError: a file that the user named is damaged, or has no record with the text field; or the system
                cannot read it.
        """
        before = skipped.copy()
        try:
            yield from self._read(skipped)
        except UnusableError as error:
            if not self.found:
                raise
            if error.whole:
                skipped.reset(before)
            skipped.add(error.reason, name=self.name)
            yield None

    def _read(self, skipped: Skipped) -> Iterator[Document | None]:
        with told_of(self.path):
            yield from _reader(self.path)(self, skipped)


def usable_text(data: bytes | str, skipped: Skipped, name: str = "") -> str | None:
    """Text of a document, or None (and counted, with its name) when it is not UTF-8 or has nothing but white space."""
    try:
        if isinstance(data, bytes):
            text = decode(data)
        else:
            data.encode("utf-8")
            text = data.removeprefix("\ufeff")
    except UnicodeError:
        skipped.add("not UTF-8", name=name)
        return None
    if not text.strip():
        skipped.add("empty", name=name)
        return None
    return text


def _documents(name: str, data: str | bytes, skipped: Skipped) -> Iterator[Document | None]:
    """The document of a record, or several where it is too long for one; see nano3.data.texts.parts."""
    text = usable_text(data, skipped, name)
    if text is None:
        yield None
    elif len(text) <= parts.LONGEST:
        yield Document(name, text)
    else:
        for number, part in enumerate(parts.text_parts(text, parts.LONGEST), start=1):
            yield Document(f"{name} part {number}", part)


def _read_text(file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    with open_bytes(file.path) as stream:
        first, *second = itertools.islice(pieces := parts.byte_parts(stream, parts.LONGEST), 2)
        if not second and is_lfs_pointer(first):
            skipped.add("Git LFS pointers in place of files (git lfs pull)", name=file.name)
            yield None
            return
        if not second:
            yield from _documents(file.name, first, skipped)
            return
        for number, part in enumerate(itertools.chain([first, *second], pieces), start=1):
            yield from _documents(f"{file.name} part {number}", part, skipped)


def _read_jsonl(file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    seen = found = 0
    fields: dict[str, Any] = {}
    for number, line in json_lines(file.path):
        name = f"{file.name}:{number}"
        if line is None:
            skipped.add(f"records longer than {containers.LONGEST_RECORD >> 20} MiB", name=name)
        record = None if line is None else _json_record(line, name, skipped)
        if record is not None:
            seen += 1
            found += isinstance(record.get(file.text_field), str)
            if not found:
                fields |= record
                if seen == PROBED_RECORDS:
                    raise _no_field(file, fields)
            yield from _value_documents(name, record.get(file.text_field), file, skipped)
        else:
            yield None
    if seen and not found:
        raise _no_field(file, fields)


def _json_record(line: bytes, name: str, skipped: Skipped) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except UnicodeDecodeError:
        skipped.add("not UTF-8", name=name)
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        skipped.add("not a JSON object", name=name)
        return None
    return record


def _value_documents(name: str, value: Any, file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    if not isinstance(value, str | bytes):
        skipped.add(f"without a text in {file.text_field!r}", name=name)
        yield None
        return
    yield from _documents(name, value, skipped)


def _no_field(file: InputFile, fields: Mapping[str, Any]) -> UnusableError:
    """The error for a file without texts; `fields` of all its records read so far, with their values or types."""
    name, others = file.text_field, sorted(field for field in fields if field != file.text_field)
    if name in fields:
        what = f"no record has a text in {name!r}, it is {_kind(fields[name])}"
    else:
        close = nearest(name, others) if name != "text" else None  # which the user did not write
        what = f"no record has a field {name!r}" + (f"; did you mean {close!r}?" if close else "")
    more = f" and {len(others) - NAMED_FIELDS} more" if len(others) > NAMED_FIELDS else ""
    listed = f"; other fields: {', '.join(others[:NAMED_FIELDS])}{more} (write {file.path}::FIELD)" if others else ""
    return UnusableError(f"{file.path}: {what}{listed}", f"files without a text in {name!r}", whole=True)


def _kind(value: Any) -> str:
    """What a value is, in words."""
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), f"of type {value}")


def _read_parquet(file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    with open_parquet(file.path) as table:
        fields = {column.name: column.type for column in table.schema_arrow}
        if file.text_field not in fields:
            raise _no_field(file, fields)
        number = found = 0
        for batch in table.iter_batches(batch_size=1024, columns=[file.text_field]):
            for value in _column_values(batch.column(0)):
                number += 1
                found += isinstance(value, str | bytes)
                if not found and number == PROBED_RECORDS:
                    raise _no_field(file, fields)
                yield from _value_documents(f"{file.name}:{number}", value, file, skipped)
        if number and not found:
            raise _no_field(file, fields)


def _column_values(column: Any) -> Iterator[Any]:
    """Values of a column; bytes that are no UTF-8 come as a lone surrogate, which `usable_text` counts."""
    for value in column:
        try:
            yield value.as_py()
        except UnicodeDecodeError:
            yield "\udcff"


Reader = Callable[[InputFile, Skipped], Iterator["Document | None"]]
READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}


def _reader(path: Path) -> Reader:
    return READERS.get(bare_suffix(path), _read_text)

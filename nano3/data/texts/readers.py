"""Documents from files: plain text, JSON lines and Parquet, each plain, gzip or Zstandard."""

from __future__ import annotations

import codecs
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nano3.data.texts import containers, parts
from nano3.data.texts.compressed import open_bytes
from nano3.data.texts.containers import bare_suffix, json_lines, open_parquet, told_of
from nano3.reading import decode, is_lfs_pointer, parse_json

_TEXT_SUFFIXES = """
.txt .md .rst .py .pyi .text .markdown .tex .html .htm .xml .css .csv .tsv .json .yaml .yml .toml
.ini .cfg .c .h .cc .cpp .hpp .cu .cuh .rs .go .java .kt .scala .swift .js .mjs .ts .tsx .jsx .rb
.php .pl .lua .r .jl .sql .sh .bash .zsh .fish .f90 .hs .ml .lean .v .org .adoc .log .srt
"""
TEXT_SUFFIXES = frozenset(_TEXT_SUFFIXES.split())
"""Suffixes read as one document a file when a folder is searched; a file named by the user may have any."""
NAMED = 5
"""Files that are named of those that are left out for one reason."""
UNKNOWN = "files of unknown type"
NO_TEXT = "files without a suffix that are no UTF-8 text"
UNREADABLE = "files and folders that may not be read"
NO_FILE = "links to nothing, pipes and other things that are no files"
LINKED = "links to folders"
OF_FILES = frozenset({UNKNOWN, NO_TEXT, UNREADABLE, NO_FILE, LINKED})
"""Reasons that concern files, found while folders are searched; the others concern documents."""
SNIFFED = 1 << 16
"""Bytes that tell whether a file without a suffix is text."""
VERSION = 2
"""Raised with every change of the texts that files give, so that prepared data are made anew."""
PROBED_RECORDS = 1000
"""Records read before a missing field is taken for a mistake of the user."""


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    name: str
    """Path below the folder the user named, with the record's number for jsonl and parquet."""
    text: str


@dataclass
class Skipped:
    """What was left out, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)
    """The first few names by reason, of files that were left out."""

    def add(self, reason: str, n: int = 1, name: str = "") -> None:
        """Count `n` documents (or one file of that name) left out for a reason."""
        self.counts[reason] += n
        if name and len(named := self.names.setdefault(reason, [])) < NAMED:
            named.append(name)

    def line(self) -> str:
        """`3 empty, 2 files of unknown type (a.pdf, b.pdf)`; empty when nothing was left out."""
        return ", ".join(f"{n} {reason}{self._named(reason, n)}" for reason, n in sorted(self.counts.items()) if n)

    def advice(self) -> str:
        """How to have files read that were left out for their type; empty where none were."""
        by_name = any(self.counts[reason] for reason in (UNKNOWN, NO_TEXT))
        return "; a file that you name itself is read whatever its type" if by_name else ""

    def _named(self, reason: str, n: int) -> str:
        names = ["".join(c if c.isprintable() else "?" for c in name) for name in self.names.get(reason, [])]
        return f" ({', '.join(names)}{', ...' if n > len(names) else ''})" if names else ""


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

    def identity(self) -> str:
        """Absolute path, size, time of change, field, and the version of the readers here."""
        return f"{self.path.resolve()}\0{self.size}\0{self.mtime_ns}\0{self.text_field}\0{VERSION}"

    def documents(self, skipped: Skipped) -> Iterator[Document | None]:
        """Documents of the file; see `Input`.

        Raises:
            ValueError: the compression or the Parquet file is damaged, or no record has the text field.
        """
        with told_of(self.path):
            yield from _reader(self.path)(self, skipped)


def find_files(spec: str, skipped: Skipped) -> list[InputFile]:
    """Files of one source: a file or a folder (searched in sorted order), with `::FIELD` for another text field.

    Raises:
        FileNotFoundError: nothing at that path.
    """
    path, text_field = _split_field(spec)
    if path.is_dir():
        return list(_walk(path, text_field, skipped))
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder at {path}")
    return [_input_file(path, path.name, text_field)]


def is_there(spec: str) -> bool:
    """Whether `find_files` finds a file or folder."""
    return _split_field(spec)[0].exists()


def _split_field(spec: str) -> tuple[Path, str]:
    head, mark, text_field = spec.rpartition("::")
    if mark and head and text_field and not Path(spec).exists():
        return Path(head).expanduser(), text_field
    return Path(spec).expanduser(), "text"


def _walk(root: Path, text_field: str, skipped: Skipped) -> Iterator[InputFile]:
    def unreadable(error: OSError) -> None:
        skipped.add(UNREADABLE, name=_below(root, Path(os.fsdecode(error.filename))))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in [name for name in folders if (Path(folder) / name).is_symlink()]:
            folders.remove(name)
            skipped.add(LINKED, name=_below(root, Path(folder) / name))
        for name in sorted(files):
            if name.startswith("."):
                continue
            path = Path(folder) / name
            reason = _left_out(path)
            if reason:
                skipped.add(reason, name=_below(root, path))
            else:
                yield _input_file(path, path.relative_to(root).as_posix(), text_field)


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else str(root)


def _left_out(path: Path) -> str:
    """Why a file that was found in a folder is not read; empty when it is."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return NO_FILE
        suffix = bare_suffix(path)
        if suffix in TEXT_SUFFIXES or suffix in READERS:
            return ""
        if _SUFFIX.fullmatch(suffix):
            return UNKNOWN
        return "" if _is_text(path) else NO_TEXT
    except PermissionError:
        return UNREADABLE
    except OSError:
        return NO_FILE


def _is_text(path: Path) -> bool:
    """Whether the beginning of a file is UTF-8 text without control characters."""
    try:
        with open_bytes(path) as stream:
            data = stream.read(SNIFFED)
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < SNIFFED)
    except PermissionError:
        raise
    except Exception:  # not UTF-8, or damaged
        return False
    return not _CONTROL.search(text)


def _input_file(path: Path, name: str, text_field: str) -> InputFile:
    found = path.stat()
    return InputFile(path, name, text_field, found.st_size, found.st_mtime_ns)


def usable_text(data: bytes | str, skipped: Skipped) -> str | None:
    """Text of a document, or None (and counted) when it is not UTF-8 or has nothing but white space."""
    try:
        if isinstance(data, bytes):
            text = decode(data)
        else:
            data.encode("utf-8")
            text = data.removeprefix("\ufeff")
    except UnicodeError:
        skipped.add("not UTF-8")
        return None
    if not text.strip():
        skipped.add("empty")
        return None
    return text


def _documents(name: str, data: str | bytes, skipped: Skipped) -> Iterator[Document | None]:
    """The document of a record, or several where it is too long for one; see nano3.data.texts.parts."""
    text = usable_text(data, skipped)
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
            skipped.add("Git LFS pointers in place of files (git lfs pull)")
            yield None
            return
        if not second:
            yield from _documents(file.name, first, skipped)
            return
        for number, part in enumerate(itertools.chain([first, *second], pieces), start=1):
            yield from _documents(f"{file.name} part {number}", part, skipped)


def _read_jsonl(file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    seen = found = 0
    record = None
    for number, line in json_lines(file.path):
        if line is None:
            skipped.add(f"records longer than {containers.LONGEST_RECORD >> 20} MiB")
        record = None if line is None else _json_record(line, skipped)
        if record is not None:
            seen += 1
            found += isinstance(record.get(file.text_field), str)
            if not found and seen == PROBED_RECORDS:
                raise _no_field(file, record)
            yield from _value_documents(f"{file.name}:{number}", record.get(file.text_field), file, skipped)
        else:
            yield None
    if seen and not found:
        raise _no_field(file, record or {})


def _json_record(line: bytes, skipped: Skipped) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except UnicodeDecodeError:
        skipped.add("not UTF-8")
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        skipped.add("not a JSON object")
        return None
    return record


def _value_documents(name: str, value: Any, file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    if not isinstance(value, str | bytes):
        skipped.add(f"without a text in {file.text_field!r}")
        yield None
        return
    yield from _documents(name, value, skipped)


def _no_field(file: InputFile, record: dict[str, Any]) -> ValueError:
    fields = ", ".join(sorted(record)) or "none"
    return ValueError(
        f"{file.path}: no record has a text in {file.text_field!r}; fields there: {fields} (write {file.path}::FIELD)"
    )


def _read_parquet(file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    with open_parquet(file.path) as table:
        if file.text_field not in table.schema_arrow.names:
            raise _no_field(file, dict.fromkeys(table.schema_arrow.names))
        number = found = 0
        for batch in table.iter_batches(batch_size=1024, columns=[file.text_field]):
            for value in _column_values(batch.column(0)):
                number += 1
                found += isinstance(value, str | bytes)
                if not found and number == PROBED_RECORDS:
                    raise _no_field(file, dict.fromkeys(table.schema_arrow.names))
                yield from _value_documents(f"{file.name}:{number}", value, file, skipped)
        if number and not found:
            raise _no_field(file, dict.fromkeys(table.schema_arrow.names))


def _column_values(column: Any) -> Iterator[Any]:
    """Values of a column; bytes that are no UTF-8 come as a lone surrogate, which `usable_text` counts."""
    for value in column:
        try:
            yield value.as_py()
        except UnicodeDecodeError:
            yield "\udcff"


Reader = Callable[[InputFile, Skipped], Iterator["Document | None"]]
_SUFFIX = re.compile(r"\.[a-z][a-z0-9_+-]*")
"""What counts as a suffix: that of Apache-2.0 or notes.1 does not."""
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}


def _reader(path: Path) -> Reader:
    return READERS.get(bare_suffix(path), _read_text)

"""Documents from files: plain text, JSON lines and Parquet, each plain, gzip or Zstandard."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from nano3.reading import decode, parse_json

_TEXT_SUFFIXES = """
.txt .md .rst .py .pyi .text .markdown .tex .html .htm .xml .css .csv .tsv .json .yaml .yml .toml
.ini .cfg .c .h .cc .cpp .hpp .cu .cuh .rs .go .java .kt .scala .swift .js .mjs .ts .tsx .jsx .rb
.php .pl .lua .r .jl .sql .sh .bash .zsh .fish .f90 .hs .ml .lean .v .org .adoc .log .srt
"""
TEXT_SUFFIXES = frozenset(_TEXT_SUFFIXES.split())
"""Suffixes read as one document a file when a folder is searched; a file named by the user may have any."""
COMPRESSED = (".gz", ".zst")
BLANK = b" \t\r\n\xef\xbb\xbf"
"""Bytes of a line without a record: white space, and the byte-order mark at the start of a file."""
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

    def add(self, reason: str, n: int = 1) -> None:
        """Count `n` documents (or files) left out for a reason."""
        self.counts[reason] += n

    def line(self) -> str:
        """`3 empty, 1 not UTF-8`; empty when nothing was left out."""
        return ", ".join(f"{n} {reason}" for reason, n in sorted(self.counts.items()) if n)


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
        try:
            yield from _reader(self.path)(self, skipped)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path} is damaged or cut short ({error}): restore it or leave it out") from error
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("zstandard", "zstd", "pyarrow"):
                raise ValueError(
                    f"{self.path} is damaged or cut short ({error}): restore it or leave it out"
                ) from error
            raise


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
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(files):
            path = Path(folder) / name
            if name.startswith(".") or not path.is_file():
                continue
            suffix = _bare_suffix(path)
            if suffix in TEXT_SUFFIXES or suffix in READERS:
                yield _input_file(path, path.relative_to(root).as_posix(), text_field)
            else:
                skipped.add("files of unknown type")


def _input_file(path: Path, name: str, text_field: str) -> InputFile:
    stat = path.stat()
    return InputFile(path, name, text_field, stat.st_size, stat.st_mtime_ns)


def _bare_suffix(path: Path) -> str:
    """The suffix below .gz or .zst, in lower case."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".zst":
        return io.BufferedReader(_ZstandardFile(path), buffer_size=1 << 20)
    return path.open("rb")


class _ZstandardFile(io.RawIOBase):
    """Content of a Zstandard file of any number of frames; one cut short is an EOFError, not an early end."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = path.open("rb")
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame = self._new_frame()
        self._begun = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._new_frame(), False
            data = data or self._file.read(1 << 18)
            if not data:
                if self._begun:
                    raise EOFError("the last frame has no end")
                return 0
            self._begun = True
            self._ready = memoryview(self._frame.decompress(data))
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


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


def _document(name: str, data: bytes | str, skipped: Skipped) -> Document | None:
    text = usable_text(data, skipped)
    return None if text is None else Document(name, text)


def _read_text(file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    with _open(file.path) as stream:
        yield _document(file.name, stream.read(), skipped)


def _read_jsonl(file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    seen = found = 0
    with _open(file.path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip(BLANK):
                continue
            record = _json_record(line, skipped)
            if record is not None:
                seen += 1
                found += isinstance(record.get(file.text_field), str)
                if not found and seen == PROBED_RECORDS:
                    raise _no_field(file, record)
            yield _json_document(f"{file.name}:{number}", record, file.text_field, skipped)
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


def _json_document(name: str, record: dict[str, Any] | None, text_field: str, skipped: Skipped) -> Document | None:
    return None if record is None else _value_document(name, record.get(text_field), text_field, skipped)


def _value_document(name: str, value: Any, text_field: str, skipped: Skipped) -> Document | None:
    if not isinstance(value, str | bytes):
        skipped.add(f"without a text in {text_field!r}")
        return None
    return _document(name, value, skipped)


def _no_field(file: InputFile, record: dict[str, Any]) -> ValueError:
    fields = ", ".join(sorted(record)) or "none"
    return ValueError(
        f"{file.path}: no record has a text in {file.text_field!r}; fields there: {fields} (write {file.path}::FIELD)"
    )


def _read_parquet(file: InputFile, skipped: Skipped) -> Iterator[Document | None]:
    import pyarrow.parquet as pq

    with _open(file.path) as stream:
        compressed = file.path.suffix.lower() in COMPRESSED
        table = pq.ParquetFile(io.BytesIO(stream.read()) if compressed else stream)
        if file.text_field not in table.schema_arrow.names:
            raise _no_field(file, dict.fromkeys(table.schema_arrow.names))
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[file.text_field]):
            for value in _column_values(batch.column(0)):
                number += 1
                yield _value_document(f"{file.name}:{number}", value, file.text_field, skipped)


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
    return READERS.get(_bare_suffix(path), _read_text)

"""Reader of texts: the files that `nano3 data prepare` reads too, with the fields of their records kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document

from nano3.config.errors import UserError
from nano3.curate.inputs import Unit, file_unit
from nano3.curate.step import Reader
from nano3.data.texts import stdlib_corpus
from nano3.data.texts.compressed import open_bytes
from nano3.data.texts.containers import UnusableError, bare_suffix, json_lines, open_parquet, told_of
from nano3.data.texts.find import find_files
from nano3.data.texts.parts import LONGEST
from nano3.data.texts.readers import Document as InputDocument
from nano3.data.texts.readers import InputFile
from nano3.data.texts.skipped import Skipped
from nano3.reading import decode, parse_json

STDLIB_PARTS = 4
JSON_SUFFIXES = (".jsonl", ".ndjson")
HTML_SUFFIXES = (".html", ".htm")
OWN_KEYS = {"id": str, "metadata": dict}
"""Keys of a record that are no metadata themselves, where they have this type."""
Record = tuple[str, dict[str, Any] | None, str]
"""Name, fields (None: no record) and what to show of one that is none."""


@dataclass(frozen=True)
class ReadSettings:
    """Settings of `read`: none."""


class Read(Reader):
    """Documents of text files (one a file), JSON lines and Parquet (one a record), plain or compressed.

    A record's other fields, and those of its field `metadata`, become the document's metadata.
    """

    Settings = ReadSettings

    @classmethod
    def find(cls, paths: Sequence[str]) -> tuple[list[Unit], str]:
        """Files at the paths; `python-stdlib` is the embedded corpus. See `Reader.find`."""
        units: list[Unit] = []
        skipped = Skipped()
        for spec in paths:
            if spec == stdlib_corpus.NAME and not Path(spec).exists():
                units += _stdlib_units()
            else:
                for file in find_files(spec, skipped):
                    if bare_suffix(file.path) == ".warc":
                        raise UserError(f"{spec} is a WARC file: the step `warc` reads it, in the place of `read`")
                    units.append(file_unit(file.path, file.name, file.text_field, file.found, _root(file)))
        if not units:
            detail = f" ({skipped.line()})" if skipped.line() else ""
            raise UserError(f"no readable file in {', '.join(paths)}{detail}: see docs/data.md for the types")
        return units, skipped.line() + skipped.advice()

    def read(self, unit: Unit) -> Iterator[Document]:
        """The documents of one file."""
        if unit.path == stdlib_corpus.NAME:
            yield from self._stdlib(unit)
            return
        path = Path(unit.path)
        try:
            with told_of(path):
                if bare_suffix(path) in (*JSON_SUFFIXES, ".parquet"):
                    yield from self._records(unit)
                else:
                    yield from self._texts(unit)
        except UnusableError as error:
            if not unit.found:
                raise
            self.drop(self.found("", unit.name), error.reason)

    def _records(self, unit: Unit) -> Iterator[Document]:
        path = Path(unit.path)
        records = _json_records(path) if bare_suffix(path) in JSON_SUFFIXES else _parquet_records(path)
        for number, fields, shown in records:
            name = f"{unit.name}:{number}"
            document = self.found(shown, name) if fields is None else self._document(fields, name, unit)
            if fields is None:
                self.drop(document, "not a JSON object")
            elif reason := self.unusable(fields, unit):
                self.drop(document, reason)
            else:
                yield document

    def unusable(self, fields: dict[str, Any], unit: Unit) -> str:
        """Why a record is no document; empty: it is one."""
        return _unusable(fields.get(unit.field), unit.field)

    def _document(self, fields: dict[str, Any], name: str, unit: Unit) -> Document:
        text = fields.get(unit.field)
        inner = fields.get("metadata")
        # A number is no id, since each file counts from 0: it is kept as what it is, and so are metadata that are text.
        taken = {key for key, form in OWN_KEYS.items() if isinstance(fields.get(key), form) or fields.get(key) is None}
        metadata = {key: value for key, value in fields.items() if key not in (unit.field, *taken)}
        metadata |= inner if isinstance(inner, dict) else {}
        metadata = {key: value for key, value in metadata.items() if not key.startswith("_")}  # which steps write
        own = fields.get("id")
        shown = text if isinstance(text, str) else ""
        return self.found(
            shown.removeprefix("\ufeff"), own if isinstance(own, str) else name, {"source": name, **metadata}
        )

    def _texts(self, unit: Unit) -> Iterator[Document]:
        file = InputFile(Path(unit.path), unit.name, unit.field, unit.size, 0, unit.found)
        if page := _declared_page(file.path):
            yield self.found(page, file.name, {"source": file.name, "_file": unit.path, "_root": unit.root})
            return
        skipped = Skipped()
        named = ((file.name, document) for document in file.documents(skipped))
        yield from self._counted(named, skipped, {"_file": unit.path, "_root": unit.root})

    def _stdlib(self, unit: Unit) -> Iterator[Document]:
        skipped = Skipped()
        named = stdlib_corpus.StandardLibrary().named(skipped)
        yield from self._counted(named, skipped, {"license": "Python-2.0"}, unit.part)

    def _counted(
        self,
        named: Iterable[tuple[str, InputDocument | None]],
        skipped: Skipped,
        metadata: dict[str, Any],
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[Document]:
        """Documents of an input of nano3.data.texts, what it leaves out dropped under the same reasons."""
        number, of = part
        before = skipped.copy()
        for i, (name, document) in enumerate(named):
            if i % of != number:
                pass
            elif document is None:
                reason = next(iter(skipped.counts - before.counts), "unreadable")
                self.drop(self.found("", name), reason)
            else:
                yield self.found(document.text, document.name, {"source": document.name, **metadata})
            before = skipped.copy()


def _declared_page(path: Path) -> str:
    """The text of an HTML file by the encoding that it declares, where it is not UTF-8; empty: read it as others."""
    if bare_suffix(path) not in HTML_SUFFIXES:
        return ""
    with open_bytes(path) as stream:
        data = stream.read(LONGEST + 1)
    if len(data) > LONGEST or data.isascii():
        return ""
    try:
        decode(data)
    except UnicodeDecodeError:
        try:
            from nano3.curate.charset import declared_charset, page_text
        except ImportError:  # resiliparse is not installed, which no other file needs
            return ""
        return page_text(data) if declared_charset(data) else ""
    return ""


def _root(file: InputFile) -> str:
    """The folder that a file was found in, whose name is its path below that; empty for a file that was named."""
    return str(file.path.parents[file.name.count("/")]) if file.found else ""


def _stdlib_units() -> list[Unit]:
    corpus = stdlib_corpus.StandardLibrary()
    identity = corpus.identity()
    return [
        Unit(corpus.name, corpus.name, corpus.size // STDLIB_PARTS, identity, part=(i, STDLIB_PARTS))
        for i in range(STDLIB_PARTS)
    ]


def _json_records(path: Path) -> Iterator[Record]:
    for number, line in json_lines(path):
        try:
            value = None if line is None else parse_json(line)
        except ValueError:
            value = None
        shown = "" if line is None or value is not None else line.decode("utf-8", "replace").rstrip("\n")
        yield str(number), value if isinstance(value, dict) else None, shown


def _parquet_records(path: Path) -> Iterator[Record]:
    number = 0
    with open_parquet(path) as table:
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield str(number), row, ""


def _unusable(text: Any, field: str) -> str:
    """Why a value is no document; empty: it is one."""
    if not isinstance(text, str):
        return f"without a text in {field!r}"
    try:
        text.encode("utf-8")
    except UnicodeError:
        return "not UTF-8"
    return "" if text.strip() else "empty"

"""Records of chat data sets: from jsonl, json and Parquet files, from the hub, and from nano3's own tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.chat.messages import one_line
from nano3.data.texts.compressed import open_bytes
from nano3.data.texts.containers import LONGEST_RECORD, bare_suffix, json_lines, open_parquet, told_of
from nano3.data.texts.find import check_curated, find_files, is_there
from nano3.data.texts.readers import InputFile
from nano3.data.texts.skipped import Skipped
from nano3.reading import decode, parse_json

HUB = "hub:"
"""How a data set of the Hugging Face hub begins."""
_HUB_SPEC = re.compile(r"hub:(?P<name>[^:@]+)(?::(?P<config>[^:@]+))?(?:@(?P<revision>[^:]+))?(?:::(?P<split>.+))?")
BATCH = 256
"""Records of a Parquet file that are held at a time."""


@dataclass(frozen=True)
class Record:
    """One record of a data set."""

    label: str
    """File or data set."""
    number: int
    """From 1; of a jsonl file its line."""
    value: dict[str, Any] | None
    """None where it cannot be read."""
    problem: str = ""
    """Why it cannot."""
    heldout: bool | None = None
    """Whether it is held out, where that is not for its content to decide."""

    @property
    def name(self) -> str:
        """`chats.jsonl:12`."""
        return f"{self.label}:{self.number}"


def read_records(spec: str, skipped: Skipped) -> Iterator[Record]:
    """All records of a file, a folder, or a data set of the hub.

    Args:
        spec: a path, or `hub:ORG/NAME[:CONFIG][@REVISION][::SPLIT]`.
        skipped: counts the files of a folder that are no records.

    Raises:
        FileNotFoundError: nothing at that path.
        UserError: a file that is no record file or damaged, or a data set that cannot be had.
    """
    if spec.startswith(HUB):
        yield from _hub_records(spec)
        return
    found = [file for file in find_files(spec, skipped) if _is_records(file, spec, skipped)]
    if not found:
        raise UserError(f"no records in {spec}: jsonl, json and parquet files are read, plain, .gz or .zst")
    for file in found:
        with told_of(file.path):
            yield from _READERS[bare_suffix(file.path)](file)


def check_spec(spec: str, setting: str) -> None:
    """Raise UserError, naming the setting, where `spec` is no path that exists and no data set of the hub; and for a
    curation that is not finished."""
    if spec.startswith(HUB):
        if not _HUB_SPEC.fullmatch(spec):
            raise UserError(f"{setting}: {spec} is not hub:ORG/NAME[:CONFIG][@REVISION][::SPLIT]")
    elif not is_there(spec):
        raise UserError(f"{setting}: no file or folder at {spec}")
    else:
        check_curated(spec)


def _is_records(file: InputFile, spec: str, skipped: Skipped) -> bool:
    if bare_suffix(file.path) in _READERS:
        return True
    if file.path == Path(spec).expanduser():
        raise UserError(f"{spec} is no file of records: jsonl, json and parquet files are read, plain, .gz or .zst")
    skipped.add("files that hold no records", name=file.name)
    return False


def _jsonl_records(file: InputFile) -> Iterator[Record]:
    for number, line in json_lines(file.path):
        if line is None:
            yield Record(file.name, number, None, f"a line longer than {LONGEST_RECORD >> 20} MiB")
        else:
            yield _parsed(file, number, line)


def _json_records(file: InputFile) -> Iterator[Record]:
    """A list of records in one JSON text, or one record."""
    with open_bytes(file.path) as stream:
        try:
            values = parse_json(decode(stream.read()))
        except ValueError as error:
            raise UserError(f"{file.path}: not valid JSON ({one_line(error)})") from error
    for number, value in enumerate(values if isinstance(values, list) else [values], start=1):
        yield _record(file, number, value)


def _parquet_records(file: InputFile) -> Iterator[Record]:
    number = 0
    with open_parquet(file.path) as table:
        for batch in table.iter_batches(batch_size=BATCH):
            for value in batch.to_pylist():
                number += 1
                yield _record(file, number, value)


def _parsed(file: InputFile, number: int, line: bytes) -> Record:
    try:
        value = parse_json(line)
    except ValueError as error:
        return Record(file.name, number, None, f"not a JSON object: {one_line(error)}")
    return _record(file, number, value)


def _record(file: InputFile, number: int, value: Any) -> Record:
    if not isinstance(value, dict):
        return Record(file.name, number, None, "not a JSON object")
    return Record(file.name, number, value)


def _hub_records(spec: str) -> Iterator[Record]:
    check_spec(spec, "data.sources")
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{spec} needs the package datasets: pip install datasets") from error
    parts = _HUB_SPEC.fullmatch(spec)
    assert parts is not None
    try:
        rows = datasets.load_dataset(
            parts["name"], parts["config"], split=parts["split"] or "train", revision=parts["revision"], streaming=True
        )
        for number, value in enumerate(rows, start=1):
            yield Record(spec.removeprefix(HUB), number, dict(value))
    except Exception as error:
        raise UserError(f"{spec}: the data set cannot be read: {one_line(error)}") from error


_READERS = {".jsonl": _jsonl_records, ".ndjson": _jsonl_records, ".json": _json_records, ".parquet": _parquet_records}

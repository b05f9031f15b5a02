"""Documents on disk, compressed JSON lines, a file a task: between two executors, and as the result."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from nano3.data.texts.compressed import open_bytes

LEVEL = 3


class ShardWriter(PipelineStep):
    """Writes every document that passes; the file takes its name when it is whole."""

    type, name = "nano3", "write"

    def __init__(self, folder: Path, final: bool = False) -> None:
        """A writer of `folder/RANK.jsonl.zst`.

        Args:
            folder: made where it is missing.
            final: for readers outside the pipeline: metadata that begin with an underscore are left out, and a
                document that is a record of its own (`_record`) is written as that.
        """
        super().__init__()
        self.folder, self.final = Path(folder), final

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents."""
        import zstandard

        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{rank:05d}.tmp"
        with temporary.open("wb") as file:
            packed = zstandard.ZstdCompressor(level=LEVEL).stream_writer(file, closefd=False)
            with io.BufferedWriter(packed, buffer_size=1 << 20) as stream:  # type: ignore[arg-type]
                for document in data:
                    stream.write(self._line(document))
                    yield document
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, shard(self.folder, rank))

    def _line(self, document: Document) -> bytes:
        metadata = document.metadata
        if self.final:
            metadata = {key: value for key, value in metadata.items() if not key.startswith("_")}
        if self.final and document.metadata.get("_record"):
            return document.text.encode("utf-8", "surrogatepass") + b"\n"
        value = {"text": document.text, "id": document.id, "metadata": metadata}
        return json_text(value).encode("utf-8", "surrogatepass") + b"\n"


def json_text(value: Any) -> str:
    """JSON that is UTF-8 whatever it holds: halves of surrogate pairs are escaped, as they came in.

    Numbers that JSON has no form for (NaN, infinity) become null; Python's own words for them no other reader takes.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        value = _finite(value)
        text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, default=str)
    return text


def _finite(value: Any) -> Any:
    """A value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ShardReader(PipelineStep):
    """Reads what a `ShardWriter` of the same task wrote."""

    type, name = "nano3", "read again"

    def __init__(self, folder: Path) -> None:
        """A reader of `folder/RANK.jsonl.zst`."""
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents, in the order in which they were written."""
        yield from read_shard(self.folder, rank)


def read_shard(folder: Path, rank: int) -> Iterator[Document]:
    """Documents of one task."""
    with open_bytes(shard(folder, rank)) as stream:
        for line in stream:
            table = json.loads(line.decode("utf-8", "surrogatepass"))
            yield Document(table["text"], table["id"], metadata=table["metadata"])


def shard(folder: Path, rank: int) -> Path:
    """The file of one task."""
    return folder / f"{rank:05d}.jsonl.zst"

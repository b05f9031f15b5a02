"""Reader of conversations: records of chat data sets, which come out as they went in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document

from nano3.config.errors import UserError
from nano3.curate.inputs import Unit
from nano3.curate.shards import json_text
from nano3.curate.steps.read import JSON_SUFFIXES, Read
from nano3.data.texts.containers import bare_suffix


class Conversations(Read):
    """Records of JSON lines and Parquet; a document's text is the record as JSON."""

    def _texts(self, unit: Unit) -> Iterator[Document]:
        kinds = ", ".join((*JSON_SUFFIXES, ".parquet"))
        if not unit.found:
            raise UserError(
                f"{unit.path}: conversations come as {kinds}, not as {bare_suffix(Path(unit.path)) or 'text'}"
            )
        self.drop(self.found("", unit.name), "files without records")
        yield from ()

    def _document(self, fields: dict[str, Any], name: str, unit: Unit) -> Document:
        own = fields.get("id")
        text = json_text(fields)
        return self.found(text, own if isinstance(own, str) else name, {"source": name, "_record": True})

    def unusable(self, fields: dict[str, Any], unit: Unit) -> str:
        """Every record is usable: the steps look into it."""
        return ""

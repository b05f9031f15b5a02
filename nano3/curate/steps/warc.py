"""Reader of crawled pages: WARC files, of which no damaged record stops it or goes uncounted."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document
from fastwarc.warc import ArchiveIterator, WarcRecordType

from nano3.config.checks import check
from nano3.config.errors import UserError
from nano3.curate.charset import page_text
from nano3.curate.inputs import Unit, file_unit
from nano3.curate.step import Reader
from nano3.curate.steps.warc_members import DAMAGED, Member, members

SUFFIXES = (".warc", ".warc.gz")
HTML_TYPES = ("text/html", "application/xhtml+xml", "")


@dataclass(frozen=True)
class WarcSettings:
    """Settings of `warc`."""

    most_bytes: int = 5_000_000
    """Bytes of a page above which it is dropped."""

    def __post_init__(self) -> None:
        check("warc", self, ">=", 1, "most_bytes")


class Warc(Reader):
    """HTML pages of WARC files, as text; metadata `url`, `date` and `source` (file@offset).

    Dropped: damaged and cut records, answers other than 200, what is no HTML, empty, or no text in any encoding.
    """

    Settings = WarcSettings

    @classmethod
    def find(cls, paths: Sequence[str]) -> tuple[list[Unit], str]:
        """WARC files at the paths. See `Reader.find`."""
        units: list[Unit] = []
        others = 0
        for spec in paths:
            path = Path(spec).expanduser()
            if path.is_dir():
                found = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
                warcs = [one for one in found if one.name.lower().endswith(SUFFIXES)]
                others += len(found) - len(warcs)
                units += [file_unit(one, one.relative_to(path).as_posix(), found=True, root=spec) for one in warcs]
            elif path.is_file():
                units.append(file_unit(path))
            else:
                raise FileNotFoundError(f"no file or folder at {spec}")
        if not units:
            raise UserError(
                f"no WARC file (.warc, .warc.gz) in {', '.join(paths)}; a folder of HTML files is read by the step "
                "`read` in the place of `warc`: see docs/curate.md"
            )
        told = "1 file that is no WARC" if others == 1 else f"{others} files that are no WARC"
        return units, told if others else ""

    def read(self, unit: Unit) -> Iterator[Document]:
        """The pages of one file."""
        for member in members(Path(unit.path)):
            source = f"{unit.name}@{member.offset}"
            if member.fault:
                self.drop(self.found("", source), member.fault)
            else:
                yield from self._pages(member, source)

    def _pages(self, member: Member, source: str) -> Iterator[Document]:
        try:
            records = list(
                ArchiveIterator(io.BytesIO(member.data), record_types=WarcRecordType.any_type, parse_http=False)
            )
        except Exception:  # whatever the parser says of what it cannot read
            records = []
        if not records:
            self.drop(self.found("", source), DAMAGED)
        for record in records:
            if record.record_type != WarcRecordType.response:
                self.note("records that are no responses")
                continue
            yield from self._page(member, source)

    def _page(self, member: Member, source: str) -> Iterator[Document]:
        metadata: dict[str, Any] = {"source": source}
        try:
            records = ArchiveIterator(
                io.BytesIO(member.data), record_types=WarcRecordType.response, parse_http=True, auto_decode="all"
            )
            record = next(iter(records))  # its body is gone once the next one is asked for
            name = record.record_id or source
            metadata |= {"url": record.headers.get("WARC-Target-URI", ""), "date": record.headers.get("WARC-Date", "")}
            http = record.http_headers
            body = record.reader.read(self.settings.most_bytes + 1)  # of what was compressed twice, no more
        except Exception:
            self.drop(self.found("", source), "damaged HTTP answer")
            return
        status = http.status_code if http else None
        reason, text = "", ""
        if status != 200:
            reason = f"HTTP status {status}" if status else "no HTTP answer"
        elif (record.http_content_type or "").lower() not in HTML_TYPES:
            reason = "not HTML"
        elif not body.strip():
            reason = "empty page"
        elif len(body) > self.settings.most_bytes:
            reason = "page too large"
        else:
            text = page_text(body, record.http_charset)
            reason = "" if text else "no text in any encoding"
        document = self.found(text, name, metadata)
        if reason:
            self.drop(document, reason)
        else:
            yield document

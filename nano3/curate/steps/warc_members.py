"""Records of a WARC file, one by one: a damaged one costs itself alone, and its place is known."""

from __future__ import annotations

import mmap
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GZIP, WARC = b"\x1f\x8b\x08", b"WARC/"
LARGEST = 256 << 20
"""Bytes of a record above which it is not read."""
FIRST, PIECE = 1 << 14, 1 << 20
"""Bytes to inflate at a time, first few: what lies behind a small record is read for nothing."""
PROBE, LONGEST_HEADER = 1 << 12, 1 << 16
_LENGTH = re.compile(rb"\r?\nContent-Length:[ \t]*(\d{1,18})\b", re.IGNORECASE)
_HEADER_END = re.compile(rb"\r?\n\r?\n")
DAMAGED, CUT, TOO_LARGE = "damaged record", "record cut short", "record too large"


@dataclass(frozen=True)
class Member:
    """A record, or what is wrong in its place."""

    offset: int
    """In the file as it lies on disk."""
    data: bytes = b""
    fault: str = ""


def members(path: Path) -> Iterator[Member]:
    """All records of a file, gzip (a member each) or plain; after a damaged one it goes on at the next that is whole.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield from _gzip_members(data) if data[:2] == GZIP[:2] else _plain_records(data)


def _gzip_members(data: mmap.mmap) -> Iterator[Member]:
    place = 0
    while place < len(data):
        raw, end, fault = _inflate(data, place)
        if fault:
            yield Member(place, fault=fault)
            place = _next_member(data, place + 1)
        else:
            yield from (Member(place, one.data, one.fault) for one in _plain_records(raw))
            place = end


def _inflate(data: mmap.mmap, place: int) -> tuple[bytes, int, str]:
    """Content of the gzip member at a place, where the next one begins, and what is wrong with it."""
    inflate = zlib.decompressobj(31)
    pieces: list[bytes] = []
    size, at, length = 0, place, FIRST
    try:
        while not inflate.eof and at < len(data):
            piece = data[at : at + length]
            at, length = at + len(piece), min(4 * length, PIECE)
            pieces.append(inflate.decompress(piece, LARGEST + 1 - size))
            size += len(pieces[-1])
            if size > LARGEST:
                return b"", at, TOO_LARGE
    except zlib.error:
        return b"", at, DAMAGED
    if not inflate.eof:
        return b"", at, CUT
    return b"".join(pieces), at - len(inflate.unused_data), ""


def _next_member(data: mmap.mmap, place: int) -> int:
    """Where the next gzip member begins whose content begins a record; the end where there is none."""
    while (place := data.find(GZIP, place)) >= 0:
        try:
            if zlib.decompressobj(31).decompress(data[place : place + PROBE], len(WARC)) == WARC:
                return place
        except zlib.error:
            pass
        place += 1
    return len(data)


def _plain_records(data: bytes | mmap.mmap) -> Iterator[Member]:
    """Records by their own lengths; where one does not begin or has no length, the next line that begins one."""
    place = 0
    while place < len(data):
        while data[place : place + 1] in (b"\r", b"\n"):
            place += 1
        if place >= len(data):
            return
        end, fault = _record_end(data, place)
        yield Member(place, b"" if fault else bytes(data[place:end]), fault)
        place = end


def _record_end(data: bytes | mmap.mmap, place: int) -> tuple[int, str]:
    following = data.find(b"\n" + WARC, place + 1, place + LONGEST_HEADER)
    header = _HEADER_END.search(data, place, following + 1 if following >= 0 else place + LONGEST_HEADER)
    length = _LENGTH.search(data, place, header.start()) if header else None
    if data[place : place + len(WARC)] != WARC or header is None or length is None:
        return _next_record(data, place), DAMAGED
    end = header.end() + int(length[1])
    if end > len(data):
        return _next_record(data, place), CUT
    return end, TOO_LARGE if end - place > LARGEST else ""


def _next_record(data: bytes | mmap.mmap, place: int) -> int:
    following = data.find(b"\n" + WARC, place + 1)
    return following + 1 if following >= 0 else len(data)

"""Files of a sandbox as a tar archive in memory, written and read without trust in what is inside.

A program can write the archive in place of tar: the shell that starts it runs as the same user and holds the way out.
So reading takes bounded memory and time whatever the bytes are.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from nano3.config.errors import UserError

MOST_ENTRIES = 10_000
LONGEST_PATH, LONGEST_NAME = 4000, 255
"""Bytes of a whole path and of one name in it that Linux takes."""
PAGE = 4096
"""Bytes that a file in memory takes at a time."""
_TYPES = {
    "file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
}  # fmt: skip
_KINDS = {kind: name for name, kind in _TYPES.items()} | {tarfile.AREGTYPE: "file"}


@dataclass(frozen=True)
class Entry:
    """One file, folder, link or pipe."""

    kind: Literal["file", "folder", "symlink", "hardlink", "fifo"] = "file"
    content: bytes = b""
    """Of a file."""
    target: str = ""
    """Of a link: of a hard link the path of an entry before it."""
    mode: int = 0o644
    """Permissions."""
    modified: int = 0
    """Seconds since 1970."""


def pack(files: Mapping[str, bytes | Entry]) -> bytes:
    """An archive of path to content of a file, or to an entry of any kind.

    Raises:
        UserError: a path leads out of the folder.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, found in files.items():
            entry = Entry(content=found) if isinstance(found, bytes) else found
            name = _inside(path)
            if name is None:
                raise UserError(f"sandbox: {path!r} is no path of a file inside the working folder")
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = _TYPES[entry.kind], entry.target, len(entry.content)
            info.mode, info.mtime = entry.mode, entry.modified
            archive.addfile(info, io.BytesIO(entry.content))
    return buffer.getvalue()


def unpack(data: bytes, folder_bytes: int, file_bytes: int) -> dict[str, Entry]:
    """Path to entry of all in an archive but devices; what it holds can be packed and unpacked again.

    Args:
        data: the archive.
        folder_bytes: that its files may have together.
        file_bytes: that one of them may have.

    Raises:
        ValueError: it is damaged, holds too much, or holds what no folder can.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            return _entries(archive, folder_bytes, file_bytes)
    except ValueError:
        raise
    except Exception as error:  # of many kinds, for bytes that no tar wrote
        raise ValueError(f"damaged archive: {error}") from error


def contents(entries: Mapping[str, Entry]) -> dict[str, bytes]:
    """Path to content of the files, those too that are reached by a hard link."""
    found: dict[str, bytes] = {}
    for path, entry in entries.items():
        if entry.kind == "file":
            found[path] = entry.content
        elif entry.kind == "hardlink" and entry.target in found:
            found[path] = found[entry.target]
    return found


def _entries(archive: tarfile.TarFile, folder_bytes: int, file_bytes: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    left = folder_bytes
    for info in _bounded(archive):
        path, kind = _inside(info.name), _KINDS.get(info.type)
        if posixpath.normpath(info.name) == "." or (kind is None and not info.issparse()):
            continue
        if path is None or path in entries or _is_below_a_file(path, entries):
            raise ValueError(f"damaged archive: {info.name[:100]!r} is no path of a file of its own")
        # A sparse one declares any size in a few bytes; tar writes none unless it is told to.
        if info.issparse() or not 0 <= info.size <= min(left, file_bytes):
            raise ValueError(f"the files are larger than {folder_bytes} bytes, or one is larger than {file_bytes}")
        stream = archive.extractfile(info) if kind == "file" else None
        content = stream.read() if stream else b""
        if kind == "file" and len(content) != info.size:
            raise ValueError("damaged archive: it ends within a file")
        left -= -(-len(content) // PAGE) * PAGE
        target = _target(info, kind, entries)
        modified = min(max(int(info.mtime), 0), 1 << 32)
        entries[path] = Entry(kind, content, target, info.mode & 0o777, modified)  # pyright: ignore[reportArgumentType]
    return entries


def _target(info: tarfile.TarInfo, kind: str | None, entries: Mapping[str, Entry]) -> str:
    """Of a link; empty for others."""
    if kind not in ("symlink", "hardlink"):
        return ""
    target = posixpath.normpath(info.linkname) if kind == "hardlink" else info.linkname
    known = kind == "symlink" or (target in entries and entries[target].kind != "folder")
    if not known or not 0 < len(target.encode(errors="surrogateescape")) <= LONGEST_PATH or "\0" in target:
        raise ValueError(f"damaged archive: {info.name[:100]!r} is a link to nothing")
    return target


def _bounded(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All headers; a forged one can lead back to one before it."""
    for count, info in enumerate(archive):
        if count >= MOST_ENTRIES:
            raise ValueError(f"more than {MOST_ENTRIES} files")
        yield info


def _inside(path: str) -> str | None:
    """The path, simplified; None where it is none of a file inside the folder."""
    name = posixpath.normpath(path)
    if posixpath.isabs(path) or name == "." or name.split("/")[0] == ".." or "\0" in name:
        return None
    encoded = name.encode(errors="surrogateescape")
    return name if len(encoded) <= LONGEST_PATH and max(map(len, encoded.split(b"/"))) <= LONGEST_NAME else None


def _is_below_a_file(path: str, entries: Mapping[str, Entry]) -> bool:
    above = posixpath.dirname(path)
    while above:
        if above in entries and entries[above].kind != "folder":
            return True
        above = posixpath.dirname(above)
    return False

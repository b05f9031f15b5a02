"""Files of a sandbox as a tar archive in memory, written and read without trust in what is inside."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Mapping

from nano3.config.errors import UserError

MOST_FILES = 10_000


def pack(files: Mapping[str, bytes]) -> bytes:
    """An archive of path to content.

    Raises:
        UserError: a path leads out of the folder.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            if posixpath.isabs(path) or posixpath.normpath(path).startswith("..") or posixpath.normpath(path) == ".":
                raise UserError(f"sandbox: {path!r} is no path of a file inside the working folder")
            entry = tarfile.TarInfo(posixpath.normpath(path))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """Path to content of the regular files in an archive; links, devices and pipes are left out.

    Raises:
        ValueError: it is damaged or holds too many files.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for entry in archive:
                if len(files) >= MOST_FILES:
                    raise ValueError(f"more than {MOST_FILES} files")
                content = archive.extractfile(entry) if entry.isreg() else None
                if content is not None:
                    files[posixpath.normpath(entry.name)] = content.read()
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ValueError(f"damaged archive: {error}") from error
    return files

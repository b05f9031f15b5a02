"""Files of records, JSON lines and Parquet, opened in bounded memory, and what is told of a damaged file."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.config.errors import UserError
from nano3.data.texts.compressed import COMPRESSED, open_bytes

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

LONGEST_RECORD = 1 << 28
"""Bytes of a line of JSON above which it is left out: reading it would take many times as much memory."""
BLANK = b" \t\r\n\xef\xbb\xbf"
"""Bytes of a line without a record: white space, and the byte-order mark at the start of a file."""
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
CUT_RECORDS = "files damaged or cut short, read as far as they go"
CUT_TEXT = "files damaged or cut short"
"""Reasons: records before the damage are whole, half a text is no document."""


class UnusableError(UserError):
    """A file that cannot be read, or not to its end.

    Attributes:
        reason: what it is counted under where it is left out.
        whole: nothing of it was read; it counts as one, in place of its records.
    """

    def __init__(self, message: str, reason: str, whole: bool = False) -> None:
        super().__init__(message)
        self.reason, self.whole = reason, whole


def json_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Number, from 1, and bytes of each line that is not blank; None in place of one longer than LONGEST_RECORD."""
    number = 0
    with open_bytes(path) as stream:
        while line := stream.readline(LONGEST_RECORD):
            number += 1
            whole = len(line) < LONGEST_RECORD or line.endswith(b"\n")
            while line and not line.endswith(b"\n") and not whole:
                line = stream.readline(1 << 20)
            if not whole:
                yield number, None
            elif line.strip(BLANK):
                yield number, line


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetFile]:
    """A Parquet file, unpacked to a temporary file where its name ends in .gz or .zst."""
    import pyarrow.parquet as pq

    with open_bytes(path) as stream, ExitStack() as stack:
        if path.suffix.lower() in COMPRESSED:
            unpacked = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, unpacked, 1 << 20)
            unpacked.seek(0)
            stream = unpacked
        yield pq.ParquetFile(stream)


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Makes one line, with the file's path, of the errors that its compression and its format raise.

    Raises:
        UnusableError: the file is damaged or of an unknown form.
        ValueError: it cannot be read.
    """
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        # pyarrow reports damaged pages so, without a number of the operating system's.
        if error.errno is None:
            raise _damaged(path, error) from error
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("zstandard", "zstd", "pyarrow"):
            raise _damaged(path, error) from error
        raise


def _damaged(path: Path, error: Exception) -> UnusableError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, NotImplementedError):
        what = f"is of a form that cannot be read here ({reason}): write it otherwise"
        return UnusableError(f"{path} {what}", "files of a form that cannot be read here")
    what = f"is damaged or cut short ({reason}): restore it or leave it out"
    return UnusableError(f"{path} {what}", CUT_RECORDS if bare_suffix(path) in RECORD_SUFFIXES else CUT_TEXT)


def bare_suffix(path: Path) -> str:
    """The suffix below .gz or .zst, in lower case."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix

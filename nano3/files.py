"""Writing files and folders so that a reader never sees half of one."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from nano3.config.errors import UserError
from nano3.locks import try_lock

LOCK, LOOKS, LOOK_SECONDS = ".lock", 5, 0.05
IN_USE_LOOKS, IN_USE_SECONDS = 3, 0.01
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF)
"""How a file system says that it has no locks."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def fsync(path: Path) -> None:
    """Flush one file or folder to disk; Windows flushes files only, and those that are open for writing."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` to a temporary name beside `path`, flush it, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def check_writable(path: Path, option: str = "") -> None:
    """Refuse a folder, or a file's place, that could not be made or written into; nothing is left behind.

    Args:
        path: a folder that is there or to be made.
        option: what the error calls it beside its path: `--out`.

    Raises:
        UserError: why not. Worth a look before hours of work, not a promise: the disk may be full by then.
    """
    there = path.absolute()
    while not os.path.lexists(there):
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        where = "" if there == path.absolute() else f", in {there}"
        reason = (error.strerror or "cannot be used").lower()
        raise UserError(f"{f'{option} ' if option else ''}{path}: cannot be written{where}: {reason}") from error


def check_free(folder: Path, option: str = "--out", own: Collection[str] = ()) -> None:
    """Refuse a folder that holds files among which, or over which, new ones must not be written.

    Args:
        folder: there or not.
        option: what the error calls it beside its path.
        own: names that may be there; hidden files may in any case.

    Raises:
        UserError: what it holds, and what to do.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    if others := sorted(name for name in names if not name.startswith(".") and name not in own):
        shown = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        raise UserError(f"{option} {folder}: holds other files ({shown}): give a new or an empty folder")


@contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """Give the file that the block writes the mode of any other new one; safetensors writes files that only their
    owner may read."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` when the block ends without an error.

    At every moment `path` is the old folder or the new one, both complete. (On a file system that cannot exchange two
    names it may be absent after a crash; the next call brings the old one back.) What killed processes left is removed.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with _in_use(temporary):
            yield temporary
            for entry in [*temporary.rglob("*"), temporary]:
                fsync(entry)
            temporary.chmod(0o755)
            _replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # After an exchange of names this is the folder that was replaced.
    shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` for what is needed until `path` is written; it is removed at the end, and that of a
    killed process by the next `atomic_folder(path)`."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with _in_use(temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    if not path.exists():
        os.rename(new, path)
    elif not _exchange(new, path):
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(old, path)
            raise
        fsync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    fsync(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, TypeError):  # not Linux; Windows has no library of the process itself
        return False
    if rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _tidy(path: Path) -> None:
    """Finish or undo what processes that were killed while they replaced `path` left beside it."""
    name = re.escape(path.name)
    for entry in list(path.parent.iterdir()):
        if re.fullmatch(rf"\.{name}\.\d+\.old", entry.name):
            if path.exists():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                os.rename(entry, path)
        elif re.fullmatch(rf"\.{name}\.\w+\.tmp", entry.name) and entry.is_dir():
            with suppress(FileNotFoundError), _in_use(entry) as free:
                if free:
                    shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _in_use(folder: Path) -> Iterator[bool]:
    """Try to hold the lock that marks a folder as some living process's, and say whether that went well.

    The system frees the lock of a killed process, also one on another machine or in another container. Where folders
    have no locks (some network file systems, Windows) the answer is no, and nothing is ever taken for abandoned.
    """
    with ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            held = try_lock(descriptor)
        except FileNotFoundError:
            raise
        except OSError:
            held = False
        yield held


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; the system lets go of it when the process ends, however it ends.

    Where the file system has no locks, nothing is held and nothing refused; a line on stderr says so.

    Raises:
        UserError: another process holds it, or it cannot be told whether one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w", encoding="utf-8") as file:
        try:
            # Whoever only looks (`in_use`) holds it for a moment.
            free = _is_free(file.fileno(), LOOKS, LOOK_SECONDS)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno not in NO_LOCKS:
                raise UserError(
                    f"{folder} cannot be locked against other processes ({reason}): try again, or choose a folder on "
                    "another file system"
                ) from error
            print(f"{folder} has no locks ({reason}): let no other process write there", file=sys.stderr, flush=True)
            free = True
        if not free:
            raise UserError(f"{folder} is in use by another process: wait for it, or choose another folder")
        yield


def in_use(folder: Path) -> bool:
    """Whether a living process holds `folder` with `exclusive`; no where that cannot be told."""
    try:
        # Some network file systems lock only what is open for writing, which a reader may not be allowed.
        with _open_first(folder / LOCK, "r+", "r") as file:
            return not _is_free(file.fileno(), IN_USE_LOOKS, IN_USE_SECONDS)
    except OSError:
        return False


def _open_first(path: Path, *modes: str) -> IO[str]:
    """The file in the first of the modes that is allowed: by its owner, and by the file system."""
    for mode in modes[:-1]:
        with suppress(OSError):
            return path.open(mode, encoding="utf-8")
    return path.open(modes[-1], encoding="utf-8")


def _is_free(descriptor: int, looks: int, seconds: float) -> bool:
    """Whether the lock was or came free within some looks; it is held until the file is closed.

    Raises OSError as `try_lock` does."""
    return any(try_lock(descriptor) or time.sleep(seconds) for _ in range(looks))

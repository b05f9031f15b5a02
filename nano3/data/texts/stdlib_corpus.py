"""The embedded corpus `python-stdlib`: sources and texts of the running Python's standard library.

Real text, about 12 MB, that is on every machine nano3 runs on. The same Python version gives the same documents
wherever it is installed: names are relative, and files that hold paths of the installation are left out.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from nano3.data.texts.readers import Document, usable_text
from nano3.data.texts.skipped import Skipped

NAME = "python-stdlib"
SUFFIXES = (".py", ".txt", ".rst")
LEFT_OUT_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled", "lib-dynload"}
)
LEFT_OUT_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "config-")
TOPICS_FILE = "pydoc_data/topics.py"
SMALLEST = 1_000_000


class StandardLibrary:
    """All documents of the corpus as one input."""

    name = NAME

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or sysconfig.get_paths()["stdlib"])

    @cached_property
    def _files(self) -> list[tuple[str, bytes]]:
        """Relative name and content of every file, sorted by name.

        Raises:
            ValueError: this Python comes without its sources.
        """
        files = sorted(_find(self.root))
        contents = [(name, (self.root / name).read_bytes()) for name in files]
        if sum(len(data) for _, data in contents) < SMALLEST:
            raise ValueError(
                f"this Python has no standard library sources at {self.root}: give texts of your own in data.sources"
            )
        return contents

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(data) for _, data in self._files)

    def identity(self) -> str:
        """Python version and a hash of names and contents."""
        digest = hashlib.blake2b(digest_size=16)
        for name, data in self._files:
            digest.update(f"{name}\0{len(data)}\0".encode())
            digest.update(data)
        return f"{NAME} {platform.python_version()} {digest.hexdigest()}"

    def documents(self, skipped: Skipped) -> Iterator[Document | None]:
        """One document a file, then one for each help topic of pydoc."""
        for _, document in self.named(skipped):
            yield document

    def named(self, skipped: Skipped) -> Iterator[tuple[str, Document | None]]:
        """The same, each behind its name; None for one that is left out."""
        for name, data in self._files:
            if name != TOPICS_FILE:
                yield _named(name, data, skipped)
        yield from self._topics(skipped)

    def _topics(self, skipped: Skipped) -> Iterator[tuple[str, Document | None]]:
        source = dict(self._files).get(TOPICS_FILE)
        if source is None:
            return
        scope: dict[str, dict[str, str]] = {}
        exec(compile(source, TOPICS_FILE, "exec"), scope)
        for topic, data in sorted(scope["topics"].items()):
            yield _named(f"pydoc_data/topics/{topic}.txt", data, skipped)


def _named(name: str, data: bytes | str, skipped: Skipped) -> tuple[str, Document | None]:
    text = usable_text(data, skipped)
    return name, None if text is None else Document(name, text)


def _find(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in LEFT_OUT_FOLDERS and not f.startswith(LEFT_OUT_PREFIXES)]
        for name in files:
            if name.endswith(SUFFIXES) and not name.startswith(LEFT_OUT_PREFIXES):
                yield (Path(folder) / name).relative_to(root).as_posix()

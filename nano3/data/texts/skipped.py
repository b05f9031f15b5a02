"""What is left out of the texts of a run, counted by reason and named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

NAMED = 5
"""Files that are named of those that are left out for one reason."""
UNKNOWN = "files of unknown type"
NO_TEXT = "files without a suffix that are no UTF-8 text"
UNREADABLE = "files and folders that may not be read"
NO_FILE = "links to nothing, pipes and other things that are no files"
LINKED = "links to folders"
CURATED = "folders that nano3 data curate wrote, which are read where you name them"
OF_FILES = frozenset({UNKNOWN, NO_TEXT, UNREADABLE, NO_FILE, LINKED, CURATED})
"""Reasons that concern files, found while folders are searched; the others concern documents."""

_SINGULAR = {
    "files and folders that": "file or folder that",
    "files": "file",
    "folders that nano3 data curate wrote, which are read where you name them": "folder that nano3 data curate wrote, "
    "which is read where you name it",
    "links to folders": "link to a folder",
    "links": "link",
    "pipes and other things that are no file": "pipe or other thing that is no file",
    "that are": "that is",
    "that hold ": "that holds ",
    "as far as they go": "as far as it goes",
}


@dataclass
class Skipped:
    """What was left out, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)
    """The first few names by reason, of files and documents that were left out."""

    def add(self, reason: str, n: int = 1, name: str = "") -> None:
        """Count `n` documents (or one file of that name) left out for a reason."""
        self.counts[reason] += n
        if name and len(named := self.names.setdefault(reason, [])) < NAMED:
            named.append(name)

    def copy(self) -> Skipped:
        """What has been left out until now."""
        return Skipped(Counter(self.counts), {reason: list(named) for reason, named in self.names.items()})

    def reset(self, before: Skipped) -> None:
        """Forget what was added after `before`."""
        self.counts.clear()
        self.counts.update(before.counts)
        self.names = before.copy().names

    def __add__(self, other: Skipped) -> Skipped:
        """Both together."""
        names = self.copy().names
        for reason, named in other.names.items():
            names[reason] = [*names.get(reason, []), *named][:NAMED]
        return Skipped(self.counts + other.counts, names)

    def line(self) -> str:
        """`3 empty, 2 files of unknown type (a.pdf, b.pdf)`; empty when nothing was left out."""
        return ", ".join(
            f"{n} {reason if n > 1 else _of_one(reason)}{self._named(reason, n)}"
            for reason, n in sorted(self.counts.items())
            if n
        )

    def advice(self) -> str:
        """How to have files read that were left out for their type; empty where none were."""
        by_name = any(self.counts[reason] for reason in (UNKNOWN, NO_TEXT))
        return "; a file that you name itself is read whatever its type" if by_name else ""

    def _named(self, reason: str, n: int) -> str:
        names = ["".join(c if c.isprintable() else "?" for c in name) for name in self.names.get(reason, [])]
        return f" ({', '.join(names)}{', ...' if n > len(names) else ''})" if names else ""


def _of_one(reason: str) -> str:
    """A reason that speaks of files as it reads for a single one."""
    for many, one in _SINGULAR.items():
        reason = reason.replace(many, one)
    return reason

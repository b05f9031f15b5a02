"""Groups that a profile has measured, written down one by one, so that an interrupted profile goes on with the rest.

Beside the profile lies `.NAME.measured-RANK.jsonl` until it is whole: what decides the rates in the first line, then a
line a group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from nano3.files import write_atomic
from nano3.report import read_lines
from nano3.rl.samples import Group
from nano3.train.world import World


@dataclass(frozen=True)
class MeasuredGroup:
    """What a profile keeps of a group."""

    environment: str
    task: str
    pass_rate: float
    """0 where there is a fault."""
    samples: int
    truncated: int
    """Samples that reached their limit of tokens."""
    fault: str = ""

    @classmethod
    def of(cls, group: Group) -> Self:
        """Of a group that was drawn."""
        cut, rate = sum(sample.truncated for sample in group.samples), 0.0 if group.fault else group.pass_rate
        return cls(group.environment, group.task.id, rate, len(group.samples), cut, group.fault)

    @property
    def key(self) -> tuple[str, str]:
        """Whose it is."""
        return self.environment, self.task


class MeasuredGroups:
    """The groups of one profile, those of an interrupted one of before included.

    Args:
        profile: file that the profile will be written to; None: nothing is written down.
        decided_by: JSON values; what was measured under others is thrown away.
        world: the ranks, each of which writes a file of its own; every rank must call.
    """

    def __init__(self, profile: Path | None, decided_by: Mapping[str, Any], world: World) -> None:
        self._header = json.loads(json.dumps(decided_by))
        self._folder, self._name = (profile.parent, profile.name) if profile else (None, "")
        self._file = None
        self.before: dict[tuple[str, str], MeasuredGroup] = world.from_main(self._read() if world.is_main else {})
        """Of an interrupted profile, without those that had a fault: these are measured again."""
        if self._folder is not None:
            path = self._folder / f".{self._name}.measured-{world.rank}.jsonl"
            # The main rank writes all of them down again, since the number of ranks may be another than before.
            lines = [self._header, *(asdict(group) for group in self.before.values() if world.is_main)]
            write_atomic(path, "".join(f"{json.dumps(line)}\n" for line in lines))
            self._file = path.open("a", encoding="utf-8")

    def add(self, group: MeasuredGroup) -> None:
        """Write one down; it reaches the operating system before this returns."""
        if self._file is not None:
            self._file.write(json.dumps(asdict(group)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file, which stays for the next try."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Remove the files of all ranks: the profile is written."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _read(self) -> dict[tuple[str, str], MeasuredGroup]:
        found: dict[tuple[str, str], MeasuredGroup] = {}
        for path in self._files():
            lines = read_lines(path)
            if lines[:1] != [self._header]:
                continue
            for line in lines[1:]:
                try:
                    group = MeasuredGroup(**line)
                except TypeError:  # no line of such a file
                    continue
                found |= {} if group.fault else {group.key: group}
        return found

    def _files(self) -> Iterator[Path]:
        yield from sorted(self._folder.glob(f".{self._name}.measured-*.jsonl")) if self._folder else ()

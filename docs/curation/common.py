"""What the scripts of this folder share: texts, a run of the command, CPU time, and the line that names the machine."""

import datetime
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nano3.data.texts.compressed import open_bytes
from nano3.data.texts.skipped import Skipped
from nano3.data.texts.stdlib_corpus import StandardLibrary

SHORTEST, LONGEST = 800, 20_000
"""Characters of the texts."""


def machine() -> str:
    """The processor as Linux names it, and the date."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text("utf-8")) if info.is_file() else None
    return f"{found[1] if found else 'unknown processor'}, {os.cpu_count()} cores, {datetime.date.today()}"


def texts() -> list[str]:
    """The standard library's files of the right length."""
    found = (document.text for document in StandardLibrary().documents(Skipped()) if document is not None)
    return [text for text in found if SHORTEST <= len(text) <= LONGEST]


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of some work, in this process and in those that it starts and that end."""
    before = _used()
    work()
    return _used() - before


def _used() -> float:
    """CPU seconds so far, to the microsecond (os.times counts hundredths)."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def curated(pipeline: str, rows: Sequence[dict[str, str]], against: Sequence[dict[str, str]] = ()) -> set[str]:
    """Names of the documents that `nano3 data curate` keeps of some rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "nano3", "data", "curate", "own.toml", "--from", "rows.jsonl", "--out", "out"]
        (folder / "own.toml").write_text(pipeline, "utf-8")
        write_rows(folder / "rows.jsonl", rows)
        if against:
            write_rows(folder / "old.jsonl", against)
            command += ["--against", "old.jsonl"]
        subprocess.run([*command, "--workers", "1"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        names = set()
        for path in (folder / "out" / "data").iterdir():
            with open_bytes(path) as stream:
                names |= {json.loads(line)["id"] for line in stream}
        return names


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

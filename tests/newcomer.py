"""The README's commands, and a newcomer's folder to run them in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
INSTALL = "python3 -m venv"
"""How lines begin that .ci/run and tests/test_wheel.py do: they install."""
OWN = re.compile(r"texts/|runs/(mine|long|two)|story/|--dry-run|nano3 info")
"""In commands that need nothing of the others: tests/test_quickstart_own.py runs these, tests/test_quickstart.py the
others, so that two processes share the time."""
FORM = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}


def printed_commands(own: bool) -> list[str]:
    """Lines of shell on the page, in its order.

    Args:
        own: those that need nothing of the others; else the others.
    """
    lines = re.findall(r"^ {4}((?:nano3|torchrun|python3|source|bash) .*)$", README, re.M)
    return [line for line in lines if not line.startswith(INSTALL) and bool(OWN.search(line)) == own]


def make_folder(made: Path) -> Path:
    """Put the files of the user's that the commands name into a folder."""
    (made / "texts").mkdir()
    for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:80]:
        (made / "texts" / f"{module.stem}.txt").write_bytes(module.read_bytes())
    (made / "letter.txt").write_text("Dear reader, my name is Ada.", "utf-8")
    (made / "person.json").write_text(json.dumps(FORM), "utf-8")
    return made


def environment(folder: Path) -> dict[str, str]:
    """A fresh user's: no cache, no settings of nano3 or OpenMP, so that the commands use each core that other tests
    leave; the commands of this environment come first."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NANO3_", "OMP_", "GOMP_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"XDG_CACHE_HOME": str(folder / "cache"), "PATH": path}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(folder), capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
    return done

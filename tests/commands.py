"""Running `nano3 ARGS...` in the test's own process, which has paid for its imports."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import pytest

from nano3.cli.app import main


@dataclass
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `nano3 ARGS...` here, with `stdin` piped in."""

    def run(*args: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Done(int(end.value.code or 0), out, err)

    return run

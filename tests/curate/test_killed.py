"""The command, killed at random moments with its workers at work: it goes on, leaves the same bytes and no process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nano3.curate.run import CHART

from .test_run import content

SEED, KILLS = 5, 5
STEPS = "".join(
    f'[[step]]\nuse = "{use}"\n' for use in ("read", "length", "redact", "exact-dedup", "near-dedup", "syntax")
)


def command(out):
    return [
        sys.executable, "-m", "nano3", "data", "curate", "own.toml", "--from", "in", "--out", out, "--tasks", "6",
        "--workers", "2",
    ]  # fmt: skip


def processes_of(folder):
    """Living processes that run in a folder."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            here = os.readlink(path / "cwd") == str(folder)
            alive = (path / "stat").read_text("utf-8").rpartition(") ")[2][0] != "Z"
        except OSError:
            continue
        if here and alive and int(path.name) != os.getpid():
            found.add(int(path.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_command_killed_at_random_moments_leaves_what_one_that_was_not_leaves(tmp_path):
    rng = random.Random(SEED)
    (tmp_path / "own.toml").write_text(STEPS)
    (tmp_path / "in").mkdir()
    words = [f"word{i}" for i in range(300)]
    for number in range(6):
        texts = [" ".join(rng.choices(words, k=rng.randrange(400))) for _ in range(120)]
        texts += rng.sample(texts, 30)
        (tmp_path / f"in/{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    started = time.monotonic()
    subprocess.run(command("whole"), cwd=tmp_path, check=True, capture_output=True)
    whole, killed = time.monotonic() - started, 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            command("killed"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(rng.uniform(0.3, 1) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        until = time.monotonic() + 30
        while (left := processes_of(tmp_path)) and time.monotonic() < until:
            time.sleep(0.05)
        assert left == set()
    subprocess.run(command("killed"), cwd=tmp_path, check=True, capture_output=True)
    assert killed > 0
    other, same = content(tmp_path / "killed"), content(tmp_path / "whole")
    assert other.keys() == same.keys()
    assert [name for name in same if name != CHART and other[name] != same[name]] == []

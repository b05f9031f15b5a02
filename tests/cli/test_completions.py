"""The completion scripts in the repository, and what a shell gets to complete."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nano3.cli.completions import scripts, write

FOLDER = Path(__file__).parents[2] / "completions"


def complete(line):
    words = line.split(" ")
    environment = {"_NANO3_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "from nano3.cli.app import main; main()"],
        capture_output=True, text=True, env=os.environ | environment, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_the_scripts_are_fresh(tmp_path):
    write(tmp_path)
    assert {path.name for path in FOLDER.iterdir()} == set(scripts())
    for path in tmp_path.iterdir():
        assert (FOLDER / path.name).read_text() == path.read_text(), "run: python -m nano3.cli.completions"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nano3 pre", ["pretrain"]),
        ("nano3 pretrain --dry", ["--dry-run"]),
        ("nano3 pretrain --preset ph", ["phase1", "phase2"]),
        ("nano3 pretrain --set optimizer.beta", ["optimizer.beta1=", "optimizer.beta2="]),
        ("nano3 info --model b", ["bench-110m"]),
        ("nano3 data prepare --set optimizer.beta", ["optimizer.beta1=", "optimizer.beta2="]),
        ("nano3 data curate tiny --set ", ["read.", "length.", "syntax.", "exact-dedup.", "near-dedup.", "pipeline."]),
        ("nano3 data curate tiny --set length.", ["length.least=", "length.most="]),
        ("nano3 data curate tiny --set pipeline.c", ["pipeline.category="]),
        ("nano3 data curate none --set ", []),
        ("nano3 bench roofline --gpu h", ["h100", "h200"]),
    ],
)
def test_a_shell_completes(line, expected):
    assert complete(line) == expected

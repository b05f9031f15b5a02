"""Runs the checks of this folder under Triton's interpreter.

They need a process of their own: triton reads TRITON_INTERPRET when it is imported, and what it compiles afterwards
works for the interpreter only. The interpreter is wrong about bfloat16, so the checks are of float32 and float16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.any_isa
CHECKS = sorted(map(str, Path(__file__).parent.glob("check_*.py")))


def run(marks: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", marks, *CHECKS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_kernels_equal_the_reference_on_small_cases():
    run("not slow and not gpu")


@pytest.mark.slow
def test_kernels_equal_the_reference_at_odd_sizes():
    run("slow and not gpu")

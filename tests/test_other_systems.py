"""nano3 on systems without Linux's own modules and files: it imports, answers, trains and serves (other_system.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ELSEWHERE = [sys.executable, str(Path(__file__).with_name("other_system.py"))]


def elsewhere(*words: str, cwd: Path) -> str:
    environment = os.environ | {"XDG_CACHE_HOME": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("NANO3_CPU_ISA", None)  # of this processor, which is not asked there
    done = subprocess.run([*ELSEWHERE, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_every_module_imports(tmp_path):
    assert json.loads(elsewhere("--modules", cwd=tmp_path)) == {}


def test_help_and_info_answer(tmp_path):
    assert "pretrain" in elsewhere("--help", cwd=tmp_path)
    info = json.loads(elsewhere("info", "--json", cwd=tmp_path))
    assert info["hardware"]["cores"] == os.cpu_count()
    assert "31,577,937,344" in elsewhere("info", "--model", "nano3-30b-a3b", cwd=tmp_path)


@pytest.mark.slow
def test_a_run_is_trained_saved_and_listed(tmp_path):
    (tmp_path / "own").mkdir()
    for n in range(60):
        (tmp_path / "own" / f"{n}.txt").write_text(
            "\n".join(f"The number after {i} is {i + 1}." for i in range(n, 40 + n))
        )
    settings = [
        "train.tokens=256",
        "train.batch_size=2",
        "train.micro_batch_size=2",
        "data.seq_len=64",
        "heldout.seq_len=64",
    ]
    words = [word for setting in [*settings, "model.vocab_size=300"] for word in ("--set", setting)]
    elsewhere("pretrain", "--data", "own", "--out", "run", *words, cwd=tmp_path)
    (run,) = json.loads(elsewhere("runs", ".", "--json", cwd=tmp_path))["runs"]
    assert (run["state"], run["step"]) == ("finished", 2)


@pytest.mark.slow
def test_a_server_ends_at_a_signal(tmp_path):
    command = [*ELSEWHERE, "serve", "--model", "tiny", "--port", "0", "--memory", "200MiB", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "NANO3_CPU_ISA"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert "url" in json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert "SIGINT: finishing 0 outputs" in stderr


@pytest.mark.parametrize("script", ["import fcntl", "import os; os.sched_getaffinity(0)", "open('/proc/self/status')"])
def test_the_disguise_works(script):
    """nano3's own files are refused what the tests above rely on that they are refused."""
    place = Path(__file__).parents[1] / "nano3" / "x.py"
    code = (
        "import other_system; other_system.hide_unix()\n"
        f"exec(compile({script!r}, {str(place)!r}, 'exec'), {{'__file__': {str(place)!r}}})"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(("ModuleNotFoundError", "AttributeError", "FileNotFoundError"))

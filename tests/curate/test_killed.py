"""The command, ended at random moments with its workers at work: it goes on, leaves the same bytes and no process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nano3.curate.run import CHART, REPORT
from nano3.data.texts.compressed import open_bytes

from .test_run import content

SEED, KILLS, CONCURRENCY, TASKS = 5, 20, 4, 6
PROMPT = "Turn this text around and give nothing else back:\n\n{text}\n"
COMMAND = (  # a shell may have started pytest with SIGINT ignored
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom nano3.cli.app import main; main()"
)
ENDS = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGINT: (130, -signal.SIGINT),
    signal.SIGTERM: (-signal.SIGTERM, 143),
}
"""Signal -> exit codes; Python ends by the signal itself where Ctrl-C comes while it still imports."""


def start(folder, out, workers, url):
    asks = ["--url", url, "--concurrency", str(CONCURRENCY), "--answers", f"answers-{out}"] if url else []
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "data", "curate", "own.toml", "--from", "in", "--out", out, "--tasks",
         str(TASKS), "--workers", str(workers), *asks],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


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


def write_inputs(folder, rng, steps, n):
    (folder / "prompt.txt").write_text(PROMPT)
    lines = [f'[[step]]\nuse = "{use}"\n' + 'prompt = "prompt.txt"\n' * (use == "ask") for use in steps]
    (folder / "own.toml").write_text("".join(lines))
    (folder / "in").mkdir()
    words = [f"word{i}" for i in range(300)]
    for number in range(TASKS):
        texts = [f"{number} {i} " + " ".join(rng.choices(words, k=rng.randrange(100))) for i in range(n)]
        texts += rng.sample(texts, n // 4)
        (folder / f"in/{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def completed(out):
    """Tasks that a run has completed so far, by executor."""
    return sorted(str(path.relative_to(out)) for path in out.glob("work/executors/*/completions/*"))


def ended(folder, out, process, rng, sign):
    """Whether the process was ended by a signal, after some more tasks or answers than before."""
    more, before = rng.randrange(sign != signal.SIGKILL, 4), len(completed(out))  # Python that imports has no code 130
    while process.poll() is None and (not out.is_dir() or len(completed(out)) < before + more):
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.3))
    if process.poll() is None:
        process.send_signal(sign)
    code = process.wait(60)
    until = time.monotonic() + 30
    while (left := processes_of(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == set()
    for path in (out / "data").glob("[0-9]*"):
        with open_bytes(path) as stream:
            assert all(map(json.loads, stream)), "half a file under its final name"
    assert code in (0, *ENDS[sign]), code
    return code != 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "steps",
    [("read", "length", "redact", "exact-dedup", "near-dedup", "syntax"), ("read", "length", "ask", "exact-dedup")],
    ids=["dedup", "requests"],
)
def test_a_command_ended_at_random_moments_leaves_what_one_that_was_not_leaves(tmp_path, model_server, steps, workers):
    rng, asks = random.Random(SEED), "ask" in steps
    model_server.reply, model_server.seconds = (lambda prompt, body: prompt.split("\n\n", 1)[1][::-1]), 0.02
    url = model_server.url if asks else ""
    write_inputs(tmp_path, rng, steps, 40 if asks else 120)
    assert start(tmp_path, "whole", workers, url).wait(120) == 0
    asked = len(model_server.prompts)
    signals = [signal.SIGKILL] * KILLS + [signal.SIGINT, signal.SIGTERM] * 2
    rng.shuffle(signals)
    rounds = 0
    while signals:
        out, kills = f"killed-{rounds}", 0
        model_server.clear()
        while signals and not (tmp_path / out / REPORT).is_file():
            if ended(tmp_path, tmp_path / out, start(tmp_path, out, workers, url), rng, signals[-1]):
                signals.pop()
                kills += 1
        assert start(tmp_path, out, workers, url).wait(120) == 0
        assert asked <= len(model_server.prompts) <= asked + kills * CONCURRENCY
        other, same = content(tmp_path / out), content(tmp_path / "whole")
        assert other.keys() == same.keys()
        assert [name for name in same if name != CHART and other[name] != same[name]] == []
        rounds += 1

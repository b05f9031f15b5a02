"""The command, ended in each part of its work with its workers at work: it goes on, leaves the same bytes and no
process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nano3.curate.manifest import read_manifest
from nano3.curate.run import CHART, REPORT, executor_folder
from nano3.data.texts.compressed import open_bytes

from .test_run import content

SEED, CONCURRENCY, TASKS, ROUNDS = 5, 4, 4, 12
END = "end"
"""The last part, after all executors: the chart and the report."""
PROMPT = "Turn this text around and give nothing else back:\n\n{text}\n"
COMMAND = (  # a shell may have started pytest with SIGINT ignored
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom nano3.cli.app import main; main()"
)
ENDS = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGINT: (130, -signal.SIGINT),
    signal.SIGTERM: (-signal.SIGTERM, 143),
}
"""Signal -> exit codes; Python ends by the signal itself where Ctrl-C comes while it imports, or after the command."""
DEDUP = ("read", "length", "redact", "exact-dedup", "near-dedup", "syntax")
REQUESTS = ("read", "length", "ask", "exact-dedup")


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


def completed(out, name):
    """Tasks of an executor that are complete."""
    return len(list((executor_folder(out, name) / "completions").glob("*")))


def part_of(out, segments):
    """What a run is at: the first executor with tasks that are not complete; empty: it has not begun, or is done."""
    if (out / REPORT).is_file() or not executor_folder(out, next(iter(segments))).is_dir():
        return ""
    return next((name for name, tasks in segments.items() if completed(out, name) < tasks), END)


def is_at(out, segments, part, more):
    """Whether a run is at a part, with so many of its tasks complete."""
    return part_of(out, segments) == part and (part == END or completed(out, part) >= more)


def send(process, sign, reached, later):
    """Send a signal some seconds after a moment, and wait for the end; whether the process was ended by it."""
    while process.poll() is None and not reached():
        time.sleep(0.002)
    time.sleep(later)
    if process.poll() is None:
        process.send_signal(sign)
    code = process.wait(60)
    assert code in (0, *ENDS[sign]), code
    return code != 0


def check_left(folder, out):
    """No process, and no half file under its final name."""
    until = time.monotonic() + 30
    while (left := processes_of(folder)) and time.monotonic() < until:
        time.sleep(0.02)
    assert left == set()
    for path in out.rglob("[0-9]*"):
        if path.parent.name == "stats":
            continue  # datatrove's, which nobody reads; written again with a task that is not complete
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".zst":
            assert path.stat().st_size, "an empty file under its final name"
            with open_bytes(path) as stream:
                assert all(map(json.loads, stream)), "half a file under its final name"


def end_each(folder, out, rng, wanted, signals, begin, segments):
    """Go through a run and end it in each part of `wanted`; the parts in which it was ended."""
    fell = []
    for part in [part for part in (*segments, END) if part in wanted]:
        for _ in range(wanted[part]):
            process, more, later = begin(), rng.randrange(segments.get(part, 1)), rng.uniform(0, 0.05)
            if send(process, signals[-1], lambda: is_at(out, segments, part, more), later):  # noqa: B023 (called here)
                signals.insert(0, signals.pop())
                fell.append(part_of(out, segments))
            check_left(folder, out)
            if (out / REPORT).is_file():
                return fell
    return fell


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("steps", "most"), [(DEDUP, 1), (REQUESTS, 3)], ids=["dedup", "requests"])
def test_a_command_ended_in_each_part_of_its_work_leaves_what_one_that_was_not_leaves(
    tmp_path, model_server, steps, most
):
    rng, asks = random.Random(SEED), "ask" in steps
    model_server.reply, model_server.seconds = (lambda prompt, body: prompt.split("\n\n", 1)[1][::-1]), 0.02
    url = model_server.url if asks else ""
    write_inputs(tmp_path, rng, steps, 30 if asks else 60)
    assert start(tmp_path, "whole", 1, url).wait(120) == 0
    asked, same = len(model_server.prompts), content(tmp_path / "whole")
    segments = read_manifest(tmp_path / "whole").segments
    signals = [signal.SIGKILL] * 4 + [signal.SIGINT, signal.SIGTERM]
    rng.shuffle(signals)
    kills = 0
    for workers in (1, 2):
        wanted = dict.fromkeys(segments, 1) | {END: 1}
        wanted[next(iter(segments))] = most
        for number in range(ROUNDS):
            out = f"killed-{workers}-{number}"
            model_server.clear()
            begin = lambda out=out, workers=workers: start(tmp_path, out, workers, url)  # noqa: E731
            fell = end_each(tmp_path, tmp_path / out, rng, wanted, signals, begin, segments)
            assert begin().wait(120) == 0
            assert asked <= len(model_server.prompts) <= asked + len(fell) * CONCURRENCY
            other = content(tmp_path / out)
            assert other.keys() == same.keys()
            assert [name for name in same if name != CHART and other[name] != same[name]] == []
            kills += len(fell)
            wanted = {part: n - fell.count(part) for part, n in wanted.items() if n > fell.count(part)}
            if not wanted:
                break
        assert wanted == {}, "parts in which no signal fell"
    assert kills >= 10

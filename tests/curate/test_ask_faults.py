"""Language-model steps where servers fail and processes are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest

from nano3.client.asynchronous import ServerGoneError

from .conftest import documents, dropped
from .model_server import Faults, ModelServer

PROMPT = "# Ours.\nTurn this text around and give nothing else back:\n\n{text}\n"
KEY = "sk-secret-of-this-test"


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    return str(path)


def turned(prompt, body):
    """What the scripted model makes of a text."""
    return prompt.split("\n\n", 1)[-1][::-1]


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        pytest.param(150, {"full": 0.10, "malformed": 0.02, "cut": 0.02}, id="without-waits"),
        pytest.param(
            500, {"full": 0.10, "broken": 0.05, "hang": 0.02, "cut": 0.02, "malformed": 0.01},
            id="all", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_every_document_is_accounted_for_and_a_second_run_sends_nothing(
    curate, prompt, tmp_path, monkeypatch, capfd, n, shares
):
    monkeypatch.setenv("NANO3_API_KEY", KEY)
    server = ModelServer(turned, Faults(**shares, retry_after="0.2", seed=3))
    texts = [f"text number {i} of many" for i in range(n)]
    steps, ask = [("ask", {"prompt": prompt, "max_tokens": 64})], {"concurrency": 32, "timeout": 1.5, "deadline": 60.0}
    try:
        report, kept = curate(steps, texts, server=server.url, ask=ask)
        lost = dropped(report, "ask")
        assert set(server.kinds) == {"answered", *shares}
        assert set(lost) <= {"answer cut"}
        assert len(kept) + sum(lost.values()) == n
        assert len(kept) > n - 10
        assert all(row["text"] == texts[int(row["id"][1:])][::-1] for row in kept)
        assert Counter(body["max_tokens"] for body in server.bodies)[128] >= server.kinds["cut"] / 2
        server.clear()
        again, same = curate(steps, texts, server=server.url, ask=ask, out="second")
        assert server.prompts == []
        assert same == kept
        assert again.to_json()["steps"] == report.to_json()["steps"]
    finally:
        server.stop()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in "".join(capfd.readouterr())


def test_what_was_done_before_a_server_was_gone_is_kept(curate, prompt, model_server, tmp_path):
    gone = threading.Event()

    def reply(message, body):
        if len(model_server.prompts) > 25:
            gone.set()
        return (503, "gone") if gone.is_set() else turned(message, body)

    model_server.reply = reply
    texts = [f"text {i}" for i in range(40)]
    steps, ask = [("ask", {"prompt": prompt})], {"concurrency": 4, "deadline": 1.0, "timeout": 1.0}
    with pytest.raises(ServerGoneError, match="run the same command again when it answers: what was done is kept"):
        curate(steps, texts, server=model_server.url, ask=ask)
    model_server.clear()
    model_server.reply = turned
    _, kept = curate(steps, paths=[tmp_path / "texts.jsonl"], server=model_server.url, ask=ask)
    assert [row["text"] for row in kept] == [text[::-1] for text in texts]
    assert len(model_server.prompts) <= 40 - 20


def test_the_command_ends_with_exit_code_3_where_the_server_is_gone(prompt, model_server, tmp_path):
    model_server.reply = lambda message, body: (503, "gone")
    (tmp_path / "texts.txt").write_text("a text\n")
    (tmp_path / "own.toml").write_text(f'[[step]]\nuse = "read"\n[[step]]\nuse = "ask"\nprompt = "{prompt}"\n')
    command = ["data", "curate", "own.toml", "--from", "texts.txt", "--url", model_server.url, "--out", "out"]
    command += ["--deadline", "0.5", "--timeout", "0.5", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", "from nano3.cli.app import main; main()", *command],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"NANO3_API_KEY": KEY},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "no answer for 0.5 s (HTTP 503: gone)" in done.stderr
    assert "Traceback" not in done.stderr
    assert KEY not in done.stdout + done.stderr


def test_an_interrupted_run_ends_at_once(prompt, model_server, tmp_path):
    model_server.reply, model_server.seconds = turned, 0.01
    waiting = threading.Event()

    def draw():
        if len(model_server.prompts) < 20:
            return "answered"
        waiting.set()
        return "hang"

    model_server.draw = draw
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(100)))
    (tmp_path / "own.toml").write_text(f'[[step]]\nuse = "read"\n[[step]]\nuse = "ask"\nprompt = "{prompt}"\n')
    command = ["data", "curate", "own.toml", "--from", "texts.jsonl", "--url", model_server.url, "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        assert waiting.wait(60)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted: the same command goes on where this run ended"
    assert "Traceback" not in errors
    assert "never awaited" not in errors


INTERRUPTIBLE = (  # a shell may have started pytest with SIGINT ignored
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom nano3.cli.app import main; main()"
)
KILLED = """
import json, os, shutil, signal, sys, urllib.request
from pathlib import Path
from nano3.client.cache import AnswerCache
from nano3.curate import run as runs
from nano3.curate.ask.model import Model
from nano3.curate.pipeline import load_pipeline
from nano3.curate.run import plan_run, run_pipeline

pipeline, source, url, folder, concurrency, points = sys.argv[1:]
runs.draw = lambda report, path: path.write_bytes(b"chart")
put = AnswerCache.put

def tell(what):
    body = json.dumps({"messages": [{"role": "user", "content": what}]}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Length": str(len(body))})
    urllib.request.urlopen(request).read()

def forked(out, at):
    "Runs the pipeline in a child; it kills itself before it keeps answer number `at`."
    child = os.fork()
    if not child:
        left = [at]
        def counted(self, *answer):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            put(self, *answer)
        AnswerCache.put = counted
        try:
            limits = {"concurrency": int(concurrency), "timeout": 30.0, "deadline": 30.0}
            model = Model(url, "scripted", answers=out / "answers", **limits)
            run_pipeline(plan_run(load_pipeline(pipeline), out, [source], tasks=2, model=model), 1)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for point in map(int, points.split(",")):
    out = Path(folder) / f"killed-{point}"
    tell(f"round {point}")
    assert forked(out, point) == -signal.SIGKILL
    assert forked(out, 0) == 0
"""


def killed_and_started_again(curate, model_server, prompt, tmp_path, points, concurrency=4):
    """Requests of each round, by message; in each the run was killed before it kept so many answers."""
    model_server.reply, model_server.seconds = turned, 0.01
    source = tmp_path / "in"
    source.mkdir()
    for name in "ab":
        rows = [{"id": f"{name}{i}", "text": f"text {i} of {name}"} for i in range(20)]
        (source / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [("length", {"least": 3}), ("ask", {"prompt": prompt}), ("exact-dedup", {})]
    _, whole = curate(steps, paths=[source], out="whole", tasks=2, server=model_server.url)
    assert len(whole) == 40
    model_server.clear()
    numbers = [concurrency, ",".join(map(str, points))]
    arguments = [tmp_path / "pipeline.toml", source, model_server.url, tmp_path, *numbers]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for point in points:
        assert documents(tmp_path / f"killed-{point}") == whole
        for name in ("report.json", "blend.toml", "data/00000.jsonl.zst", "data/00001.jsonl.zst"):
            assert (tmp_path / f"killed-{point}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    rounds: list[Counter] = []
    for message in model_server.prompts:
        if message.startswith("round "):
            rounds.append(Counter())
        else:
            rounds[-1][message] += 1
    assert len(rounds) == len(points)
    for sent in rounds:
        assert len(sent) == 40
        assert 1 <= sent.total() - 40 <= concurrency


def test_a_killed_run_repeats_no_more_than_what_was_under_way(curate, model_server, prompt, tmp_path):
    killed_and_started_again(curate, model_server, prompt, tmp_path, [7])


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_equals_the_uninterrupted_one(curate, model_server, prompt, tmp_path):
    points = random.Random(5).sample(range(1, 41), 20)
    killed_and_started_again(curate, model_server, prompt, tmp_path, points)


@pytest.mark.slow
def test_a_full_nano3_server_loses_nothing(curate, prompt, tmp_path):
    """`nano3 serve` with a queue of four and a client of 32."""
    server = subprocess.Popen(
        [sys.executable, "-c", "from nano3.cli.app import main; main()", "serve", "--model", "tiny", "--port", "0",
         "--memory", "200MiB", "--max-queue", "4", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert server.stdout
        ready = json.loads(server.stdout.readline())
        from nano3.curate.ask.model import find_model

        url, name, window = find_model(ready["url"])
        assert window > 0
        texts = [f"text number {i}" for i in range(100)]
        steps = [("ask", {"prompt": prompt, "max_tokens": 8})]
        ask = {"concurrency": 32, "name": name, "timeout": 120.0, "deadline": 300.0}
        report, kept = curate(steps, texts, server=url, ask=ask)
        lost = dropped(report, "ask")
        assert len(kept) + sum(lost.values()) == 100
        assert set(lost) <= {"answer cut", "empty answer", "copy of the prompt"}, "an untrained model says anything"
        assert report.steps[1].account.notes["answers of the model"] >= 100
    finally:
        server.kill()
        server.communicate()

"""`nano3 bench serve` from outside."""

import json
import os
import subprocess
import sys

import pytest

from .conftest import WHOLE

RUN = [sys.executable, "-c", "from nano3.cli.app import main; main()", "bench"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("NANO3_")}
SMALL = ["--requests", "6", "--concurrency", "2", "--prompt-tokens", "40", "--output-tokens", "3", "--warmup", "0"]


def bench(*args, **environment):
    return subprocess.run(
        [*RUN, *args], capture_output=True, text=True, env=ENVIRONMENT | environment, check=False, timeout=300
    )


def test_a_table_on_stdout_and_files(scripted, tmp_path):
    scripted.key = "secret"
    done = bench("serve", "--url", scripted.url + "/v1/", *SMALL, "--out", str(tmp_path / "o"), NANO3_API_KEY="secret")
    assert done.returncode == 0, done.stderr
    for word in ("6 answered of 6", "time to first token", "p99", "scripted", "12 of them from the cache"):
        assert word in done.stdout
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"result.json", "requests.jsonl", "latency.png"}
    assert "secret" not in done.stdout + (tmp_path / "o" / "result.json").read_text()


def test_json_is_one_object_with_the_workload(run, scripted):
    scripted.tokenize = False
    done = run("bench", "serve", "--url", scripted.url, *SMALL, "--json", "--endpoint", "completions")
    figures = json.loads(done.out)
    assert figures["completed"] == 6
    assert figures["output_tokens"] == 18
    assert figures["workload"]["lengths"]["prompt"] == 40
    assert figures["notes"] == [line.removeprefix("note: ") for line in done.err.splitlines()]
    assert "no /tokenize" in done.err


def test_a_load_that_nothing_answers_exits_with_1(run, scripted):
    scripted.answer = lambda body, number: (200, ["data: [DONE]\n\n"]) if number else (200, WHOLE)
    done = run("bench", "serve", "--url", scripted.url, *SMALL)
    assert done.code == 1
    assert "stream ended early" in done.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rate", "1", "--concurrency", "2"], ["--rate and --concurrency"]),
        (["--requests", "0"], ["--requests is 0"]),
        (["--endpoint", "embeddings"], ["'embeddings'", "chat or completions"]),
        (["--url", "localhost:8000"], ["localhost:8000", "http://"]),
        (["--url", "http://h:port"], ["http://h:port"]),
        (["--url", "http://127.0.0.1:1"], ["127.0.0.1:1", "is a server running"]),
        (["--dataset", "none.jsonl"], ["none.jsonl"]),
        (["--dataset", __file__, "--prompt-tokens", "3"], ["--dataset", "--prompt-tokens"]),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(run, args, words):
    done = run("bench", "serve", *args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err

"""`nano3 serve` as a process: what it says, how it ends, what it refuses."""

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import httpx2
import pytest
from typer.testing import CliRunner

from nano3.cli.app import app
from nano3.engine.engine import Engine

RUN = [sys.executable, "-c", "from nano3.cli.app import main; main()", "serve"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("NANO3_DEBUG", "NANO3_API_KEYS")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}


@pytest.fixture
def launch():
    """Starts servers of the tiny preset; `launch(*options)` gives (process, what the ready line says)."""
    processes = []

    def launch(*options):
        process = subprocess.Popen(
            [*RUN, "--model", "tiny", "--port", "0", "--memory", "200MiB", "--json", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        return process, json.loads(line)

    yield launch
    for process in processes:
        process.kill()
        process.communicate()


def ask(url, results, **body):
    headers = {"Authorization": "Bearer key"}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=CHAT | body, headers=headers, timeout=300, trust_env=False)
    results.append(answer)


def test_sigterm_lets_accepted_requests_finish(launch):
    process, ready = launch("--api-key", "key", "--served-name", "mine", "--host", "0.0.0.0")
    assert ready["model"] == "mine"
    results = []
    threads = [
        threading.Thread(target=ask, args=(ready["url"], results), kwargs={"max_tokens": 1500, "stream": stream})
        for stream in (False, True)
    ]
    for thread in threads:
        thread.start()
    wait_until_running(ready["url"], 2)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(120)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 0
    assert [result.status_code for result in results] == [200, 200]
    whole = next(result for result in results if "json" in result.headers["content-type"])
    streamed = next(result for result in results if result is not whole)
    assert whole.json()["usage"]["completion_tokens"] == 1500
    assert '"finish_reason":"length"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert stderr.startswith("loading tiny …\n")
    assert f"serving mine at {ready['url']}" in stderr
    assert "random weights" in stderr
    assert "SIGTERM: finishing 2 outputs" in stderr
    assert "warning" not in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_the_end_comes_after_drain_seconds_or_with_the_second_signal(launch):
    process, ready = launch("--drain-seconds", "0.3", "--host", "0.0.0.0")
    results = []
    thread = threading.Thread(target=ask, args=(ready["url"], results), kwargs={"max_tokens": 8000})
    thread.start()
    wait_until_running(ready["url"], 1)
    process.send_signal(signal.SIGINT)
    thread.join(120)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 0
    assert results[0].status_code == 503
    assert "warning: whoever reaches 0.0.0.0" in stderr

    process, ready = launch()
    thread = threading.Thread(target=quietly, args=(ready["url"],))
    thread.start()
    wait_until_running(ready["url"], 1)
    process.send_signal(signal.SIGTERM)
    assert any("finishing 1 output" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    thread.join(120)


def quietly(url):
    with pytest.raises(httpx2.TransportError):
        ask(url, [], max_tokens=8000)


def wait_until_running(url, count):
    import time

    end = time.monotonic() + 120
    while f"nano3_running {count}.0" not in httpx2.get(f"{url}/metrics", trust_env=False).text:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "nothing"], "no such folder"),
        (["--model", "."], "no config.json"),
        (["--model", "tiny", "--memory", "lots"], "--memory lots"),
        (["--model", "tiny", "--memory", "1K"], "raise --memory"),
        (["--model", "tiny", "--dtype", "int8"], "--dtype int8"),
        (["--model", "tiny", "--device", "tpu"], "--device tpu"),
        (["--model", "tiny", "--engine", "other"], "--engine other"),
        (["--model", "tiny", "--log-level", "loud"], "--log-level loud"),
        (["--model", "tiny", "--api-key", ""], "--api-key is empty"),
        (["--model", "tiny", "--api-key-file", "no/file"], "no/file"),
        (["--model", "tiny", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
        (
            ["--model", "tiny", "--host", "0.0.0.0", "--weights-folder", "."],
            "could replace its weights; give --api-key",
        ),
        (["--model", "tiny", "--weights-folder", "no/folder"], "--weights-folder no/folder: no such folder"),
        (["--model", "tiny", "--logprobs-mode", "raw"], "--logprobs-mode raw: not known"),
    ],
)
def test_wrong_options_are_told_in_one_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "--host" not in options:
        options = [*options, "--port", "0"]
    error = CliRunner().invoke(app, ["serve", *options]).exception
    assert isinstance(error, ValueError | OSError)
    assert words in str(error)
    assert "\n" not in str(error)


def test_a_wrong_host_is_not_blamed_on_the_port():
    error = CliRunner().invoke(app, ["serve", "--model", "tiny", "--host", "300.1.1.1"]).exception
    assert "choose another --host" in str(error)


def test_a_base_model_is_served_without_thinking_unless_asked_for(launch, base_folder):
    process, ready = launch("--log-level", "info", "--model", str(base_folder))  # the last --model counts
    model = httpx2.get(f"{ready['url']}/v1/models", trust_env=False).json()["data"][0]
    assert (model["thinking_default"], model["base_model"]) == (False, True)
    assert "continue.js" in httpx2.get(ready["url"], trust_env=False).text
    unknown = httpx2.get(f"{ready['url']}/v1/nothing", trust_env=False).json()["error"]["message"]
    assert unknown == "there is no /v1/nothing; /docs lists what there is"
    results = []
    for more in ({}, {"enable_thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}):
        ask(ready["url"], results, max_tokens=8, temperature=0, **more)
    messages = [result.json()["choices"][0]["message"] for result in results]
    assert [bool(message["content"]) for message in messages] == [True, False, False]
    assert [bool(message.get("reasoning")) for message in messages] == [False, True, True]
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=120)[1]
    assert "is a base model: it has never seen a conversation" in stderr
    assert re.search(r"output 0: \d+ prompt tokens, 8 output tokens, [\d.]+ s, length", stderr)


def test_a_port_in_use_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        error = CliRunner().invoke(app, ["serve", "--model", "tiny", "--port", port]).exception
    assert f"cannot listen on 127.0.0.1 port {port}" in str(error)
    assert "choose another --port" in str(error)


def test_help_shows_how_to_ask():
    text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "120"}).stdout
    for words in (
        "/v1/chat/completions",
        '"messages": [{"role"',
        "--api-key-file",
        "NANO3_API_KEYS",
        "--drain-seconds",
    ):
        assert words in text
    default = inspect.signature(Engine).parameters["max_sequences"].default
    assert f"Default: {default} (chat: 2), fewer where memory is short" in " ".join(text.replace("│", " ").split())

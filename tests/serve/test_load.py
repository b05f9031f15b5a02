"""Two hundred clients at once: no wrong answer, nothing leaked, memory flat; and an end in good order under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nano3.model.hf.folder import save

from .load_clients import COMPLETIONS, Load, pool, streamed, whole
from .load_server import parts

pytestmark = pytest.mark.slow
SERVER = Path(__file__).with_name("load_server.py")
CLIENTS, JOBS, DIFFERENT = 200, 2000, 48
MIB = 1 << 20
MOST_GROWTH = 12 * MIB
"""Of the server's memory between the first half of the load and its end."""


@contextmanager
def serving(arguments, log):
    """A server process that is ready, and its address; one heap for all threads, so that its size means something."""
    with log.open("w") as errors, subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    ) as process:  # fmt: skip
        try:
            line = process.stdout.readline()
            assert line, log.read_text()
            yield process, json.loads(line)["url"]
        finally:
            process.kill()


def metrics(url):
    """Samples of /metrics by name; those with labels added up."""
    found = {}
    for family in text_string_to_metric_families(httpx2.get(f"{url}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def answered(url, status):
    """How many requests were answered so."""
    families = text_string_to_metric_families(httpx2.get(f"{url}/metrics").text)
    samples = [sample for family in families if family.name == "nano3_http_requests" for sample in family.samples]
    return sum(sample.value for sample in samples if sample.labels.get("status") == str(status))


async def answers_alone(url, requests):
    """What each request is answered when nothing runs beside it."""
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        return [await whole(client, path, body) for path, body in requests]


def settle(url):
    """Wait until what was hung up on has been dropped."""
    for _ in range(200):
        found = metrics(url)
        if found["nano3_running"] == found["nano3_waiting"] == found["nano3_queued"] == 0:
            return found
        time.sleep(0.05)
    raise AssertionError(f"something still runs: {found}")


def test_two_thousand_requests(tmp_path):
    requests = pool(seed=1, size=DIFFERENT)
    with serving([str(SERVER)], tmp_path / "log") as (process, url):
        expected = asyncio.run(answers_alone(url, requests))
        load = Load(url, requests, expected, seed=2)
        asyncio.run(load.run(JOBS // 2, CLIENTS))
        settle(url)
        half = psutil.Process(process.pid).memory_info().rss
        asyncio.run(load.run(JOBS // 2, CLIENTS))
        counted = settle(url)
        grown = psutil.Process(process.pid).memory_info().rss - half
        print(f"{dict(load.counts)}, 4xx {dict(load.statuses)}, grown {grown / MIB:.1f} MiB, {counted}")
        assert load.wrong == []
        assert load.counts["refused"] > 0
        assert counted["nano3_preemptions_total"] > 0
        assert counted["nano3_cached_tokens_total"] > 0
        assert grown < MOST_GROWTH
        check_counts(load, url, counted)
        check_nothing_leaked(process)
        assert asyncio.run(answers_alone(url, requests[:8])) == expected[:8]
        assert "Traceback" not in (tmp_path / "log").read_text()


def check_counts(load, url, counted):
    """What the server counted is what the clients saw."""
    answers = {status: answered(url, status) for status in (400, 429, 500)}
    # A client that hangs up before its body is whole has sent a wrong one, or was refused without knowing.
    assert load.statuses[400] <= answers[400] <= load.statuses[400] + load.counts["cut off"]
    refused = load.counts["refused"] + load.statuses[429]
    assert refused <= answers[429] <= refused + load.counts["cut off"]
    assert answers[500] == 0
    for status in set(load.statuses) - {400, 429}:
        assert answered(url, status) == load.statuses[status]
    outputs = counted["nano3_finished_outputs_total"]
    assert outputs >= load.counts["whole"] + load.counts["streamed"]
    assert counted["nano3_request_latency_seconds_count"] == outputs
    assert counted["nano3_output_tokens_total"] >= outputs
    assert counted["nano3_cached_tokens_total"] < counted["nano3_prompt_tokens_total"]


def check_nothing_leaked(process):
    """What is in use after the load is the prefix cache's, and can be freed."""
    process.stdin.write("check\n")
    process.stdin.flush()
    found = json.loads(process.stdout.readline())
    for state in ("before", "after"):
        assert found[state]["running"] == found[state]["waiting"] == 0
    assert found["before"]["slots_used"] == found["kept"] > 0
    assert found["after"]["slots_used"] == 0
    assert found["after"]["pages_used"] == 0


STREAMS, LONG_TOKENS, DRAIN_SECONDS = 64, 150, 120


async def stop_under_load(process, url):
    """Long answers, half of them streamed, all accepted before SIGTERM comes; what they and latecomers get."""
    body = {"prompt": "the lamp", "max_tokens": LONG_TOKENS, "ignore_eos": True, "temperature": 1, "logprobs": 0}
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=DRAIN_SECONDS, limits=limits, trust_env=False) as client:
        read = (streamed, whole)
        tasks = [asyncio.create_task(read[i % 2](client, COMPLETIONS, body | {"seed": i})) for i in range(STREAMS)]
        while (found := await asyncio.to_thread(metrics, url))["nano3_running"] + found["nano3_queued"] < STREAMS:
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        unfinished = sum(not task.done() for task in tasks)
        late = []
        while len(late) < 5:
            late.append(await latecomer(url, body | {"max_tokens": 1}))
            await asyncio.sleep(0.1)
        return await asyncio.gather(*tasks), late, unfinished


async def latecomer(url, body):
    """The status of a request on a connection of its own; `refused` where nobody listens any more."""
    async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        try:
            return (await client.post(COMPLETIONS, json=body)).status_code
        except httpx2.ConnectError:
            return "refused"


def test_sigterm_under_load(tmp_path):
    model, tokenizer = parts()
    save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    command = ["-m", "nano3", "serve", "--model", str(tmp_path / "model"), "--port", "0", "--json", "--memory", "32MiB",
               "--max-sequences", "16", "--max-context", "2000", "--drain-seconds", str(DRAIN_SECONDS)]  # fmt: skip
    with serving(command, tmp_path / "log") as (process, url):
        answers, late, unfinished = asyncio.run(stop_under_load(process, url))
        assert process.wait(DRAIN_SECONDS) == 0
    assert unfinished > 0
    for (answer,) in answers:
        assert answer.finish == "length"
        assert len(answer.tokens) == LONG_TOKENS
    # The signal may take a moment to arrive; from then on nobody is let in.
    assert set(late[1:]) <= {503, "refused"}
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_idle_connections_outlive_those_of_common_clients(server):
    with httpx2.Client(limits=httpx2.Limits(keepalive_expiry=60)) as client:
        opened = []
        for wait in (0, 7):
            time.sleep(wait)
            answer = client.get(f"{server.url}/health/live")
            opened.append(answer.extensions["network_stream"].get_extra_info("client_addr"))
        assert opened[0] == opened[1]

"""`nano3 bench throughput` as a user types it."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from nano3.bench.throughput.report import draw, latency_rows, rate_rows
from nano3.cli.bench.app import app
from nano3.config.errors import UserError
from tests.bench.conftest import DONE, WHOLE, usage


def test_numbers_add_up_and_files_are_there(tmp_path):
    out = tmp_path / "out"
    args = ["throughput", "--model", "tiny", "--isl", "6", "--osl", "4", "--concurrency", "2", "--requests", "3"]
    done = CliRunner().invoke(app, [*args, "--threads", "1", "--dtype", "float32", "--json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads((out / "result.json").read_text())
    assert json.loads(done.stdout) == found
    assert (found["kind"], found["load"], found["auto"], found["seed"]) == ("throughput", {"isl": 6, "osl": 4}, None, 0)
    assert found["versions"]["torch"]
    [case] = found["cases"]
    side = case["sides"]["nano3"]
    assert (side["requests"], side["completed"], side["prompt_tokens"], side["output_tokens"]) == (3, 3, 18, 12)
    seconds = side["seconds"]["median"]
    assert side["output_tokens_per_second"] * seconds == pytest.approx(12)
    assert side["total_tokens_per_second"] * seconds == pytest.approx(30)
    assert side["latency"]["first_token_s"]["max"] <= seconds
    assert 0 < side["share_of_matmul"] < 1.1
    assert (out / "throughput.png").stat().st_size > 5000
    assert [row[:2] for row in rate_rows(found)] == [("2", "nano3")]
    assert [len(row) for row in latency_rows(found)] == [6]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--concurrency", "some"], "--concurrency some"),
        (["--url", "http://127.0.0.1:9", "--dtype", "float32"], "--url measures a server, which has its own"),
        (["--against", "vllm"], "--against vllm: vllm not installed; pip install vllm"),
        (["--concurrency", "8", "--requests", "2"], "--requests 2 are fewer"),
        (["--device", "cpu", "--model", "no-such"], "no-such"),
    ],
)
def test_a_wrong_input_is_told_before_anything_runs(args, words):
    done = CliRunner().invoke(app, ["throughput", *args])
    assert isinstance(done.exception, (UserError, ValueError))
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_server_is_measured_in_the_same_figures(scripted, tmp_path):
    args = ["throughput", "--url", scripted.url, "--isl", "1k", "--osl", "3", "--concurrency", "1,2", "--json"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["load"] == {"isl": 1024, "osl": 3}
    assert [case["name"] for case in found["cases"]] == ["1 at a time", "2 at a time"]
    for case in found["cases"]:
        side = case["sides"]["server"]
        assert side["completed"] == case["batch"]
        assert side["output_tokens"] == 3 * case["batch"]
    assert draw(found, tmp_path / "chart.png").stat().st_size > 5000


@pytest.mark.parametrize("concurrency", ["1,2", "auto"])
def test_no_prompt_is_sent_to_a_server_in_two_runs(scripted, concurrency):
    args = ["throughput", "--url", scripted.url, "--isl", "40", "--osl", "3", "--requests", "2", "--json"]
    seeds = set()
    for _ in range(2):
        done = CliRunner().invoke(app, [*args, "--concurrency", concurrency])
        assert done.exit_code == 0, done.output
        seeds.add(json.loads(done.stdout)["seed"])
    # Only a run's warm-up prompt comes twice, one time after the other.
    sent = [body["prompt"] for body in scripted.bodies]
    assert len(sent) >= 2 * 2 * 4
    assert all(
        count == 1 or sent.index(text) + 1 == len(sent) - 1 - sent[::-1].index(text)
        for text, count in Counter(sent).items()
    )
    assert len(seeds) == 2


def test_prompts_from_a_servers_cache_are_counted_and_told(scripted):
    scripted.answer = lambda body, number: (200, [*WHOLE[:-2], usage(cached=number % 2), DONE])
    args = ["throughput", "--url", scripted.url, "--isl", "40", "--osl", "3", "--concurrency", "2", "--json"]
    found = json.loads(CliRunner().invoke(app, args).stdout)
    [case] = found["cases"]
    assert case["sides"]["server"]["cached_prompt_tokens"] == 1
    assert "2 at a time: 1 of 14 prompt tokens came from the server's cache, not from computing" in found["notes"]
    scripted.answer = lambda body, number: (200, [*WHOLE[:-2], usage(cached=0), DONE])
    assert not any("cache" in note for note in json.loads(CliRunner().invoke(app, args).stdout)["notes"])

"""Figures computed from samples whose times are known."""

import json

import pytest
from matplotlib.image import imread

from nano3.bench.serving import Measurement, Workload
from nano3.bench.serving_client import Sample, Target
from nano3.bench.serving_report import concurrency, distribution, latencies, summary, write


def sample(start, chunks, end, error="", **counts):
    return Sample(start=start, end=end, chunks=chunks, finish="" if error else "stop", error=error, **counts)


WHOLE = [
    sample(10.0, [10.5, 10.6, 10.8], 11.0, prompt_tokens=100, output_tokens=5, cached_tokens=64),
    sample(10.5, [11.5, 12.0], 12.0, prompt_tokens=50, output_tokens=2, cached_tokens=0),
]
FAILED = [
    sample(11.0, [11.1], 11.2, error="connection broke"),
    sample(11.0, [], 11.1, error="HTTP 429", detail="queue is full"),
    sample(11.0, [], 11.1, error="HTTP 429", detail="queue is full"),
]
MEASURED = Measurement(Target("http://x", model="m"), Workload(requests=5), [*WHOLE, *FAILED], 2.0, ["a note"])


def test_latencies_of_known_times():
    found = latencies(WHOLE)
    assert found["first_token_s"] == pytest.approx([0.5, 1.0])
    assert found["inter_token_s"] == pytest.approx([0.1, 0.2, 0.5])
    assert found["per_output_token_s"] == pytest.approx([0.3 / 4, 0.5])
    assert found["end_to_end_s"] == pytest.approx([1.0, 1.5])


def test_summary_counts_whole_answers_and_names_failures():
    figures = summary(MEASURED)
    assert (figures["requests"], figures["completed"]) == (5, 2)
    assert figures["errors"] == {"HTTP 429": 2, "connection broke": 1}
    assert figures["error_examples"] == {"HTTP 429": "queue is full"}
    assert (figures["prompt_tokens"], figures["cached_prompt_tokens"], figures["output_tokens"]) == (150, 64, 7)
    assert figures["output_tokens_per_second"] == pytest.approx(3.5)
    assert figures["total_tokens_per_second"] == pytest.approx(78.5)
    assert figures["tokens_per_piece"] == pytest.approx(7 / 5)
    assert figures["latency"]["end_to_end_s"]["max"] == pytest.approx(1.5)
    json.dumps(figures, default=str)


def test_a_server_without_usage_has_no_prompt_figures():
    measured = Measurement(Target("http://x"), Workload(), [sample(0.0, [0.5, 0.6], 1.0)], 1.0, [])
    figures = summary(measured)
    assert figures["prompt_tokens"] is None
    assert figures["total_tokens_per_second"] is None
    assert figures["output_tokens"] == 2


def test_percentiles():
    found = distribution([float(i) for i in range(101)])
    assert found == {"mean": 50.0, "p50": 50.0, "p90": 90.0, "p99": 99.0, "min": 0.0, "max": 100.0}
    assert distribution([]) is None


def test_concurrency_is_time_under_way_over_time():
    mean, peak = concurrency([sample(0, [], 4), sample(1, [], 3), sample(3, [], 4)], seconds=4)
    assert mean == pytest.approx(7 / 4)
    # One ends in the moment in which another begins: never three at once.
    assert peak == 2


def test_files_of_a_load(tmp_path):
    written = write(MEASURED, summary(MEASURED), tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["result.json", "requests.jsonl", "latency.png"]
    lines = [json.loads(line) for line in written[1].read_text().splitlines()]
    assert [line["error"] for line in lines] == ["", "", "connection broke", "HTTP 429", "HTTP 429"]
    assert lines[1]["sent_s"] == pytest.approx(0.5)
    assert json.loads(written[0].read_text())["completed"] == 2
    image = imread(written[2])
    assert min(image.shape[:2]) > 400
    assert image[..., :3].std() > 0.02


def test_a_load_without_an_answer_has_no_chart(tmp_path):
    measured = Measurement(Target("http://x"), Workload(), FAILED, 1.0, [])
    assert [path.name for path in write(measured, summary(measured), tmp_path)] == ["result.json", "requests.jsonl"]

"""nano3's side: whole requests on a small model."""

import pytest
import torch

from nano3.bench.serving_client import Sample
from nano3.bench.throughput.figures import figures
from nano3.bench.throughput.report import rate_rows
from nano3.bench.throughput.requests import run_requests
from nano3.bench.throughput.side import EngineSide
from nano3.bench.workload import Case, Job, prompts
from nano3.config.errors import UserError
from nano3.engine.engine import Engine
from nano3.engine.sizing import free_memory, memory_beside

CASE = Case("throughput", 2, 9, 5, requests=5)


@pytest.fixture
def side(small_sizes):
    return EngineSide(Job("nano3", "throughput", small_sizes, memory=1 << 20))


def test_all_requests_get_all_their_tokens(side):
    found = side.run(CASE)
    details = found["details"]
    assert (details["requests"], details["completed"]) == (5, 5)
    assert (details["prompt_tokens"], details["output_tokens"]) == (45, 25)
    assert details["output_tokens_per_second"] * found["seconds"] == pytest.approx(25)
    assert details["total_tokens_per_second"] * found["seconds"] == pytest.approx(70)


def test_never_more_under_way_than_wanted(side, monkeypatch):
    engine = Engine(side.model, side.tokenizer, memory=1 << 20, max_sequences=8, max_context=14, prefix_cache=False)
    step, seen = engine.step, []

    def counted():
        seen.append(engine.stats().running + engine.stats().waiting)
        return step()

    monkeypatch.setattr(engine, "step", counted)
    samples = run_requests(engine, prompts(CASE, 600), CASE)
    assert max(seen) == 2
    assert [sample.output_tokens for sample in samples] == [5] * 5
    assert [len(sample.chunks) for sample in samples] == [5] * 5
    engine.close()


def test_what_does_not_fit_is_one_line_that_says_how_many_do(side):
    room = side.fits(CASE)
    assert room["fits"] == (1 << 20) // room["sequence_bytes"]
    many = Case("throughput", room["fits"] + 1, 9, 5)
    with pytest.raises(UserError, match=rf"--concurrency {many.batch}.*at most {room['fits']} fit") as told:
        side.run(many)
    assert "\n" not in str(told.value)
    side.run(Case("throughput", room["fits"], 9, 5))


def test_figures_are_those_of_the_times():
    """Two answers of three tokens: first ones after 1 and 3 s, then one each 0.5 s."""
    samples = [
        Sample(0.0, end=2.0, chunks=[1.0, 1.5, 2.0], prompt_tokens=10, output_tokens=3),
        Sample(0.0, end=4.0, chunks=[3.0, 3.5, 4.0], prompt_tokens=10, output_tokens=3),
        Sample(0.0, end=1.0, error="timed out"),
    ]
    found = figures(samples, 4.0)
    assert (found["requests"], found["completed"]) == (3, 2)
    assert found["output_tokens_per_second"] == 1.5
    assert found["total_tokens_per_second"] == 6.5
    assert found["tokens_per_second_per_user"] == 2.0
    assert found["latency"]["first_token_s"]["mean"] == 2.0
    assert found["latency"]["inter_token_s"]["max"] == 0.5


def test_the_peak_of_a_gpu_is_that_of_the_run_and_is_shown(side, monkeypatch):
    peak = [1 << 40]  # of runs before
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: peak.append(3 << 29))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: peak[-1])
    assert "device_peak_bytes" not in side.run(CASE)["details"]
    side.device = torch.device("cuda")
    details = side.run(CASE)["details"]
    case = {"batch": 2, "ratios": {}, "sides": {"nano3": details | {"peak_memory_bytes": 7 << 30}}}
    assert [row[-1] for row in rate_rows({"cases": [case]})] == ["1.50 GiB (GPU)"]
    del details["device_peak_bytes"]
    case["sides"] = {"nano3": details | {"peak_memory_bytes": 7 << 30}}
    assert [row[-1] for row in rate_rows({"cases": [case]})] == ["7.00 GiB"]


def test_mapped_files_take_room_of_main_memory_only(monkeypatch):
    monkeypatch.setattr("nano3.engine.sizing.available_memory", lambda device: 1000)
    assert memory_beside(torch.device("cpu"), 300) == 700
    assert memory_beside(torch.device("cpu"), 1300) == 0
    assert memory_beside(torch.device("cuda"), 300) == 1000
    assert free_memory(torch.device("cuda"), 1300) == free_memory(torch.device("cuda")) > 0

"""Progress tells samples, rate and time left; a long prompt moves before it is answered."""

from __future__ import annotations

from nano3.data.progress import progress_bar
from nano3.progress import Progress


def test_time_left_goes_by_cost_not_by_count(capsys):
    progress = Progress(4, 4000)
    progress.sample(1000, "vt 1K")
    assert progress.line(10) == "1/4 samples  vt 1K  100 tokens/s  30s left"
    progress.tick(1000)
    assert progress.line(20) == "1/4 samples  vt 1K  100 tokens/s  20s left"
    progress.sample(1000, "vt 1K")
    assert progress.line(20) == "2/4 samples  vt 1K  100 tokens/s  20s left"


def test_time_left_goes_by_the_speed_of_the_last_minute():
    progress = Progress(1, 10_000)
    for second in range(1, 101):
        progress.tick(50 * second)
        progress.line(second)
    for second in range(101, 201):  # a long prompt has become slower
        progress.tick(5000 + 10 * (second - 100))
        told = progress.line(second)
    assert told == "0/1 samples  30 tokens/s  6m40s left"


def test_the_last_sample_always_prints(capsys):
    progress = Progress(2, 20)
    progress.sample(10)
    assert capsys.readouterr().err == ""
    progress.sample(10)
    assert capsys.readouterr().err.startswith("2/2 samples")


def test_nothing_is_divided_by_zero_before_the_first_token():
    assert Progress(3, 0).line(0) == "0/3 samples"


def test_no_time_left_is_told_of_the_first_few():
    progress = Progress(208, 208, "requests", "requests")
    progress.sample(1)
    assert progress.line(20) == "1/208 requests"
    for _ in range(103):
        progress.sample(1)
    assert progress.line(26) == "104/208 requests  4 requests/s  26s left"
    assert progress.line(1) == "104/208 requests"
    few = Progress(2, 2, "requests", "requests")
    few.sample(1)
    few.sample(1)
    assert few.line(4).endswith("0s left")


def test_a_preparation_tells_what_it_has_done_and_the_time_left(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with progress_bar() as show:
        show("vocabulary", 0, 1_000_000)
        now = 5.0
        show("vocabulary", 900_000, 1_000_000)
        show("tokens", 0, 4_000_000)
        now = 15.0
        show("tokens", 1_000_000, 4_000_000)
        now = 16.0
        show("tokens", 1_100_000, 4_000_000)
        show("tokens", 0, 50_000)  # of another folder
        now = 26.0
        show("tokens", 10_000, 50_000)
    assert capsys.readouterr().err.splitlines() == [
        "tokens: 1M of 4M bytes  100K bytes/s  30s left",
        "tokens: 10K of 50K bytes  1K bytes/s  40s left",
    ]

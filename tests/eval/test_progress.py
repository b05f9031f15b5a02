"""Progress tells samples, rate and time left; a long prompt moves before it is answered."""

from __future__ import annotations

from nano3.eval.progress import Progress


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

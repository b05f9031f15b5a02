"""Loads: how many requests are under way, when they are sent, what is measured."""

import statistics
from itertools import pairwise

import pytest

from nano3.bench.serving import Workload, arrival_times, measure
from nano3.bench.serving_client import Target
from nano3.bench.serving_prompts import Lengths
from nano3.config.errors import UserError

from .conftest import DONE, FINISH, WHOLE, piece, usage

SHORT = Lengths(prompt=40, output=3)


def test_concurrency_is_held_and_warm_up_is_not_counted(scripted):
    scripted.answer = lambda body, number: (200, [0.02, *WHOLE])
    seen = []
    workload = Workload(requests=12, concurrency=4, lengths=SHORT, warmup=2)
    measured = measure(Target(scripted.url), workload, lambda done, total: seen.append((done, total)))
    assert len(measured.samples) == 12
    # One request to learn what the server takes, two to warm it up.
    assert len(scripted.bodies) == 15
    assert scripted.most_under_way == 4
    assert seen == [(done, 12) for done in range(1, 13)]
    assert measured.target.model == "scripted"
    assert measured.seconds >= 3 * 0.02
    assert len({body["messages"][0]["content"] for body in scripted.bodies}) == 14


def test_arrivals_do_not_wait_for_answers(scripted):
    scripted.answer = lambda body, number: (200, [0.3, *WHOLE])
    measured = measure(Target(scripted.url), Workload(requests=10, rate=500, lengths=SHORT, warmup=0))
    assert [sample.error for sample in measured.samples] == [""] * 10
    assert scripted.most_under_way == 10
    starts = [sample.start for sample in measured.samples]
    assert starts == sorted(starts)


def test_arrivals_are_a_poisson_process():
    times = arrival_times(Workload(requests=4001, rate=5.0, seed=1))
    gaps = [after - before for before, after in pairwise(times)]
    assert times[0] == 0
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.06)
    # The standard deviation of an exponential distribution is its mean.
    assert statistics.pstdev(gaps) == pytest.approx(0.2, rel=0.08)
    assert times == arrival_times(Workload(requests=4001, rate=5.0, seed=1))
    assert times != arrival_times(Workload(requests=4001, rate=5.0, seed=2))


def test_failures_among_answers_are_kept_apart(scripted):
    def answer(body, number):
        if number < 1 or number % 3:
            return 200, [piece("a"), piece("b"), FINISH, usage(output=2), DONE]
        return 429, {"error": {"message": "full"}}

    scripted.answer = answer
    measured = measure(Target(scripted.url), Workload(requests=9, concurrency=1, lengths=SHORT, warmup=0))
    kinds = [sample.error for sample in measured.samples]
    assert kinds.count("HTTP 429") == 3
    assert kinds.count("") == 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"requests": 0}, "--requests is 0"),
        ({"concurrency": 0}, "--concurrency is 0"),
        ({"rate": 0.0}, "--rate is 0"),
        ({"rate": float("inf")}, "--rate is inf"),
        ({"warmup": -1}, "--warmup is -1"),
        ({"lengths": Lengths(prompt=0)}, "--prompt-tokens is 0"),
        ({"lengths": Lengths(output=0)}, "--output-tokens is 0"),
        ({"lengths": Lengths(shared_prefix=-1)}, "--shared-prefix is -1"),
        ({"lengths": Lengths(spread=1.0)}, "--spread is 1"),
    ],
)
def test_a_wrong_setting_is_named(settings, words):
    with pytest.raises(UserError, match=words):
        Workload(**settings)

"""Which number of requests at a time is taken, from probes whose times are known."""

import pytest

from nano3.bench.throughput.auto import candidates, choose, probe_case, reckon
from nano3.bench.throughput.measure import Load, read_concurrency
from nano3.bench.workload import Case
from nano3.config.errors import UserError

WHOLE = Case("throughput", 1, 8192, 16384, requests=1)


def details(first, between):
    return {"latency": {"first_token_s": {"max": first}, "inter_token_s": {"mean": between}}}


def machine(best):
    """Steps take as long for up to `best` sequences as for one, and then as much longer."""

    def run(case):
        return details(0.01 * case.batch, 0.1 * max(1, (case.batch / best) ** 2))

    return run


@pytest.mark.parametrize(("best", "fits", "taken"), [(8, 100, 8), (8, 5, 5), (1, 100, 1), (64, 48, 48)])
def test_the_best_that_fits_is_taken(best, fits, taken):
    chosen, probes = choose(machine(best), WHOLE, fits, lambda text: None)
    assert chosen == taken
    rates = {probe["concurrency"]: probe["reckoned_output_tokens_per_second"] for probe in probes}
    assert max(rates, key=lambda n: rates[n]) == taken
    assert max(rates) <= fits


def test_the_search_ends_after_two_that_are_no_better():
    _, probes = choose(machine(4), WHOLE, 1000, lambda text: None)
    assert [probe["concurrency"] for probe in probes] == [1, 2, 4, 8, 16]


def test_a_probe_that_fails_ends_the_search():
    run = machine(64)
    chosen, _ = choose(lambda case: run(case) if case.batch < 8 else {}, WHOLE, 1000, lambda text: None)
    assert chosen == 4
    assert choose(lambda case: {}, WHOLE, 8, lambda text: None) == (1, [])


def test_a_probe_stands_for_the_whole_work():
    probe = probe_case(WHOLE, 4)
    assert (probe.batch, probe.length, probe.output, probe.sequences) == (4, 64, 16, 4)
    # 4 x 64 prompt tokens in 0.5 s: 8192 a request take 128 times as long.
    assert reckon(details(0.5, 0.01), probe, WHOLE) == pytest.approx(4 * 16384 / (64 + 163.83))
    assert candidates(6) == [1, 2, 4, 6]
    assert candidates(8) == [1, 2, 4, 8]


def test_numbers_of_requests():
    assert read_concurrency("auto") == ()
    assert read_concurrency("1, 8,32,8") == (1, 8, 32)
    for text in ("", "0", "1,x", "-3", "1.5"):
        with pytest.raises(UserError, match="--concurrency"):
            read_concurrency(text)
    assert [case.sequences for case in Load(8, 4, (1, 8)).cases()] == [1, 8]
    assert [case.tokens for case in Load(8, 4, (1, 8), requests=16).cases()] == [64, 64]
    with pytest.raises(UserError, match="--requests 4 are fewer than --concurrency 8"):
        Load(8, 4, (8,), requests=4).cases()
    with pytest.raises(UserError, match="--osl is 1"):
        Load(8, 1)

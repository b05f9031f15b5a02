"""The work of a timed run."""

import pytest

from nano3.bench.workload import Case, advantages, decode_cases, prefill_cases, prompts, rl_cases, train_cases
from nano3.config.errors import UserError


def test_cases_of_each_verb():
    assert train_cases(4, "1024,64", False) == [Case("train", 4, 1024), Case("train", 4, 64)]
    assert prefill_cases("4096,64") == [Case("prefill", 1, 4096), Case("prefill", 1, 64)]
    assert [case.batch for case in decode_cases("1, 8,8,32", 128, 64)] == [1, 8, 32]


def test_tokens_are_those_of_the_timed_part():
    assert Case("train", 4, 1024).tokens == 4096
    assert Case("prefill", 1, 4096).tokens == 4096
    assert Case("decode", 8, 128, 64).tokens == 8 * 64
    [case] = rl_cases(8, 16, 32, 64)
    assert (case.sequences, case.tokens, case.name) == (128, 128 * 64, "8 x 16 samples of 64 tokens")
    assert len(advantages(case)) == 128


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: train_cases(0, "8", False), "--batch is 0"),
        (lambda: train_cases(1, "8,1", False), "--seq-len is 1"),
        (lambda: prefill_cases("8,-1"), "--prompt-tokens is -1"),
        (lambda: prefill_cases("many"), "--prompt-tokens many"),
        (lambda: decode_cases("1,,2", 8, 8), "--sequences 1,,2"),
        (lambda: decode_cases("1", 0, 8), "--prompt-tokens is 0"),
        (lambda: decode_cases("1", 8, 0), "--output-tokens is 0"),
        (lambda: rl_cases(0, 8, 8, 8), "--prompts is 0"),
        (lambda: rl_cases(1, 1, 8, 8), "--group is 1"),
        (lambda: rl_cases(1, 129, 8, 8), "--group is 129"),
    ],
)
def test_a_wrong_size_is_named(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_all_sides_get_the_same_prompts_without_special_ids():
    case = Case("decode", 3, 500)
    rows = prompts(case, 300)
    assert rows == prompts(case, 300)
    assert [len(row) for row in rows] == [500] * 3
    ids = {i for row in rows for i in row}
    assert min(ids) >= 5
    assert max(ids) < 300
    assert len(ids) > 250
    assert rows[0] != rows[1]

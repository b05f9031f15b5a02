from collections import Counter
from dataclasses import dataclass, replace

import pytest

from nano3.config.extend_context import ContextConfig, ExtendContextConfig
from nano3.config.schema import PretrainConfig, TrainConfig
from nano3.data.tokens.steps import TextSteps, make_plans
from nano3.train.feed import Feed


def pretraining(batch_size, micro_batch_size):
    return PretrainConfig(train=TrainConfig(batch_size=batch_size, micro_batch_size=micro_batch_size))


def mixed(lengths, batch_size=4, micro_batch_size=2):
    train = TrainConfig(batch_size=batch_size, micro_batch_size=micro_batch_size)
    return ExtendContextConfig(train=train, context=ContextConfig(lengths))


@dataclass(frozen=True)
class Numbers:
    """A source whose batches are the numbers of their sequences."""

    seq_len: int

    def batch(self, start, count):
        return [(self.seq_len, start + i) for i in range(count)]


def sources(cfg):
    return {length: Numbers(length) for length in cfg.lengths}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_ranks_together_read_each_sequence_of_a_step_once(ranks):
    cfg = pretraining(16, 2)
    batches = [b for rank in range(ranks) for b in make_plans(cfg, rank, ranks).read(3, sources(cfg))]
    assert all(len(batch) == 2 for batch in batches)
    assert sorted(number for batch in batches for _, number in batch) == list(range(48, 64))


def test_a_batch_that_cannot_be_shared_out_is_an_error_that_names_the_numbers():
    with pytest.raises(ValueError, match=r"batch_size 16 .* 4 x 3 ranks"):
        make_plans(pretraining(16, 4), 0, 3)
    with pytest.raises(ValueError, match=r"a step has 9 sequences of 64 tokens, which 2 ranks cannot share"):
        make_plans(mixed({"96": 1, "64": 1}, batch_size=6, micro_batch_size=1), 0, 2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_step_of_a_mixture_has_one_length_and_the_same_tokens(ranks):
    cfg = mixed({"64": 1, "16": 3})
    plans = [make_plans(cfg, rank, ranks) for rank in range(ranks)]
    read = Counter()
    for step in range(16):
        batches = [batch for plan in plans for batch in plan.read(step, sources(cfg))]
        lengths = {length for batch in batches for length, _ in batch}
        assert lengths == {plans[0].seq_len(step)}
        assert sum(length for batch in batches for length, _ in batch) == 4 * 64
        assert all(sum(length for length, _ in batch) <= 2 * 64 for batch in batches)
        read.update(sequence for batch in batches for sequence in batch)
    expected = {(64, i) for i in range(4 * 4)} | {(16, i) for i in range(12 * 16)}
    assert read == Counter(dict.fromkeys(expected, 1))


def test_lengths_keep_their_shares_all_along():
    plans = make_plans(mixed({"64": 1, "16": 3}), 0, 1)
    long = 0
    for step in range(400):
        long += plans.seq_len(step) == 64
        assert abs(long - (step + 1) / 4) < 1


def test_a_length_that_does_not_divide_the_longest_has_smaller_micro_batches():
    cfg = mixed({"96": 1, "64": 1}, batch_size=2, micro_batch_size=1)
    plans = make_plans(cfg, 0, 1)
    step = next(step for step in range(9) if plans.seq_len(step) == 64)
    assert [len(batch) for batch in plans.read(step, sources(cfg))] == [1, 1, 1]


def test_micro_batches_do_not_depend_on_the_number_of_ranks():
    cfg = mixed({"96": 1, "64": 1}, batch_size=8, micro_batch_size=2)
    sizes = []
    for ranks in (1, 2, 4):
        plans = make_plans(cfg, 0, ranks)
        step = next(step for step in range(9) if plans.seq_len(step) == 64)
        sizes.append({len(batch) for batch in plans.read(step, sources(cfg))})
    assert sizes == [{3}] * 3
    uneven = mixed({"96": 1, "64": 1}, batch_size=12, micro_batch_size=3)
    assert [len(b) for b in make_plans(uneven, 0, 1).read(0, sources(uneven))] == [3] * 4
    plans = [make_plans(uneven, 0, ranks) for ranks in (1, 2)]
    step = next(step for step in range(9) if plans[0].seq_len(step) == 64)
    assert len({len(batch) for plan in plans for batch in plan.read(step, sources(uneven))}) == 1


def test_one_length_reads_what_pretraining_reads():
    cfg = mixed({"64": 1})
    plain = replace(pretraining(4, 2), data=replace(cfg.data))
    for step in range(5):
        assert make_plans(cfg, 0, 1).read(step, sources(cfg)) == make_plans(plain, 0, 1).read(step, sources(plain))


def test_reading_ahead_gives_the_same_batches_in_any_order():
    cfg = mixed({"64": 1, "16": 1})
    plans = make_plans(cfg, 0, 1)
    feed, got = Feed(TextSteps(sources(cfg), plans)), []
    for step in (0, 1, 5, 2):
        got.append(feed.get(step))
        feed.prepare(step + 1)
    feed.close()
    assert got == [plans.read(step, sources(cfg)) for step in (0, 1, 5, 2)]

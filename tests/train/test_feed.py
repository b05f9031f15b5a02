import pytest

from nano3.config.schema import TrainConfig
from nano3.train.feed import Feed, make_plan


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_ranks_together_read_each_sequence_of_a_step_once(ranks):
    cfg = TrainConfig(batch_size=16, micro_batch_size=2)
    read = []
    for rank in range(ranks):
        plan = make_plan(cfg, rank, ranks)
        read += [start + i for start in plan.starts(3) for i in range(2)]
    assert sorted(read) == list(range(48, 64))


def test_a_batch_that_cannot_be_shared_out_is_an_error_that_names_the_numbers():
    with pytest.raises(ValueError, match=r"batch_size 16 .* 4 x 3 ranks"):
        make_plan(TrainConfig(batch_size=16, micro_batch_size=4), 0, 3)


def test_reading_ahead_gives_the_same_batches_in_any_order(tiny):
    source, plan = tiny.TinySource(), make_plan(TrainConfig(batch_size=4, micro_batch_size=2), 0, 1)
    feed = Feed(source, plan, 10)
    names = [[b.documents for b in feed.get(step)] for step in (0, 1, 5, 2)]
    feed.close()
    assert names == [[source.batch(4 * s, 2).documents, source.batch(4 * s + 2, 2).documents] for s in (0, 1, 5, 2)]

"""Where a model is cut into stages, and the timetable of their passes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from nano3.cli.training.dry_run import dry_run_facts, process_facts
from nano3.config.errors import UserError
from nano3.config.presets import load_extend_context, load_model, load_pretrain
from nano3.config.sections.parallel import ParallelConfig
from nano3.parallel.estimate import process_bytes
from nano3.parallel.layout import Layout
from nano3.parallel.shards import share_of
from nano3.parallel.stages import (
    Action,
    block_cost,
    even_cuts,
    evenness,
    in_flight,
    next_stage,
    stages_for,
    stages_of,
    timetable,
)
from nano3.stages.settings import check_parallel, check_settings, fit_micro_batch

NANO = load_model("nano3-30b-a3b")


def test_the_costliest_part_is_as_cheap_as_any_cut_makes_it():
    costs = [3.0, 1, 4, 1, 5, 9, 2, 6]
    for parts in range(1, len(costs) + 1):
        cuts = even_cuts(costs, parts)
        edges = [0, *cuts, len(costs)]
        assert len(cuts) == parts - 1
        assert all(a < b for a, b in itertools.pairwise(edges))
        choices = itertools.combinations(range(1, len(costs)), parts - 1)
        least = min(max(sum(costs[a:b]) for a, b in itertools.pairwise([0, *c, len(costs)])) for c in choices)
        assert max(sum(costs[a:b]) for a, b in itertools.pairwise(edges)) == least


def test_cuts_follow_what_blocks_cost_at_the_length_of_the_run():
    """Attention is most of the work at 512K, and the output projection much of it at 8K."""
    short, long = (stages_of(NANO, 4, length) for length in (8192, 524288))
    assert [len(stage) for stage in short] == [14, 14, 15, 9]
    assert [len(stage) for stage in long] == [12, 11, 11, 18]
    assert [len([i for i in stage if NANO.pattern[i] == "*"]) for stage in long] == [1, 2, 2, 1]
    assert block_cost(NANO, "*", 524288) > 20 * block_cost(NANO, "E", 524288)
    assert block_cost(NANO, "E", 8192) == block_cost(NANO, "E", 524288)
    assert [*itertools.chain(*short)] == [*range(52)]
    assert [round(evenness(NANO, stages, n), 2) for stages, n in ((short, 8192), (long, 524288))] == [0.95, 0.82]


def test_cuts_that_are_given_are_taken_or_refused_with_those_by_cost():
    cfg = ParallelConfig(pipeline=2, cuts=[5])
    assert stages_for(cfg, NANO, 8192) == [range(5), range(5, 52)]
    for cuts in ([], [5, 9], [0], [52], [-1]):
        wrong = replace(cfg, cuts=cuts)
        if not cuts:
            assert stages_for(wrong, NANO, 8192) == [range(29), range(29, 52)]
            continue
        with pytest.raises(UserError, match=r"2 stages of 52 blocks begin.* by cost: --set parallel.cuts=\[29\]$"):
            stages_for(wrong, NANO, 8192)
    with pytest.raises(UserError, match=r"parallel.cuts is \[9\]"):
        check_parallel(load_pretrain("tiny", ["parallel.pipeline=2", "parallel.cuts=[9]", "model.pattern=ME*-E"]), 2)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (["parallel.pipeline=60"], r"pipeline is 60: 52 blocks do not divide into 60 stages; .*parallel.pipeline=52"),
        (["parallel.cuts=[3]"], r"parallel.cuts is \[3\] without a pipeline: --set parallel.pipeline=N"),
    ],
)
def test_a_dry_run_refuses_stages_that_no_number_of_processes_can_have(settings, error):
    with pytest.raises(UserError, match=error):
        dry_run_facts(load_pretrain("phase1", settings))


@pytest.mark.parametrize(
    ("ranks", "chunks", "batches"), [(2, 1, 1), (2, 1, 5), (4, 1, 8), (2, 2, 4), (3, 4, 6), (4, 2, 4)]
)
def test_every_pass_is_made_once_after_what_it_needs(ranks, chunks, batches):
    table, stages = timetable(ranks, chunks, batches), ranks * chunks
    done, kept = {}, [0] * ranks
    for time, turn in enumerate(table):
        for rank, action in enumerate(turn):
            if action is None:
                continue
            assert action.stage % ranks == rank
            assert action not in done
            done[action] = time
            kept[rank] += 1 if action.forward else -1
            most = in_flight(rank, ranks, chunks, batches)
            assert kept[rank] <= most
    assert len(done) == 2 * stages * batches
    for action, time in done.items():
        if (after := next_stage(action, stages)) is not None:
            assert done[after] > time
        if not action.forward:
            assert done[action._replace(forward=True)] < time
    # Beside the passes there is no more waiting than 1F1B has: (ranks - 1) passes there and back.
    assert chunks > 1 or len(table) == 2 * (batches + ranks - 1)


def test_one_stage_each_keeps_no_more_micro_batches_than_stages():
    turns = [turn[0] for turn in timetable(4, 1, 16)]
    assert turns[:5] == [*(Action(True, 0, i) for i in range(4)), None]
    assert in_flight(0, 4, 1, 16) == 4
    assert in_flight(3, 4, 1, 16) == 1


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"schedule": "zero_bubble"}, "zero-bubble schedules take gradients .* apart, .* use interleaved or 1f1b"),
        ({"schedule": "ZBV"}, "zero-bubble"),
        ({"schedule": "gpipe"}, "parallel.schedule is gpipe; it must be 1f1b or interleaved"),
        ({"schedule": "interleaved"}, "with one stage a rank: --set parallel.stages_per_rank=2"),
        ({"stages_per_rank": 2}, "stages_per_rank is 2 with the schedule 1f1b.*--set parallel.schedule=interleaved"),
        ({"pipeline": 0}, "parallel.pipeline is 0; it must be at least 1"),
    ],
)
def test_schedules_that_cannot_be_are_refused_with_a_reason(settings, error):
    with pytest.raises(ValueError, match=error):
        ParallelConfig(**settings)


def test_interleaving_needs_a_multiple_of_the_processes():
    settings = ["parallel.pipeline=2", "parallel.schedule=interleaved", "parallel.stages_per_rank=2"]
    even, odd = (["train.micro_batch_size=1", f"train.batch_size={n}"] for n in (4, 3))
    check_settings(load_pretrain("tiny", [*settings, *even]), 1)
    with pytest.raises(ValueError, match=r"interleaved over 2 processes, and each reads 3 micro-batches .*=1f1b"):
        check_settings(load_pretrain("tiny", [*settings, *odd]), 1)


def test_a_dry_run_tells_the_blocks_of_a_process_and_parameters_add_up():
    settings = ["context.lengths={524288=1}", "parallel.context=64", "parallel.expert=8", "parallel.pipeline=4"]
    cfg = load_extend_context("long-context", settings)
    total, blocks = 0, []
    for place in range(4):
        facts = process_facts(cfg, 256, 64 * place, "bfloat16")
        assert [facts[key] for key in ("pipeline", "shard", "context", "expert")] == [4, 1, 64, 8]
        blocks += facts["stages"]
        total += facts["expert_parameters"]
        assert facts["replica_parameters"] == 31_577_937_344
    assert blocks == [[0, 12], [12, 23], [23, 34], [34, 52]]
    assert total * 64 == 23 * 128 * 2 * 2688 * 1856


def test_the_parameters_of_all_stages_are_those_of_the_model():
    layout, stages = Layout(pipeline=4), stages_of(NANO, 4, 8192)
    assert sum(share_of(NANO, layout, rank, True, stages[rank]).parameters for rank in range(4)) == 31_577_937_344


def test_a_dry_run_tells_the_memory_of_the_stage_that_takes_most():
    for cuts in ("[3]", "[49]"):
        cfg = load_pretrain("phase1", ["parallel.pipeline=2", f"parallel.cuts={cuts}"])
        facts, fitted = dry_run_facts(cfg), fit_micro_batch(cfg, 3072)
        dtype, ranks = facts["compute_dtype"], facts["most_ranks"]
        stages = [process_bytes(fitted, dtype, ranks=ranks, stage=stage) for stage in (0, 1)]
        assert facts["rank_memory_bytes"] == max(stages) > min(stages)


def test_a_stage_takes_memory_for_its_blocks_and_for_the_micro_batches_that_wait():
    cfg = load_extend_context("long-context", ["context.lengths={524288=1}", "parallel.context=8"])
    first, last = (
        process_bytes(replace(cfg, parallel=replace(cfg.parallel, pipeline=4)), ranks=256, stage=stage)
        for stage in (0, 3)
    )
    whole = process_bytes(cfg, ranks=256)
    assert last < 0.75 * whole
    # The first one has fewer blocks, but keeps four micro-batches.
    assert last < first < 1.3 * whole

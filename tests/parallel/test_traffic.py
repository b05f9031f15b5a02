"""What a dry run says that processes send is what they send."""

from __future__ import annotations

import json

import pytest

from nano3.config.presets import load_model
from nano3.config.sections.parallel import ParallelConfig
from nano3.parallel.fake_step import PURPOSES
from nano3.parallel.layout import layout_of
from nano3.parallel.traffic import received_bytes

from ..forked import start_ranks

ROWS, LENGTH = 3, 64
TINY = load_model("tiny")
STEP = """
import json
import sys
import torch
from nano3.config.presets import load_model
from nano3.config.sections.parallel import ParallelConfig
from nano3.model.lm import LM
from nano3.parallel.fake_step import Received
from nano3.parallel.layout import axes_of
from nano3.parallel.sharing import SlicedBatch
from nano3.parallel.tensor import sharing
from nano3.train.parallel import parallelize
from nano3.train.world import init_world

settings, rows, length, recompute = json.loads(sys.argv[1])
cfg = ParallelConfig(**settings)
world = init_world(axes_of(cfg))
shared = sharing(world.sequence.handle, world.context.handle, world.tensor.handle)
model = LM(load_model("tiny"))
model.init_weights(0)
model.compute_dtype = torch.bfloat16
model.checkpoint_activations = recompute
parallelize(model, world, cfg)
tokens = torch.randint(1, 1000, (rows, length), generator=torch.Generator().manual_seed(0))
whole = torch.zeros(rows, length, dtype=torch.int32)
around = {}
if shared is not None:
    batch = SlicedBatch(shared.take(tokens), shared.take(tokens), shared.take(whole), None, whole, [])
    tokens, around = batch.tokens, shared.around(batch)
with Received(shared) as received:
    hidden = model.hidden(tokens, slices=shared, **around)
    (model.lm_head(hidden.x).float().mean() + hidden.balance_loss).backward()
found = world.gather(received.bytes)
if world.is_main:
    print(json.dumps(found), flush=True)
world.close()
"""
NARROW = {"gather_dtype": "bfloat16"}
CASES = [
    pytest.param(2, NARROW | {"expert": 2}, True, id="experts, recomputed"),
    pytest.param(2, NARROW | {"context": 2, "reshard_after_forward": False}, False, id="slices, kept"),
    pytest.param(2, {"tensor": 2, "gather_dtype": "float32"}, False, id="heads"),
    pytest.param(
        4, NARROW | {"replicate": 2, "reduce_dtype": "bfloat16"}, False, id="replicas", marks=pytest.mark.slow
    ),
    pytest.param(4, NARROW | {"context": 2, "tensor": 2, "expert": 4}, True, id="all", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("ranks", "settings", "recompute"), CASES)
def test_the_bytes_are_those_that_come_in_a_real_pass(ranks, settings, recompute):
    started = start_ranks("-c", STEP, json.dumps([settings, ROWS, LENGTH, recompute]), ranks=ranks)
    outputs = [process.communicate(timeout=120) for process in started]
    assert started[0].returncode == 0, outputs
    real = json.loads(outputs[0][0].splitlines()[-1])
    told = _told(ranks, settings, ROWS, passes=1, recompute=recompute)
    for purpose in PURPOSES:
        # Experts get more here and fewer there, as tokens choose.
        found = sum(one[purpose] for one in real) / ranks
        assert found == pytest.approx(told[purpose], rel=1e-4), purpose
    assert bool(told["experts"]) == ("expert" in settings)
    assert bool(told["slices"]) == ("context" in settings)
    assert bool(told["heads"]) == ("tensor" in settings)


def _told(ranks, settings, rows, passes, recompute=False, rank=0, stages=None):
    cfg = ParallelConfig(**settings)
    stages = stages or [range(TINY.n_blocks)]
    return received_bytes(
        TINY, cfg, layout_of(cfg, TINY, ranks), rank, stages, rows, LENGTH, passes, recompute=recompute
    )


def test_passes_repeat_and_more_rows_bring_more_tokens_and_no_more_weights():
    once, twice, wider = (_told(4, {"expert": 4}, rows, passes) for rows, passes in ((1, 1), (1, 2), (2, 1)))
    assert {purpose: 2 * size for purpose, size in once.items()} == twice
    assert wider == once | {"experts": 2 * once["experts"]}


def test_stages_send_what_leaves_them_and_hold_the_ends_once():
    half = TINY.n_blocks // 2
    ends = [range(half)], [range(half, TINY.n_blocks)]
    first, last = (_told(4, {"pipeline": 2}, 1, 1, rank=rank, stages=ends[i]) for i, rank in enumerate((0, 2)))
    assert first["stages"] == last["stages"] == LENGTH * TINY.d_model * 2
    whole = _told(2, {}, 1, 1)
    assert first["weights"] + last["weights"] == pytest.approx(whole["weights"], rel=1e-4)
    assert whole["stages"] == 0


def test_copies_send_their_gradients_once_a_step():
    copies = [_told(2, {"fsdp": False}, 1, passes) for passes in (1, 3)]
    assert copies[0] == copies[1]
    assert copies[0]["weights"] == 0 < copies[0]["gradients"]


def test_one_process_sends_nothing():
    assert not any(_told(1, {}, 1, 1).values())

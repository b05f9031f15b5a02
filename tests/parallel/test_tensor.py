"""Heads of mixers divided among ranks: the same numbers as on one process."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nano3.config.presets import load_model
from nano3.model.forward_pass import Pass
from nano3.model.lm import LM
from nano3.parallel.tensor import attention_parts, mamba_parts

from .conftest import same_run

BALANCED = {"balance": {"loss_coef": 0.1, "bias_rate": 0.05}, "optimizer": {"clip_norm": 0.5}}
SEQUENCE = {**BALANCED, "balance": {**BALANCED["balance"], "loss_type": "seq_aux_loss"}}
# Two heads of keys and two groups: on four ranks each of them is shared by two.
HEADS = {"n_heads": 8, "n_kv_heads": 2, "head_dim": 4, "mamba_n_heads": 4, "mamba_head_dim": 6, "n_groups": 2}
DIVIDED = {**BALANCED, "model": HEADS}
SINGLE = {**DIVIDED, "train": {"micro_batch_size": 1}}


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_that_divide_heads_train_as_one(finish, ranks):
    same_run(finish("many", ranks=ranks, **DIVIDED, parallel={"tensor": ranks}), finish("one", **DIVIDED))


@pytest.mark.slow
@pytest.mark.parametrize("train", [{}, {"sequence_chunk": 8}], ids=["whole", "experts in pieces"])
def test_blocks_that_are_computed_again(finish, train):
    train = {"checkpoint_activations": "block", **train}
    same_run(finish("two", ranks=2, **DIVIDED, parallel={"tensor": 2}, train=train), finish("one", **DIVIDED))


@pytest.mark.slow
@pytest.mark.parametrize("balance", [BALANCED, SEQUENCE], ids=["batch", "rows"])
@pytest.mark.parametrize("source", ["ragged", "padded"])
def test_padding_counts_nowhere(finish, balance, source):
    settings = {**DIVIDED, **balance}
    run = finish("two", "--source", source, ranks=2, **settings, parallel={"tensor": 2})
    same_run(run, finish("one", "--source", source, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{"expert": 2}, {"fsdp": False}], ids=str)
def test_two_ranks_that_divide_more_than_heads(finish, parallel):
    same_run(finish("two", ranks=2, **DIVIDED, parallel={"tensor": 2, **parallel}), finish("one", **DIVIDED))


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {"expert": 4},
        {"replicate": 2, "expert": 2},
        {"context": 2},
        {"context": 2, "expert": 4},
        {"context": 2, "fsdp": False},
        {"pipeline": 2, "expert": 2},
    ],
    ids=str,
)
def test_four_ranks_divide_heads_and_more(finish, parallel):
    same_run(finish("four", ranks=4, **SINGLE, parallel={"tensor": 2, **parallel}), finish("one", **SINGLE))


@pytest.mark.slow
def test_slices_whose_heads_are_divided_are_computed_again(finish):
    again = {"checkpoint_activations": "block", "sequence_chunk": 8, "micro_batch_size": 4}
    run = finish("four", ranks=4, **DIVIDED, train=again, parallel={"tensor": 2, "context": 2})
    same_run(run, finish("one", **DIVIDED, train={"micro_batch_size": 4}))


@pytest.mark.slow
def test_eight_ranks_divide_everything(finish):
    parallel = {"tensor": 2, "context": 2, "pipeline": 2, "expert": 4}
    same_run(finish("eight", ranks=8, **SINGLE, parallel=parallel), finish("one", **SINGLE))


@pytest.mark.slow
def test_ranks_that_divide_heads_train_in_bfloat16(finish):
    settings = {**DIVIDED, "train": {"dtype": "bfloat16"}}
    parallel = {"tensor": 4, "gather_dtype": "bfloat16"}
    run, alone = finish("four", ranks=4, **settings, parallel=parallel), finish("one", **settings)
    assert len(run.metrics) == len(alone.metrics) > 6
    for here, there in zip(run.metrics, alone.metrics, strict=True):
        # After a step of rounded weights a token's choice of experts may turn, and with it some percent of the norm.
        for key, most in {"loss": 0.005, "grad_norm": 0.005 if here["step"] == 1 else 0.1}.items():
            assert key not in there or here[key] == pytest.approx(there[key], rel=most), (here["step"], key)
    first, other = (torch.cat([g.flatten() for g in r.gradients(1).values()]) for r in (run, alone))
    assert (first - other).norm() <= 0.05 * other.norm(), (first - other).norm() / other.norm()


@pytest.mark.parametrize(("size", "keys", "groups"), [(2, 1, 1), (8, 4, 1), (16, 8, 2), (32, 16, 4)])
def test_each_row_is_computed_by_one_process_or_by_all_that_share_its_head(size, keys, groups):
    """Of the 31.6B model; `keys`, `groups`: processes with the same head of keys, and with the same B and C."""
    cfg, times = replace(load_model("nano3-30b-a3b"), pattern="*M"), {}
    with torch.device("meta"):
        mixers: list[Any] = [block.mixer for block in LM(cfg).blocks]
    for cut, mixer in zip((attention_parts, mamba_parts), mixers, strict=True):
        for rank in range(size):
            for part in cut(cfg, rank, size):
                parameter = mixer.get_submodule(part.module).get_parameter(part.name)
                name = f"{part.module}.{part.name}"
                count = times.setdefault(name, torch.zeros(parameter.shape[part.dim], dtype=torch.int64))
                for start, stop in part.spans:
                    count[start:stop] += 1
    for name, count in times.items():
        rows, inner = 2 * 8 * 128, 4096  # B and C; z, x, and in front of B
        if name.startswith(("in_proj", "conv1d")):
            first = 2 * inner if name.startswith("in_proj") else inner
            expected = torch.ones(len(count), dtype=torch.int64)
            expected[first : first + rows] = groups
        else:
            expected = torch.full((len(count),), keys if name in ("k_proj.weight", "v_proj.weight") else 1)
        assert torch.equal(count, expected), name
    names = {f"{n}_proj.weight" for n in "qkvo"} | {f"{n}.weight" for n in ("in_proj", "conv1d", "norm", "out_proj")}
    assert times.keys() == names | {"conv1d.bias", ".dt_bias", ".A_log", ".D"}


SUMS = """
import torch
from nano3.parallel.collectives import gather, sum_parts
from nano3.train.world import init_world

world = init_world()
group, number = torch.distributed.group.WORLD, [256.0, 1.0, 1.0, 1.0][world.rank]
for dtype in (torch.bfloat16, torch.float64):
    parts = torch.full((4, 1), number, dtype=dtype)
    own = torch.zeros(1, dtype=dtype, requires_grad=True)
    gather(own, group).backward(parts)
    print(sum_parts(parts, group).item(), own.grad.item(), flush=True)
world.close()
"""


def test_sums_over_processes_are_rounded_once(processes):
    outputs = [process.communicate(timeout=120) for process in processes("-c", SUMS, ranks=4)]
    # In bfloat16 256 + 1 is 256, however often it is added.
    rounded = torch.tensor(259.0).bfloat16().item()
    expected = [f"{rounded} {rounded}", "259.0 259.0"]
    assert [out.splitlines() for out, _ in outputs] == [expected] * 4, outputs


ALONE = """
import torch
from nano3.config.presets import load_model
from nano3.model.lm import LM
from nano3.parallel.tensor import divide_heads
from nano3.train.world import init_world

world = init_world({"tensor": 4})
model, tokens = LM(load_model("tiny")).init_weights(0).eval(), torch.arange(12).view(1, 12) + world.rank
with torch.no_grad():
    whole = model(tokens)
    divide_heads(model, world.tensor.handle)
    print(torch.equal(model(tokens), whole), torch.equal(model(tokens, state=model.new_state(1)), whole), flush=True)
world.barrier()  # the first process keeps the store that the others still connect by
world.close()
"""


def test_a_pass_that_is_not_shared_goes_through_all_heads_on_one_process(processes):
    """Whose norm is spread over all four where heads are divided."""
    outputs = [process.communicate(timeout=120) for process in processes("-c", ALONE, ranks=4)]
    assert [out.split() for out, _ in outputs] == [["True", "True"]] * 4, outputs


def test_a_model_whose_heads_are_whole_refuses_a_part_of_the_tokens():
    """It would take them for rows of their own."""
    with pytest.raises(ValueError, match="divide_heads"):
        LM(load_model("tiny")).hidden(torch.zeros(1, 4, dtype=torch.int64), joint=Pass())


PACKED = """
import copy
import json
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from tiny_run import TinyBatch
from nano3.config.model import ModelConfig
from nano3.model.lm import LM
from nano3.parallel.sharing import around
from nano3.parallel.tensor import divide_heads, sharing
from nano3.train.world import init_world

cfg = ModelConfig(
    pattern="ME*M", vocab_size=64, d_model=12, init_std=0.3, n_heads=4, n_kv_heads=2, head_dim=6, mamba_n_heads=8,
    mamba_head_dim=4, d_state=6, n_groups=2, chunk_size=5, n_experts=4, top_k=2, d_expert=6, d_shared=6,
)
world = init_world(json.loads(sys.argv[2]))
whole = LM(cfg).init_weights(1).double().train()
whole.compute_dtype = torch.float64
ours, worst = copy.deepcopy(whole), 0.0
divide_heads(ours, world.tensor.handle)
shared = sharing(world.sequence.handle, world.context.handle, world.tensor.handle)

def gradients(model, x, weights, hidden):
    model.zero_grad()
    ((x * weights).sum() + hidden.balance_loss + 2 * hidden.sequence_balance_loss).backward()
    return [p.grad for p in model.parameters()][:-1]

for turn, rows in enumerate(json.loads(sys.argv[3])):
    generator = torch.Generator().manual_seed(turn)
    tokens = torch.randint(64, (len(rows), 48), generator=generator)
    weights = torch.randn(len(rows), 48, 12, dtype=torch.float64, generator=generator)
    ids = torch.stack([torch.isin(torch.arange(48), torch.tensor(starts)).int().cumsum(0) for starts in rows])
    hidden = whole.hidden(tokens, ids)
    expected, loads = gradients(whole, hidden.x, weights, hidden), hidden.loads
    own = shared.cut(TinyBatch(tokens, tokens, ids, []))
    ours.checkpoint_activations = turn % 2 == 1
    part = ours.hidden(own.tokens, own.document_ids, **around(own, shared), slices=shared)
    worst = max(worst, (part.x - shared.take(hidden.x)).abs().max().item())
    for found, gradient in zip(gradients(ours, part.x, shared.take(weights), part), expected, strict=True):
        dist.all_reduce(found)
        worst = max(worst, ((found - gradient).abs().max() / gradient.abs().max()).item())
    assert torch.equal(shared.sum(part.loads), loads)
print(worst, flush=True)
world.close()
"""


@pytest.mark.parametrize("axes", [{"tensor": 4}, {"context": 2, "tensor": 2}], ids=str)
def test_packed_documents_that_begin_anywhere(processes, axes):
    """At the borders of the processes' tokens and 3 on either side, of one token, and longer than two processes'."""
    draw = random.Random(0)
    places = [border + near for border in range(6, 48, 6) for near in (-3, -2, -1, 0, 1, 2, 3)]
    rows = [[0, 12, 24, 36], [11, 12, 13], [], *(sorted(draw.sample(places, draw.randint(1, 9))) for _ in range(21))]
    batches = [rows[i : i + 2] for i in range(0, len(rows), 2)]
    arguments = [str(Path(__file__).parents[1] / "train"), json.dumps(axes), json.dumps(batches)]
    outputs = [process.communicate(timeout=120) for process in processes("-c", PACKED, *arguments, ranks=4)]
    assert [float(out) < 1e-9 for out, _ in outputs] == [True] * 4, outputs

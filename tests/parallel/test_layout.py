"""Which arrangements of processes there are, and what is said of the others."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from nano3.config.errors import UserError
from nano3.config.presets import load_model, load_pretrain, load_rlhf, load_rlvr, load_sft
from nano3.config.schema import ParallelConfig
from nano3.parallel.layout import Layout, check_lengths, layout_of
from nano3.stages.settings import check_parallel

NANO = load_model("nano3-30b-a3b")


@pytest.mark.parametrize(
    ("size", "settings", "layout", "experts"),
    [
        (1, {}, Layout(), (1, 1, 1)),
        (8, {}, Layout(shard=8), (1, 8, 1)),
        (256, {"expert": 8}, Layout(shard=256, expert=8), (1, 32, 8)),
        (256, {"expert": 8, "replicate": 4}, Layout(4, 64, 1, 8), (4, 8, 8)),
        (256, {"expert": 8, "context": 64}, Layout(1, 4, 64, 8), (1, 32, 8)),
        (256, {"expert": 8, "context": 64, "pipeline": 4}, Layout(1, 1, 64, 8, 4), (1, 8, 8)),
        (256, {"expert": 128, "context": 64, "shard": 4}, Layout(1, 4, 64, 128), (1, 2, 128)),
        (256, {"context": 8, "tensor": 8, "expert": 8, "pipeline": 4}, Layout(1, 1, 8, 8, 4, 8), (1, 8, 8)),
        (64, {"tensor": 32}, Layout(shard=2, tensor=32), (1, 64, 1)),
    ],
)
def test_the_processes_are_divided_as_the_settings_say(size, settings, layout, experts):
    assert layout_of(ParallelConfig(**settings), NANO, size) == layout
    assert layout.size == size
    assert layout.expert_shape == experts


@pytest.mark.parametrize(
    ("size", "settings", "error"),
    [
        (8, {"context": 3}, r"parallel.context is 3: 8 processes cannot .* --set parallel.context=2$"),
        (8, {"context": 8, "replicate": 2}, r"parallel.context is 8: .* --set parallel.context=4$"),
        (8, {"replicate": 3}, r"parallel.replicate is 3: .* --set parallel.replicate=2$"),
        (8, {"shard": 4}, r"parallel.shard is 4: 8 processes leave another number; .* --set parallel.shard=8$"),
        (8, {"expert": 3}, r"parallel.expert is 3: 128 experts .* --set parallel.expert=2$"),
        (6, {"expert": 4}, r"parallel.expert is 4: 128 experts .* 6 processes so; .* --set parallel.expert=2$"),
        (8, {"expert": 8, "replicate": 2}, r"among 4 processes of a replica so; .* --set parallel.expert=4$"),
        (1, {"expert": 2}, r"among one process so; .* --set parallel.expert=1, or start more with torchrun$"),
        (1, {"context": 2}, r"parallel.context is 2: one process cannot be .*=1, or start more with torchrun$"),
        (2, {"expert": 2, "fsdp": False}, r"parallel.expert is 2 with parallel.fsdp = false, .* parallel.fsdp=true"),
        (2, {"replicate": 2, "fsdp": False}, r"parallel.replicate is 2 with parallel.fsdp = false, .*replicate=1$"),
        (2, {"shard": 2, "fsdp": False}, r"parallel.shard is 2 with parallel.fsdp = false, .*--set parallel.shard=0$"),
        (2, {"shard": 1, "fsdp": False}, r"parallel.shard is 1: 2 processes .*--set parallel.shard=0$"),
        (4, {"pipeline": 3}, r"parallel.pipeline is 3: 4 processes and 52 blocks do not .* --set parallel.pipeline=2$"),
        (104, {"pipeline": 104}, r"pipeline is 104: 104 processes and 52 blocks .* --set parallel.pipeline=52$"),
        (8, {"pipeline": 8, "context": 4}, r"context is 4: one process of a stage .* --set parallel.context=1$"),
        (8, {"pipeline": 2, "replicate": 3}, r"replicate is 3: 4 processes of a stage .*--set parallel.replicate=2$"),
        (8, {"pipeline": 2, "expert": 8}, r"expert is 8: .* among 4 processes so; .*--set parallel.expert=4$"),
        (8, {"pipeline": 2, "shard": 8}, r"shard is 8: 4 processes of a stage .*--set parallel.shard=4$"),
        (1, {"pipeline": 2}, r"parallel.pipeline is 2: one process .*=1, or start more with torchrun$"),
        (2, {"cuts": [3]}, r"parallel.cuts is \[3\] without a pipeline: .*, or --set parallel.cuts=\[\]$"),
        (8, {"tensor": 3}, r"tensor is 3: 32 heads with 2 of keys and 64 Mamba-2 heads in 8 groups cannot .*tensor=2$"),
        (64, {"tensor": 64}, r"parallel.tensor is 64: 32 heads .* --set parallel.tensor=32$"),
        (6, {"tensor": 4}, r"parallel.tensor is 4: 6 processes cannot be divided .* --set parallel.tensor=2$"),
        (8, {"tensor": 8, "context": 2}, r"parallel.tensor is 8: 8 processes .* --set parallel.tensor=4$"),
        (8, {"tensor": 4, "context": 3}, r"parallel.context is 3: 8 processes .* --set parallel.context=2$"),
        (8, {"pipeline": 2, "tensor": 8}, r"tensor is 8: 4 processes of a stage .* --set parallel.tensor=4$"),
        (1, {"tensor": 2}, r"parallel.tensor is 2: one process cannot be .*=1, or start more with torchrun$"),
        (4, {"replicate": 3, "context": 4}, r"parallel.replicate is 3: 4 processes .* --set parallel.replicate=1$"),
    ],
)
def test_an_impossible_arrangement_is_refused_with_the_nearest(size, settings, error):
    with pytest.raises(UserError, match=error):
        layout_of(ParallelConfig(**settings), NANO, size)


def test_experts_whose_matrices_do_not_divide_among_their_shards_are_refused():
    odd = replace(NANO, d_model=36, d_expert=10)
    assert layout_of(ParallelConfig(expert=4), odd, 8).expert_shape == (1, 2, 4)
    with pytest.raises(UserError, match=r"128 experts of 10 x 36 cannot be divided among 16 processes so; .*expert=4$"):
        layout_of(ParallelConfig(expert=2), odd, 16)
    with pytest.raises(UserError, match=r"tensor is 2: the model has no heads; the nearest is --set parallel.tensor=1"):
        layout_of(ParallelConfig(tensor=2), replace(NANO, pattern="E-"), 2)
    dense = replace(NANO, pattern="M*-")
    with pytest.raises(UserError, match=r"the model has no experts; the nearest is --set parallel.expert=1"):
        layout_of(ParallelConfig(expert=2), dense, 2)


def test_sequences_that_do_not_divide_into_slices_are_refused():
    check_lengths(ParallelConfig(context=4), NANO, [512, 64])
    with pytest.raises(UserError, match=r"parallel.context is 3: sequences of 512 tokens .* 6 slices .*context=2$"):
        check_lengths(ParallelConfig(context=3), NANO, [768, 512])
    with pytest.raises(UserError, match=r"context is 8: sequences of 32 tokens .* 16 slices of at least 3; .*=4$"):
        check_lengths(ParallelConfig(context=8), NANO, [32])
    check_lengths(ParallelConfig(context=8), replace(NANO, pattern="E*"), [32])
    check_lengths(ParallelConfig(context=4, tensor=2), NANO, [512, 64])
    with pytest.raises(UserError, match=r"tensor is 8: sequences of 100 tokens .* 1 x 8 equal parts; .*tensor=4$"):
        check_lengths(ParallelConfig(tensor=8), NANO, [512, 100])
    with pytest.raises(UserError, match=r"tensor is 8: sequences of 96 tokens .* 8 x 8 equal parts; .*tensor=4$"):
        check_lengths(ParallelConfig(context=4, tensor=8), NANO, [96])


@pytest.mark.parametrize("load", [load_rlvr, load_rlhf])
def test_reinforcement_learning_refuses_a_pipeline(load):
    with pytest.raises(UserError, match=r"pipeline is 2: reinforcement learning .*--set parallel.pipeline=1$"):
        check_parallel(load("tiny", ["parallel.pipeline=2"]), 2)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (("parallel.context=2", "parallel.expert=4"), ""),
        (("parallel.replicate=2", "parallel.shard=2", "parallel.expert=2"), ""),
        (("parallel.context=2", "train.pack_length=1026", "rollout.max_context=512"), r"sequences of 1026 tokens"),
        (("parallel.expert=3",), r"parallel\.expert is 3: .*nearest is --set parallel\.expert=2"),
        (("parallel.shard=1",), r"parallel\.shard is 1: .* --set parallel.shard=4"),
        (("parallel.expert=2", "lora.rank=2", 'lora.targets=["*.experts.down_proj"]'), r"experts, not adapters"),
    ],
)
def test_a_policy_is_trained_by_processes_that_can(settings, error):
    cfg = load_rlvr("tiny", [*settings])
    with pytest.raises(UserError, match=error) if error else nullcontext():
        check_parallel(cfg, 4)


@pytest.mark.parametrize("load", [load_pretrain, load_sft])
def test_stages_that_train_on_given_rows_use_all_of_them(load):
    check_parallel(load("tiny", ["parallel.expert=2", "parallel.context=2"]), 4)
    with pytest.raises(UserError, match=r"parallel.context is 3: sequences of"):
        check_parallel(load("tiny", ["parallel.context=3"]), 3)


def test_adapters_of_experts_that_are_divided_are_refused():
    divided = ["parallel.expert=2", "lora.rank=2"]
    for targets in ([], ['lora.targets=["q_proj","*.experts.down_proj"]']):
        check_parallel(load_sft("tiny", ["lora.rank=2", *targets]), 2)
        with pytest.raises(UserError, match=r"expert is 2: .* adapters such as blocks.\d+.mixer.experts.* of theirs"):
            check_parallel(load_sft("tiny", [*divided, *targets]), 2)
    check_parallel(load_sft("tiny", [*divided, 'lora.targets=["q_proj","*.shared_experts.*"]']), 2)


def test_adapters_of_heads_that_are_divided_are_refused():
    divided = ["parallel.tensor=2", "lora.rank=2"]
    for targets in ([], ['lora.targets=["in_proj"]'], ['lora.targets=["*.o_proj"]']):
        check_parallel(load_sft("tiny", ["lora.rank=2", *targets]), 2)
        with pytest.raises(
            UserError, match=r"tensor is 2: it divides heads, not adapters such as blocks.\d+.mixer\.\w+"
        ):
            check_parallel(load_sft("tiny", [*divided, *targets]), 2)
    check_parallel(load_sft("tiny", [*divided, 'lora.targets=["*.experts.*","*.shared_experts.*"]']), 2)


def test_adapters_in_stages_are_refused():
    check_parallel(load_sft("tiny", ["parallel.pipeline=2"]), 2)
    with pytest.raises(UserError, match=r"pipeline is 2: a folder of adapters .*=1, or --set lora.rank=0$"):
        check_parallel(load_sft("tiny", ["parallel.pipeline=2", "lora.rank=2"]), 2)


def test_dividing_experts_needs_a_newer_pytorch(monkeypatch, tmp_path):
    settings = load_pretrain("tiny", ["parallel.expert=2"])
    for installed, refused in (("2.12.1+cpu", True), ("2.13.0+cpu", False), ("2.14.0a0+git12", False)):
        record = tmp_path / installed / f"torch-{installed}.dist-info"
        record.mkdir(parents=True)
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {installed}\n")
        monkeypatch.syspath_prepend(record.parent)
        if refused:
            with pytest.raises(UserError, match=r"needs PyTorch 2.13 or newer, and 2.12.1\+cpu is installed; .*=1$"):
                check_parallel(settings, 2)
            check_parallel(load_pretrain("tiny", []), 2)
        else:
            check_parallel(settings, 2)

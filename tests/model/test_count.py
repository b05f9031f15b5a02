"""Exact counts of the report, agreement with real models, and the shape of the memory and FLOP estimates."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from nano3.config.model import ModelConfig
from nano3.config.presets import load_extend_context, load_model, load_pretrain
from nano3.model.count import count_parameters, flops_per_token, largest_seq_len, memory, most_ranks, rank_bytes
from nano3.model.lm import LM

pytestmark = pytest.mark.any_isa

ODD = ModelConfig(
    pattern="-M*EM-E", vocab_size=77, d_model=24, n_heads=6, n_kv_heads=3, head_dim=4, mamba_n_heads=6,
    mamba_head_dim=5, d_state=7, n_groups=3, d_conv=3, n_experts=5, top_k=3, d_expert=9, d_shared=11, d_ff=13,
)  # fmt: skip


def test_the_reports_model_to_the_last_parameter():
    counts = count_parameters(load_model("nano3-30b-a3b"))
    assert counts.total == 31_577_937_344
    assert counts.active == 3_580_073_408
    assert counts.active_without_embedding == 3_227_751_872


@pytest.mark.parametrize("cfg", [ODD, replace(ODD, d_shared=0), load_model("tiny"), load_model("bench-110m")])
def test_the_total_is_that_of_the_model_that_is_built(cfg):
    with torch.device("meta"):
        model = LM(cfg)
    assert count_parameters(cfg).total == sum(p.numel() for p in model.parameters())


def test_the_bench_model_has_the_peers_size():
    assert count_parameters(load_model("bench-110m")).total == 109_556_048


def test_active_parameters_grow_with_top_k_and_the_total_does_not():
    one, two = (count_parameters(replace(ODD, top_k=k)) for k in (1, 2))
    assert one.total == two.total
    assert two.active - one.active == 2 * (2 * ODD.d_model * ODD.d_expert)
    assert one.active - one.active_without_embedding == ODD.vocab_size * ODD.d_model
    assert count_parameters(replace(ODD, top_k=ODD.n_experts)).active == one.total


def test_memory_of_weights_and_optimizer_is_sixteen_bytes_a_parameter_and_the_copy():
    cfg = load_pretrain("tiny")
    total = count_parameters(cfg.model).total
    plain, half = memory(cfg, "float32"), memory(cfg, "bfloat16")
    assert plain.weights + plain.gradients + plain.optimizer == 16 * total
    assert plain.compute_copy == 0
    assert half.compute_copy == 2 * total
    assert half.activations < plain.activations
    assert half.total == 18 * total + half.activations + half.working


def test_activations_grow_with_the_micro_batch_and_shrink_when_recomputed():
    cfg = load_pretrain("tiny", ["train.batch_size=8", "train.micro_batch_size=4"])
    doubled = replace(cfg, train=replace(cfg.train, micro_batch_size=8))
    recomputed = replace(cfg, train=replace(cfg.train, checkpoint_activations="block"))
    assert memory(doubled).activations == 2 * memory(cfg).activations
    assert memory(recomputed).activations < memory(cfg).activations


def kept_bytes(cfg, dtype, batch, length):
    """Bytes of the distinct tensors, weights aside, that autograd keeps for the backward pass of a real model."""
    model = LM(cfg).init_weights(0)
    model.compute_dtype = dtype
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model.hidden(torch.randint(5, cfg.vocab_size, (batch, length)))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(n for pointer, n in storages.items() if pointer not in weights)


@pytest.mark.parametrize(
    ("pattern", "dtype"),
    [(p, "float32") for p in ("MM", "EE", "**", "--", "MEM*E")] + [(p, "bfloat16") for p in ("MM", "EE", "**", "--")],
)
def test_the_activation_estimate_is_near_what_a_real_model_keeps(pattern, dtype):
    cfg = load_pretrain("tiny", [f"model.pattern={pattern}", "data.seq_len=256", "train.micro_batch_size=2"])
    estimate = memory(cfg, dtype).activations
    assert estimate == pytest.approx(kept_bytes(cfg.model, getattr(torch, dtype), 2, 256), rel=0.2)


def test_flops_follow_active_parameters_and_only_attention_grows_with_length():
    cfg = load_model("nano3-30b-a3b")
    short, long = flops_per_token(cfg, 4096), flops_per_token(cfg, 8192)
    assert short > 6 * count_parameters(cfg).active_without_embedding
    assert long - short == 3 * 4 * 4096 * 4096 / 2 * 6
    mamba_only = replace(ODD, pattern="MM")
    assert flops_per_token(mamba_only, 4096) == flops_per_token(mamba_only, 8192)


def test_flops_of_an_attention_block_match_its_matmuls():
    cfg = ModelConfig(pattern="*", vocab_size=8, d_model=4, n_heads=2, n_kv_heads=1, head_dim=3, bos_id=1)
    projections = 2 * 4 * 3 * (2 + 1 + 1 + 2)
    scores_and_values = 2 * (2 * 2 * 3 * 5)
    head = 2 * 4 * 8
    norms = 2 * (4 + 4)
    assert flops_per_token(cfg, 10) == 3 * (projections + scores_and_values + head + norms)


def in_pieces(length, piece=4096):
    settings = [f"context.lengths={{{length}=1}}", "train.batch_size=4", "train.micro_batch_size=1"]
    return load_extend_context(
        "tiny", [*settings, "train.checkpoint_activations=block", f"train.sequence_chunk={piece}"]
    )


def test_the_states_between_pieces_are_counted():
    long, short = (memory(in_pieces(65536, piece), "float32") for piece in (4096, 64))
    blocks = [load_model("tiny")] * 2
    more = sum((1024 - 16) * 4 * (cfg.conv_dim * (cfg.d_conv - 1) + cfg.d_inner * cfg.d_state) for cfg in blocks)
    assert short.activations - long.activations == more


def bytes_at(cfg, dtype="float32"):
    return partial(rank_bytes, cfg, dtype)


def test_the_largest_length_is_the_first_half_that_fits():
    cfg = in_pieces(65536)
    needs = [rank_bytes(cfg, "float32", 65536 >> i) for i in range(3)]
    assert needs == sorted(needs, reverse=True)
    assert [largest_seq_len(cfg, need, bytes_at(cfg)) for need in needs] == [65536, 32768, 16384]
    assert largest_seq_len(cfg, needs[1] - 1, bytes_at(cfg)) == 16384
    assert largest_seq_len(cfg, 10**6, bytes_at(cfg)) == 0


def test_ranks_share_the_weights_but_not_the_activations():
    cfg = load_extend_context("long-context")
    assert most_ranks(cfg) == 48
    held, each = memory(cfg), rank_bytes(cfg, ranks=48)
    assert held.activations + held.working + held.shared // 48 < each < held.total
    copies = replace(cfg, parallel=replace(cfg.parallel, fsdp=False))
    assert rank_bytes(copies, ranks=48) == held.total


def of_256(**settings) -> int:
    """Bytes of each of 256 ranks that train the 31.6B model on sequences of 512K."""
    cfg = load_extend_context("long-context", ["context.lengths={524288=1}"])
    return rank_bytes(replace(cfg, parallel=replace(cfg.parallel, **settings)), ranks=256)


def test_ranks_share_sequences_and_gather_their_own_experts_alone():
    cfg = load_extend_context("long-context")
    held, model = memory(cfg), cfg.model
    alone, shared, divided, replicas = (
        of_256(**settings) for settings in ({}, {"context": 64}, {"context": 64, "expert": 8}, {"replicate": 4})
    )
    # Of 512K tokens a rank has 8192, in one piece; 23 blocks keep 2 states of 2 MiB, 6 keys and values twice.
    gathered = (23 * 2 + 2 * 128) * 2**21 + 6 * 2 * 2**29
    own = shared - (alone - held.activations - held.working)
    assert gathered + held.activations // 64 < own < gathered + held.activations // 64 + 5e9
    experts = model.n_experts * 2 * model.d_model * model.d_expert
    # In an exchange: a copy of each token for each of its 6 experts, there and back, and in float32.
    copies = 8192 * 6 * model.d_model * 8
    assert 2 * 4 * experts * 7 // 8 - 2 * copies <= shared - divided < 2 * 4 * experts * 7 // 8
    assert replicas - alone == held.shared * 4 // 256 - held.shared // 256
    assert most_ranks(replace(cfg, parallel=replace(cfg.parallel, context=64))) == 48 * 64


def test_ranks_that_divide_heads_have_fewer_states_and_take_the_tokens_of_all_of_them():
    cfg = load_extend_context("long-context")
    parallel = replace(cfg.parallel, context=8, tensor=8, expert=8)
    assert most_ranks(replace(cfg, parallel=parallel)) == 48 * 64
    shared, divided = of_256(context=64, expert=8), of_256(context=8, tensor=8, expert=8)
    # Computed again, a block gathers again: of states, keys and values, those of one block, and of one head of keys.
    assert 6e9 < shared - divided < (23 * 2 + 2 * 128 + 2) * 2**21 + 6 * 2 * 2**29
    # Rows of 4,096 tokens beside them: 128 in a pass, 16 slices each, an eighth of 2 MiB for each.
    mixed = rank_bytes(replace(cfg, parallel=parallel), ranks=256)
    assert 0 <= mixed - divided <= 3 * 128 * 16 * 2**18


def test_weights_that_stay_gathered_and_shares_in_main_memory_are_counted():
    cfg = load_extend_context("long-context")
    freed, kept, away = (of_256(**s) for s in ({}, {"reshard_after_forward": False}, {"offload": True}))
    experts = cfg.model.n_experts * 2 * cfg.model.d_model * cfg.model.d_expert
    # All blocks but one more; 23 of the 52 hold experts, of which the largest counts already.
    assert 4 * 22 * experts < kept - freed < 4 * count_parameters(cfg.model).total
    assert freed - away == memory(cfg).shared // 256


def test_states_of_many_short_rows_are_counted_and_not_those_of_a_process_that_shares_nothing():
    cfg = load_extend_context("long-context", ["parallel.context=64"])
    more = rank_bytes(cfg, ranks=256) - of_256(context=64)
    # Of 127 rows more 23 blocks keep two states of 2 MiB; of four rows those of all 128 slices arrive.
    assert 23 * 127 * 2 * 2**21 <= more < 24 * 127 * 2 * 2**21 + 2 * 3 * 128 * 2**21 + 1
    assert memory(cfg) == memory(load_extend_context("long-context"))
    assert largest_seq_len(cfg, memory(cfg).total, bytes_at(cfg, "")) == cfg.data.seq_len
    assert largest_seq_len(cfg, memory(cfg).total - 1, bytes_at(cfg, "")) < cfg.data.seq_len


@pytest.mark.slow
@pytest.mark.parametrize("length", [16384, 32768])
def test_the_estimate_in_pieces_is_near_what_a_step_takes(length):
    script = str(Path(__file__).with_name("long_sequence.py"))
    command = [sys.executable, script, str(length), "--checkpoint", "--sequence-chunk", "4096"]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    measured = facts["peak_bytes"] - facts["before_bytes"]
    assert memory(in_pieces(length), "float32").total == pytest.approx(measured, rel=0.3)

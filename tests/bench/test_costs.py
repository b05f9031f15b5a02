"""Arithmetic and traffic against sums done by hand."""

import pytest
import torch

from nano3.bench.costs import bytes_each, flops, read_bytes
from nano3.bench.workload import Case
from nano3.config.model import ModelConfig
from nano3.model.lm import LM
from nano3.quantize.int_formats import quantize_integers

F32, BF16 = torch.float32, torch.bfloat16
FOUR, TWO = ({"experts": size, "embeddings": size, "rest": size} for size in (4.0, 2.0))
MLP = ModelConfig(pattern="--", vocab_size=100, d_model=8, d_ff=16)
MLP_MATRICES, HEAD = 2 * 2 * 8 * 16, 100 * 8
MOE = ModelConfig(pattern="E", vocab_size=100, d_model=8, n_experts=10, top_k=2, d_expert=4, d_shared=0)


def test_training_is_three_forward_passes_with_all_logits():
    # The norms' 3 x 8 weights count as matrix parameters: that is how nano3.model.count counts.
    assert flops(MLP, Case("train", 2, 5)) == 10 * 3 * 2 * (MLP_MATRICES + HEAD + 24)


def test_a_prompt_needs_the_logits_of_its_last_token_only():
    expected = 50 * 2 * (MLP_MATRICES + 24) + 2 * HEAD
    assert flops(MLP, Case("prefill", 1, 50)) == pytest.approx(expected)
    assert flops(MLP, Case("train", 1, 50, forward_only=True)) == pytest.approx(expected)


def test_a_decoded_token_attends_to_all_before_it():
    cfg = ModelConfig(pattern="*", vocab_size=100, d_model=8, n_heads=4, n_kv_heads=2, head_dim=8)
    short, long = (flops(cfg, Case("decode", 3, length, 10)) for length in (100, 300))
    # Scores and their product with the values: 2 x 2 x heads x head width for each token of distance.
    assert long - short == pytest.approx(3 * 10 * 200 * 4 * 4 * 8)


def test_a_step_of_rl_is_prompts_drawn_tokens_and_a_training_pass_over_both():
    matrices = 2 * (MLP_MATRICES + HEAD + 24)
    expected = 3 * 10 * matrices + 6 * 4 * matrices + 6 * (10 + 4) * 3 * matrices
    assert flops(MLP, Case("rl", 3, 10, 4, group=2)) == pytest.approx(expected)


def test_a_step_reads_weights_once_and_a_row_of_the_embedding_for_each_sequence():
    weights = MLP_MATRICES + HEAD + 24
    assert read_bytes(MLP, Case("decode", 1, 8, 4), FOUR, F32) == 4 * (weights + 8)
    assert read_bytes(MLP, Case("decode", 5, 8, 4), TWO, F32) == 2 * (weights + 5 * 8)


def test_a_step_reads_the_experts_that_its_tokens_choose():
    expert = 2 * 8 * 4
    rest = HEAD + 2 * 8 + 10 * 8
    one = read_bytes(MOE, Case("decode", 1, 8, 4), FOUR, F32) / 4
    assert one == pytest.approx(rest + 8 + 2 * expert)
    many = read_bytes(MOE, Case("decode", 100, 8, 4), FOUR, F32) / 4
    assert many == pytest.approx(rest + 100 * 8 + 10 * expert)


def test_states_are_read_by_every_sequence():
    cfg = ModelConfig(pattern="M*", vocab_size=100, d_model=8, mamba_n_heads=2, mamba_head_dim=4, d_state=16,
                      n_groups=1, n_heads=2, n_kv_heads=1, head_dim=8)  # fmt: skip
    one, two = (read_bytes(cfg, Case("decode", batch, 30, 20), FOUR, BF16) for batch in (1, 2))
    scan, conv, cache = 2 * 4 * 16 * 4, (8 + 2 * 16) * 3 * 2, 40 * 2 * 8 * 2
    assert two - one == pytest.approx(scan + conv + cache + 8 * 4)


def test_quantized_weights_are_counted_as_they_are_stored():
    cfg = ModelConfig(pattern="E", vocab_size=100, d_model=64, n_experts=10, top_k=2, d_expert=32, d_shared=0)
    model = LM(cfg).init_weights(0).to_dtype(BF16)
    assert bytes_each(model)["experts"] == 2
    quantize_integers(model, 4)
    each = bytes_each(model)
    assert (each["experts"], each["embeddings"]) == (0.5 + 2 / 32, 2)
    head, router, norms, bias = 100 * 64 * 0.5625, 10 * 64 * 4, 2 * 64 * 2, 10 * 4
    assert each["rest"] * (100 * 64 + 10 * 64 + 2 * 64) == pytest.approx(head + router + norms + bias)
    small, large = (read_bytes(cfg, Case("decode", batch, 8, 4), each, F32) for batch in (1, 1000))
    assert large - small == pytest.approx(8 * 2 * 64 * 32 * 0.5625 + 999 * 64 * 2)

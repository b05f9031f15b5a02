"""Arithmetic and memory traffic of a case, counted from the model's sizes: what a run is held against."""

from __future__ import annotations

import torch

from nano3.bench.workload import Case
from nano3.config.model import ATTENTION, MOE, ModelConfig
from nano3.model.count import count_parameters, flops_per_token
from nano3.model.state.pool import page_bytes, slot_bytes


def flops(cfg: ModelConfig, case: Case) -> float:
    """Floating-point operations of the timed part of a case.

    Counted: 2 for each matrix parameter that acts on a token, causal attention, the chunked scan (one step a token when
    decoding); the backward pass as twice the forward pass. Not counted: norms, activations, the convolution, anything
    computed again. The output projection counts where logits are needed: all positions in training, else the last.
    """
    if case.kind == "decode":
        return case.tokens * _decoded_token(cfg, case)
    if case.kind == "rl":
        whole = case.length + case.output
        prefill = case.batch * case.length * flops_per_token(cfg, case.length) / 3
        return prefill + case.tokens * _decoded_token(cfg, case) + case.sequences * whole * flops_per_token(cfg, whole)
    if case.kind == "train" and not case.forward_only:
        return case.tokens * flops_per_token(cfg, case.length)
    head = 2 * cfg.vocab_size * cfg.d_model
    return case.tokens * (flops_per_token(cfg, case.length) / 3 - head) + case.batch * head


def _decoded_token(cfg: ModelConfig, case: Case) -> float:
    """One token of a sequence that is halfway through its output."""
    distance = case.length + case.output / 2
    attention = 2 * 2 * cfg.n_heads * cfg.head_dim * distance * len(cfg.blocks(ATTENTION))
    return flops_per_token(cfg, 1) / 3 + attention


def read_bytes(cfg: ModelConfig, case: Case, weights: torch.dtype, activations: torch.dtype) -> float:
    """Bytes that one decoding step has to read: weights in use, scan and conv states, keys and values.

    An expert counts if any of the step's tokens is expected to choose it, with choices that are even and independent;
    of the input embedding a row a sequence. States are written back too, which is not counted.
    """
    counts = count_parameters(cfg)
    all_experts = 2 * cfg.d_model * cfg.d_expert * cfg.n_experts * len(cfg.blocks(MOE))
    embedding = cfg.vocab_size * cfg.d_model
    chosen = 1 - (1 - cfg.top_k / cfg.n_experts) ** case.batch
    parameters = counts.total - embedding - all_experts + chosen * all_experts + case.batch * cfg.d_model
    past = case.length + case.output / 2
    states = slot_bytes(cfg, activations) + past * page_bytes(cfg, 1, activations)
    return parameters * weights.itemsize + case.batch * states

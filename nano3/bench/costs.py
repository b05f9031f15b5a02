"""Arithmetic and memory traffic of a case, counted from the model's sizes: what a run is held against."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from nano3.bench.workload import Case
from nano3.config.model import ATTENTION, MOE, ModelConfig
from nano3.model.count import count_parameters, flops_per_token
from nano3.model.lm import LM
from nano3.model.moe import Experts
from nano3.model.state.pool import page_bytes, slot_bytes


def flops(cfg: ModelConfig, case: Case) -> float:
    """Floating-point operations of the timed part of a case.

    Counted: 2 for each matrix parameter that acts on a token, causal attention, the chunked scan (one step a token when
    decoding); the backward pass as twice the forward pass. Not counted: norms, activations, the convolution, anything
    computed again. The output projection counts where logits are needed: all positions in training, else the last.
    """
    if case.kind == "throughput":
        prompts = case.sequences * flops(cfg, Case("prefill", 1, case.length))
        return prompts + (case.tokens - case.sequences) * _decoded_token(cfg, case)
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


def bytes_each(model: LM) -> dict[str, float]:
    """Bytes that a weight takes, with its share of scales: of routed experts, of the embeddings, of all the rest."""
    found: dict[str, list[int]] = {"experts": [], "embeddings": [], "rest": []}
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        stored = sum(tensor.nbytes for tensor in own if tensor is not None)
        kind = {Experts: "experts", nn.Embedding: "embeddings"}.get(type(module), "rest")
        found[kind].append(stored)
    counts = count_parameters(model.cfg)
    experts, embeddings = _experts(model.cfg), model.cfg.vocab_size * model.cfg.d_model
    numbers = {"experts": experts, "embeddings": embeddings, "rest": counts.total - embeddings - experts}
    return {kind: sum(sizes) / max(1, numbers[kind]) for kind, sizes in found.items()}


def _experts(cfg: ModelConfig) -> int:
    """Numbers of all routed experts."""
    return 2 * cfg.d_model * cfg.d_expert * cfg.n_experts * len(cfg.blocks(MOE))


def read_bytes(
    cfg: ModelConfig,
    case: Case,
    each: Mapping[str, float],
    activations: torch.dtype,
    cache: torch.dtype | None = None,
) -> float:
    """Bytes that one decoding step has to read: weights in use, scan and conv states, keys and values.

    States are written back too, which is not counted.

    Args:
        each: bytes of a weight, as `bytes_each` gives them.
        activations: type of the conv states.
        cache: type of keys and values; None: as `activations`.
    """
    past = case.length + case.output / 2
    states = slot_bytes(cfg, activations) + past * page_bytes(cfg, 1, cache or activations)
    return weights_read(cfg, case.batch, each) + case.batch * states


def weights_read(cfg: ModelConfig, tokens: int, each: Mapping[str, float]) -> float:
    """Bytes of the weights that one pass over so many tokens has to read.

    An expert counts if any of the tokens is expected to choose it, with choices that are even and independent; of the
    input embedding a row a token.
    """
    embedding, experts = cfg.vocab_size * cfg.d_model, _experts(cfg)
    chosen = 1 - (1 - cfg.top_k / cfg.n_experts) ** tokens
    rest = count_parameters(cfg).total - embedding - experts
    return each["rest"] * rest + each["experts"] * chosen * experts + each["embeddings"] * tokens * cfg.d_model

"""Parameters, memory and arithmetic of a configuration, counted in plain Python (report section 2.1, Table 1).

Letters: T tokens in a sequence, D d_model, H Mamba heads, P Mamba head dim, N state, G groups, Q chunk size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nano3.config.model import ATTENTION, MAMBA, MLP, MOE, ModelConfig
from nano3.config.run import RunConfig
from nano3.config.sections.parallel import ParallelConfig
from nano3.model.lora.targets import adapter_parameters

MASTER_BYTES = 4
ADAMW_BYTES = 8
SCAN_CHUNK = 64
"""Longest chunk of the scan on a CPU; a GPU's are longer and keep fewer states."""
COMPUTE_BYTES = {"float32": 4, "bfloat16": 2}
LOGITS_BYTES = 1 << 27
"""Most bytes of the logits that the loss holds at a time on a CPU."""
ARRIVING = 1 << 30
"""Most bytes of the states of all slices that a process has at a time, where one row's are not more."""
LOSS_STREAMS = 3
"""Tensors of the size of a block's input in the loss: the final norm's output, its gradient, and that of its input."""
BLOCK_STREAMS = 2
"""The same in a block's backward pass: the gradients of its output and of its input."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a model. The router's bias is a buffer, moved by counts and not by gradients: it is not one."""

    total: int
    """All parameters."""
    active: int
    """Those that act on one token: top_k of the routed experts, and both embeddings."""
    active_without_embedding: int
    """`active` without the input embedding, which is a look-up."""


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds in one process that shares nothing."""

    weights: int
    """float32 master weights."""
    compute_copy: int
    """The copy in the compute dtype; 0 when that is float32."""
    gradients: int
    """float32 gradients."""
    optimizer: int
    """AdamW's two moments, 8 bytes a parameter."""
    activations: int
    """What one micro-batch keeps for its backward pass."""
    working: int
    """What comes and goes at the same time: gradients of activations, logits, one piece of a block."""

    @property
    def shared(self) -> int:
        """What ranks share under FSDP: all but activations and working memory."""
        return self.weights + self.compute_copy + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.shared + self.activations + self.working


def block_parameters(cfg: ModelConfig, symbol: str) -> int:
    """Parameters of one block of this symbol, with its norm and all of its experts."""
    return cfg.d_model + _MIXER_PARAMETERS[symbol](cfg)


def count_parameters(cfg: ModelConfig) -> Counts:
    """Exact parameter counts; the report's 31.6B / 3.6B / 3.2B for `nano3-30b-a3b`."""
    embedding = cfg.vocab_size * cfg.d_model
    total = sum(block_parameters(cfg, symbol) for symbol in cfg.pattern) + cfg.d_model + 2 * embedding
    idle_experts = len(cfg.blocks(MOE)) * (cfg.n_experts - cfg.top_k) * _expert_parameters(cfg)
    return Counts(total, total - idle_experts, total - idle_experts - embedding)


def memory(cfg: RunConfig, dtype: str = "", seq_len: int = 0) -> Memory:
    """Estimate of the bytes that a run holds while it trains in one process.

    Args:
        cfg: the run.
        dtype: compute dtype, `float32` or `bfloat16`; empty takes cfg.train.dtype, and its `auto` as `bfloat16`.
        seq_len: length of the micro-batch's sequences; 0 takes cfg.data.seq_len.
    """
    cfg, element = replace(cfg, parallel=ParallelConfig()), _element(cfg, dtype)
    total = count_parameters(cfg.model).total
    trained, held, copied = _parts(cfg, total, element)
    tokens = cfg.train.micro_batch_size * (seq_len or cfg.data.seq_len)
    return Memory(
        weights=held,
        compute_copy=copied,
        gradients=MASTER_BYTES * trained,
        optimizer=ADAMW_BYTES * trained,
        activations=_activation_bytes(cfg, element, tokens),
        working=_working_bytes(cfg, element, tokens),
    )


def _parts(cfg: Any, total: int, element: int) -> tuple[int, int, int]:
    """Parameters that train, bytes of all weights, and bytes of their copies in a compute type of `element` bytes.

    With adapters (cfg.lora) the model's own weights may be held in the compute type, without a copy.
    """
    lora = getattr(cfg, "lora", None)
    if lora is None or not lora.rank:
        return total, MASTER_BYTES * total, element * total if element < MASTER_BYTES else 0
    trained = adapter_parameters(cfg.model, lora)
    stored = COMPUTE_BYTES.get(lora.base_dtype, MASTER_BYTES)
    copied = element * total if element < stored else 0
    return trained, stored * total + MASTER_BYTES * trained, copied


def rank_bytes(cfg: RunConfig, dtype: str = "", seq_len: int = 0, ranks: int = 1, passes: int = 1) -> int:
    """Estimate of the bytes that one of `ranks` processes holds, which keeps activations of `passes` micro-batches at a
    time; other arguments as `memory`'s.

    Under FSDP a rank has its share, and at a time one block, with the experts that it computes, and both embeddings
    whole, with their gradients; all blocks' weights where they stay after a forward pass, and no share on the device
    where it is in main memory. Where ranks share a sequence each has the activations of its own tokens, and what
    blocks gather of the others (`_gathered_bytes`). Where they divide heads, a mixer takes the tokens of all of them.
    """
    held, parallel = memory(cfg, dtype, seq_len), cfg.parallel
    if ranks == 1:
        return held.total + (passes - 1) * held.activations
    element, length = _element(cfg, dtype), seq_len or cfg.data.seq_len
    tokens = cfg.train.micro_batch_size * length // (parallel.context * parallel.tensor)
    own = passes * _activation_bytes(cfg, element, tokens) + _working_bytes(cfg, element, tokens)
    if parallel.context > 1:
        own += _gathered_bytes(cfg, element, length, passes)
    if not parallel.fsdp:
        return held.shared + own
    blocks = [_gathered_parameters(cfg, symbol) for symbol in cfg.model.pattern]
    whole = sum(blocks) if parallel.reshard_after_forward is False else max(blocks)
    gathered = MASTER_BYTES * (whole + max(blocks) + 4 * cfg.model.vocab_size * cfg.model.d_model)
    return (0 if parallel.offload else held.shared * parallel.replicate // ranks) + gathered + own


def _element(cfg: Any, dtype: str) -> int:
    """Bytes of an activation."""
    return COMPUTE_BYTES.get(dtype or cfg.train.dtype, COMPUTE_BYTES["bfloat16"])


def _gathered_parameters(cfg: RunConfig, symbol: str) -> int:
    """Parameters of one block that a rank has whole while it computes: of the experts, its own."""
    model, whole = cfg.model, block_parameters(cfg.model, symbol)
    if symbol != MOE:
        return whole
    return whole - model.n_experts * _expert_parameters(model) * (cfg.parallel.expert - 1) // cfg.parallel.expert


def _gathered_bytes(cfg: RunConfig, element: int, length: int, passes: int) -> int:
    """Bytes that a rank takes from those that share its sequences of `length` tokens, or of shorter lengths of the run.

    Every Mamba block keeps the states that the own slices of all rows begin with, every attention block keys and values
    up to the end of either own slice; but where heads are divided, a block that is computed again asks again. Beside
    them there is what arrives, or the gradients, of one block: states of all slices of a few rows.
    """
    model, slices = _own_heads(cfg), 2 * cfg.parallel.context
    rows = cfg.train.micro_batch_size * max(1, length // min(cfg.lengths))
    of_slice = MASTER_BYTES * model.d_inner * model.d_state if model.blocks(MAMBA) else 0
    states = rows * 2 * of_slice
    arriving = slices * of_slice * min(rows, max(1, ARRIVING // max(1, slices * of_slice)))
    keys = 2 * cfg.train.micro_batch_size * length * 2 * model.n_kv_heads * model.head_dim
    held = [states] * len(model.blocks(MAMBA)) + [element * keys] * len(model.blocks(ATTENTION))
    again = cfg.parallel.tensor > 1 and cfg.train.checkpoint_activations == "block"
    kept = max(held, default=0) if again else passes * sum(held)
    return kept + max(2 * arriving + states, (element + MASTER_BYTES) * keys if model.blocks(ATTENTION) else 0)


def largest_seq_len(cfg: RunConfig, limit: int, need: Callable[[int], int]) -> int:
    """The longest of cfg.data.seq_len, its half, its quarter and so on at which `need` is `limit` bytes at most; 0 if
    there is none."""
    length = cfg.data.seq_len
    while length and need(length) > limit:
        length //= 2
    return length


def most_ranks(cfg: RunConfig) -> int:
    """Most processes among which the batch can be divided, with those that share each of its sequences and those of a
    pipeline. Micro-batches shrink to what each has."""
    train = cfg.train
    steps = (train.batch_size * cfg.data.seq_len // length for length in cfg.lengths)
    return math.gcd(train.batch_size, *steps) * cfg.parallel.readers_of_one


def _activation_bytes(cfg: RunConfig, element: int, tokens: int) -> int:
    """Bytes that one micro-batch keeps for its backward pass, at `element` bytes an activation.

    Without activation checkpointing every block keeps its input, the normed input and what its mixer keeps
    (`_MAMBA`, `_MOE`, ... below). With it every block keeps its input, and one block at a time the rest. In pieces of
    cfg.train.sequence_chunk tokens it is the input and a Mamba block's states between pieces; where heads are divided,
    mixers are computed again as a whole instead.
    """
    model, chunk = cfg.model, cfg.train.sequence_chunk
    inputs = tokens * model.d_model * element * (model.n_blocks + 1)
    if 0 < chunk < tokens and cfg.parallel.tensor > 1:
        return inputs + tokens * _divided_bytes(cfg, element)
    if 0 < chunk < tokens:
        return inputs + tokens // chunk * len(model.blocks(MAMBA)) * _state_bytes(model, element)
    mixers = _mixer_bytes(cfg, element)
    return inputs + tokens * (max(mixers) if cfg.train.checkpoint_activations == "block" else sum(mixers))


def _working_bytes(cfg: RunConfig, element: int, tokens: int) -> int:
    """The greater of what the loss takes and what a block's backward pass takes, beside what is kept.

    Gradients in a block are as large as what it keeps. In pieces these are a piece's, kept and gradients; attention
    has all keys and values beside, and their gradients in float32 and, of one piece's queries, as they are.
    """
    model, chunk = cfg.model, cfg.train.sequence_chunk
    stream, mixers = tokens * model.d_model * element, max(_mixer_bytes(cfg, element))
    logits = min(LOGITS_BYTES, tokens * model.vocab_size * MASTER_BYTES)
    block = BLOCK_STREAMS * stream + tokens * mixers
    if 0 < chunk < tokens:
        keys = 2 * model.n_kv_heads * model.head_dim if model.blocks(ATTENTION) else 0
        block = BLOCK_STREAMS * stream + tokens * keys * (2 * element + MASTER_BYTES) + 2 * chunk * mixers
    if cfg.parallel.tensor > 1:
        if 0 < chunk < tokens:
            block = BLOCK_STREAMS * stream + max(tokens * _divided_bytes(cfg, element), 2 * chunk * mixers)
        # A mixer's output for the tokens of all, and what comes of theirs for the own tokens.
        block += 2 * cfg.parallel.tensor * stream
    return max(LOSS_STREAMS * stream + logits, block)


def _mixer_bytes(cfg: RunConfig, element: int) -> list[int]:
    """Bytes a token that each block keeps beside its input; of divided experts with the copies that travel, of divided
    heads for the tokens of all who divide them."""
    stream, parallel = cfg.model.d_model * element, cfg.parallel
    travel = {MOE: cfg.model.top_k * cfg.model.d_model * (2 * element + MASTER_BYTES)} if parallel.expert > 1 else {}
    model, times = _own_heads(cfg), {MAMBA: parallel.tensor, ATTENTION: parallel.tensor}
    return [
        times.get(symbol, 1) * (_MIXER_ACTIVATIONS[symbol](model, element) + stream) + travel.get(symbol, 0)
        for symbol in model.pattern
    ]


def _divided_bytes(cfg: RunConfig, element: int) -> int:
    """The greatest of `_mixer_bytes` of blocks whose heads are divided."""
    kinds = zip(cfg.model.pattern, _mixer_bytes(cfg, element), strict=True)
    return max((size for symbol, size in kinds if symbol in (MAMBA, ATTENTION)), default=0)


def _own_heads(cfg: RunConfig) -> ModelConfig:
    """The model with the heads, and groups of them, that one rank computes."""
    model, n = cfg.model, cfg.parallel.tensor
    names = ("n_heads", "n_kv_heads", "mamba_n_heads", "n_groups")
    return replace(model, **{name: max(1, getattr(model, name) // n) for name in names}) if n > 1 else model


def _state_bytes(cfg: ModelConfig, element: int) -> int:
    """Bytes of the states of convolution and scan that a piece hands to the next."""
    return element * cfg.conv_dim * (cfg.d_conv - 1) + MASTER_BYTES * cfg.d_inner * cfg.d_state


def flops_per_token(cfg: ModelConfig, seq_len: int) -> float:
    """Floating-point operations of training on one token: forward, and twice that for the backward pass.

    Forward: 2 for each active matrix parameter but the input embedding, plus causal attention at the mean
    distance T / 2, plus the chunked scan. Recomputation under activation checkpointing does not count, so the
    figure serves model FLOP utilisation.
    """
    matmuls = 2 * count_parameters(cfg).active_without_embedding
    attention = 2 * 2 * cfg.n_heads * cfg.head_dim * seq_len / 2 * len(cfg.blocks(ATTENTION))
    return 3.0 * (matmuls + attention + scan_flops(cfg, seq_len) * len(cfg.blocks(MAMBA)))


def scan_flops(cfg: ModelConfig, seq_len: int) -> float:
    """Forward operations of one scan on one token: C B^T and its product with x inside a chunk, states in and out."""
    distance = min(cfg.chunk_size, seq_len) / 2
    inside = 2 * distance * (cfg.n_groups * cfg.d_state + cfg.d_inner)
    states = 2 * 2 * cfg.d_inner * cfg.d_state
    return inside + states


def _mamba_parameters(cfg: ModelConfig) -> int:
    projections = cfg.d_model * (cfg.d_in_proj + cfg.d_inner)
    conv = cfg.conv_dim * (cfg.d_conv + 1)
    per_head = 3 * cfg.mamba_n_heads
    return projections + conv + per_head + cfg.d_inner


def _attention_parameters(cfg: ModelConfig) -> int:
    return 2 * cfg.d_model * cfg.head_dim * (cfg.n_heads + cfg.n_kv_heads)


def _expert_parameters(cfg: ModelConfig) -> int:
    return 2 * cfg.d_model * cfg.d_expert


def _moe_parameters(cfg: ModelConfig) -> int:
    router, shared = cfg.n_experts * cfg.d_model, 2 * cfg.d_model * cfg.d_shared
    return router + shared + cfg.n_experts * _expert_parameters(cfg)


def _mamba_activations(cfg: ModelConfig, element: int) -> int:
    """Projection, convolution, scan and gated norm; the state at the start of each chunk in float32."""
    states = 4 * cfg.d_inner * cfg.d_state // min(cfg.chunk_size, SCAN_CHUNK)
    return element * (cfg.d_in_proj + cfg.conv_dim + 2 * cfg.d_inner) + states


def _attention_activations(cfg: ModelConfig, element: int) -> int:
    """q, k, v and the output; the kernel keeps no scores."""
    return element * cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads)


def _moe_activations(cfg: ModelConfig, element: int) -> int:
    """Router's scores in float32; one hidden layer of each chosen expert and of the shared expert."""
    return 4 * cfg.n_experts + element * (cfg.top_k * cfg.d_expert + cfg.d_shared)


_MIXER_PARAMETERS = {
    MAMBA: _mamba_parameters,
    ATTENTION: _attention_parameters,
    MOE: _moe_parameters,
    MLP: lambda cfg: 2 * cfg.d_model * cfg.d_ff,
}
_MIXER_ACTIVATIONS = {
    MAMBA: _mamba_activations,
    ATTENTION: _attention_activations,
    MOE: _moe_activations,
    MLP: lambda cfg, element: element * cfg.d_ff,
}

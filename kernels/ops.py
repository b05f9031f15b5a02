"""The public ops that act on each token alone: shapes, types, formulas; every call goes through `dispatch.choose`.

Letters, here and in sequence_ops: B batch, T time, S tokens, C channels, H heads, P head width, N state, G groups,
E experts, K chosen experts a token, F hidden width, V vocabulary.
Weights may be fp32 masters under bf16 activations: they are cast at use and get gradients in their own type.
Where a weight may be `Scaled`, its numbers are data * scale, and what it multiplies is rounded first: to 8-bit integers
by one of integers, to e4m3 by one of e4m3 with an input_scale. Sums are exact then (integers, of a group of 32 where
the weight has 4 bits) or fp32, and gradients go to x, straight through the rounding.
All ops take `backend` to force an implementation (ValueError when unknown); sums and states are fp32 (fp64 for fp64).
"""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from .dispatch import choose
from .scaled import FLOATS, Weight, check_float, check_weight

MOST_SHARP = 3.4e38
"""Largest inverse of a temperature; fp32 ends just beyond."""


def linear(x: Tensor, weight: Weight, *, backend: str | None = None) -> Tensor:
    """y = x @ weight.T.

    Args:
        x: (..., I).
        weight: (O, I), cast to x.dtype; or scaled.

    Returns:
        (..., O) in x.dtype.

    Raises:
        ValueError: the weight is of integers or of fp8 without a scale.
    """
    if weight.dtype not in FLOATS:
        check_weight("linear", weight, 2)
    return choose("linear", x.device, backend)[1](x, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: str | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467; report section 2.1).

    Args:
        x: (..., D).
        weight: (D,).

    Returns:
        (..., D) in x.dtype.

    Raises:
        ValueError: the weight has another length than the last dimension.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: weight of shape {tuple(weight.shape)} for a width of {x.shape[-1]}")
    return choose("rms_norm", x.device, backend)[1](x, weight, eps)


def gated_rms_norm(
    y: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int, *, backend: str | None = None
) -> Tensor:
    """RMSNorm of y * silu(z), separately over each of `n_groups` equal parts of the last dimension (Mamba-2's output
    norm, gate before norm; report section 2.1).

    Args:
        y, z: (..., D).
        weight: (D,).

    Returns:
        (..., D) in y.dtype.

    Raises:
        ValueError: D is not a multiple of n_groups.
    """
    if y.shape[-1] % n_groups:
        raise ValueError(f"gated_rms_norm: width {y.shape[-1]} is not divisible by n_groups {n_groups}")
    return choose("gated_rms_norm", y.device, backend)[1](y, z, weight, eps, n_groups)


def best_tokens(logits: Tensor, limit: int, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """The most probable of the first `limit` tokens, and the logarithm of the sum of all exponentials, of each row.

    Without gradients. A row with a nan or an infinite largest logit has any id, and a total that is no finite number or
    leaves none when it is taken from the logit.

    Args:
        logits: (R, V).
        limit: at least 1.

    Returns:
        ids (R,) int64, and log totals (R,) fp32 (fp64 for fp64).
    """
    return choose("best_tokens", logits.device, backend)[1](logits, limit)


def route(
    x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scale: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The experts of each token and their weights (report section 2.1; selection bias, arXiv 2408.15664).

    scores = sigmoid(x weight^T); the choice is the top_k of scores + bias; weights = chosen scores / sum * scale.
    Differentiable in x and weight through weights and scores; the bias takes part in the choice only.

    Args:
        x: (S, D), cast to fp32 as the weight is.
        weight: (E, D).
        bias: (E,) fp32.
        top_k: experts a token, at most E.
        scale: what a token's weights sum to.

    Returns:
        expert_ids (S, K) int64 by descending score + bias, weights (S, K) and scores (S, E), both fp32 (fp64 for fp64).
        Of experts with equal score + bias the C++ kernel and the reference take the lowest; a nan counts as largest.

    Raises:
        ValueError: more experts are to be chosen than there are, or a weight that is no float tensor.
    """
    if weight.dtype not in FLOATS:
        check_float("route", weight)
    if top_k > weight.shape[0]:
        raise ValueError(f"route: top_k is {top_k}, but there are only {weight.shape[0]} experts")
    return choose("route", x.device, backend)[1](x, weight, bias, top_k, scale)


def grouped_mlp(
    x: Tensor, up: Weight, down: Weight, expert_ids: Tensor, weights: Tensor, *, backend: str | None = None
) -> Tensor:
    """Routed experts: sum_k weights[k] * down_e relu(up_e x)^2 with e = expert_ids[k] (report section 2.1).

    Args:
        x: (S, D).
        up: (E, F, D), or scaled.
        down: (E, D, F), or scaled: its input is the activation before the token's weight.
        expert_ids: (S, K) int64, different within a row.
        weights: (S, K) fp32.

    Returns:
        (S, D) in x.dtype. Experts without a token get zero gradients.

    Raises:
        ValueError: a matrix is of integers or of fp8 without a scale.
    """
    if up.dtype not in FLOATS:
        check_weight("grouped_mlp", up, 3)
    if down.dtype not in FLOATS:
        check_weight("grouped_mlp", down, 3)
    return choose("grouped_mlp", x.device, backend)[1](x, up, down, expert_ids, weights)


def squared_relu_mlp(x: Tensor, up: Weight, down: Weight, *, backend: str | None = None) -> Tensor:
    """down relu(up x)^2 (arXiv 2109.08668): the shared expert and dense MLP blocks.

    Args:
        x: (..., D).
        up: (F, D), or scaled.
        down: (D, F), or scaled.

    Returns:
        (..., D) in x.dtype.

    Raises:
        ValueError: a matrix is of integers or of fp8 without a scale.
    """
    if up.dtype not in FLOATS:
        check_weight("squared_relu_mlp", up, 2)
    if down.dtype not in FLOATS:
        check_weight("squared_relu_mlp", down, 2)
    return choose("squared_relu_mlp", x.device, backend)[1](x, up, down)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """SUM over tokens of -log softmax(hidden @ weight.T)[target], without holding all logits.

    Args:
        hidden: (S, D).
        weight: (V, D).
        targets: (S,) int64; `ignore_index` marks tokens without loss.
        chunk_size: tokens whose logits exist at a time; None: the backend decides.

    Returns:
        fp32 scalar (fp64 for fp64 hidden), 0 when all targets are ignored. Gradients to hidden and weight, each in its
        own type and once: without a second derivative. That of fp32 weights under bf16 hidden is as exact as products
        of bf16 numbers are: where the processor has those, each chunk's share is rounded to bf16 before the fp32 sum.

    Raises:
        ValueError: shapes that do not go together, or the weight is no float tensor.
    """
    check_float("linear_cross_entropy", weight)
    _check_head("linear_cross_entropy", hidden, weight, targets, chunk_size)
    run = choose("linear_cross_entropy", hidden.device, backend)[1]
    return run(hidden, weight, targets, ignore_index=ignore_index, chunk_size=chunk_size)


def _check_head(op: str, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int | None) -> None:
    """Refuse what would be read past its end, or be scored in part."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or not weight.shape[0]:
        shapes = f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}"
        raise ValueError(f"{op}: {shapes}; they must be (S, D) and (V, D), V at least 1")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"{op}: targets {tuple(targets.shape)} for hidden of {len(hidden)} rows; one each")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"{op}: chunk_size is {chunk_size}; it must be at least 1")


@overload
def log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = ...,
    entropy: Literal[False] = ...,
    *,
    ignore_index: int = ...,
    chunk_size: int | None = ...,
    backend: str | None = ...,
) -> Tensor:
    """Log-probabilities alone."""
    ...


@overload
def log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = ...,
    *,
    entropy: Literal[True],
    ignore_index: int = ...,
    chunk_size: int | None = ...,
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies."""
    ...


def log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
    *,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T / temperature)[target] of each token, without holding all logits.

    Logits are fp32 even for bf16 hidden and weight: products of bf16 numbers with fp32 sums and results. The gradients
    recompute them, and only those of tokens whose incoming gradient is not 0: masked tokens cost nothing.

    Args:
        hidden: (S, D).
        weight: (V, D), cast to hidden.dtype.
        targets: (S,) int64; tokens with `ignore_index` get 0 and no gradient.
        temperature: above 0.
        entropy: also return -sum_v p_v log p_v of each token, differentiable too.
        chunk_size: as in `linear_cross_entropy`.

    Returns:
        (S,) fp32 (fp64 for fp64 hidden), with `entropy` two of them; both finite where single logits are -inf.
        Gradients to hidden and weight, each in its own type, without a second derivative. Under bf16 hidden, where the
        processor or GPU multiplies bf16, the logits' gradients are rounded to bf16, and so is each chunk's share of the
        weight's gradient before the fp32 sum over chunks.

    Raises:
        ValueError: shapes that do not go together, the weight is no float tensor, or the temperature or its inverse is
            no finite fp32 number above 0.
    """
    check_float("log_probs", weight)
    _check_head("log_probs", hidden, weight, targets, chunk_size)
    if not (temperature > 0 and 0 < 1 / temperature <= MOST_SHARP):
        limits = "above 0" if not temperature > 0 else f"at least {1 / MOST_SHARP:.3g} and finite"
        raise ValueError(f"log_probs: temperature is {temperature}; it must be {limits}")
    run = choose("log_probs", hidden.device, backend)[1]
    return run(hidden, weight, targets, temperature, entropy, ignore_index, chunk_size)

"""One call of each op at the sizes of a model: its arguments, its arithmetic, and the bytes that it has to move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nano3 import kernels
from nano3.config.model import ModelConfig
from nano3.model.count import scan_flops

DECODING = frozenset({"causal_conv1d_step", "ssd_step", "mamba_step", "paged_attention", "paged_decode", "best_tokens"})
"""Ops of decoding: one token of each sequence, no gradient."""
PAGE = 64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class OpCase:
    """A call of one op."""

    op: str
    run: Callable[..., Any]
    """Takes `backend=`; a tensor or a tuple of tensors."""
    leaves: tuple[Tensor, ...]
    """What a backward pass gives gradients of; none: there is no backward pass."""
    shapes: str
    flops: float
    """Of the forward pass, counted as nano3 bench train counts; a backward pass is twice as much."""
    bytes: float
    """That the forward pass reads and writes at the least: each argument once, each result once."""
    gradient_bytes: float = 0.0
    """That a backward pass moves at the least: arguments and the result's gradient once, each gradient once."""


@dataclass(frozen=True)
class Sizes:
    """How much of what."""

    tokens: int = 1024
    """Of one sequence, where an op takes whole sequences."""
    sequences: int = 8
    """Where an op takes one token of each."""
    context: int = 1024
    """Positions that one token of each attends to."""
    documents: int = 1
    """Of about equal length that the tokens are cut into, for ops that keep documents apart."""


class Maker:
    """Builds the cases of one model; random numbers, seeded."""

    def __init__(
        self, cfg: ModelConfig, sizes: Sizes, dtype: torch.dtype, seed: int, device: torch.device = CPU
    ) -> None:
        self.cfg, self.sizes, self.dtype, self.device = cfg, sizes, dtype, device
        self.random = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Random numbers."""
        return (torch.randn(*shape, generator=self.random, device=self.device) * scale).to(dtype or self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Random numbers from 0 to 1, float32."""
        return torch.rand(*shape, generator=self.random, device=self.device)

    def documents(self) -> dict[str, Tensor]:
        """`document_ids` (1, T) where the tokens are of several documents."""
        T, n = self.sizes.tokens, self.sizes.documents
        if n == 1:
            return {}
        return {"document_ids": torch.arange(T, device=self.device).mul(n).div(T, rounding_mode="floor")[None]}

    def lengths(self) -> list[int]:
        """Tokens of each document."""
        T, n = self.sizes.tokens, self.sizes.documents
        ends = [-(-T * i // n) for i in range(n + 1)]
        return [end - start for start, end in pairwise(ends)]

    def weight(self, *shape: int) -> Tensor:
        """Random numbers of such a size that products keep theirs."""
        return self.normal(*shape, scale=shape[-1] ** -0.5)

    def make(self, op: str) -> OpCase:
        """The case of one op."""
        return getattr(self, op)()

    def linear(self) -> OpCase:
        """The input projection of a Mamba-2 block."""
        S, cfg = self.sizes.tokens, self.cfg
        x, w = self.normal(S, cfg.d_model), self.weight(cfg.d_in_proj, cfg.d_model)
        flops = 2 * S * w.numel()
        return _case("linear", lambda **b: kernels.linear(x, w, **b), (x, w), flops, (S, cfg.d_in_proj))

    def rms_norm(self) -> OpCase:
        """The norm before a block."""
        S, D, eps = self.sizes.tokens, self.cfg.d_model, self.cfg.norm_eps
        x, w = self.normal(S, D), self.normal(D)
        return _case("rms_norm", lambda **b: kernels.rms_norm(x, w, eps, **b), (x, w), 4 * S * D, (S, D))

    def gated_rms_norm(self) -> OpCase:
        """The norm of a Mamba-2 block's output."""
        S, D, cfg = self.sizes.tokens, self.cfg.d_inner, self.cfg
        y, z, w = self.normal(S, D), self.normal(S, D), self.normal(D)

        def run(**b: Any) -> Tensor:
            return kernels.gated_rms_norm(y, z, w, cfg.norm_eps, cfg.n_groups, **b)

        return _case("gated_rms_norm", run, (y, z, w), 9 * S * D, (S, D))

    def causal_conv1d(self) -> OpCase:
        """The convolution of a Mamba-2 block."""
        T, C, W = self.sizes.tokens, self.cfg.conv_dim, self.cfg.d_conv
        x, w, bias = self.normal(1, T, C), self.weight(C, W), self.normal(C)
        flops, given = (2 * W + 4) * T * C, (x, w, bias)
        options = self.documents()
        return _case("causal_conv1d", lambda **b: kernels.causal_conv1d(*given, **options, **b), given, flops, (T, C))

    def causal_conv1d_step(self) -> OpCase:
        """One token of it."""
        B, C, W = self.sizes.sequences, self.cfg.conv_dim, self.cfg.d_conv
        x, state, w, bias = self.normal(B, C), self.normal(B, C, W - 1), self.weight(C, W), self.normal(C)

        def run(**b: Any) -> Tensor:
            return kernels.causal_conv1d_step(x, state, w, bias, **b)

        return _case("causal_conv1d_step", run, (x, state, w, bias), (2 * W + 4) * B * C, (B, C * W), True)

    def _scan_parts(self, *lead: int) -> tuple[Tensor, ...]:
        cfg = self.cfg
        H, P, G, N = cfg.mamba_n_heads, cfg.mamba_head_dim, cfg.n_groups, cfg.d_state
        wide = torch.float32
        A = -self.uniform(H) - 0.5
        return (
            self.normal(*lead, H, P), self.normal(*lead, H), A, self.normal(*lead, G, N, scale=N**-0.5),
            self.normal(*lead, G, N, scale=N**-0.5), self.normal(H, dtype=wide), self.normal(H, dtype=wide),
        )  # fmt: skip

    def ssd_scan(self) -> OpCase:
        """The scan of a Mamba-2 block."""
        T, cfg = self.sizes.tokens, self.cfg
        parts = self._scan_parts(1, T)
        flops, options = sum(n * scan_flops(cfg, n) for n in self.lengths()), self.documents()

        def run(**b: Any) -> Any:
            return kernels.ssd_scan(*parts, chunk_size=cfg.chunk_size, **options, **b)

        return _case("ssd_scan", run, parts, flops, (T, cfg.d_inner))

    def _state(self, n: int) -> Tensor:
        cfg = self.cfg
        return self.normal(n, cfg.mamba_n_heads, cfg.mamba_head_dim, cfg.d_state, dtype=torch.float32)

    def ssd_step(self) -> OpCase:
        """One token of it."""
        B, cfg = self.sizes.sequences, self.cfg
        state, parts = self._state(B), self._scan_parts(B)
        flops = 5 * state.numel()
        moved = 2 * state.nbytes + sum(part.nbytes for part in parts) + parts[0].nbytes
        run = lambda **b: kernels.ssd_step(state, *parts, **b)  # noqa: E731
        return OpCase("ssd_step", run, (), f"{B} x {cfg.d_inner} x {cfg.d_state}", flops, moved)

    def mamba_step(self) -> OpCase:
        """One token of a Mamba-2 block: convolution, scan and norm."""
        B, cfg = self.sizes.sequences, self.cfg
        C, H, W, eps = cfg.conv_dim, cfg.mamba_n_heads, cfg.d_conv, cfg.norm_eps
        conv, ssm, slots = self.normal(B, C, W - 1), self._state(B), torch.arange(B, device=self.device)
        inputs = self.normal(B, C), self.normal(B, H), self.normal(B, cfg.d_inner)
        heads = [self.normal(H, dtype=torch.float32) for _ in range(3)]
        weights = self.weight(C, W), self.normal(C), *heads, self.normal(cfg.d_inner)

        def run(**b: Any) -> Tensor:
            return kernels.mamba_step(*inputs, conv, ssm, slots, *weights, eps, cfg.n_groups, **b)

        moved = 2 * (conv.nbytes + ssm.nbytes) + sum(t.nbytes for t in (*inputs, *weights)) + inputs[2].nbytes
        flops = 5 * ssm.numel() + (2 * W + 4) * B * C + 9 * B * cfg.d_inner
        return OpCase("mamba_step", run, (), f"{B} x {cfg.d_inner} x {cfg.d_state}", flops, moved)

    def attention(self) -> OpCase:
        """Causal attention of one sequence."""
        T, cfg = self.sizes.tokens, self.cfg
        q, k, v = (self.normal(1, T, heads, cfg.head_dim) for heads in (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads))
        flops = 2 * 2 * cfg.n_heads * cfg.head_dim * sum(n * (n + 1) / 2 for n in self.lengths())
        given, options = (q, k, v), self.documents()
        run = lambda **b: kernels.attention(*given, **options, **b)  # noqa: E731
        return _case("attention", run, given, flops, tuple(q.shape[1:]))

    def paged_attention(self) -> OpCase:
        """Attention of one new token of each sequence."""
        B, L = self.sizes.sequences, self.sizes.context
        return self._paged("paged_attention", kernels.paged_attention, [1] * B, [L] * B)

    def paged_decode(self) -> OpCase:
        """The same with its lengths in a tensor."""
        lengths = torch.full((self.sizes.sequences,), self.sizes.context, dtype=torch.int32, device=self.device)
        return self._paged("paged_decode", kernels.paged_decode, lengths)

    def _paged(self, op: str, attend: Callable, *lengths: Any) -> OpCase:
        B, L, cfg = self.sizes.sequences, self.sizes.context, self.cfg
        pages = -(-L // PAGE)
        q = self.normal(B, cfg.n_heads, cfg.head_dim)
        keys, values = (self.normal(B * pages, PAGE, cfg.n_kv_heads, cfg.head_dim) for _ in range(2))
        table = torch.arange(B * pages, device=self.device).view(B, pages)

        def run(**b: Any) -> Tensor:
            return attend(q, keys, values, table, *lengths, **b)

        moved = 2 * B * L * cfg.n_kv_heads * cfg.head_dim * keys.itemsize + 2 * q.nbytes
        flops = 2 * 2 * cfg.n_heads * cfg.head_dim * B * L
        return OpCase(op, run, (), f"{B} x {L} x {cfg.n_heads} x {cfg.head_dim}", flops, moved)

    def route(self) -> OpCase:
        """The router of a mixture of experts."""
        S, cfg = self.sizes.tokens, self.cfg
        x, w = self.normal(S, cfg.d_model, dtype=torch.float32), self.normal(cfg.n_experts, cfg.d_model, scale=0.02)
        w, bias = w.float(), torch.zeros(cfg.n_experts, device=self.device)

        def run(**b: Any) -> Any:
            return kernels.route(x, w, bias, cfg.top_k, cfg.routed_scale, **b)[1:]

        return _case("route", run, (x, w), 2 * S * w.numel(), (S, cfg.n_experts))

    def grouped_mlp(self) -> OpCase:
        """The routed experts, chosen evenly at random."""
        S, cfg = self.sizes.tokens, self.cfg
        E, F, D, K = cfg.n_experts, cfg.d_expert, cfg.d_model, cfg.top_k
        x, up, down = self.normal(S, D), self.weight(E, F, D), self.weight(E, D, F)
        ids = self.uniform(S, E).topk(K).indices
        share = torch.full((S, K), 1 / K, device=self.device)
        flops = 2 * 2 * S * K * F * D
        run = lambda **b: kernels.grouped_mlp(x, up, down, ids, share, **b)  # noqa: E731
        found = _case("grouped_mlp", run, (x, up, down), flops, (S, D))
        used = len(ids.unique()) / E
        unused = (1 - used) * (up.nbytes + down.nbytes)
        return OpCase(found.op, run, found.leaves, found.shapes, flops, found.bytes - unused, found.gradient_bytes)

    def squared_relu_mlp(self) -> OpCase:
        """The shared expert."""
        S, F, D = self.sizes.tokens, self.cfg.d_shared, self.cfg.d_model
        x, up, down = self.normal(S, D), self.weight(F, D), self.weight(D, F)
        run = lambda **b: kernels.squared_relu_mlp(x, up, down, **b)  # noqa: E731
        return _case("squared_relu_mlp", run, (x, up, down), 2 * 2 * S * F * D, (S, D))

    def _head(self) -> tuple[Tensor, Tensor, Tensor]:
        S, V, D = self.sizes.tokens, self.cfg.vocab_size, self.cfg.d_model
        return self.normal(S, D), self.weight(V, D), torch.randint(V, (S,), generator=self.random, device=self.device)

    def linear_cross_entropy(self) -> OpCase:
        """The output projection with the loss."""
        x, w, targets = self._head()
        run = lambda **b: kernels.linear_cross_entropy(x, w, targets, **b)  # noqa: E731
        return _case("linear_cross_entropy", run, (x, w), 2 * len(x) * w.numel(), (1,))

    def log_probs(self) -> OpCase:
        """The output projection with the log-probabilities."""
        x, w, targets = self._head()
        run = lambda **b: kernels.log_probs(x, w, targets, **b)  # noqa: E731
        return _case("log_probs", run, (x, w), 2 * len(x) * w.numel(), (len(x),))

    def best_tokens(self) -> OpCase:
        """The most probable token of each row of logits."""
        B, V = self.sizes.sequences, self.cfg.vocab_size
        logits = self.normal(B, V, dtype=torch.float32)
        run = lambda **b: kernels.best_tokens(logits, V, **b)  # noqa: E731
        return OpCase("best_tokens", run, (), f"{B} x {V}", 3.0 * B * V, logits.nbytes)


def _case(
    op: str, run: Callable, given: tuple[Tensor, ...], flops: float, out: tuple[int, ...], no_gradient: bool = False
) -> OpCase:
    """A case whose arguments are all read once and whose result, of the type of the first, is written once."""
    numbers = 1
    for n in out:
        numbers *= n
    read, written = sum(tensor.nbytes for tensor in given), numbers * given[0].itemsize
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in given[:2])
    leaves = () if no_gradient else given
    return OpCase(op, run, leaves, shapes, flops, read + written, 0.0 if no_gradient else 2 * read + written)


def cases(
    cfg: ModelConfig, sizes: Sizes, dtype: torch.dtype, ops: list[str], seed: int, device: torch.device = CPU
) -> Iterator[OpCase]:
    """The case of each op, one at a time: large ones need not be there together."""
    for op in ops:
        yield Maker(cfg, sizes, dtype, seed, device).make(op)

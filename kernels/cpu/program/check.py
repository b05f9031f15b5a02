"""The decoding step against the reference ops one after the other, once a process, before it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from ...reference import FUNCTIONS as REFERENCE
from ...scaled import Weight
from ..call import failure, integers, normal
from ..draw import Draw, Drawn
from ..native import native
from .decode import (
    AttentionWeights,
    BlockState,
    BlockWeights,
    DecodeProgram,
    ExpertWeights,
    MambaWeights,
    MlpWeights,
    ProgramSizes,
)

SIZES = ProgramSizes(
    D=19, V=37, eps=1e-5, H=4, P=5, N=9, G=2, W=4, kv_heads=2, query_heads=6, head_dim=11, E=5, K=2, F=21,
    routed_scale=2.5,
)  # fmt: skip
LENGTHS, PAGE_SIZE = (10, 4), 4
DRAWS = Draw(0.0, 0, 1.0, 0.0, 0.5), Draw(0.8, 0, 0.9, 0.0, 0.5)


@cache
def problem() -> str | None:
    """Why decoding must go op by op: no library, or its step computes something else than the reference."""
    if native().library is None:
        return native().reason
    return failure(_error)


@torch.inference_mode()
def _error(dtype: torch.dtype) -> float:
    """Largest difference of logits, states and chosen tokens' log-probabilities, relative to the largest value; states
    are of the weights' type."""
    case = Case(SIZES, dtype, LENGTHS)
    copies, program = case.copied_states(), case.program()
    tokens, slots, pages, lengths = (t.tolist() for t in (case.tokens, case.slots, case.table, case.lengths))
    chosen = program.choose(tokens, slots, pages, lengths, case.copied_states(), SIZES.V, DRAWS).tokens
    got = program.run(case.tokens, case.slots, case.table, case.lengths, copies, logits=True)[:2]
    expected = case.expected()
    pairs = list(zip(got, expected, strict=True))
    pairs += [(a, b) for s, t in zip(copies, case.states, strict=True) if s and t for a, b in zip(s, t, strict=True)]
    pairs += [_log_probs(expected[1], [token for token in chosen if token is not None])]
    worst = 0.0
    for a, b in pairs:
        if a is None or not bool(torch.isfinite(a).all()):
            return float("inf")
        worst = max(worst, float((a.float() - b.float()).abs().max() / b.float().abs().max()))
    return worst


def _log_probs(logits: Tensor, chosen: list[Drawn]) -> tuple[Tensor, Tensor]:
    """Of the chosen tokens under the model, as they were given, and of the reference's logits."""
    ids, given, _ = zip(*chosen, strict=True)
    expected = logits.log_softmax(-1)[range(len(ids)), list(ids)]
    return torch.tensor(given, dtype=expected.dtype, device="cpu"), expected


class Case:
    """Random weights of one block of each kind, and sequences of some `lengths` under way."""

    def __init__(
        self,
        sizes: ProgramSizes,
        dtype: torch.dtype,
        lengths: Sequence[int],
        seed: int = 0,
        quantize: Callable[[Tensor], Weight] = lambda matrix: matrix,
    ) -> None:
        self.sizes, self.dtype, self._quantize = sizes, dtype, quantize
        n, pages = len(lengths), [-(-length // PAGE_SIZE) for length in lengths]
        self._random = torch.Generator().manual_seed(seed)
        s = sizes
        self.embeddings, self.norm, self.head = self._draw(s.V, s.D), self._draw(s.D), self._matrix(s.V, s.D)
        self.blocks: list[BlockWeights] = [self._mamba(), self._experts(), self._attention(), self._mlp()]
        conv, scan = (n + 3, s.H * s.P + 2 * s.G * s.N, s.W - 1), (n + 3, s.H, s.P, s.N)
        stored = (sum(pages) + 3, PAGE_SIZE, s.kv_heads, s.head_dim)
        self.states: list[BlockState | None] = [
            BlockState(self._draw(*conv), self._draw(*scan).float()),
            None,
            BlockState(self._draw(*stored), self._draw(*stored)),
            None,
        ]
        self.tokens = torch.randint(s.V, (n,), generator=self._random, device="cpu")
        self.slots = torch.randperm(n + 3, generator=self._random, device="cpu")[:n].contiguous()
        self.table = torch.zeros(n, max(pages, default=1), dtype=torch.int64, device="cpu")
        order = torch.randperm(stored[0], generator=self._random, device="cpu")[: sum(pages)]
        for row, own in zip(self.table, order.split(pages), strict=True):
            row[: len(own)] = own
        self.lengths = integers(lengths)

    def program(self, compute: torch.dtype | None = None) -> DecodeProgram:
        """Of these weights, with activations of their type where no other is named."""
        return DecodeProgram(self.sizes, self.embeddings, self.blocks, self.norm, self.head, compute or self.dtype)

    def copied_states(self) -> list[BlockState | None]:
        """The states as they are now."""
        return [s and BlockState(*(t.clone() for t in s)) for s in self.states]

    def expected(self) -> tuple[Tensor, Tensor]:
        """Hidden states and logits; advances the states."""
        x = self.embeddings[self.tokens].float()
        for block, state in zip(self.blocks, self.states, strict=True):
            y = REFERENCE["rms_norm"](x, block.norm, self.sizes.eps)
            if isinstance(block, MambaWeights):
                assert state is not None
                y = self._run_mamba(block, y, state)
            elif isinstance(block, AttentionWeights):
                assert state is not None
                y = self._run_attention(block, y, state)
            elif isinstance(block, ExpertWeights):
                y = self._run_experts(block, y)
            else:
                y = REFERENCE["squared_relu_mlp"](y, block.up, block.down)
            x = x + y
        hidden = REFERENCE["rms_norm"](x, self.norm, self.sizes.eps)
        return hidden, REFERENCE["linear"](hidden, self.head)

    def _run_mamba(self, w: MambaWeights, x: Tensor, state: BlockState) -> Tensor:
        s = self.sizes
        inner, channels = s.H * s.P, s.H * s.P + 2 * s.G * s.N
        z, xBC, dt = REFERENCE["linear"](x, w.in_proj).split([inner, channels, s.H], dim=-1)
        conv = state.first.float()
        y = REFERENCE["mamba_step"](
            xBC, dt, z, conv, state.second, self.slots, w.taps, w.bias, w.A_log, w.D, w.dt_bias, w.out_norm, s.eps, s.G
        )
        state.first.copy_(conv)
        return REFERENCE["linear"](y, w.out_proj)

    def _run_attention(self, w: AttentionWeights, x: Tensor, state: BlockState) -> Tensor:
        q, k, v = (REFERENCE["linear"](x, m).unflatten(-1, (-1, self.sizes.head_dim)) for m in (w.q, w.k, w.v))
        last = self.lengths - 1
        pages = self.table.gather(1, (last // PAGE_SIZE).unsqueeze(1))[:, 0]
        for store, new in zip(state, (k, v), strict=True):
            store[pages, last % PAGE_SIZE] = new.to(store.dtype)
        keys, values = (t.float() for t in state)
        y = REFERENCE["paged_attention"](q, keys, values, self.table, [1] * len(last), self.lengths.tolist())
        return REFERENCE["linear"](y.flatten(-2), w.o)

    def _run_experts(self, w: ExpertWeights, x: Tensor) -> Tensor:
        scores = torch.sigmoid(x @ w.router.T)
        ids = torch.topk(scores + w.router_bias, self.sizes.K).indices
        gates = scores.gather(1, ids)
        gates = gates / gates.sum(-1, keepdim=True) * self.sizes.routed_scale
        y = REFERENCE["grouped_mlp"](x, w.up, w.down, ids, gates)
        if w.shared_up is not None and w.shared_down is not None:
            y = y + REFERENCE["squared_relu_mlp"](x, w.shared_up, w.shared_down)
        return y

    def _mamba(self) -> MambaWeights:
        s = self.sizes
        inner, channels = s.H * s.P, s.H * s.P + 2 * s.G * s.N
        A_log, D, dt_bias = (self._draw(s.H).float() for _ in range(3))
        return MambaWeights(
            self._draw(s.D), self._matrix(inner + channels + s.H, s.D), self._draw(channels, s.W), self._draw(channels),
            A_log, D, dt_bias, self._draw(inner), self._matrix(s.D, inner),
        )  # fmt: skip

    def _attention(self) -> AttentionWeights:
        s = self.sizes
        q, kv = s.query_heads * s.head_dim, s.kv_heads * s.head_dim
        q_proj, k_proj, v_proj = (self._matrix(width, s.D) for width in (q, kv, kv))
        return AttentionWeights(self._draw(s.D), q_proj, k_proj, v_proj, self._matrix(s.D, q))

    def _experts(self) -> ExpertWeights:
        s, shared = self.sizes, 96
        return ExpertWeights(
            self._draw(s.D), self._draw(s.E, s.D).float(), self._draw(s.E).float(), self._matrix(s.E, s.F, s.D),
            self._matrix(s.E, s.D, s.F), self._matrix(shared, s.D), self._matrix(s.D, shared),
        )  # fmt: skip

    def _mlp(self) -> MlpWeights:
        D, F = self.sizes.D, 32 if self.sizes.D % 32 == 0 else 33
        return MlpWeights(self._draw(D), self._matrix(F, D), self._matrix(D, F))

    def _matrix(self, *shape: int) -> Weight:
        return self._quantize(self._draw(*shape))

    def _draw(self, *shape: int) -> Tensor:
        return (normal(self._random, torch.float32, *shape) * 0.3).to(self.dtype)

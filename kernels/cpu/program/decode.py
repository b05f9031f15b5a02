"""A model's whole decoding step in one C++ call: one token of each of some sequences through all blocks."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import c_void_p
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ...allocator import use_huge_pages
from ...scaled import Scaled, Weight
from ..call import declare, run
from ..draw import NOTHING, Draw, Drawn
from ..guard import may_run
from ..native import TYPES, native
from ..rounded.products import Weights, fits
from ..rounded.products import problem as rounded_problem
from .memory import MOST_SEQUENCES, Block, Chosen, Program, StepMemory
from .weights import (
    AttentionWeights,
    BlockWeights,
    ExpertWeights,
    MambaWeights,
    MlpWeights,
    ProgramSizes,
    of_kinds,
)

MOST_EXPERTS = 1 << 15
TRACED = "tensors are traced, or autocast changes what ops return"
declare(decode_step=(c_void_p,))
_LAYOUT = Tensor.data_ptr, attrgetter("dtype"), attrgetter("shape"), Tensor.is_contiguous


class UnfitError(ValueError):
    """Weights or states of a shape, type or layout that the program does not take."""


def _new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Whatever the caller's default type and device are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def _address(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.data_ptr()


class BlockState(NamedTuple):
    """What a block keeps: conv (slots, C, W - 1) and scan state (slots, H, P, N) float32; or keys and values (pages,
    page size, kv heads, head width)."""

    first: Tensor
    second: Tensor


class DecodeProgram:
    """One model's weights, laid out for the call. It points at the weights and does not keep them: the owner sees to
    it that they live, and builds another program when they move (`pointers`)."""

    def __init__(
        self,
        sizes: ProgramSizes,
        embeddings: Tensor,
        blocks: Sequence[BlockWeights],
        norm: Tensor,
        head: Weight,
        compute: torch.dtype = torch.float32,
    ) -> None:
        """Check and lay out.

        Args:
            sizes: of the model.
            embeddings: (V, D).
            blocks: weights of each.
            norm: (D,), of the last norm.
            head: (V, D), or scaled.
            compute: type of activations; with bfloat16, levels with bfloat16 products round what they multiply by
                bfloat16 weights. Everything else is float32 in either case.

        Raises:
            UnfitError: weights that the program does not take, or no library.
        """
        self._kinds = [type(block) for block in blocks]
        self.sizes, self.dtype = of_kinds(sizes, self._kinds), norm.dtype
        self._exact = compute != torch.bfloat16
        if native().library is None:
            raise UnfitError(native().reason)
        if self.dtype not in TYPES:
            raise UnfitError(f"weights are {self.dtype}")
        self._lock = threading.Lock()
        self._scratch: Tensor | None = None
        s = self.sizes
        self._places: list[tuple[int, int]] = []
        self._rounded = False
        self._input_scales: list[Tensor | None] = []
        if not min(s.E, 1) <= s.K <= s.E or (s.H and s.H % max(s.G, 1)) or s.query_heads % max(s.kv_heads, 1):
            raise UnfitError(f"sizes that do not go together: {s}")
        if s.E > MOST_EXPERTS:
            raise UnfitError(f"{s.E} experts, more than int16 can count")
        self._blocks = (Block * len(blocks))(*(self._block(block) for block in blocks))
        groups = s.query_heads // s.kv_heads if s.kv_heads else 0
        self._program = Program(
            self._blocks,
            self._pointer("embeddings", embeddings, (s.V, s.D)),
            self._pointer("norm", norm, (s.D,)),
            self._weights("head", head, (s.V, s.D)),
            len(blocks), s.D, s.V, TYPES[self.dtype], 0, 0, self._rounded, s.H, s.P, s.N, s.G, s.W, s.kv_heads,
            groups, s.head_dim, s.E, s.K, s.F, s.eps, s.routed_scale,
        )  # fmt: skip
        self._memory = StepMemory()
        self._logits = _new(0)
        self._seen: tuple | None = None
        self.weight_bytes = sum(size for _, size in self._places)
        use_huge_pages(self._places)

    def run(
        self,
        tokens: Tensor,
        slots: Tensor,
        page_table: Tensor,
        key_lengths: Tensor,
        states: Sequence[BlockState | None],
        *,
        logits: bool,
        experts: bool = False,
        exact: bool = False,
        threads: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Advance n sequences by one token each, their states in place.

        Args:
            tokens: (n,) int64.
            slots: (n,) int64, all different.
            page_table: (n, most pages) int64.
            key_lengths: (n,) int64 tokens of each sequence with this one.
            states: one a block, None for blocks without.
            logits: whether they are wanted.
            experts: whether the experts that each token uses are.
            exact: as of `choose`.
            threads: as of `choose`.

        Returns:
            (n, D) float32 after the final norm; (n, V) float32 logits; (blocks with experts, n, K) int16 expert ids.

        Raises:
            IndexError: a token, slot or page that does not exist; nothing was changed.
            UnfitError: states that the program does not take; nothing was changed.
            ValueError: wrong indices; nothing was changed.
            MemoryError: none for the results, or for the step's own use; nothing was changed.
        """
        n, p = tokens.shape[0], self._program
        self._check_indices(tokens, slots, page_table, key_lengths)
        if not may_run(tokens, slots, page_table, key_lengths):
            raise UnfitError(TRACED)
        # Results belong to the caller: another thread may be at its next step while they are read.
        hidden = _new(n, self.sizes.D)
        rows = _new(n, self.sizes.V) if logits else None
        chosen = self._expert_ids(n) if experts else None
        if not n:
            return hidden, rows, chosen
        with self._lock:
            self._point_at(states)
            p.n, p.limit, p.table_width = n, 0, page_table.shape[1]
            p.tokens, p.slots, p.table = tokens.data_ptr(), slots.data_ptr(), page_table.data_ptr()
            p.lengths, p.hidden, p.logits = key_lengths.data_ptr(), hidden.data_ptr(), _address(rows)
            p.chosen_experts = _address(chosen)
            self._step(exact, threads)
        return hidden, rows, chosen

    def choose(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        pages: Sequence[list[int]],
        key_lengths: Sequence[int],
        states: Sequence[BlockState | None],
        limit: int,
        draws: Sequence[Draw | None],
        *,
        experts: bool = False,
        exact: bool = False,
        threads: int | None = None,
    ) -> Chosen:
        """Advance n sequences, 0 < n <= MOST_SEQUENCES, as `run` does, and choose the next token of each.

        Args:
            tokens: n of them.
            slots: n, all different.
            pages: of each sequence, enough for its tokens.
            key_lengths: tokens of each sequence with this one.
            states: one a block, None for blocks without.
            limit: only ids below it are chosen.
            draws: how; None for sequences whose logits are wanted instead.
            experts: whether the experts that each token uses are wanted.
            exact: multiply float32 numbers whatever `compute` is, in an order that does not depend on n; the tiles of
                AMX round otherwise for few sequences than for many.
            threads: that share the step; None: as many as PyTorch uses. The results are the same for any number.

        Returns:
            What draw_tokens (draw.py) makes of the logits.

        Raises:
            IndexError, UnfitError, MemoryError: as `run`.
            ValueError: not n of one of them, slots or pages that do not fit, or no id below `limit`.
        """
        n, p, memory = len(tokens), self._program, self._memory
        if not may_run():
            raise UnfitError(TRACED)
        with self._lock:
            self._point_at(states)
            self._check_choice(n, slots, pages, key_lengths, limit)
            if self._logits.shape[0] < n:
                p.logits = 0
                self._logits = _new(n, self.sizes.V)
            chosen = self._expert_ids(n) if experts else None
            memory.fill(tokens, slots, key_lengths, pages)
            memory.point(p)
            left = [m for m, draw in enumerate(draws) if draw is None]
            memory.draws.fill(n, [draw or NOTHING for draw in draws])
            p.n, p.limit, p.hidden, p.logits = n, min(limit, self.sizes.V), 0, self._logits.data_ptr()
            p.chosen_experts = _address(chosen)
            self._step(exact, threads)
            found: list[Drawn | None] = [*memory.draws.results(n)]
            for m in left:
                found[m] = None
            return Chosen(found, self._logits[left] if left else None, chosen)

    def _expert_ids(self, n: int) -> Tensor:
        return _new(self._kinds.count(ExpertWeights), n, self.sizes.K, dtype=torch.int16)

    def _step(self, exact: bool, threads: int | None) -> None:
        p, exact = self._program, exact or self._exact
        if not run("decode_step", ctypes.byref(p), exact=exact, threads=threads):
            self._grow_scratch(p.scratch_needed)
            if not run("decode_step", ctypes.byref(p), exact=exact, threads=threads):
                raise MemoryError(f"no scratch of {p.scratch_needed} bytes for a decoding step")

    def _check_indices(self, tokens: Tensor, slots: Tensor, page_table: Tensor, key_lengths: Tensor) -> None:
        n, indices = tokens.shape[0], (tokens, slots, page_table, key_lengths)
        if n > MOST_SEQUENCES or any(t.shape != (n,) for t in (tokens, slots, key_lengths)):
            raise ValueError(f"indices of {[tuple(t.shape) for t in indices]} for up to {MOST_SEQUENCES} sequences")
        if page_table.dim() != 2 or page_table.shape[0] != n:
            raise ValueError(f"page_table of shape {tuple(page_table.shape)} for {n} sequences")
        if not all(t.dtype == torch.int64 and t.is_contiguous() and t.device.type == "cpu" for t in indices):
            raise ValueError("indices must be int64, contiguous and on the CPU")
        if self.sizes.H and len(set(slots.tolist())) != n:
            raise ValueError(f"slots {slots.tolist()} for {n} sequences; each needs its own")

    def _check_choice(
        self, n: int, slots: Sequence[int], pages: Sequence[list[int]], key_lengths: Sequence[int], limit: int
    ) -> None:
        if not 0 < n <= MOST_SEQUENCES or len(pages) != n or len(key_lengths) != n:
            given = f"{n} tokens, {len(pages)} rows of pages and {len(key_lengths)} key_lengths"
            raise ValueError(f"{given} for 1 to {MOST_SEQUENCES} sequences")
        if limit < 1:
            raise ValueError(f"limit is {limit}: no id is left to choose")
        if self.sizes.H and len(set(slots)) != n:
            raise ValueError(f"slots {list(slots)} for {n} sequences; each needs its own")
        size = self._program.page_size if self.sizes.kv_heads else 0
        if size:
            for row, length in zip(pages, key_lengths, strict=True):
                if len(row) * size < length:
                    raise ValueError(f"{len(row)} pages of {size} for a sequence of {length} tokens")

    def _grow_scratch(self, size: int) -> None:
        """In an order that leaves the program without a buffer, and knowing it, wherever this is cut off."""
        p = self._program
        p.scratch_bytes = 0
        scratch = self._scratch = _new(size, dtype=torch.uint8)
        p.scratch = scratch.data_ptr()
        p.scratch_bytes = size

    def _point_at(self, states: Sequence[BlockState | None]) -> None:
        """Look at the states, unless they are those of the last call."""
        tensors = [t for state in states if state is not None for t in state]
        seen = [s is None for s in states], *(list(map(look, tensors)) for look in _LAYOUT)
        if seen == self._seen:
            return
        self._seen = None
        p, found = self._program, set()
        p.n_slots = p.n_pages = 0
        for block, kind, state in zip(self._blocks, self._kinds, states, strict=True):
            if kind not in (MambaWeights, AttentionWeights):
                continue
            if state is None:
                raise UnfitError("a block that needs a state has none")
            found.add((kind, *self._state_sizes(kind, state)))
            block.first_state, block.second_state = (t.data_ptr() for t in state)
        if len(found) > len({kind for kind, *_ in found}):
            raise UnfitError("blocks of one kind have states of several sizes or types")
        for kind, count, page_size, dtype in found:
            if kind is MambaWeights:
                p.n_slots, p.conv_type = count, TYPES[dtype]
            else:
                p.n_pages, p.page_size, p.page_type = count, page_size, TYPES[dtype]
        self._seen = seen

    def _state_sizes(self, kind: type, state: BlockState) -> tuple[int, int, torch.dtype]:
        """(slots or pages, page size or 0, type)."""
        s, (first, second) = self.sizes, state
        count, page_size = (*first.shape, 0, 0)[:2]
        if kind is MambaWeights:
            page_size = 0
            shapes = (count, s.H * s.P + 2 * s.G * s.N, s.W - 1), (count, s.H, s.P, s.N)
            types = second.dtype == torch.float32
        else:
            shapes = ((count, page_size, s.kv_heads, s.head_dim),) * 2
            types = second.dtype == first.dtype
        types = types and first.dtype in TYPES and all(t.device.type == "cpu" and t.is_contiguous() for t in state)
        if not types or (first.shape, second.shape) != shapes:
            raise UnfitError(f"states of {tuple(first.shape)} and {tuple(second.shape)}, {first.dtype}: do not fit")
        return count, page_size, first.dtype

    def _pointer(self, name: str, weight: Tensor, *shapes: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
        if weight.shape not in shapes or not weight.is_contiguous() or weight.device.type != "cpu":
            raise UnfitError(f"{name} of shape {tuple(weight.shape)} on {weight.device}, not {shapes[0]} in one piece")
        if weight.dtype != (dtype or self.dtype):
            raise UnfitError(f"{name} is {weight.dtype}, not {dtype or self.dtype}")
        self._places.append((weight.data_ptr(), weight.nbytes))
        return weight.data_ptr()

    def _weights(self, name: str, weight: Weight, shape: tuple[int, ...]) -> Weights:
        if not isinstance(weight, Scaled):
            return Weights(self._pointer(name, weight, shape), 0, 0, TYPES[self.dtype], shape[-2])
        if weight.shape != shape or not fits(weight):
            scale = tuple(weight.scale.shape)
            raise UnfitError(f"{name} is data {tuple(weight.shape)} with scale {scale}: of another type or layout")
        if (why := rounded_problem()) is not None:
            raise UnfitError(why)
        self._rounded = True
        self._places += [(t.data_ptr(), t.nbytes) for t in (weight.data, weight.scale)]
        self._input_scales.append(weight.input_scale)  # may be made for this call: the largest of the experts'
        return Weights.of(weight)

    def _block(self, block: BlockWeights) -> Block:
        filled = Block(norm=self._pointer("norm", block.norm, (self.sizes.D,)))
        filled.kind, fill = {
            MambaWeights: (0, self._fill_mamba),
            AttentionWeights: (1, self._fill_attention),
            ExpertWeights: (2, self._fill_experts),
            MlpWeights: (3, self._fill_mlp),
        }[type(block)]
        fill(filled, block)
        return filled

    def _fill_mamba(self, to: Block, w: MambaWeights) -> None:
        s = self.sizes
        inner, channels = s.H * s.P, s.H * s.P + 2 * s.G * s.N
        to.input = self._weights("in_proj", w.in_proj, (inner + channels + s.H, s.D))
        to.output = self._weights("out_proj", w.out_proj, (s.D, inner))
        to.taps = self._pointer("taps", w.taps, (channels, s.W), (channels, 1, s.W))
        to.bias = self._pointer("bias", w.bias, (channels,))
        to.out_norm = self._pointer("out_norm", w.out_norm, (inner,))
        for name in ("A_log", "D", "dt_bias"):
            setattr(to, name, self._pointer(name, getattr(w, name), (s.H,), dtype=torch.float32))

    def _fill_attention(self, to: Block, w: AttentionWeights) -> None:
        s = self.sizes
        queries, keys = s.query_heads * s.head_dim, s.kv_heads * s.head_dim
        to.input = self._weights("q", w.q, (queries, s.D))
        to.second = self._weights("k", w.k, (keys, s.D))
        to.third = self._weights("v", w.v, (keys, s.D))
        to.output = self._weights("o", w.o, (s.D, queries))

    def _fill_experts(self, to: Block, w: ExpertWeights) -> None:
        s = self.sizes
        to.router = self._pointer("router", w.router, (s.E, s.D), dtype=torch.float32)
        to.router_bias = self._pointer("router_bias", w.router_bias, (s.E,), dtype=torch.float32)
        to.second = self._weights("up", w.up, (s.E, s.F, s.D))
        to.third = self._weights("down", w.down, (s.E, s.D, s.F))
        if w.shared_up is not None and w.shared_down is not None:
            self._fill_mlp(to, MlpWeights(w.norm, w.shared_up, w.shared_down))

    def _fill_mlp(self, to: Block, w: MlpWeights) -> None:
        to.F = w.up.shape[0]
        to.input = self._weights("up", w.up, (to.F, self.sizes.D))
        to.output = self._weights("down", w.down, (self.sizes.D, to.F))

"""A decoding step as CUDA graphs, one for each size of batch; on a CPU, where it is asked for, the same step as it is.

A batch is padded to the next of `ROWS` with rows that write nothing, and its page table to a power of two: graphs
read tensors of fixed sizes and places. They read the weights where they are, so that new values need no new graph.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.profiler import record_function

from nano3 import kernels
from nano3.kernels.cpu.draw import Draw
from nano3.kernels.cpu.program.memory import Chosen
from nano3.model.decode.batch import Indices, Outputs, StepSizes
from nano3.model.decode.graph import Graph, Recorder
from nano3.model.decode.interface import Ahead, DecodingModel, Stepped
from nano3.model.decode.watch import Watched, strange
from nano3.model.forward_pass import WHOLE
from nano3.model.head import logits
from nano3.model.mamba2 import Mamba2
from nano3.model.moe import MoE
from nano3.model.state.block import AttentionPages, MambaSlots
from nano3.model.state.hybrid import HybridState
from nano3.model.state.plan import Plan
from nano3.model.state.pool import StatePool
from nano3.model.state.step_plan import StepPlan
from nano3.model.state.transfer import on_device

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Sizes of batches."""
MOST_ROWS = ROWS[-1]
WAIT = "called a synchronizing CUDA operation"
"""What PyTorch warns of where the host waits for a GPU, in its mode of that name."""
MOST_POOLS = 2
"""Pools whose graphs are kept."""
PADDED = frozenset({"triton", "eager", "cpu", "reference"})
"""Backends whose mamba_step takes rows of padding."""
Blocks = Sequence[MambaSlots | AttentionPages | None]


class GraphSteps(Watched):
    """A model's graphs on the pools that it advances."""

    def __init__(self, model: DecodingModel, backend: str) -> None:
        """`backend`: what the environment asks for, which ops look at when a graph is made."""
        super().__init__(model)
        self.device, self.backend = model.embeddings.weight.device, backend
        self._recorder = Recorder(self.device)
        self._lock = threading.Lock()
        self._pools: dict[tuple, _PoolGraphs] = {}
        self._unfit = strange(model) or _unfit(model)
        self._probed = self.device.type != "cuda"

    @property
    def problem(self) -> str | None:
        """Why there are no graphs of this model; None while nothing is known against them."""
        return self._unfit or self._recorder.problem

    def run(
        self, model: DecodingModel, tokens: Tensor, plan: Plan, state: HybridState, *, experts: bool, exact: bool
    ) -> Stepped | None:
        """As nano3.model.step.step; None where it has to go op by op."""
        blocks = _blocks(state.blocks)
        spans = plan.spans
        if (exact and len(spans) > 1) or not self._fits(model, blocks):
            return None
        n, lengths, pages = len(spans), plan.key_lengths, [list(span.pages) for span in spans]
        with self._lock, record_function("nano3::decoding step (graph)"):
            graphs = self._of(model, blocks)
            indices, outputs = graphs.memory(n, pages)
            indices.fill([0] * n, [span.slot for span in spans], lengths, pages)
            indices.send()
            indices.tokens[:n].copy_(tokens)
            graphs.advance(model, blocks, indices, outputs)
            state.save(plan)
            found = outputs.hidden[:n].clone(), outputs.logits[:n].clone()
            return Stepped(*found, outputs.experts[:, :n].clone() if experts else None)

    def choose(
        self,
        model: DecodingModel,
        ahead: Sequence[Ahead],
        pool: StatePool,
        limit: int,
        draws: Sequence[Draw | None],
        *,
        experts: bool,
        exact: bool,
    ) -> Chosen | None:
        """As nano3.model.step.choosing_step; None where it has to go op by op."""
        if (exact and len(ahead) > 1) or not self._fits(model, pool.blocks):
            return None
        n, (tokens, slots, pages, lengths) = len(ahead), zip(*ahead, strict=True)
        with self._lock, record_function("nano3::decoding step (graph)"):
            graphs = self._of(model, pool.blocks)
            indices, outputs = graphs.memory(n, pages)
            indices.fill(tokens, slots, lengths, pages)
            drawn, cut = indices.fill_draws(draws)
            indices.send()
            graphs.advance(model, pool.blocks, indices, outputs)
            if any(draws):
                graphs.choose(indices, outputs, limit, drawn=drawn, cut=cut)
            chosen, expert_ids = outputs.read(n, experts=experts)
            found = [token if draw and token[0] >= 0 else None for token, draw in zip(chosen, draws, strict=True)]
            left = [m for m, token in enumerate(found) if token is None]
            rows = outputs.logits[on_device(left, self.device)] if left else None
            return Chosen(found, rows, expert_ids)

    def launches(self, model: DecodingModel, ahead: Sequence[Ahead], pool: StatePool) -> Callable[[], None] | None:
        """What the device does in such a step, without what the host does around it: to be measured; None where the
        model has to go op by op."""
        if not self._fits(model, pool.blocks):
            return None
        tokens, slots, pages, lengths = zip(*ahead, strict=True)
        with self._lock:
            graphs = self._of(model, pool.blocks)
            indices, outputs = graphs.memory(len(ahead), pages)
            indices.fill(tokens, slots, lengths, pages)
            indices.send()
        return partial(graphs.advance, model, pool.blocks, indices, outputs)

    def _fits(self, model: DecodingModel, blocks: Blocks) -> bool:
        if not self._probed and self._unfit is None:
            self._unfit, self._probed = _waits(model, blocks, self.device), True
        return self.problem is None

    def _of(self, model: DecodingModel, blocks: Blocks) -> _PoolGraphs:
        places = tuple((t.data_ptr(), t.shape, t.dtype) for t in _tensors(blocks))
        if (found := self._pools.get(places)) is None:
            if len(self._pools) == MOST_POOLS:
                self._pools.clear()
            found = self._pools[places] = _PoolGraphs(_sizes(model, blocks), self._recorder)
        return found


class _PoolGraphs:
    """Graphs on the states of one pool, by the sizes of what they read."""

    def __init__(self, sizes: StepSizes, recorder: Recorder) -> None:
        self.sizes, self._recorder = sizes, recorder
        self._outputs: dict[int, Outputs] = {}
        self._indices: dict[tuple[int, int], Indices] = {}
        self._graphs: dict[tuple, Graph] = {}

    def memory(self, n: int, pages: Sequence[Sequence[int]]) -> tuple[Indices, Outputs]:
        """For n sequences with these pages."""
        rows = next(size for size in ROWS if size >= n)
        width = 1 << (max(map(len, pages)) - 1).bit_length() if self.sizes.pages else 1
        device = self._recorder.device
        with torch.inference_mode(False):  # what is made in that mode can only be written in it
            if rows not in self._outputs:
                self._outputs[rows] = Outputs(rows, self.sizes, device)
            if (rows, width) not in self._indices:
                self._indices[rows, width] = Indices(rows, width, self.sizes, device)
        return self._indices[rows, width], self._outputs[rows]

    def advance(self, model: DecodingModel, blocks: Blocks, indices: Indices, outputs: Outputs) -> None:
        """All blocks, and the logits."""

        def work() -> None:
            for _ in _parts(model, blocks, indices, outputs):
                pass

        self._graph(indices).run(work)

    def choose(self, indices: Indices, outputs: Outputs, limit: int, *, drawn: bool, cut: bool) -> None:
        """The next tokens."""
        work = partial(outputs.choose, limit, indices.draws, drawn=drawn, cut=cut)
        self._graph(indices, limit, drawn, cut).run(work)

    def _graph(self, indices: Indices, *what: Any) -> Graph:
        key = indices.rows, indices.width, *what
        if key not in self._graphs:
            self._graphs[key] = Graph(self._recorder)
        return self._graphs[key]


def _parts(model: DecodingModel, blocks: Blocks, indices: Indices, outputs: Outputs) -> Iterator[str]:
    """The step's parts, each named before it is computed."""
    plan = indices.plan()
    yield "the embedding"
    x = model.embeddings(indices.tokens).to(model.compute_dtype).unsqueeze(0)
    experts = []
    for i, (block, state) in enumerate(zip(model.blocks, blocks, strict=True)):
        yield f"block {i} ({type(block.mixer).__name__})"
        x, stats = block(x, WHOLE, _under(state, plan))
        if stats is not None:
            experts.append(stats.expert_ids[0])
    yield "the output projection"
    hidden = model.norm_f(x)[0]
    outputs.hidden.copy_(hidden)
    outputs.logits.copy_(logits(model.lm_head, hidden))
    if experts:
        outputs.experts.copy_(torch.stack(experts))


def _under(state: MambaSlots | AttentionPages | None, plan: StepPlan) -> MambaSlots | AttentionPages | None:
    """The same state, advanced by this plan; the pool's own object keeps the plan of its pass."""
    if isinstance(state, MambaSlots):
        return MambaSlots(state.conv, state.ssm, plan)
    return AttentionPages(state.keys, state.values, plan) if isinstance(state, AttentionPages) else None


def _waits(model: DecodingModel, blocks: Blocks, device: torch.device) -> str | None:
    """What in the model's step makes the host wait for the GPU, which no graph can; None where nothing does. Tried on
    one slot and one page of its own."""
    scratch = [_one_place(block) for block in blocks]
    sizes = _sizes(model, scratch)
    indices, outputs = Indices(1, 1, sizes, device), Outputs(1, sizes, device)
    indices.fill([0], [0], [1], [[0]])
    indices.send()
    for _ in _parts(model, scratch, indices, outputs):  # with all that is done only the first time
        pass
    at = ""
    with _noted_waits() as waits:
        for part in _parts(model, scratch, indices, outputs):
            if waits:
                break
            at = part
    return f"{at} makes the host wait for the GPU" if waits else None


@contextmanager
def _noted_waits() -> Iterator[list[str]]:
    """Inside, each wait of this thread for a GPU. PyTorch's mode is the process's: were it that of errors, waits in
    other threads would fail."""
    mode, thread, waits = torch.cuda.get_sync_debug_mode(), threading.get_ident(), []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, *where: Any) -> None:
            if "synchroniz" not in str(message).lower():  # the mode itself warns that it is a prototype
                show(message, *where)
            elif WAIT in str(message) and threading.get_ident() == thread:
                waits.append(WAIT)

        warnings.simplefilter("always")
        warnings.showwarning = note
        try:
            torch.cuda.set_sync_debug_mode("warn")
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def _one_place(block: MambaSlots | AttentionPages | None) -> MambaSlots | AttentionPages | None:
    if isinstance(block, MambaSlots):
        return MambaSlots(torch.zeros_like(block.conv[:1]), torch.zeros_like(block.ssm[:1]))
    if isinstance(block, AttentionPages):
        return AttentionPages(torch.zeros_like(block.keys[:1]), torch.zeros_like(block.values[:1]))
    return None


def _unfit(model: DecodingModel) -> str | None:
    if model.compute_dtype == torch.float64:
        return "activations are torch.float64, and a step gives float32"
    if not all(t.is_contiguous() for m in model.modules() for t in (*m.parameters(False), *m.buffers(False))):
        return "a weight of the model is not in one piece"  # others in its place would not be seen
    kinds = {(m.gate.top_k, *m.experts.operand("up_proj").shape) for m in model.modules() if isinstance(m, MoE)}
    if len(kinds) > 1:
        return "not all mixture blocks have the same sizes"
    if any(isinstance(m, Mamba2) for m in model.modules()):
        backend = kernels.choose("mamba_step", model.embeddings.weight.device)[0]
        return None if backend in PADDED else f"mamba_step of {backend} takes no rows of padding"
    return None


def _sizes(model: DecodingModel, blocks: Blocks) -> StepSizes:
    vocab, width = model.lm_head.operand().shape
    mixtures = [block.mixer for block in model.blocks if isinstance(block.mixer, MoE)]
    slots = [len(block.conv) for block in blocks if isinstance(block, MambaSlots)]
    pages = [block.keys.shape[:2] for block in blocks if isinstance(block, AttentionPages)]
    count, size = min(pages, default=(0, 0))
    top_k = cast(int, mixtures[0].gate.top_k) if mixtures else 0
    return StepSizes(vocab, width, len(mixtures), top_k, min(slots, default=0), count, size)


def _blocks(blocks: Sequence[Any]) -> Blocks:
    assert all(block is None or isinstance(block, MambaSlots | AttentionPages) for block in blocks)
    return blocks


def _tensors(blocks: Blocks) -> Iterator[Tensor]:
    for block in blocks:
        if isinstance(block, MambaSlots):
            yield from (block.conv, block.ssm)
        elif isinstance(block, AttentionPages):
            yield from (block.keys, block.values)

"""What quantizing one part of a model alone costs: how the report chose what stays in bf16 (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from nano3.config.model import ModelConfig
from nano3.kernels import Scaled
from nano3.model.forward_pass import Pass
from nano3.model.head import log_probs
from nano3.model.lm import LM
from nano3.model.moe import Experts
from nano3.quantize.fp8 import scale_of, to_fp8
from nano3.quantize.mark import our_name
from nano3.quantize.observe import Observed, observed
from nano3.quantize.policy import Matrix, Policy, list_matrices, select
from nano3.quantize.rows import Batch, CalibrationRows

By = Literal["part", "block", "matrix"]
Interval = Callable[[list[float]], tuple[float, float]]
"""Of the mean of these values."""


@dataclass(frozen=True)
class Part:
    """Matrices that are quantized together."""

    name: str
    block: int
    """-1: the output projection."""
    kind: str
    matrices: tuple[Matrix, ...]


@dataclass(frozen=True)
class Sensitivity:
    """The loss with one part in FP8 and all else in bf16 numbers."""

    name: str
    block: int
    kind: str
    numbers: int
    """Weights in it."""
    kept: bool
    """The report's selection leaves it in bf16, in whole or in part."""
    loss: float
    """Nats a target."""
    increase: float
    """Of the loss, as a share of the model's own."""
    low: float
    high: float
    """Interval of `increase`, over rows."""


@dataclass(frozen=True)
class Ranking:
    """All parts, the costliest first."""

    loss: float
    """Of the model before, nats a target."""
    targets: int
    rows: int
    parts: list[Sensitivity]


class HeldoutRows:
    """Rows whose loss is measured."""

    def __init__(self, ids: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        """`targets`: as `ids`; the token to predict at each place, -100 for none. Raises ValueError without one."""
        self._ids, self._targets = CalibrationRows(ids), CalibrationRows(targets)
        self.targets = sum(int((row >= 0).sum()) for row in self._targets.rows)
        self.largest_id = self._ids.largest_id
        if not self.targets:
            raise ValueError("no held-out row has a token to predict")

    def __len__(self) -> int:
        return len(self._ids)

    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Tokens, and their targets (1, T)."""
        for batch, targets in zip(self._ids.batches(), self._targets.batches(), strict=True):
            yield batch, targets.tokens


def list_parts(cfg: ModelConfig, by: By) -> list[Part]:
    """Matrices of one kind in a block, of a block, or single ones (those of experts as one); the head last."""
    keys: dict[By, Callable[[Matrix], tuple]] = {
        "part": lambda m: (m.block, m.kind), "block": lambda m: (m.block,), "matrix": lambda m: (m.block, m.name),
    }  # fmt: skip
    found = []
    for _, group in groupby(list_matrices(cfg), keys[by]):
        matrices = tuple(group)
        first, kinds = matrices[0], list(dict.fromkeys(m.kind for m in matrices))
        kind = " and ".join(kinds)
        name = first.name.removeprefix("backbone.") if by == "matrix" else f"block {first.block}, {kind}"
        found.append(Part("lm_head" if first.block < 0 else name, first.block, kind, matrices))
    return found


@torch.inference_mode()
def measure(
    model: LM,
    calibration: CalibrationRows,
    heldout: HeldoutRows,
    parts: Sequence[Part],
    interval: Interval,
    done: Callable[[str], None] = lambda name: None,
) -> Ranking:
    """Quantize each part alone, with the numbers and scales that an FP8 folder would hold, and measure the loss.

    Scales come from a pass in bf16, as a folder's do. The loss is computed in float32 from bf16 weights, so that what
    it differs by is the part's rounding of weights and inputs alone.

    Args:
        model: unquantized; its weights are left in bf16.
        calibration: what the scales of inputs are found with.
        heldout: rows whose targets the loss is of.
        parts: those of `list_parts`.
        interval: what a row's share of the increase, for all rows, tells of the whole increase.
        done: told each part's name when it is measured.

    Raises:
        ValueError: a weight that is not finite.
    """
    model.to_dtype(torch.bfloat16).eval()
    scales = _input_scales(model, calibration)
    model.compute_dtype = torch.float32
    hidden = [(batch, targets, model.embeddings(batch.tokens).float()) for batch, targets in heldout.batches()]
    first = _losses(model, hidden, 0)
    kept = {m.name for m in list_matrices(model.cfg)} - select(model.cfg, Policy()).chosen
    found, at = [], 0
    for part in sorted(parts, key=lambda part: part.block if part.block >= 0 else model.cfg.n_blocks):
        place = part.block if part.block >= 0 else model.cfg.n_blocks
        hidden, at = _advance(model, hidden, at, place), place
        with quantized(model, part.matrices, scales):
            losses = _losses(model, hidden, at)
        shares = (losses - first) * len(first) / first.sum()
        low, high = interval(shares.tolist())
        numbers, stays = sum(m.numbers for m in part.matrices), any(m.name in kept for m in part.matrices)
        loss, increase = float(losses.sum()) / heldout.targets, float(shares.mean())
        found.append(Sensitivity(part.name, part.block, part.kind, numbers, stays, loss, increase, low, high))
        done(part.name)
    found.sort(key=lambda one: -one.increase)
    return Ranking(float(first.sum()) / heldout.targets, heldout.targets, len(heldout), found)


@contextmanager
def quantized(model: LM, matrices: Sequence[Matrix], scales: dict[str, Tensor]) -> Iterator[None]:
    """These matrices in FP8, computed with as those of an FP8 folder, until the end of this context.

    Args:
        model: unquantized.
        matrices: of it.
        scales: of the inputs of each, by the matrix's name.
    """
    with ExitStack() as stack:
        for matrix in matrices:
            owner, leaf = our_name(matrix.name).rpartition(".")[::2]
            module = model.get_submodule(owner) if matrix.experts else model.get_submodule(our_name(matrix.name))
            leaf = leaf if matrix.experts else "weight"
            weight = module.get_parameter(leaf)
            stack.callback(_restore, module, leaf, weight)
            if isinstance(module, Experts):
                each = [to_fp8(expert) for expert in weight]
                data, scale = (torch.stack(values) for values in zip(*each, strict=True))
                module.use_scaled(leaf, Scaled(data, scale, scales[matrix.name]))
            else:
                module.use_scaled(Scaled(*to_fp8(weight), scales[matrix.name]))  # pyright: ignore
        yield


def _restore(module: nn.Module, leaf: str, weight: nn.Parameter) -> None:
    setattr(module, leaf, weight)
    stem = "" if leaf == "weight" else f"{leaf}_"
    for buffer in ("weight_scale", "input_scale") if not stem else (f"{stem}scale", f"{stem}input_scale"):
        module._buffers.pop(buffer, None)


def _input_scales(model: LM, rows: CalibrationRows) -> dict[str, Tensor]:
    """Published name of each matrix -> scale of its inputs, ()."""
    head = 0.0
    with ExitStack() as stack:
        seen = [stack.enter_context(observed(block, Observed())) for block in model.blocks]  # pyright: ignore
        for batch in rows.batches():
            x = model.hidden(batch.tokens, batch.document_ids, statistics=()).x
            head = max(head, float(x.abs().amax()))
    largest = {m.name: seen[m.block].largest.get(m.name.partition(".mixer.")[2], 0.0) if m.block >= 0 else head
               for m in list_matrices(model.cfg)}  # fmt: skip
    return {name: scale_of(value) for name, value in largest.items()}


def _advance(model: LM, hidden: list, start: int, end: int) -> list:
    """The residual stream of all batches, from what enters block `start` to what enters block `end`."""
    return [(batch, targets, _through(model, x, batch, start, end)) for batch, targets, x in hidden]


def _through(model: LM, x: Tensor, batch: Batch, start: int, end: int) -> Tensor:
    for i in range(start, end):
        x, _ = model.blocks[i](x, Pass(batch.document_ids, statistics=frozenset()).at(i, None))
    return x


def _losses(model: LM, hidden: list, start: int) -> Tensor:
    """Nats of each row, float64, from what enters block `start`."""
    found = []
    for batch, targets, x in hidden:
        last = model.norm_f(_through(model, x, batch, start, model.cfg.n_blocks))
        nats = -log_probs(model.lm_head, last, targets)[0].double()
        numbers = batch.document_ids[0]
        found.append(torch.zeros(int(numbers.max()) + 1, dtype=torch.float64).index_add_(0, numbers, nats))
    return torch.cat(found)

"""The processes that share out each sequence, as one of them sees them: how batches are cut, and what is added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nano3.model.head import IGNORED
from nano3.model.lm import PassOptions


@dataclass(frozen=True)
class SlicedBatch:
    """What a process holds of a micro-batch of B sequences of T tokens: `Sharing.each` pieces of L tokens of each, the
    first pieces of all sequences in the first B rows (under context parallelism those of the early slice), the others
    below them."""

    tokens: Tensor
    """(each * B, L) int64."""
    targets: Tensor
    """(each * B, L) int64; made before the cut, so that the last token of a piece predicts the first of the next
    one."""
    document_ids: Tensor
    """(each * B, L)."""
    valid: Tensor | None
    """(each * B, L) bool, False at padding; None: no padding."""
    whole_ids: Tensor
    """(B, T) document ids of the whole sequences."""
    documents: list[str]
    """Names of the documents in the whole sequences."""

    @property
    def n_targets(self) -> int:
        """Positions of these pieces that are scored."""
        return int((self.targets != IGNORED).sum())

    @property
    def n_tokens(self) -> int:
        """Tokens of these pieces, padding not counted."""
        return self.tokens.numel() if self.valid is None else int(self.valid.sum())

    @property
    def seq_len(self) -> int:
        """Tokens of a whole sequence."""
        return self.whole_ids.shape[1]


class Sharing:
    """Processes that share out each sequence (nano3.model.forward_pass.Slices)."""

    each = 1
    """Pieces of a sequence that each process holds."""

    def __init__(self, group: Any) -> None:
        """`group`: the process group; all of its members are given the same micro-batches."""
        self.group = group

    def take(self, x: Tensor) -> Tensor:
        """x (B, T, ...) -> the own pieces (each * B, L, ...)."""
        raise NotImplementedError

    def around(self, batch: SlicedBatch) -> PassOptions:
        """What LM.hidden is told of what lies around the own pieces."""
        raise NotImplementedError

    def join(self, x: Tensor) -> Tensor:
        """x (each * B, L, ...) of the own pieces -> (B, T, ...) of all."""
        raise NotImplementedError

    @property
    def is_first(self) -> bool:
        """Whether this process is the first of them: what lies in no piece is its to count."""
        return dist.get_rank(self.group) == 0

    def cut(self, batch: Any) -> Any:
        """This process's part of a micro-batch: what its own method `cut` gives, or a SlicedBatch of one with tokens,
        targets, document_ids (B, T), valid and documents."""
        if hasattr(batch, "cut"):
            return batch.cut(self)
        ids = batch.document_ids
        if ids is None:
            ids = torch.zeros(batch.tokens.shape, dtype=torch.int32, device=batch.tokens.device)
        tokens, targets, own_ids = (self.take(m) for m in (batch.tokens, batch.targets, ids))
        valid = None if batch.valid is None else self.take(batch.valid)
        return SlicedBatch(tokens, targets, own_ids, valid, ids, batch.documents)

    def sum(self, values: Tensor) -> Tensor:
        """`values`, of one shape on all processes, added up over them, in place."""
        dist.all_reduce(values, group=self.group)
        return values

    def sum_rows(self, values: Tensor) -> Tensor:
        """values (..., each * B, E) of the own pieces -> the same shape, in each row the sum over all pieces of its
        sequence."""
        rows = values.unflatten(-2, (self.each, -1)).sum(-3)
        return torch.cat([self.sum(rows)] * self.each, dim=-2)


def around(batch: Any, shared: Sharing | None) -> PassOptions:
    """What LM.hidden is told of a micro-batch beside its tokens and documents; `shared`: of which it is a part."""
    return {"valid": batch.valid} if shared is None else {"valid": batch.valid, **shared.around(batch)}

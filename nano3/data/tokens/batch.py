"""What the trainer sees: a rectangle of packed documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

IGNORE = -100
"""Target that counts for nothing."""


@dataclass(frozen=True)
class Row:
    """One packed sequence as NumPy arrays; see `Batch` for the meaning."""

    tokens: np.ndarray
    targets: np.ndarray
    document_ids: np.ndarray
    documents: list[str]
    valid: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """Packed sequences. A document begins at t=0 and wherever `document_ids` differs from the position before."""

    tokens: torch.Tensor
    """(B, T) int64."""
    targets: torch.Tensor
    """(B, T) int64, the token to predict at each position; -100 at padding, at the end of held-out text and of rows of
    whole documents."""
    document_ids: torch.Tensor
    """(B, T) int32, 0, 1, 2... in the order of documents in the row."""
    documents: list[str]
    """Names of the documents in the batch, in order of appearance, each once."""
    valid: torch.Tensor | None = None
    """(B, T) bool, False at padding, which is no token: not routed, not counted. None: no padding."""

    @property
    def n_targets(self) -> int:
        """Positions that are scored."""
        return int((self.targets != IGNORE).sum())

    @property
    def n_tokens(self) -> int:
        """Tokens, padding not counted."""
        return self.tokens.numel() if self.valid is None else int(self.valid.sum())


def stack(rows: list[Row]) -> Batch:
    """Rows of one length as a batch of tensors."""
    import torch

    return Batch(
        tokens=torch.from_numpy(np.stack([row.tokens for row in rows])),
        targets=torch.from_numpy(np.stack([row.targets for row in rows])),
        document_ids=torch.from_numpy(np.stack([row.document_ids for row in rows])),
        documents=list(dict.fromkeys(name for row in rows for name in row.documents)),
        valid=_stack_valid(rows),
    )


def _stack_valid(rows: list[Row]) -> torch.Tensor | None:
    import torch

    if all(row.valid is None or row.valid.all() for row in rows):
        return None
    return torch.from_numpy(
        np.stack([np.ones(len(row.tokens), bool) if row.valid is None else row.valid for row in rows])
    )

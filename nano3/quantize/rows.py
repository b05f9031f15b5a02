"""Calibration rows as token ids, in batches without padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BATCH_TOKENS = 2048
"""Tokens that run through a block at once, unless one row is longer."""


@dataclass(frozen=True)
class Batch:
    """Whole rows, one after the other; none sees another."""

    start: int
    """Place of its first token among those of all rows."""
    tokens: Tensor
    """(1, T) int64."""
    document_ids: Tensor
    """(1, T) int64."""


class CalibrationRows:
    """Token ids that activations are looked at with."""

    def __init__(self, rows: Sequence[Sequence[int]], length: int = 0) -> None:
        """`length`: longer rows are cut there; 0: none is. Raises ValueError where no row has a token."""
        cut = [np.asarray(row[:length] if length else row, np.int64) for row in rows]
        self.rows = [row for row in cut if len(row)]
        self.tokens = sum(map(len, self.rows))
        if not self.rows:
            raise ValueError("no calibration row has a token")
        self.largest_id = max(int(row.max()) for row in self.rows)
        digest = hashlib.blake2b(digest_size=8)
        for row in self.rows:
            digest.update(len(row).to_bytes(8, "little") + row.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self) -> Iterator[Batch]:
        """All rows in their order."""
        start, members, size = 0, [], 0
        for row in self.rows:
            if members and size + len(row) > BATCH_TOKENS:
                yield _batch(start, members)
                start, members, size = start + size, [], 0
            members.append(row)
            size += len(row)
        yield _batch(start, members)


def _batch(start: int, members: Sequence[np.ndarray]) -> Batch:
    numbers = np.repeat(np.arange(len(members)), [len(row) for row in members])
    tokens = torch.from_numpy(np.concatenate(members))
    return Batch(start, tokens.unsqueeze(0), torch.from_numpy(numbers).unsqueeze(0))

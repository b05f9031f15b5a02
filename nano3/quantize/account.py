"""What a selection comes to in modules and bytes, told from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nano3.model.hf.files import weight_files
from nano3.model.hf.read import weight_bytes
from nano3.model.hf.write import plan_files
from nano3.quantize.mark import marked_model
from nano3.quantize.policy import Selection
from nano3.quantize.run import SHARD_BYTES
from nano3.quantize.shard_files import ShardFiles


@dataclass
class Share:
    """Matrices of one kind."""

    kind: str
    modules: int = 0
    quantized: int = 0
    numbers: int = 0
    quantized_numbers: int = 0

    @property
    def bytes_before(self) -> int:
        """In bf16."""
        return 2 * self.numbers

    @property
    def bytes_after(self) -> int:
        """With a byte a number of those quantized; scales are not counted."""
        return 2 * self.numbers - self.quantized_numbers


def shares(selection: Selection) -> list[Share]:
    """By kind of matrix, in the order of the blocks, the output projection last; then embeddings and all else."""
    found: dict[str, Share] = {}
    for matrix in selection.matrices:
        share = found.setdefault(matrix.kind, Share(matrix.kind))
        share.modules += matrix.count
        share.numbers += matrix.numbers
        if matrix.name in selection.chosen:
            share.quantized += matrix.count
            share.quantized_numbers += matrix.numbers
    return list(found.values())


def folder_bytes(folder: Path, selection: Selection) -> tuple[int, int, int]:
    """Bytes of the tensors as they are stored, in bf16, and quantized with all scales."""
    stored = sum(file.stat().st_size for file in weight_files(folder))
    files = plan_files(marked_model(selection), torch.bfloat16, SHARD_BYTES)
    return stored, weight_bytes(folder, torch.bfloat16), ShardFiles(folder, files).total_bytes

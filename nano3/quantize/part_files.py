"""A folder with integer matrices, written while its tensors come one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nano3.files import atomic_folder
from nano3.kernels import Scaled
from nano3.model.hf.integers import stored_tensors
from nano3.model.hf.names import published_name
from nano3.model.hf.write import StoredTensor, plan_files, write_rest
from nano3.model.lm import LM
from nano3.progress import Progress
from nano3.quantize.shard_files import ShardFiles, check_disk

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Part:
    """One tensor of a model, or one expert's part of it."""

    ours: str
    """nano3's name; of integers that of the numbers, whose scales come along."""
    expert: int | None
    value: Tensor | Scaled

    def stored(self) -> dict[str, Tensor]:
        """Published names and what is stored under them."""
        name, value = published_name(self.ours, self.expert), self.value
        if isinstance(value, Tensor):
            return {name: value}
        scale = published_name(f"{self.ours}_scale", self.expert)
        return stored_tensors(name, value.data) | stored_tensors(scale, value.scale)


def write_parts(
    model: LM,
    dtype: torch.dtype,
    parts: Iterable[Part],
    out: Path,
    extra: Callable[[Path], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a Hugging Face folder.

    Args:
        model: on the meta device, with what the folder is to hold.
        dtype: of what is neither integers nor kept in float32.
        parts: all of the model's tensors, in any order.
        out: appears whole or not at all; a model there is replaced.
        extra: writes what else belongs in the folder.
        shard_bytes: largest file.

    Raises:
        UserError: too little disk, or what `parts` raises.
    """
    planned = plan_files(model, dtype, shard_bytes)
    laid = {file: [form for item in items for form in _forms(item)] for file, items in planned.items()}
    with atomic_folder(out) as folder:
        shards = ShardFiles(folder, laid)
        check_disk(out, shards.total_bytes)
        shards.create()
        left = set(shards.names)
        with Progress(len(left), shards.total_bytes, "bytes", "tensors") as progress:
            for part in parts:
                for name, value in part.stored().items():
                    shards.write(name, value)
                    left.remove(name)
                    progress.sample(shards.place(name).nbytes)
        assert not left, f"{len(left)} tensors were not given, {min(left)} among them"
        write_rest(folder, planned, model, dtype, extra)


def _forms(item: StoredTensor) -> Iterable[StoredTensor]:
    """The tensors that a planned one is stored as."""
    value = item.value if item.expert is None else item.value[0]
    for name, form in stored_tensors(item.name, value).items():
        kept = form.dtype if form is not value else item.dtype
        yield StoredTensor(name, item.ours, form, None, kept)

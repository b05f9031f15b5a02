"""How much of everything fits in a memory budget: running sequences, pages, kept states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nano3.config.errors import UserError
from nano3.config.model import MOE, ModelConfig
from nano3.memory import main_memory_free
from nano3.model.state.pool import page_bytes, slot_bytes

SHARE_OF_FREE = {"cpu": 0.25, "cuda": 0.85}
"""Part of the free memory that `auto` takes, after the weights."""
MARGIN = 1.05
"""Memory that must be free for weights, as a multiple of them: loading and computing need some beside."""
MOST_FREE_ITEMS = 1 << 20
"""Slots or pages where they cost nothing (a model without such blocks)."""


@dataclass(frozen=True)
class Sizes:
    """What the engine reserves."""

    max_sequences: int
    """Sequences that run at once."""
    max_context: int
    """Most tokens of one sequence."""
    n_slots: int
    """State slots: one a running sequence, the rest for kept states."""
    n_pages: int
    total_bytes: int
    """Of slots and pages, reserved at once, and of the experts beside these, taken as requests ask for them."""
    notes: tuple[str, ...] = ()
    """What had to be lowered, in words."""


def available_memory(device: torch.device) -> int:
    """Bytes that are free on `device`, within the limit of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return main_memory_free()


def memory_beside(device: torch.device, mapped: int) -> int:
    """Bytes that are free on `device` beside weights in `mapped` bytes of files, which are to stay in main memory
    though the system could have it back."""
    return max(0, available_memory(device) - (mapped if device.type == "cpu" else 0))


def free_memory(device: torch.device, mapped: int = 0) -> int:
    """Bytes of `memory_beside` that `auto` may take on `device`."""
    return int(memory_beside(device, mapped) * SHARE_OF_FREE[device.type])


def check_room(model: str, need: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model whose weights cannot fit, before anything is allocated.

    Args:
        model: its name.
        need: bytes of its weights.
        dtype: of those that are not quantized.
        device: where they go.

    Raises:
        UserError: too little is free on `device`.
    """
    free = available_memory(device)
    if need * MARGIN > free:
        name = str(dtype).removeprefix("torch.")
        where = f"on {device}" if device.type == "cuda" else "in main memory"
        raise UserError(f"{model} needs {_gb(need)} in {name}; {_gb(free)} are free {where}; take a smaller model, "
                        "or a machine with more memory")  # fmt: skip


def _gb(n: float) -> str:
    return f"{n / 1e9:.3g} GB" if n < 1e11 else f"{n / 1e9:.0f} GB"


def fit(
    cfg: ModelConfig,
    dtype: torch.dtype,
    memory: int,
    max_sequences: int,
    max_context: int,
    page_size: int,
    snapshot_every: int,
    kv_dtype: torch.dtype | None = None,
    kept: bool = True,
) -> Sizes:
    """Divide `memory` bytes; too little lowers the context, then the number of sequences.

    Without `kept` no states are kept beside those of running sequences, and all the rest is for their pages.
    Conv states are of `dtype`, keys and values of `kv_dtype` (None: the same). Beside each page there is room for the
    experts that its tokens used: any request may ask for them.

    Raises:
        UserError: not even one sequence of one page fits.
    """
    slot, page = slot_bytes(cfg, dtype), bytes_of_page(cfg, page_size, kv_dtype or dtype)
    notes = []
    if memory < slot + page:
        raise UserError(
            f"memory of {_size(memory)} has no room for one sequence: it takes {_size(slot + page)} at the least; "
            "raise --memory"
        )
    wanted = -(-max_context // page_size)
    pages_each = min(wanted, (memory - slot) // page) if page else wanted
    if pages_each < wanted:
        max_context = pages_each * page_size
        notes.append(f"context lowered to {max_context} tokens: {memory / 2**30:.2f} GiB hold no more")
    running = min(max_sequences, (memory - pages_each * page) // slot) if slot else max_sequences
    if running < max_sequences:
        notes.append(f"at most {running} sequences at once: {memory / 2**30:.2f} GiB hold no more states")
    left = memory - running * slot - pages_each * page
    most = running * (2 if kept else 1) * pages_each - pages_each
    n_pages = _extra(left // 2 if kept else left, page, most) + pages_each
    most = n_pages * page_size // snapshot_every + running if kept else 0
    spare = _extra(left - (n_pages - pages_each) * page, slot, most)
    total = (running + spare) * slot + n_pages * page
    return Sizes(running, max_context, running + spare, n_pages, total, tuple(notes))


def bytes_of_page(cfg: ModelConfig, page_size: int, kv_dtype: torch.dtype) -> int:
    """Bytes of the keys, values and experts of `page_size` tokens."""
    return page_bytes(cfg, page_size, kv_dtype) + page_size * expert_bytes(cfg)


def expert_type(cfg: ModelConfig) -> torch.dtype:
    """Integers that hold the experts of a token."""
    return torch.uint8 if cfg.n_experts <= 256 else torch.int16


def expert_bytes(cfg: ModelConfig) -> int:
    """Bytes of the experts that one token used in all blocks, as they are kept for router replay."""
    return len(cfg.blocks(MOE)) * cfg.top_k * expert_type(cfg).itemsize


def _size(n: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= unit:
            return f"{n / unit:.4g} {name}"
    return f"{n} B"


def _extra(budget: int, each: int, most: int) -> int:
    return max(0, min(most, budget // each if each else MOST_FREE_ITEMS))

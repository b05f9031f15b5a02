"""Inference state of many sequences: slots for the Mamba-2 blocks, pages for the attention blocks.

A slot holds the conv and scan state of one sequence in all Mamba-2 blocks, of constant size. A page holds the keys and
values of `page_size` tokens in all attention blocks (arXiv 2309.06180); sequences that begin alike share its pages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nano3.config.model import ATTENTION, MAMBA, ModelConfig
from nano3.kernels.allocator import use_huge_pages
from nano3.kernels.scaled import E4M3, FLOATS
from nano3.model.state.block import AttentionPages, MambaSlots
from nano3.model.state.hybrid import HybridState
from nano3.model.state.plan import Plan


class StatePool:
    """Slots and pages of all blocks. Memory is reserved at once and, on CPU, taken from the system when first used."""

    def __init__(
        self,
        cfg: ModelConfig,
        n_slots: int,
        n_pages: int,
        page_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserve memory.

        Args:
            cfg: of the model.
            n_slots, n_pages, page_size: how much.
            dtype: of conv states, best the activations'; scan states are float32 at least.
            kv_dtype: of keys and values; None: as `dtype`. float8_e4m3fn: the attention blocks have their scales.
            device: where.

        Raises:
            ValueError: a type that holds no keys and values without scales.
        """
        kv_dtype = dtype if kv_dtype is None else kv_dtype
        if kv_dtype not in FLOATS | {E4M3}:
            name = str(kv_dtype).removeprefix("torch.")
            raise ValueError(
                f"pages of {name} need scales, which the pool does not keep; take bfloat16, float32, or float8_e4m3fn "
                "with a model that has them"
            )
        self.page_size, self.n_slots, self.n_pages = page_size, n_slots, n_pages
        self.blocks: list[MambaSlots | AttentionPages | None] = []
        for symbol in cfg.pattern:
            self.blocks.append(_block(cfg, symbol, n_slots, n_pages, page_size, dtype, kv_dtype, device))
        self._slots = [block for block in self.blocks if isinstance(block, MambaSlots)]
        self._pages = [block for block in self.blocks if isinstance(block, AttentionPages)]
        states = [block.ssm for block in self._slots]
        use_huge_pages(((t.data_ptr(), t.nbytes) for t in states if t.device.type == "cpu"), now=False)

    def state(self, plan: Plan) -> HybridState:
        """The state to give to the model for one pass over `plan.n_tokens` tokens in one row."""
        for block in (*self._slots, *self._pages):
            block.plan = plan
        return HybridState(list(self.blocks))

    def free(self) -> None:
        """Give the memory back; the pool is of no use afterwards."""
        for blocks in (self.blocks, self._slots, self._pages):
            blocks.clear()

    def clear_slot(self, slot: int) -> None:
        """Back to the state before the first token."""
        for states in self._states(slot):
            torch._foreach_zero_(states)  # pyright: ignore[reportPrivateImportUsage]

    def copy_slot(self, source: int, target: int) -> None:
        """Copy one sequence's conv and scan states."""
        for targets, sources in zip(self._states(target), self._states(source), strict=True):
            torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]

    def _states(self, slot: int) -> list[list[Tensor]]:
        """Conv states of all blocks, and scan states: tensors of one type go through a GPU in one launch."""
        if not self._slots:
            return []
        return [[block.conv[slot] for block in self._slots], [block.ssm[slot] for block in self._slots]]

    def copy_page(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` keys and values of a page."""
        pages = [tensor for block in self._pages for tensor in (block.keys, block.values)]
        if not pages:
            return
        pages = [t.view(torch.uint8) if t.dtype == E4M3 else t for t in pages]  # few ops take numbers of that type
        sources, targets = ([t[page, :tokens] for t in pages] for page in (source, target))
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]


def slot_bytes(cfg: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one slot whose conv states have this type."""
    ssm = cfg.mamba_n_heads * cfg.mamba_head_dim * cfg.d_state * 4
    conv = cfg.conv_dim * (cfg.d_conv - 1) * dtype.itemsize
    return len(cfg.blocks(MAMBA)) * (ssm + conv)


def page_bytes(cfg: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page of keys and values of this type."""
    return len(cfg.blocks(ATTENTION)) * 2 * page_size * cfg.n_kv_heads * cfg.head_dim * dtype.itemsize


def _block(cfg, symbol, n_slots, n_pages, page_size, dtype, kv_dtype, device) -> MambaSlots | AttentionPages | None:
    if symbol == MAMBA:
        conv = torch.empty(n_slots, cfg.conv_dim, cfg.d_conv - 1, dtype=dtype, device=device)
        wide = torch.promote_types(dtype, torch.float32)
        shape = (n_slots, cfg.mamba_n_heads, cfg.mamba_head_dim, cfg.d_state)
        return MambaSlots(conv, torch.empty(shape, dtype=wide, device=device))
    if symbol == ATTENTION:
        shape = (n_pages, page_size, cfg.n_kv_heads, cfg.head_dim)
        keys = torch.empty(shape, dtype=kv_dtype, device=device)
        return AttentionPages(keys, torch.empty_like(keys))
    return None

"""What a GPU can do at the very best: large matrix products, and copying its memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from nano3.bench.ceilings import MATMULS
from nano3.bench.device.timer import Timer
from nano3.bench.workload import Case

PRODUCT = 8192
"""Rows and columns of both matrices."""
COPIED_BYTES = 4 << 30
"""Of each side of a copy: far beyond any cache, and at most a quarter of the free memory."""
TRIES, KINDS = 5, (torch.bfloat16, torch.float32)
LEAST_BYTES = 1 << 20


class DeviceCeilings:
    """The rates of one device; see nano3.bench.worker. It keeps no memory between its runs."""

    def __init__(self, device: torch.device, product: int = PRODUCT, copied: int = COPIED_BYTES) -> None:
        self.device, self.product, self.copied = device, product, copied

    def about(self) -> dict[str, Any]:
        """Sizes of what is measured, and of the device's cache."""
        on_gpu = self.device.type == "cuda"
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size if on_gpu else 0
        return {"matmul": [self.product] * 3, "copied_bytes": self.copied, "cache_bytes": cache}

    @torch.inference_mode()
    def run(self, case: Case | None = None) -> dict[str, float]:
        """All rates by name, each the best of a few tries; FLOP/s, and bytes a second read and written together."""
        timer = Timer(self.device)
        rates = {MATMULS[str(kind).removeprefix("torch.")]: self._product(timer, kind) for kind in KINDS}
        rates["copy"] = self.copy()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes measure on the same device
        return rates

    def _product(self, timer: Timer, kind: torch.dtype) -> float:
        # Random numbers: products of constants draw less power, and so run at a higher clock.
        a, b = (torch.randn(self.product, self.product, device=self.device).to(kind) for _ in range(2))
        return 2 * self.product**3 / _best(timer, partial(torch.mm, a, b.t()))

    def copy(self) -> float:
        """Bytes a second, read and written together."""
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else self.copied * 4
        size = max(LEAST_BYTES, min(self.copied, free // 4))
        source = torch.zeros(size, dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / _best(Timer(self.device), partial(target.copy_, source))


def _best(timer: Timer, run: Any) -> float:
    timer.warm(run)
    return min(timer.seconds(run) for _ in range(TRIES))

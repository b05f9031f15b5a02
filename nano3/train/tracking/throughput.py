"""Tokens per second and model FLOP utilisation."""

from __future__ import annotations

import time
from functools import cache

import torch

GPU_PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 FLOP/s that vendors state, by part of the device name; the first match counts."""


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that one device could reach: from the table for known GPUs, else measured with a short matmul."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, flops in GPU_PEAK_BF16.items():
            if part in name:
                return flops
    return _measure(device, dtype)


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    """On a CPU many short products: where other work shares the cores, some of them have a core to themselves."""
    n, at_most = (4096, 4) if device.type == "cuda" else (512, 100)
    a, b = torch.ones(n, n, dtype=dtype, device=device), torch.ones(n, n, dtype=dtype, device=device)
    best, spent = float("inf"), 0.0
    for trial in range(at_most):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
        if spent > 0.25 and trial >= 4:
            break
    return 2.0 * n**3 / best


class Meter:
    """Rate of the last steps; pauses (evaluation, checkpoints) are not counted."""

    def __init__(self, peak: float, smoothing: float = 0.9) -> None:
        """`peak`: FLOP/s that all devices of the run could reach."""
        self.peak, self.smoothing = peak, smoothing
        self.seconds = 0.0
        """Training time so far."""
        self.tokens = 0
        """Tokens trained on so far, in this process."""
        self.rate = 0.0
        """Smoothed tokens per second."""
        self.mfu = 0.0
        """Smoothed model FLOP utilisation in [0, 1]."""

    def add(self, tokens: int, seconds: float, flops: float) -> dict[str, float]:
        """Count one step, of so many tokens and operations; returns the wall-clock values of its metrics line."""
        first, seconds = self.tokens == 0, max(seconds, 1e-9)
        # What was reached could be reached: on shared cores the peak may have been measured in a bad moment.
        self.peak = max(self.peak, flops / seconds)
        now, mfu = tokens / seconds, flops / seconds / self.peak
        self.rate = now if first else self.smoothing * self.rate + (1 - self.smoothing) * now
        self.mfu = mfu if first else self.smoothing * self.mfu + (1 - self.smoothing) * mfu
        self.seconds += seconds
        self.tokens += tokens
        return {"seconds": self.seconds, "tokens_per_second": now, "mfu": mfu}

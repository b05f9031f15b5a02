"""What this machine can do at the very best: large matrix products, copying, and reading a matrix once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from nano3.bench.workload import Case, Job

MATMUL, MATRIX_BYTES = 2048, 128 << 20
TRIES, PATIENCE = 3, 0.4
"""Runs of which the best counts; fewer where they have taken so many seconds together."""
UNITS = {
    "matmul_float32": "FLOP/s",
    "matmul_bfloat16": "FLOP/s",
    "copy": "B/s",
    "matvec_float32": "B/s",
    "matvec_bfloat16": "B/s",
}
"""Each ceiling and its unit; a copy counts bytes read and bytes written."""


class Ceilings:
    """The side that measures the machine; see nano3.bench.worker."""

    def __init__(self, job: Job) -> None:
        self.matmul: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.matrix: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        width = 8192
        for name in ("float32", "bfloat16"):
            dtype = getattr(torch, name)
            square = torch.randn(MATMUL, MATMUL).to(dtype)
            self.matmul[name] = (square, square.clone())
            rows = MATRIX_BYTES // (width * dtype.itemsize)
            self.matrix[name] = (torch.ones(rows, width, dtype=dtype), torch.ones(width, dtype=dtype))
        self.source = torch.ones(MATRIX_BYTES, dtype=torch.uint8)
        self.target = torch.zeros_like(self.source)
        # The first products of a process pay for the library's preparations.
        for (a, b), (matrix, vector) in zip(self.matmul.values(), self.matrix.values(), strict=True):
            torch.mm(a[:64, :64], b[:64, :64])
            torch.mv(matrix[:64], vector)

    def about(self) -> dict[str, Any]:
        """Sizes of what is measured."""
        return {"matmul": [MATMUL] * 3, "matrix_bytes": MATRIX_BYTES}

    @torch.inference_mode()
    def run(self, case: Case) -> dict[str, float]:
        """Each of UNITS, the best of a few tries."""
        rates = {"copy": 2 * MATRIX_BYTES / best_seconds(lambda: self.target.copy_(self.source))}
        for name in self.matmul:
            a, b = self.matmul[name]
            matrix, vector = self.matrix[name]
            rates[f"matmul_{name}"] = 2 * MATMUL**3 / best_seconds(lambda a=a, b=b: torch.mm(a, b))
            seconds = best_seconds(lambda m=matrix, v=vector: torch.mv(m, v))
            rates[f"matvec_{name}"] = MATRIX_BYTES / seconds
        return rates


def best_seconds(run: Callable[[], object]) -> float:
    """The shortest of a few runs."""
    seconds: list[float] = []
    while len(seconds) < TRIES and sum(seconds) < PATIENCE:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)

"""What this machine can do at the very best: large matrix products, copying, and reading weights of several sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nano3 import kernels
from nano3.bench.workload import Case, Job
from nano3.kernels.allocator import use_huge_pages

MATMUL, COPIED_BYTES, WIDTH = 2048, 128 << 20, 1024
READ_KIB = (256, 512, 1024, 2048, 4 << 10, 16 << 10, 64 << 10, 256 << 10)
"""Sizes of weights that are read: small ones come from the processor's caches."""
TRIES, PATIENCE = 10, 0.4
"""Runs of which the best counts; fewer where they have taken so many seconds together."""
READS = {f"read_{size >> 10}_MiB" if size >> 10 else f"read_{size}_KiB": size << 10 for size in READ_KIB}
"""Name and bytes of each, the smallest first."""
UNITS = {"matmul_float32": "FLOP/s", "matmul_bfloat16": "FLOP/s", "copy": "B/s", **dict.fromkeys(READS, "B/s")}
"""Each ceiling and its unit; a copy counts bytes read and bytes written."""
TITLES = {
    "matmul_float32": "matrix product, float32",
    "matmul_bfloat16": "matrix product, bfloat16",
    "copy": "copy",
    **{name: f"read of {name.removeprefix('read_').replace('_', ' ')} of weights" for name in READS},
}
"""What people are shown for the names of UNITS."""


def read_ceiling(size: float, rates: Mapping[str, float]) -> float:
    """The rate at which weights of so many bytes can be read at the very best, from the measured `rates` of READS.

    Small weights are not always read faster: a call's own cost, or the machine's other work, may make a smaller size
    the slower one. So it is the largest of all rates up to the next size that is not smaller than the weights.
    """
    enough = min((known for known in READS.values() if known >= size), default=max(READS.values()))
    return max(rates[name] for name, known in READS.items() if known <= enough)


class Ceilings:
    """The side that measures the machine; see nano3.bench.worker."""

    def __init__(self, job: Job) -> None:
        self.matmul: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name in ("float32", "bfloat16"):
            square = torch.randn(MATMUL, MATMUL).to(getattr(torch, name))
            self.matmul[name] = (square, square.clone())
        self.source = torch.ones(COPIED_BYTES, dtype=torch.uint8)
        self.target = torch.zeros_like(self.source)
        self.row = torch.ones(1, WIDTH)
        self.weight = torch.ones(max(READS.values()) // (WIDTH * self.row.itemsize), WIDTH)
        use_huge_pages([(self.weight.data_ptr(), self.weight.nbytes)])  # as those of a model that decodes
        # The first products of a process pay for the library's preparations.
        for a, b in self.matmul.values():
            torch.mm(a[:64, :64], b[:64, :64])
        kernels.linear(self.row, self.weight[:64])

    def about(self) -> dict[str, Any]:
        """Sizes of what is measured."""
        return {"matmul": [MATMUL] * 3, "copied_bytes": COPIED_BYTES, "read_bytes": list(READS.values())}

    @torch.inference_mode()
    def run(self, case: Case) -> dict[str, float]:
        """Each of UNITS, the best of a few tries."""
        rates = {"copy": 2 * COPIED_BYTES / best_seconds(lambda: self.target.copy_(self.source))}
        for name, (a, b) in self.matmul.items():
            rates[f"matmul_{name}"] = 2 * MATMUL**3 / best_seconds(lambda a=a, b=b: torch.mm(a, b))
        for name, size in READS.items():
            weight = self.weight[: size // self.weight[0].nbytes]
            # One row: as fast as weights can be read by what multiplies them.
            rates[name] = size / best_seconds(lambda w=weight: kernels.linear(self.row, w))
        return rates


def best_seconds(run: Callable[[], object]) -> float:
    """The shortest of a few runs."""
    seconds: list[float] = []
    while len(seconds) < TRIES and sum(seconds) < PATIENCE:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)

"""What this machine can do at the very best: large matrix products, and reading, copying and combining memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nano3 import kernels
from nano3.bench.workload import Case, Job
from nano3.kernels.allocator import use_huge_pages
from nano3.kernels.cpu.memory.read import readers
from nano3.memory import main_memory_free

MATMUL, COPIED_BYTES, WIDTH = 2048, 128 << 20, 1024
FIRST_KIB, LARGEST_KIB = 256, 1 << 20
READ_KIB = tuple(FIRST_KIB << i for i in range(0, 13, 2))
"""Sizes that can be read, each four times the one before, up to LARGEST_KIB."""
BEYOND_CACHE = 4
"""The largest buffer is so many times the processor's caches, where a quarter of the free memory holds it."""
LEAST_LARGEST = 64 << 20
TRIES, PATIENCE = 10, 0.2
"""Runs of which the best counts; fewer where they have taken so many seconds together."""
A_RUN = 32 << 20
"""Bytes that one run reads at the least: small sizes several times over."""
KEPT, COMPARED = 2, 64 << 20
"""Ways to read of each size that are measured again in each round: the best of the first comparison, made of each size
up to COMPARED bytes; larger ones are read as that is."""
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def read_name(kib: int) -> str:
    """The ceiling's name of a size."""
    for size, unit in ((1 << 20, "GiB"), (1 << 10, "MiB")):
        if kib >= size:
            return f"read_{kib // size}_{unit}"
    return f"read_{kib}_KiB"


READS = {read_name(kib): kib << 10 for kib in READ_KIB}
"""Name and bytes of each size, the smallest first; a machine measures those up to its largest."""
MATMULS = {"float32": "matmul_float32", "bfloat16": "matmul_bfloat16", "int8": "matmul_int8"}
MOVES = ("copy", "triad")
"""Rates of memory itself; bytes read and bytes written together."""
TITLES = {
    **{name: f"matrix product, {kind}" for kind, name in MATMULS.items()},
    "copy": "copy (a = b)",
    "triad": "triad (a = b + 3 c)",
    **{name: f"read of {name.removeprefix('read_').replace('_', ' ')}" for name in READS},
}
"""What people are shown for the names."""


def unit(name: str) -> str:
    """Of a ceiling."""
    return "FLOP/s" if name in MATMULS.values() else "B/s"


def read_ceiling(size: float, rates: Mapping[str, float]) -> tuple[str, float]:
    """The rate at which so many bytes can be read over and over at the very best, and the name of what had it.

    More bytes cannot be read faster than fewer, which caches hold sooner. So it is the best rate of the largest
    measured size that is not larger than `size` (of the smallest, for less), and of all that are larger still; memory
    itself counts as the largest.
    """
    known = {name: READS[name] for name in rates if name in READS}
    least = max((held for held in known.values() if held <= size), default=min(known.values(), default=0))
    able = [name for name, held in known.items() if held >= least] + [name for name in MOVES if name in rates]
    best = max(able, key=lambda name: rates[name])
    return best, rates[best]


def cache_bytes() -> int:
    """Of the largest cache of the first core, which may be shared with other machines' cores; 0 where unknown."""
    sizes = [0]
    for file in CACHES.glob("index*/size"):
        text = file.read_text("utf-8").strip()
        if text[:-1].isdigit() and text[-1:] in "KM":
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes)


def largest_bytes(cache: int, free: int) -> int:
    """Of the largest buffer to be read: beyond the caches where memory allows."""
    wanted = max(LEAST_LARGEST, min(BEYOND_CACHE * cache or 512 << 20, LARGEST_KIB << 10))
    allowed = max(FIRST_KIB << 10, min(wanted, free // 4))
    return max(size for size in READS.values() if size <= allowed)


class Ceilings:
    """The side that measures the machine; see nano3.bench.worker."""

    def __init__(self, job: Job, largest: int = 0) -> None:
        """`largest`: bytes to read at most; 0: as `largest_bytes` says."""
        self.cache = cache_bytes()
        largest = largest or largest_bytes(self.cache, main_memory_free())
        self.data = torch.ones(largest // 4)
        use_huge_pages([(self.data.data_ptr(), self.data.nbytes)])  # as the weights of a model that decodes
        self.target = torch.ones(min(COPIED_BYTES, largest) // 4)
        self.sizes = {name: size for name, size in READS.items() if size <= largest}
        self.ways = {name: _reads(self.data[: size // 4]) for name, size in self.sizes.items()}
        kept: list[str] = []
        for name, ways in self.ways.items():
            if not kept or self.sizes[name] <= COMPARED:
                rates = {way: _rate(run, self.sizes[name], tries=2) for way, run in ways.items()}
                kept = sorted(rates, key=lambda way: -rates[way])[:KEPT]
            self.ways[name] = {way: ways[way] for way in kept}
        self.products = _products(MATMUL)

    def about(self) -> dict[str, Any]:
        """Sizes of what is measured, and the ways that proved best."""
        return {
            "matmul": [MATMUL] * 3,
            "copied_bytes": self.target.nbytes,
            "read_bytes": list(self.sizes.values()),
            "read_by": {name: list(ways) for name, ways in self.ways.items()},
            "cache_bytes": self.cache,
        }

    @torch.inference_mode()
    def run(self, case: Case) -> dict[str, float]:
        """All rates by name, each the best of a few tries of every way."""
        rates = {name: max(2 * MATMUL**3 / best_seconds(run) for run in ways) for name, ways in self.products.items()}
        n = len(self.target)
        a, b, c = self.target, self.data[:n], self.data[-n:]
        rates["copy"] = 2 * a.nbytes / best_seconds(lambda: a.copy_(b))
        rates["triad"] = 3 * a.nbytes / best_seconds(lambda: torch.add(b, c, alpha=3, out=a))
        for name, ways in self.ways.items():
            rates[name] = max(_rate(run, self.sizes[name]) for run in ways.values())
        return rates


def _reads(data: torch.Tensor) -> dict[str, Callable[[int], object]]:
    """Ways to read a buffer of float32 so many times, by name: C++ that does nothing else, and what multiplies a row by
    it, in both types."""
    ways: dict[str, Callable[[int], object]] = {reader.name: partial(reader.read, data) for reader in readers()}
    for dtype in (torch.float32, torch.bfloat16):
        weight, row = data.view(dtype).view(-1, WIDTH), torch.ones(1, WIDTH, dtype=dtype)
        ways[f"a row times {_name(dtype)} weights"] = partial(_repeat, partial(kernels.linear, row, weight))
    return ways


def _repeat(run: Callable[[], object], times: int) -> None:
    for _ in range(times):
        run()


def _rate(read: Callable[[int], object], size: int, tries: int = TRIES) -> float:
    passes = max(1, A_RUN // size)
    return size * passes / best_seconds(lambda: read(passes), tries)


def _products(n: int) -> dict[str, list[Callable[[], object]]]:
    """Products of n x n matrices by the name of their ceiling, with the second matrix as it lies and transposed."""
    found: dict[str, list[Callable[[], object]]] = {}
    wide = torch.randn(n, n)
    for dtype in (torch.float32, torch.bfloat16):
        a = wide.to(dtype)
        ways = [partial(torch.mm, a, a.clone()), partial(kernels.linear, a, a.clone())]
        found[MATMULS[_name(dtype)]] = ways
    scaled, activations = kernels.quantize_int8(wide), wide.to(torch.bfloat16)
    integers = scaled.data
    found[MATMULS["int8"]] = [partial(kernels.linear, activations, scaled), partial(torch._int_mm, integers, integers)]  # pyright: ignore[reportPrivateImportUsage]
    # The first products of a process pay for the library's preparations.
    for ways in found.values():
        ways[:] = [run for run in ways if _runs(run)]
    return found


def _runs(run: Callable[[], object]) -> bool:
    try:
        run()
    except RuntimeError:
        return False
    return True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def best_seconds(run: Callable[[], object], tries: int = TRIES) -> float:
    """The shortest of a few runs."""
    seconds: list[float] = []
    while len(seconds) < tries and sum(seconds) < PATIENCE:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)

"""Every kernel compiled for Hopper, which needs no GPU: it keeps its numbers in registers and uses the matrix units.

In a process without TRITON_INTERPRET: what triton compiles with it works for the interpreter only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from nano3.kernels.triton import MODULES

pytest.importorskip("triton")
pytestmark = [pytest.mark.any_isa, pytest.mark.slow]
SMALLEST_SHARED = 99 * 1024
"""Bytes of shared memory that a block may have on the smallest GPUs in range (compute capability 8.6 and 8.9)."""
COMPILE = """
import json, sys
import torch
from nano3.kernels.triton import MODULES
from nano3.kernels.triton.compiled import CASES, compiled, launches, unique
found = []
for op in MODULES:
    for dtype in (torch.bfloat16, torch.float32):
        if dtype == torch.bfloat16 or op in ("ssd_scan", "paged_attention", "paged_decode", "grouped_mlp"):
            for launch in unique(launches(op, dtype)):
                found.append([op, str(dtype), op in CASES, *compiled(launch)])
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> list:
    """Rows: op, type, whether at the 30B model's sizes, and the fields of Machine."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_half_precision_spills_nothing_and_uses_the_matrix_units(kernels):
    rows = [row for row in kernels if row[1] == "torch.bfloat16" and row[2]]
    assert {row[0] for row in rows} == set(MODULES)
    for op, _, _, name, registers, stack, spills, _shared, wgmma, mma, _warps in rows:
        assert (stack, spills) == (0, 0), f"{op}: {name} spills, {registers} registers"
        few_rows = name == "decode_kernel"  # 16 query heads a key head, and wgmma takes 64 rows
        assert bool(mma) == few_rows, f"{op}: {name} has {mma} products of fewer rows than Hopper's matrix units take"
        large = op in ("ssd_scan", "paged_attention") or name == "product_kernel"
        assert bool(wgmma) == large, f"{op}: {name} has {wgmma} products on the matrix units"


def test_every_kernel_compiles_for_the_memory_of_smaller_gpus(kernels):
    for op, dtype, _, name, *_, shared, _wgmma, _mma, _warps in kernels:
        assert shared <= SMALLEST_SHARED, f"{op}: {name} of {dtype} needs {shared} bytes"

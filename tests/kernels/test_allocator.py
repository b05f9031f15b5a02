import subprocess
import sys

import pytest
import torch
from nano3.kernels.allocator import HUGE_PAGE, use_huge_pages

pytestmark = pytest.mark.any_isa

PROGRAM = """
import resource, torch
from nano3.kernels.allocator import keep_freed_memory
assert keep_freed_memory()
for _ in range(12):  # the heap first grows to a size that fits
    torch.empty(16 << 20).zero_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.empty(16 << 20).zero_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_reused_without_page_faults():
    faults = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(faults.stdout) < 16384  # pages of one tensor; without the setting all four fault


def test_memory_moved_to_huge_pages_keeps_what_it_holds():
    places = [torch.arange(3 << 20), torch.arange(100)]
    before = [t.clone() for t in places]
    moved = use_huge_pages([(t.data_ptr(), t.nbytes) for t in places])
    assert moved % HUGE_PAGE == 0
    assert moved <= places[0].nbytes + 2 * HUGE_PAGE  # the small one is left where it is
    assert all(torch.equal(now, then) for now, then in zip(places, before, strict=True))

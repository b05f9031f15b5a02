import subprocess
import sys

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

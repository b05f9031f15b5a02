import subprocess
import sys

import torch

from nano3.train.numerics import tuned_process

LOOK_UP = """
import numpy, torch
from nano3.train.numerics import tuned_process
with tuned_process(torch.device("cpu")):
    for dtype in (numpy.float32, numpy.float64):
        numpy.finfo(dtype).smallest_subnormal
"""


def _smallest_times_one():
    return float(torch.tensor(5e-324, dtype=torch.float64) * 1.0)


def test_subnormal_numbers_are_flushed_for_the_run_only():
    assert _smallest_times_one() > 0
    with tuned_process(torch.device("cpu")):
        assert _smallest_times_one() == 0
    assert _smallest_times_one() > 0


def test_numpy_has_nothing_to_complain_about():
    done = subprocess.run([sys.executable, "-W", "error", "-c", LOOK_UP], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

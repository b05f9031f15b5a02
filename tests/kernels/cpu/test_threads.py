"""Calls too small to gain from it do not wake other threads."""

import subprocess
import sys

CALLS = """
import os
import torch
from nano3 import kernels

ids, weights = torch.tensor([[0, 1], [1, 2]]), torch.rand(2, 2)


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


def call_all():  # none with a product of PyTorch's inside, which wakes whom it likes
    kernels.attention(leaf(1, 8, 4, 8), leaf(1, 8, 2, 8), leaf(1, 8, 2, 8)).sum().backward()
    tokens = leaf(1, 4, 2, 4), leaf(1, 4, 2), -torch.ones(2), leaf(1, 4, 1, 4), leaf(1, 4, 1, 4)
    kernels.ssd_scan(*tokens, torch.ones(2), torch.ones(2))[0].sum().backward()
    with torch.inference_mode():
        x, up, down = torch.randn(2, 8), torch.randn(3, 8, 8), torch.randn(3, 8, 8)
        kernels.linear(x, up[0])
        kernels.squared_relu_mlp(x, up[0], down[0])
        kernels.grouped_mlp(x, up, down, ids, weights)
        pages = torch.randn(3, 4, 2, 8)
        kernels.paged_attention(torch.randn(1, 4, 8), pages, pages, torch.tensor([[0, 1]]), [1], [6])
        kernels.best_tokens(torch.randn(3, 50), 50)


if kernels.dispatch.choose("attention", "cpu")[0] != "cpu":  # PyTorch alone: its own affair
    print(0)
    raise SystemExit
torch.set_num_threads(1)
call_all()  # with the self-checks
torch.set_num_threads(9)
before = len(os.listdir("/proc/self/task"))
call_all()
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_small_calls_stay_on_their_thread():
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8

"""mamba-ssm's own kernels through our adapter, on a CPU by Triton's interpreter, against the float64 reference.

Run by test_mamba_ssm.py in a process of its own; prints the largest error of each case, relative in norm, as JSON.
"""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from nano3.kernels.dispatch import BACKENDS
from torch import Tensor

from nano3 import kernels

# The package asks the device for these two.
torch.cuda.device = lambda *_: nullcontext()
torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=132)
ADAPTED = BACKENDS["mamba-ssm"].functions
H, P, G, N = 4, 16, 2, 16


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).nan_to_num(nan=torch.inf).norm() / expected.norm())


def scan_inputs(B: int, T: int) -> dict[str, Tensor]:
    return {
        "x": torch.randn(B, T, H, P),
        "dt": torch.randn(B, T, H) - 1,
        "A": -torch.rand(H) * 4 - 0.5,
        "B": torch.randn(B, T, G, N) * 0.3,
        "C": torch.randn(B, T, G, N) * 0.3,
        "D": torch.randn(H),
        "dt_bias": torch.randn(H) * 0.5,
    }


def compare(op: str, inputs: dict[str, Tensor], *settings: Any, **options: Any) -> float:
    """Largest error of results and gradients."""
    sides = []
    for run, dtype in ((ADAPTED[op], torch.float32), (kernels.choose(op, "cpu", "reference")[1], torch.float64)):
        leaves = {name: m.to(dtype).requires_grad_() for name, m in inputs.items()}
        results = run(*leaves.values(), *settings, **options) if settings else run(**leaves, **options)
        results = results if isinstance(results, tuple) else (results,)
        total = sum((r.double() * torch.linspace(-1, 1, r.numel()).view_as(r)).sum() for r in results)
        sides.append([*(r.detach() for r in results), *torch.autograd.grad(total, list(leaves.values()))])
    return max(error(got, expected) for got, expected in zip(*sides, strict=True))


def step() -> float:
    """Three sequences in slots out of order: outputs and all states."""
    C = H * P + 2 * G * N
    inputs = [torch.randn(3, C), torch.randn(3, H) - 1, torch.randn(3, H * P)]
    states = [torch.randn(7, C, 3), torch.randn(7, H, P, N)]
    weights = [torch.randn(C, 4), torch.randn(C), torch.rand(H), torch.randn(H), torch.randn(H), torch.randn(H * P)]
    sides = []
    for run, dtype in ((ADAPTED["mamba_step"], torch.float32), (kernels.mamba_step, torch.float64)):
        tensors, kept, shared = ([m.to(dtype, copy=True) for m in group] for group in (inputs, states, weights))
        sides.append([run(*tensors, *kept, torch.tensor([5, 0, 3]), *shared, 1e-5, G), *kept])
    return max(error(got, expected) for got, expected in zip(*sides, strict=True))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kernels.choose("ssd_scan", "cpu", "mamba-ssm")  # says what is wrong where the package cannot be imported
    documents = torch.tensor([[3] * 7 + [1] * 4 + [3] * 22 + [8] * 2])  # cut inside chunks; an id comes back in one
    state = {"initial_state": torch.randn(1, H, P, N)}
    norm = {"y": torch.randn(5, 64), "z": torch.randn(5, 64), "weight": torch.randn(64)}
    errors = {
        "scan": compare("ssd_scan", scan_inputs(2, 21), chunk_size=16),
        "documents": compare("ssd_scan", scan_inputs(1, 35) | state, document_ids=documents, chunk_size=31),
        "norm": compare("gated_rms_norm", norm, 1e-5, G),
        "step": step(),
    }
    json.dump(errors | {"ran": "mamba_ssm.ops.triton.ssd_combined" in sys.modules}, sys.stdout)


main()

"""What the kernels become on Hopper (sm_90), compiled without a GPU: registers, spills, matrix instructions.

    python -m nano3.kernels.triton.compiled

prints a table of every kernel at the 30B model's sizes in bfloat16. Not in a process with TRITON_INTERPRET set, where
kernels are made for the interpreter.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..scaled import Scaled
from . import MODULES
from .call import Kernel

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
INSTRUCTIONS = ("HGMMA", "QGMMA", "HMMA", "QMMA", "LDL", "STL")
"""What is counted: products of 16 and of 8 bits by Hopper's units and by the older ones, loads and stores of spills."""
ALIGNED = 16
"""Addresses and numbers that are multiples of it are compiled as such, as Triton does where it launches."""


class Launch(NamedTuple):
    """One launch of a kernel, as `call.launch` got it."""

    kernel: Any
    arguments: tuple
    options: dict[str, Any]


class Machine(NamedTuple):
    """A compiled kernel."""

    name: str
    registers: int
    stack: int
    """Bytes a thread of local memory."""
    spills: int
    """Instructions that load or store local memory."""
    shared: int
    """Bytes a block of shared memory."""
    wgmma: int
    """Matrix products of Hopper's units."""
    mma: int
    """Matrix products of the older kind."""
    warps: int

    @property
    def multiplies(self) -> bool:
        """Whether it has matrix products at all."""
        return self.wgmma + self.mma > 0


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside, launches of CPU tensors are noted and nothing runs; results hold whatever memory held."""
    launches: list[Launch] = []

    def note(kernel: Any, _grid: tuple, *arguments: Any, **options: Any) -> None:
        launches.append(Launch(kernel, arguments, options))

    with ExitStack() as changes:
        for module in {import_module(f".{name}", __package__) for name in MODULES.values()}:
            for name, value in (("launch", note), ("fits", lambda *_: True)):
                if hasattr(module, name):
                    changes.enter_context(patch.object(module, name, value))
        properties = SimpleNamespace(multi_processor_count=132)
        changes.enter_context(patch.object(torch.cuda, "get_device_properties", lambda *_: properties))
        yield launches


def compiled(launch: Launch) -> Machine:
    """The launch's kernel for Hopper.

    Raises:
        Exception: what Triton or the assembler raises where it cannot be compiled.
    """
    options = dict(launch.options)
    built = {name: options.pop(name) for name in ("num_warps", "num_stages") if name in options}
    names = list(inspect.signature(launch.kernel.fn).parameters)
    values = dict(zip(names, launch.arguments, strict=False)) | options
    source = _source(launch.kernel, {name: values[name] for name in names}, set(options))
    result = triton.compile(source, target=HOPPER, options=built)
    usage, code = _disassembled(result.asm["cubin"])
    registers, stack = (int(found) for found in re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    count = {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS}
    name = launch.kernel.fn.__name__
    warps = built.get("num_warps", 4)
    spills = count["LDL"] + count["STL"]
    wgmma = count["HGMMA"] + count["QGMMA"]
    mma = count["HMMA"] + count["QMMA"]
    return Machine(name, registers, stack, spills, result.metadata.shared, wgmma, mma, warps)


def _source(kernel: Any, values: dict[str, Any], constant: set[str]) -> ASTSource:
    signature, constants, attributes = {}, {}, {}
    for place, (name, value) in enumerate(values.items()):
        if isinstance(value, Tensor):
            signature[name] = TYPES[value.dtype]
            aligned = value.storage_offset() * value.element_size() % ALIGNED == 0
        elif name in constant or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[(place,)] = "constexpr", value
            continue
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            aligned = isinstance(value, int) and value % ALIGNED == 0
        if aligned:
            attributes[(place,)] = [["tt.divisibility", ALIGNED]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def _disassembled(cubin: bytes) -> tuple[str, str]:
    """Resource usage and instructions, by the tools that Triton carries."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        commands = ([tools / "cuobjdump", "--dump-resource-usage", path], [tools / "nvdisasm", "-c", path])
        usage, code = (_output(command) for command in commands)
    return usage, code


def _output(command: list) -> str:
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout


def launches(op: str, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    """Launches of the op at the 30B model's sizes, where CASES has them, else at the sizes of its self-check; with the
    backward pass where its kernel has one."""
    kernel = import_module(f".{MODULES[op]}", __package__).KERNELS[op]
    with recorded() as found:
        for case in CASES.get(op, ()):
            if (made := case(dtype)) is not None:
                _call(kernel, *made)
        if op not in CASES:
            _call(kernel, kernel.case(torch.Generator(), dtype), {})
    return found


def _call(kernel: Kernel, arguments: tuple, options: dict[str, Any]) -> None:
    function = inspect.unwrap(kernel.function)
    with torch.set_grad_enabled(kernel.differentiable):
        leaves = [
            a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() and kernel.differentiable else a
            for a in arguments
        ]
        results = function(*leaves, **options)
        if kernel.differentiable:
            results = [r for r in (results if isinstance(results, tuple) else (results,)) if r.requires_grad]
            torch.autograd.backward(results, [torch.zeros_like(r) for r in results])


def _scan(dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    T, H, P, G, N = 256, 64, 64, 8, 128
    wide = torch.zeros(1, T, 2 * G * N + H * P, dtype=dtype)
    x, k, q = wide.split([H * P, G * N, G * N], dim=-1)
    dt = torch.zeros(1, T, 10304, dtype=dtype)[..., -H:]
    A, D, bias = (torch.zeros(H) for _ in range(3))
    arguments = (x.unflatten(2, (H, P)), dt, A, k.unflatten(2, (G, N)), q.unflatten(2, (G, N)), D, bias)
    ids = torch.zeros(1, T, dtype=torch.int64)
    return arguments, {"document_ids": ids, "initial_state": torch.zeros(1, H, P, N)}


def _conv(dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    T, C = 256, 6144
    x = torch.zeros(1, T, 10304, dtype=dtype)[..., 4096 : 4096 + C]
    state = torch.zeros(1, C, 3, dtype=dtype)
    options = {"document_ids": torch.zeros(1, T, dtype=torch.int64), "initial_state": state}
    return (x, torch.zeros(C, 4), torch.zeros(C)), options


def _norm(dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    return (torch.zeros(64, 2688, dtype=dtype), torch.zeros(2688), 1e-5), {}


def _gated_norm(dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    z = torch.zeros(64, 10304, dtype=dtype)[:, :4096]
    return (torch.zeros(64, 4096, dtype=dtype), z, torch.zeros(4096), 1e-5, 8), {}


def _mamba_step(dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    B, H, P, G, N, taps = 8, 64, 64, 8, 128, 4
    C = H * P + 2 * G * N
    z, xBC, dt = torch.zeros(B, H * P + C + H, dtype=dtype).split([H * P, C, H], dim=1)
    states = torch.zeros(16, C, taps - 1, dtype=dtype), torch.zeros(16, H, P, N)
    weights = torch.zeros(C, taps), torch.zeros(C), *(torch.zeros(H) for _ in range(3)), torch.zeros(H * P)
    return (xBC, dt, z, *states, torch.zeros(B, dtype=torch.int64), *weights, 1e-5, G), {}


def _paged(dtype: torch.dtype, queries: int) -> tuple[Tensor, ...]:
    q, pages = torch.zeros(queries, 32, 128, dtype=dtype), torch.zeros(128, 64, 2, 128, dtype=dtype)
    return q, pages, pages.clone(), torch.zeros(2, 64, dtype=torch.int32)


def _decode(dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    return (*_paged(dtype, 2), torch.zeros(2, dtype=torch.int32)), {}


def _queries(dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    return (*_paged(dtype, 512), [256, 256], [4096, 256]), {}


def _route(dtype: torch.dtype) -> tuple[tuple, dict[str, Any]]:
    return (torch.zeros(64, 2688, dtype=dtype), torch.zeros(128, 2688), torch.zeros(128), 6, 2.5), {}


def _experts(tokens: int, scaled: bool, dtype: torch.dtype) -> tuple[tuple, dict[str, Any]] | None:
    if scaled and dtype == torch.float32:
        return None
    E, F, D, K = 128, 1856, 2688, 6  # matrices that nobody fills take no memory
    stored = torch.float8_e4m3fn if scaled else dtype
    up, down = torch.empty(E, F, D, dtype=stored), torch.empty(E, D, F, dtype=stored)
    if scaled:
        up, down = (Scaled(matrices, torch.ones(E), torch.tensor(1.0)) for matrices in (up, down))
    ids = torch.zeros(tokens, K, dtype=torch.int64)
    return (torch.empty(tokens, D, dtype=dtype), up, down, ids, torch.zeros(tokens, K)), {}


CASES: dict[str, tuple[Callable[[torch.dtype], tuple[tuple, dict[str, Any]] | None], ...]] = {
    "rms_norm": (_norm,),
    "gated_rms_norm": (_gated_norm,),
    "causal_conv1d": (_conv,),
    "mamba_step": (_mamba_step,),
    "paged_attention": (_queries,),
    "paged_decode": (_decode,),
    "route": (_route,),
    "ssd_scan": (_scan,),
    "grouped_mlp": tuple(partial(_experts, n, scaled) for scaled in (False, True) for n in (1, 256, 1024, 8192)),
}
"""Op -> what makes arguments and options of the 30B model's sizes; None where it has nothing of a type."""


def unique(found: list[Launch]) -> list[Launch]:
    """One launch of each kernel and set of constants."""
    return list({(f.kernel.fn.__name__, *map(str, sorted(f.options.items()))): f for f in found}.values())


def main() -> None:
    """Print the table."""
    print("| op | kernel | warps | registers | stack | spills | shared | wgmma | mma.sync |")
    print("|---|---|---|---|---|---|---|---|---|")
    for op in MODULES:
        for launch in unique(launches(op)):
            m = compiled(launch)
            cells = (op, m.name, m.warps, m.registers, m.stack, m.spills, m.shared, m.wgmma, m.mma)
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()

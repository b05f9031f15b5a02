"""Peak figures of GPUs as their vendor publishes them, and those that a user gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nano3.config.errors import UserError
from nano3.config.typed import nearest

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Gpu:
    """What one device reaches at most; dense products, no sparsity."""

    name: str
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes of its memory a second."""
    flops_16: float
    """bf16 operations a second."""
    flops_8: float
    """FP8 and int8 operations a second."""
    source: str
    """Where the figures are from."""


GPUS = {
    "h100": Gpu("NVIDIA H100 SXM", 80 * GIGA, 3.35 * TERA, 989 * TERA, 1979 * TERA,
                "NVIDIA H100 Tensor Core GPU datasheet, SXM column; Tensor Core figures halved, as they are with "
                "sparsity there"),
    "h200": Gpu("NVIDIA H200 SXM", 141 * GIGA, 4.8 * TERA, 989 * TERA, 1979 * TERA,
                "NVIDIA H200 Tensor Core GPU datasheet, SXM column; Tensor Core figures halved, as they are with "
                "sparsity there"),
    "b200": Gpu("NVIDIA B200 (HGX, 1000 W)", 180 * GIGA, 8 * TERA, 2250 * TERA, 4500 * TERA,
                "NVIDIA DGX B200 datasheet, an eighth of its memory and bandwidth; NVIDIA Blackwell Architecture "
                "Technical Brief, dense Tensor Core figures"),
    "l40s": Gpu("NVIDIA L40S", 48 * GIGA, 864 * GIGA, 362 * TERA, 733 * TERA,
                "NVIDIA L40S GPU datasheet, Tensor Core figures without sparsity"),
}  # fmt: skip


def choose_gpu(
    name: str | None, bandwidth: float | None = None, tflops: Sequence[float] = (), memory: float | None = None
) -> Gpu:
    """A GPU of the table, perhaps with other figures, or one of the user's own.

    Args:
        name: key of GPUS; None: all three figures are given.
        bandwidth: GB/s.
        tflops: TFLOP/s in bf16, and in 8 bits where these differ.
        memory: GB.

    Raises:
        UserError: no such GPU, or figures that are missing or no positive numbers.
    """
    given = {"--bandwidth": bandwidth, "--tflops": tflops or None, "--memory": memory}
    for option, value in given.items():
        numbers = value if isinstance(value, Sequence) else [] if value is None else [value]
        if any(not 0 < number < float("inf") for number in numbers):
            raise UserError(f"{option}: {', '.join(f'{number:g}' for number in numbers)} is no positive number")
    if len(tflops) > 2:
        raise UserError("--tflops: give one number, or two as BF16,8BIT")
    if name is None:
        missing = [option for option, value in given.items() if value is None]
        if missing:
            raise UserError(f"{missing[0]} is missing: a GPU of your own needs {', '.join(given)}; or name a --gpu")
        gpu = Gpu("your own", 0, 0, 0, 0, "given on the command line")
    elif name.lower() in GPUS:
        gpu = GPUS[name.lower()]
    else:
        meant = nearest(name.lower(), GPUS)
        hint = f"; did you mean {meant!r}?" if meant else ""
        raise UserError(f"--gpu {name}: no such GPU{hint}; known: {', '.join(GPUS)}; or give {', '.join(given)}")
    return _changed(gpu, bandwidth, tflops, memory)


def _changed(gpu: Gpu, bandwidth: float | None, tflops: Sequence[float], memory: float | None) -> Gpu:
    changes: dict[str, float] = {}
    if bandwidth:
        changes["bandwidth"] = bandwidth * GIGA
    if tflops:
        changes |= {"flops_16": tflops[0] * TERA, "flops_8": tflops[-1] * TERA}
    if memory:
        changes["memory"] = memory * GIGA
    own = ", ".join(option for option, value in (("bandwidth", bandwidth), ("TFLOP/s", tflops), ("memory", memory))
                    if value)  # fmt: skip
    of_the_table = bool(gpu.memory)
    return replace(gpu, **changes, source=f"{gpu.source}; {own} given on the command line" if own and of_the_table
                   else gpu.source)  # fmt: skip

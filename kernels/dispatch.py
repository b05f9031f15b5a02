"""Which backend runs each op: one table, a choice by device and availability, and the reason for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from . import cpu, eager, reference, triton
from .common import ForNow, located
from .cpu.guard import opaque
from .vendor import causal_conv1d, flash_attn, mamba_ssm

ENVIRONMENT = "NANO3_BACKEND"
"""Name of the environment variable that forces one backend for all ops that have it."""


def _everywhere(_device: torch.device, _op: str) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of some or all ops."""

    functions: Mapping[str, Callable]
    """Op name -> function."""
    about: Callable[[str], str]
    """Op -> why one would choose it, in a few words."""
    unavailable: Callable[[torch.device, str], str | None] = _everywhere
    """Device and op -> why the backend cannot run it there, or None when it can; a ForNow is asked again each time."""
    reserved: Callable[[torch.device, str], str | None] = _everywhere
    """Device and op -> why it runs there only where it is forced, or None when it is chosen by itself."""
    made_for: str | None = None
    """Type of device it is made for: of others, no reason need be given. None: all."""


def _named_only(name: str) -> Callable[[torch.device, str], str | None]:
    return lambda _device, _op: f"used only with {ENVIRONMENT}={name}"


VENDORS = {"mamba-ssm": mamba_ssm, "causal-conv1d": causal_conv1d, "flash-attn": flash_attn}
BACKENDS: dict[str, Backend] = {
    "cpu": Backend(cpu.FUNCTIONS, cpu.about, cpu.unavailable, made_for="cpu"),
    "triton": Backend(triton.FUNCTIONS, triton.about, triton.unavailable, triton.reserved, made_for="cuda"),
    **{
        name: Backend(module.FUNCTIONS, module.about, module.unavailable, _named_only(name), made_for="cuda")
        for name, module in VENDORS.items()
    },
    "eager": Backend(eager.FUNCTIONS, eager.about),
    "reference": Backend(reference.FUNCTIONS, lambda _: "plain PyTorch, the spec; slow"),
}
"""Every backend, the preferred ones first."""


class Choice(NamedTuple):
    """What `explain` says about one op."""

    op: str
    backend: str
    reason: str


def ops() -> list[str]:
    """Names of all ops."""
    return list(reference.FUNCTIONS)


def backends(op: str, device: torch.device | str | None = None) -> list[str]:
    """Names of the backends that have `op`, the preferred ones first; with `device`, those that can run it there.

    Raises:
        ValueError: no such op.
    """
    if op not in reference.FUNCTIONS:
        raise ValueError(f"unknown op {op!r}; ops: {', '.join(ops())}")
    names = [name for name, backend in BACKENDS.items() if op in backend.functions]
    if device is None:
        return names
    return [name for name in names if BACKENDS[name].unavailable(located(torch.device(device)), op) is None]


@opaque
def choose(op: str, device: torch.device | str, backend: str | None = None) -> tuple[str, Callable]:
    """The backend that runs `op` on `device`, as (name, function).

    Args:
        backend: force this one; else NANO3_BACKEND where that backend has the op; else the best available.

    Raises:
        ValueError: unknown op or backend, the backend lacks the op, or it cannot run on the device.
    """
    device = torch.device(device) if isinstance(device, str) else device
    try:
        return _chosen(op, located(device), backend, os.environ.get(ENVIRONMENT))
    except _UndecidedError as undecided:
        return undecided.name, BACKENDS[undecided.name].functions[op]


class _UndecidedError(Exception):
    """A choice for this call alone; what raises is not kept."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@cache
def _chosen(op: str, device: torch.device, backend: str | None, _variable: str | None) -> tuple[str, Callable]:
    choice = _decide(op, device, backend, explained=False)
    if isinstance(choice.reason, ForNow):
        raise _UndecidedError(choice.backend)
    return choice.backend, BACKENDS[choice.backend].functions[op]


NONE = "none"
"""Backend of an op in `explain` where NANO3_BACKEND forces one that cannot run it: calling it is an error."""


def explain(device: torch.device | str) -> list[Choice]:
    """For every op: the backend that would run it on `device`, and why.

    Raises:
        ValueError: NANO3_BACKEND names no backend.
    """
    return [_decide(op, located(torch.device(device)), None) for op in ops()]


def _decide(op: str, device: torch.device, backend: str | None, *, explained: bool = True) -> Choice:
    """The choice. Where `explained`, its reason names also what speaks against backends that are used only where they
    are forced; finding that imports other packages."""
    names = backends(op)
    if backend is not None:
        return _forced(op, device, backend, names, "backend=")
    variable = os.environ.get(ENVIRONMENT)
    if variable:
        if variable not in BACKENDS:
            raise ValueError(f"{ENVIRONMENT} names an unknown backend {variable!r}; backends: {', '.join(BACKENDS)}")
        if variable in names:
            problem = BACKENDS[variable].unavailable(device, op) if explained else None
            if problem is not None:
                return Choice(op, NONE, f"{ENVIRONMENT} is {variable}, which cannot run it: {problem}")
            return _forced(op, device, variable, names, ENVIRONMENT)
    problems: list[str] = []
    passing = False
    for name in names:
        candidate = BACKENDS[name]
        if not explained and candidate.reserved(device, op):
            continue
        problem = candidate.unavailable(device, op) or candidate.reserved(device, op)
        if problem is None:
            reason = "; ".join([candidate.about(op), *problems])
            return Choice(op, name, ForNow(reason) if passing else reason)
        passing = passing or isinstance(problem, ForNow)
        if candidate.made_for in (None, device.type):
            problems.append(f"not {name}: {problem}")
    raise ValueError(f"no backend runs {op} on device {device}; backends: {', '.join(names)}")


def _forced(op: str, device: torch.device, name: str, names: list[str], origin: str) -> Choice:
    if name not in names:
        raise ValueError(f"unknown backend {name!r} for {op}; backends: {', '.join(names)}")
    problem = BACKENDS[name].unavailable(device, op)
    if problem is not None:
        raise ValueError(f"backend {name!r} cannot run {op} on device {device}: {problem}")
    return Choice(op, name, f"forced by {origin}")

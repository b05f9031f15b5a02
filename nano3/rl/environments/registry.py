"""Environments by name: ours, those of installed packages, and any `module:object`."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nano3
from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.rl.environments.base import Environment
from nano3.rl.environments.trl import GIVEN, RewardFunctionEnvironment, ToolClassEnvironment

GROUP = "nano3.environments"
"""Entry-point group in which a package names its environments."""
OWN = {
    "math": "nano3.rl.environments.math:Math",
    "mcq": "nano3.rl.environments.mcq:MultipleChoice",
    "json_schema": "nano3.rl.environments.json_schema:JsonSchema",
    "instruction_following": "nano3.rl.environments.instructions.environment:InstructionFollowing",
    "code": "nano3.rl.environments.code:Code",
    "terminal": "nano3.rl.environments.terminal:Terminal",
    "formal_proof": "nano3.rl.environments.formal_proof:FormalProof",
    "long_context_qa": "nano3.rl.environments.long_context_qa:LongContextQA",
    "workplace_assistant": "nano3.rl.environments.workplace.environment:WorkplaceAssistant",
    "banking": "nano3.rl.environments.banking:Banking",
    "reasoning_gym": "nano3.rl.environments.reasoning_gym:ReasoningGym",
}
GENERATED = "nano3.rl.environments.generated:GeneratedTasks"


@dataclass(frozen=True)
class Source:
    """Where an environment's code comes from; saved with rollouts, since environments change."""

    spec: str
    """By which it was asked for."""
    package: str
    version: str
    """Of the package; empty where it is none."""
    sha256: str
    """Of the file that defines it; empty where there is no file."""


def load_environment(spec: str, **options: Any) -> tuple[Environment, Source]:
    """Make an environment.

    Args:
        spec: one of ours by name, `generate:NAME` for made tasks (see nano3.data.tasks.catalogue), one that an
            installed package names in the group `nano3.environments`, or `module:object`. The object is called with
            the options; a reward function or an environment class of TRL's form is made an environment of `rows` (see
            nano3.rl.environments.trl).
        options: as it takes them.

    Raises:
        UserError: nothing of that name, it cannot be imported, it does not take these options, or what it makes is no
            environment.
    """
    target, package = _find(spec)
    found = _imported(target, spec)
    factory = functools.partial(found, spec) if spec.startswith(PREFIX) else _adapted(found)
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise UserError(f"environment {spec}: {error}; it takes {_parameters(factory)}") from error
    made = factory(**options)
    if not isinstance(made, Environment):
        raise UserError(f"environment {spec}: {target} makes no environment: it needs name, tasks() and verify()")
    return made, _source(spec, package or target.partition(".")[0].partition(":")[0], found)


def names() -> list[str]:
    """All that can be asked for by name."""
    return sorted({*OWN, *(point.name for point in importlib.metadata.entry_points(group=GROUP))})


def _find(spec: str) -> tuple[str, str]:
    """`module:object` of what is asked for, and the package that names it."""
    if spec in OWN:
        return OWN[spec], "nano3"
    if spec.startswith(PREFIX):
        return GENERATED, "nano3"
    if ":" in spec:
        return spec, ""
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == spec:
            return point.value, point.dist.name if point.dist else ""
    near = difflib.get_close_matches(spec, names(), 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"no environment {spec}: {hint}there are {', '.join(names())}, or give {PREFIX}NAME or module:object"
    )


def _imported(target: str, spec: str) -> Callable[..., Any]:
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"environment {spec}: {target} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"environment {spec}: {target} cannot be called; give a class or a function that makes one")
    return found


def _adapted(found: Callable[..., Any]) -> Callable[..., Any]:
    """What makes an environment of an object that is of TRL's form."""
    if inspect.isclass(found) and hasattr(found, "reset") and not hasattr(found, "verify"):
        return functools.partial(ToolClassEnvironment, found)
    if not inspect.isclass(found) and {*GIVEN} & inspect.signature(found).parameters.keys():
        return functools.partial(RewardFunctionEnvironment, found)
    return found


def _parameters(factory: Callable[..., Any]) -> str:
    return ", ".join(inspect.signature(factory).parameters) or "no options"


def _source(spec: str, package: str, factory: Callable[..., Any]) -> Source:
    try:
        version = nano3.__version__ if package == "nano3" else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    file = getattr(sys.modules.get(factory.__module__), "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""
    return Source(spec, package, version, digest)

"""Environments by name: ours, those of installed packages, and any `module:object`."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nano3
from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.rl.environments.base import Environment
from nano3.rl.environments.trl import GIVEN, RewardFunctionEnvironment, ToolClassEnvironment

GROUP = "nano3.environments"
"""Entry-point group in which a package names its environments."""
CODE = ("rl/environments", "rl/feedback", "sandbox", "data/preferences", "data/tasks")
"""Folders of this package with the code of our environments."""
LIBRARIES = ("math-verify", "reasoning-gym", "langdetect", "jsonschema")
"""Packages of others, the extra `rl`, that our environments measure with."""
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
    "genrm": "nano3.rl.feedback.environment:Preferences",
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
    """Of the Python files of the package that defines it, or of its file where that is in no package: of ours, those in
    CODE. Empty where there is no file."""
    requires: Mapping[str, str] = field(default_factory=dict)
    """Version by name of the installed packages that the package requires: of ours, LIBRARIES."""


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
    factory = _factory(spec, found)
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise UserError(f"environment {spec}: {error}; it takes {_parameters(factory)}") from error
    made = factory(**options)
    if not isinstance(made, Environment):
        raise UserError(f"environment {spec}: {target} makes no environment: it needs name, tasks() and verify()")
    return made, _source(spec, package or target.partition(".")[0].partition(":")[0], found)


def options_of(spec: str) -> frozenset[str]:
    """Names of the options that an environment takes.

    Raises:
        UserError: nothing of that name, or it cannot be imported.
    """
    return frozenset(inspect.signature(_factory(spec, _imported(_find(spec)[0], spec))).parameters)


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
    except Exception as error:  # anybody's module, which may fail in any way
        reason = str(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise UserError(f"environment {spec}: {target} cannot be imported: {reason}") from error
    if not callable(found):
        raise UserError(f"environment {spec}: {target} cannot be called; give a class or a function that makes one")
    return found


def _factory(spec: str, found: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(found, spec) if spec.startswith(PREFIX) else _adapted(found)


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
    version = nano3.__version__ if package == "nano3" else _version(package) or ""
    return Source(spec, package, version, _digest(_code(factory.__module__)), _required(package))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):  # no name of a package
        return None


def _required(package: str) -> dict[str, str]:
    names: Sequence[str] = LIBRARIES
    if package != "nano3":
        try:
            lines = importlib.metadata.requires(package) or []
        except (importlib.metadata.PackageNotFoundError, ValueError):
            return {}
        names = [match[0] for line in lines if (match := re.match(r"[\w.-]+", line))]
    found = {name: _version(name) for name in names}
    return {name: version for name, version in sorted(found.items()) if version}


def _code(module: str) -> list[tuple[str, Path]]:
    """Name and place of the Python files of a module's outermost package that is no namespace, or of itself."""
    names = module.split(".")
    for end in range(1, len(names) + 1):
        found = sys.modules.get(".".join(names[:end]))
        file = getattr(found, "__file__", None)
        if file and Path(file).is_file():
            folder = Path(file).parent
            if not hasattr(found, "__path__"):
                return [(Path(file).name, Path(file))]
            parts = CODE if names[0] == "nano3" else (".",)
            paths = [path for part in parts for path in (folder / part).rglob("*.py")]
            return sorted((path.relative_to(folder).as_posix(), path) for path in paths)
    return []


def _digest(files: Sequence[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest() if files else ""

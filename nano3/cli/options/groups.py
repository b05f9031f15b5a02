"""Options that several verbs have, written once: a dataclass whose fields are options, taken as one parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """A verb for typer from a function with such dataclasses among its parameters: their fields stand in their place.

    Every field needs a default, which is the option's. The options come in the order of parameters and fields.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if isinstance(hint, type) and is_dataclass(hint):
            groups[name] = hint
            options += _options(hint)
        else:
            options.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def call(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        function(**given, **made)

    del call.__wrapped__  # typer reads the signature below, not the function's own
    vars(call)["__signature__"] = inspect.Signature(options)
    call.__annotations__ = {option.name: option.annotation for option in options}
    return call


def _options(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        assert field.default is not MISSING, f"{kind.__name__}.{field.name} has no default"
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(kind)
    ]

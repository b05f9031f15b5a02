"""`--model` and `--from`: each verb's help names a model's folder by one of them, and every verb takes both."""

from __future__ import annotations

import copy
from typing import Any

from nano3.config.errors import UserError

NAMES = ("--model", "--from")
OLDER = "--base"
"""What `nano3 merge` calls it."""


def accept_both_names(command: Any) -> None:
    """Let a verb that has one of the names, and its inner verbs, take the other too, which the help leaves out.

    A verb that has both means two things by them: texts to read and a server's model.
    """
    taken = {name for parameter in command.params for name in parameter.opts}
    for parameter in [each for each in command.params if {*NAMES, OLDER} & set(each.opts)]:
        others = [name for name in NAMES if name not in taken]
        if others and _is_path(parameter):
            command.params.append(_other_name(parameter, others))
    for inner in getattr(command, "commands", {}).values():
        accept_both_names(inner)


def _is_path(parameter: Any) -> bool:
    """Whether it is a model of this machine, not the name that a server has for one."""
    return parameter.metavar != "NAME"


def _other_name(parameter: Any, names: list[str]) -> Any:
    """A hidden option of these names, whose value becomes that of `parameter` before that is looked at."""
    other = copy.copy(parameter)
    other.name, other.opts, other.stands_for = f"{parameter.name}_too", names, parameter.name
    other.hidden, other.expose_value, other.is_eager = True, False, True

    def hand_on(_: Any, given: dict[str, Any], rest: list[str]) -> tuple[Any, list[str]]:
        if other.name in given:
            if parameter.name in given:
                shown = parameter.opts[0]
                raise UserError(f"{shown} and {' or '.join(names)} name the same model: give {shown} alone")
            given[parameter.name] = given.pop(other.name)
        return None, rest

    other.handle_parse_result = hand_on
    return other

"""`--model` and `--from`: each verb's help names a model's folder by one of them, and every verb takes both."""

from __future__ import annotations

import copy
from typing import Any

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
            twin = copy.copy(parameter)
            # It writes to the same place, so that nothing else needs to know of it.
            twin.opts, twin.hidden, twin.expose_value = others, True, False
            command.params.append(twin)
    for inner in getattr(command, "commands", {}).values():
        accept_both_names(inner)


def _is_path(parameter: Any) -> bool:
    """Whether it is a model of this machine, not the name that a server has for one."""
    return parameter.metavar != "NAME"

"""Judges by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.rl.feedback.comparison import PairJudge
from nano3.rl.feedback.function import FunctionJudge
from nano3.rl.feedback.rules import RuleJudge

GROUP = "nano3.judges"
"""Entry-point group in which a package names its judges."""
RULES = "rules"


def find_judge(spec: str, **options: Any) -> PairJudge:
    """Make a judge.

    Args:
        spec: `rules` (nano3's own tasks), a URL (`http://...`), a run folder or Hugging Face folder, a name that an
            installed package gives in the group `nano3.judges`, or `module:object`. The object is a judge or a class of
            one, which is called with the options, or a function of (messages, response_1, response_2).
        options: of a URL those of ServerJudge, of a folder those of LocalSettings.

    Raises:
        UserError: nothing of that name, it cannot be imported, or it does not take these options.
    """
    try:
        return _found(spec, options)
    except TypeError as error:
        raise UserError(f"judge {spec}: {error}") from error


def _found(spec: str, options: dict[str, Any]) -> PairJudge:
    if spec == RULES:
        return RuleJudge(**options)
    if spec.startswith(("http://", "https://")):
        from nano3.rl.feedback.server import ServerJudge

        return ServerJudge(spec, **options)
    points = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    if spec in points:
        return _made(points[spec], spec, options)
    if Path(spec).expanduser().is_dir():
        from nano3.rl.feedback.local import LocalSettings, open_local_judge

        return open_local_judge(Path(spec).expanduser(), LocalSettings(**options))[0]
    if ":" in spec:
        return _made(spec, spec, options)
    near = difflib.get_close_matches(spec, [RULES, *points], 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"no judge {spec}: {hint}give {', '.join([RULES, *sorted(points)])}, a URL, a folder or module:object"
    )


def _made(target: str, spec: str, options: dict[str, Any]) -> PairJudge:
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"judge {spec}: {target} cannot be imported: {error}") from error
    if inspect.isclass(found):
        inspect.signature(found).bind(**options)
        found = found(**options)
    elif options:
        raise UserError(f"judge {spec}: it takes no options, {', '.join(options)} is given")
    if hasattr(found, "compare"):
        if not isinstance(found, PairJudge):
            raise UserError(f"judge {spec}: {target} does not count its comparisons: it needs an attribute calls")
        return found
    if not callable(found):
        raise UserError(f"judge {spec}: {target} is no judge: it needs compare(), or must be a function")
    return FunctionJudge(found, spec)

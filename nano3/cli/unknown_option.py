"""What is said of an option that a verb does not have."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

SHOWN, ALIKE = 3, 0.7
SHORTEST = 2
"""Letters of a word that says which option is meant."""


def unknown_option(error: Any) -> str:
    """The message with the options of the verb that are most like the one typed; empty for any other error."""
    context = getattr(error, "ctx", None)
    if not hasattr(error, "possibilities") or context is None:
        return ""
    typed, known = error.option_name, _options(context)
    word = typed.lstrip("-")
    close = [name for name in known if name.lstrip("-").startswith(word) or word in name.lstrip("-").split("-")]
    close = close if len(word) >= SHORTEST else []
    close += get_close_matches(typed, known, n=SHOWN, cutoff=ALIKE)
    found = list(dict.fromkeys(known[name] for name in close))[:SHOWN]
    hint = f"; did you mean {' or '.join(found)}?" if found else ""
    if not hint and "--set" in known:
        hint = "; settings go with --set KEY=VALUE"
    return f"no such option: {typed}{hint}"


def _options(context: Any) -> dict[str, str]:
    """The options of a verb, each with the one that its help shows for it."""
    options = [each for each in context.command.get_params(context) if each.param_type_name == "option"]
    shown = {each.name: each.opts[0] for each in options if not each.hidden}
    found = {}
    for each in options:
        if stands_for := shown.get(getattr(each, "stands_for", each.name)):
            found |= {name: stands_for if each.hidden else name for name in (*each.opts, *each.secondary_opts)}
    return found

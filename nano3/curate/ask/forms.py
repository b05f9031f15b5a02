"""Forms of answers, for servers that hold a model to them: `response_format` of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano3.client.asynchronous import FORM

TIGHT = ("maxLength", "pattern")
"""What keeps a text short; OpenAI and Azure refuse schemas with some of these."""
LONGEST_REASON = 400
"""Characters of a reason. A small model that is held to the form of a text would go on to the end of its tokens."""


def json_form(name: str, properties: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Keys of a request whose answer is to be a JSON object of these properties, all of them, in this order.

    Args:
        name: letters, digits, `-` and `_`.
        properties: name -> JSON schema.
    """
    schema = {
        "type": "object",
        "properties": {key: dict(value) for key, value in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    return {FORM: {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}}


def one_of(values: Sequence[str | int]) -> dict[str, Any]:
    """Schema of one of some texts or of some whole numbers."""
    return {"type": "string" if isinstance(values[0], str) else "integer", "enum": list(values)}


def sentence() -> dict[str, Any]:
    """Schema of a sentence."""
    return {"type": "string", "maxLength": LONGEST_REASON}


def looser(sampling: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keys of a request, the same without what keeps texts short, and the same without a form: what to send to a server
    that refuses the one before. One of these where no form is wanted, two where no text is kept short."""
    if FORM not in sampling:
        return [dict(sampling)]
    loose = _without(sampling[FORM], TIGHT)
    free = {key: value for key, value in sampling.items() if key != FORM}
    middle = [] if loose == sampling[FORM] else [{**free, FORM: loose}]
    return [dict(sampling), *middle, free]


def _without(value: Any, keys: Sequence[str]) -> Any:
    """A JSON value without some keys of its objects."""
    if isinstance(value, Mapping):
        return {key: _without(one, keys) for key, one in value.items() if key not in keys}
    return [_without(one, keys) for one in value] if isinstance(value, list) else value

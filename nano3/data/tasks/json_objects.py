"""A JSON object for a schema: any valid one is right."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from nano3.data.tasks.lexicon import WORDS
from nano3.data.tasks.task import Draft, Generator, answer, final_text, user

PROMPTS = ("Give a JSON object for this schema: {schema}", "Write JSON that fits this schema: {schema}")
COLORS = ("red", "blue", "green", "black", "white", "pink", "gray", "brown", "gold")


def _make(rng: random.Random, level: int) -> Draft:
    properties, example, notes = {}, {}, []
    for key in rng.sample(WORDS, level):
        properties[key], example[key], note = rng.choice(_KINDS)(rng)
        notes.append(f"{key}: {note}")
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    prompt = rng.choice(PROMPTS).format(schema=json.dumps(schema))
    content = "json " + json.dumps(schema, sort_keys=True)
    return Draft(content, [user(prompt)], schema, [answer("\n".join(notes), json.dumps(example))])


def _integer(rng: random.Random) -> tuple[dict[str, Any], Any, str]:
    low = rng.randrange(80)
    high = low + rng.randrange(3, 19)
    value = rng.randint(low, high)
    return {"type": "integer", "minimum": low, "maximum": high}, value, f"{low} to {high}, {value}"


def _choice(rng: random.Random) -> tuple[dict[str, Any], Any, str]:
    colors = rng.sample(COLORS, 3)
    value = rng.choice(colors)
    return {"enum": colors}, value, f"one of {' '.join(colors)}, {value}"


def _boolean(rng: random.Random) -> tuple[dict[str, Any], Any, str]:
    value = rng.random() < 0.5
    return {"type": "boolean"}, value, f"true or false, {json.dumps(value)}"


def _array(rng: random.Random) -> tuple[dict[str, Any], Any, str]:
    count = rng.randint(1, 3)
    value = [rng.randrange(10) for _ in range(count)]
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": count, "maxItems": count}
    return schema, value, f"a list of {count}, {json.dumps(value)}"


_KINDS = (_integer, _choice, _boolean, _array)


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value fits one of the schemas made here, exactly as JSON Schema says it (not a whole validator)."""
    if "enum" in schema:
        return isinstance(value, str) and value in schema["enum"]
    kind = schema["type"]
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        return _is_integer(value) and schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if kind == "array":
        sized = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return sized and all(fits(item, schema["items"]) for item in value)
    known = isinstance(value, dict) and value.keys() == schema["properties"].keys()
    return known and all(fits(value[key], each) for key, each in schema["properties"].items())


def _is_integer(value: Any) -> bool:
    # JSON Schema: 1.0 is an integer too, true is none.
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def _check(truth: Any, replies: Sequence[Mapping[str, Any]]) -> float:
    text = final_text(replies)
    try:
        return float(text is not None and fits(json.loads(text, parse_constant=_refuse), truth))
    except (ValueError, RecursionError):
        return 0.0


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


JSON = Generator("json", "write a JSON object for a schema", "keys of the object", (1, 2), 12, _make, _check)

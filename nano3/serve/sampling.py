"""From a request's fields to the engine's `Sampling`."""

from __future__ import annotations

import json
from typing import Any

from nano3.data.chat.parsing.json_schema import check_schema
from nano3.engine.grammar.masks import COMPACT, spaced
from nano3.engine.request import Grammar, Sampling, ThinkingBudget
from nano3.serve.schemas import GenerationRequest
from nano3.serve.transport.errors import ApiError

_FORMS_OF_OTHERS = {
    "text": ("schema", "json_schema", "regex", "pattern", "grammar"),
    "json_object": ("json_schema", "regex", "pattern", "grammar"),
    "json_schema": ("regex", "pattern", "grammar"),
}
"""What would set the form of an output under another type of `response_format`."""


def sampling_of(
    body: GenerationRequest,
    *,
    max_tokens: int | None,
    end_ids: tuple[int, ...] = (),
    log_probs: int | None = None,
    prompt_log_probs: int | None = None,
    grammar: Grammar | None = None,
    thinking: ThinkingBudget | None = None,
) -> Sampling:
    """How to generate what `body` asks for.

    Args:
        body: the request.
        max_tokens: most new tokens.
        end_ids: tokens that end a turn beside the client's own stop tokens.
        log_probs: alternatives to report for each new token.
        prompt_log_probs: the same for the prompt.
        grammar: form of the output.
        thinking: hard end of the thinking part.

    Raises:
        ApiError: fields that contradict each other (400).
    """
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    values: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": {int(key): value for key, value in (body.logit_bias or {}).items()},
        "seed": body.seed,
        "max_tokens": max_tokens,
        "min_tokens": body.min_tokens,
        "stop": stop,
        "stop_ids": (*(body.stop_token_ids or ()), *(() if body.ignore_eos else end_ids)),
        "include_stop": body.include_stop_str_in_output,
        "ignore_eos": body.ignore_eos,
        "log_probs": log_probs,
        "prompt_log_probs": prompt_log_probs,
        "grammar": grammar,
        "thinking": thinking,
    }
    try:
        return Sampling(**{name: value for name, value in values.items() if value is not None})
    except ValueError as error:
        # These messages begin with the name of the setting.
        name = str(error).split()[0]
        raise ApiError(
            400, str(error), param=name if name in type(body).model_fields else None, code="invalid_value"
        ) from error


def grammar_of(body: GenerationRequest, after_thinking: bool) -> Grammar | None:
    """The form that a request sets for its output, by whichever of the fields for it.

    Raises:
        ApiError: more than one form, or one that is not understood (400).
    """
    found = [grammar for grammar in (*_response_format(body.response_format), *_structured(body)) if grammar]
    if len(found) > 1:
        raise ApiError(400, "the output can have one form only: give one of response_format, json_schema, "
                            "guided_*, structured_outputs", code="invalid_value")  # fmt: skip
    if not found:
        return None
    kind, value = found[0]
    return Grammar(kind, value, after_thinking)  # type: ignore[arg-type]


def _response_format(value: dict[str, Any] | None) -> list[tuple[str, str]]:
    value = value or {}
    kind = value.get("type", "text")
    misplaced = [name for name in _FORMS_OF_OTHERS.get(str(kind), ()) if value.get(name) is not None]
    if misplaced:
        raise _bad(f"response_format.{misplaced[0]}", f"does not belong to the type {kind}")
    if kind == "text":
        return []
    if kind == "json_object":
        schema = value.get("schema")
        if schema is None:
            return [("json_object", "")]
        # llama.cpp's form of json_schema.
        return [("json_schema", _schema_text("response_format.schema", schema))]
    if kind == "json_schema":
        holder = value.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if not isinstance(schema, dict):
            raise _bad("response_format.json_schema.schema", "must be a JSON schema object")
        return [("json_schema", _schema_text("response_format.json_schema.schema", schema))]
    raise _bad("response_format.type", f"{kind!r} is not known; use text, json_object or json_schema")


def _structured(body: GenerationRequest) -> list[tuple[str, str]]:
    """vLLM's fields, old and new."""
    found = [
        _form("json_schema", "json_schema", _without_holder(body.json_schema)),
        _form("guided_json", "json_schema", body.guided_json),
        _form("guided_regex", "regex", body.guided_regex),
        _form("guided_choice", "choice", body.guided_choice),
        _form("guided_grammar", "lark", body.guided_grammar),
    ]
    if (form := body.structured_outputs) is not None:
        found += [
            _form("structured_outputs.json", "json_schema", form.json_),
            _form("structured_outputs.regex", "regex", form.regex),
            _form("structured_outputs.choice", "choice", form.choice),
            _form("structured_outputs.grammar", "lark", form.grammar),
            ("json_object", "") if form.json_object else None,
        ]
        if form.disable_any_whitespace:
            found = [_compact(*grammar) if grammar else None for grammar in found]
    return [grammar for grammar in found if grammar is not None]


def _without_holder(schema: Any) -> Any:
    """llama.cpp's top-level `json_schema` is the schema itself; OpenAI's object around it is read as well."""
    return schema["schema"] if isinstance(schema, dict) and isinstance(schema.get("schema"), dict) else schema


def _compact(kind: str, value: str) -> tuple[str, str]:
    """The same form without white space, where it is JSON."""
    if kind not in ("json_schema", "json_object"):
        return kind, value
    schema = json.loads(value) if value else {"type": "object"}
    return "json_schema", json.dumps(spaced(schema, COMPACT), ensure_ascii=False)


def _form(field: str, kind: str, value: Any) -> tuple[str, str] | None:
    if value is None:
        return None
    if kind == "json_schema" and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _bad(field, f"is not JSON: {error}") from error
    if kind == "json_schema":
        return kind, _schema_text(field, value)
    return kind, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _schema_text(field: str, schema: Any) -> str:
    if not isinstance(schema, dict | bool):
        raise _bad(field, "must be a JSON schema object")
    try:
        check_schema(schema, field)
    except ValueError as error:
        raise ApiError(400, str(error), param=field, code="invalid_value") from error
    return json.dumps(schema, ensure_ascii=False)


def _bad(field: str, message: str) -> ApiError:
    return ApiError(400, f"{field}: {message}", param=field, code="invalid_value")

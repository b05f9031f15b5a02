"""What a request says of thinking, in whichever of the fields that clients use for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nano3.serve.transport.errors import ApiError

BUDGETS = ("reasoning_budget", "thinking_budget", "thinking_token_budget")
"""nano3's name, Qwen's and vLLM's; one meaning."""
_OFF, _ON, _UNSAID = ("disabled",), ("enabled",), ("auto", "adaptive")


class Thinking(NamedTuple):
    """Whether to think, and for how many tokens; None where a request says nothing."""

    enabled: bool | None
    budget: int | None


def thinking_of(body: Any) -> Thinking:
    """Of a chat request or one of /tokenize. `enable_thinking` wins over the fields of other APIs.

    Raises:
        ApiError: fields that contradict each other or are out of form (400).
    """
    fields = dict(_objects(body))
    said = [enabled for enabled, _ in fields.values() if enabled is not None]
    if len(set(said)) > 1:
        raise _bad("thinking", "says other than reasoning does")
    enabled = body.enable_thinking
    if enabled is None and said:
        enabled = said[0]
    if enabled is None and getattr(body, "reasoning_effort", None) == "none":
        enabled = False
    return Thinking(enabled, _budget(body, fields))


def _budget(body: Any, fields: Mapping[str, tuple[bool | None, int | None]]) -> int | None:
    given = {name: getattr(body, name, None) for name in BUDGETS} | {name: budget for name, (_, budget) in
                                                                     fields.items()}  # fmt: skip
    given = {name: budget for name, budget in given.items() if budget is not None}
    if len(set(given.values())) > 1:
        first, second = list(given)[:2]
        raise _bad(second, f"gives another number of tokens than {first}")
    return next(iter(given.values()), None)


def _objects(body: Any) -> Iterator[tuple[str, tuple[bool | None, int | None]]]:
    """Anthropic's `thinking` and OpenRouter's `reasoning`: enabled, and the budget."""
    thinking = getattr(body, "thinking", None)
    if isinstance(thinking, bool):
        yield "thinking", (thinking, None)
    elif thinking is not None:
        kind = thinking.get("type") if isinstance(thinking, Mapping) else None
        if kind not in (*_OFF, *_ON, *_UNSAID):
            raise _bad("thinking.type", "must be enabled, disabled or auto")
        enabled = None if kind in _UNSAID else kind in _ON
        yield "thinking", (enabled, _count(thinking, "budget_tokens", "thinking"))
    reasoning = getattr(body, "reasoning", None)
    if reasoning is not None:
        if not isinstance(reasoning, Mapping) or not isinstance(reasoning.get("enabled"), bool | None):
            raise _bad("reasoning", "must be an object, as in {'effort': 'none'} or {'enabled': false}")
        off = reasoning.get("effort") == "none"
        yield "reasoning", (False if off else reasoning.get("enabled"), _count(reasoning, "max_tokens", "reasoning"))


def _count(holder: Mapping[str, Any], key: str, field: str) -> int | None:
    count = holder.get(key)
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise _bad(f"{field}.{key}", "must be a whole number, at least 0")
    return count


def _bad(field: str, message: str) -> ApiError:
    return ApiError(400, f"{field}: {message}", param=field, code="invalid_value")

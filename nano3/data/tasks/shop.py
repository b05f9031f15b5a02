"""A tool on a toy database: the prices of a shop, read and changed by calls; what counts is the state at the end."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nano3.data.tasks.lexicon import WORDS
from nano3.data.tasks.task import (
    Draft,
    Generator,
    Message,
    answer,
    call,
    calls_of,
    final_text,
    tool_result,
    user,
)

ITEMS = 4
"""Items of a shop."""
OFFERED = 2
"""Tools that a task describes, or as many as it needs: which they are differs, so that a model has to read them."""
MOST_CALLS = 16
"""Calls of one answer that are carried out; more get an error."""


def _tool(name: str, does: str, **parameters: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in parameters.items()},
        "required": list(parameters),
    }
    return {"type": "function", "function": {"name": name, "description": does, "parameters": schema}}


TOOLS = (
    _tool("get_price", "Price of an item.", item="string"),
    _tool("set_price", "Change the price of an item.", item="string", price="integer"),
    _tool("remove", "Remove an item.", item="string"),
)


class Shop:
    """Prices by item, and the tools on them."""

    def __init__(self, prices: Mapping[str, int]) -> None:
        self.prices = dict(prices)
        self.calls = 0

    def run(self, call: Mapping[str, Any]) -> str:
        """Carry out a tool call; its result or an error, as the model reads it."""
        self.calls += 1
        function = call.get("function")
        function = function if isinstance(function, Mapping) else {}
        arguments = _arguments(function.get("arguments"))
        if self.calls > MOST_CALLS:
            return "error: too many calls"
        if arguments is None:
            return "error: arguments are no JSON object"
        item = arguments.get("item")
        name = function.get("name")
        if name not in _ACTIONS:
            return f"error: there is no tool {name}"
        if not isinstance(item, str) or item not in self.prices:
            return f"error: there is no item {item}"
        return _ACTIONS[name](self, item, arguments)

    def _get(self, item: str, arguments: Mapping[str, Any]) -> str:
        return str(self.prices[item])

    def _set(self, item: str, arguments: Mapping[str, Any]) -> str:
        price = arguments.get("price")
        if isinstance(price, str) and price.strip().isdecimal():
            price = int(price)
        if not isinstance(price, int) or isinstance(price, bool):
            return "error: price must be an integer"
        self.prices[item] = price
        return "ok"

    def _remove(self, item: str, arguments: Mapping[str, Any]) -> str:
        del self.prices[item]
        return "ok"


_ACTIONS = {"get_price": Shop._get, "set_price": Shop._set, "remove": Shop._remove}


def _arguments(given: Any) -> Mapping[str, Any] | None:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
    return given if isinstance(given, Mapping) else None


def _make(rng: random.Random, level: int) -> Draft:
    items = rng.sample(WORDS, ITEMS)
    shop = Shop({item: rng.randrange(10, 100) for item in items})
    before = dict(shop.prices)
    # Each item is asked about once, so that the order of the requests does not matter.
    kinds = _kinds(rng, level)
    requests = [kind(item, before[item], rng.randrange(1, 10)) for kind, item in zip(kinds, items, strict=False)]
    replies: list[Message] = []
    for reasoning, name, arguments in (made for request in requests for made in request.calls):
        message = call(reasoning, shop.calls + 1, name, **arguments)
        (made,) = message["tool_calls"]
        replies += [message, tool_result(made, shop.run(made))]
    replies.append(answer("All is done.", " ".join(request.reply for request in requests)))
    truth = {
        "before": before,
        "after": shop.prices,
        "said": [request.said for request in requests if request.said is not None],
    }
    prompt = " ".join(request.text for request in requests)
    content = "shop " + " ".join(sorted(request.text for request in requests))
    tools = _offered(rng, {name for request in requests for _, name, _ in request.calls})
    return Draft(content, [user(prompt)], truth, replies, tools)


def _offered(rng: random.Random, needed: set[str]) -> list[dict[str, Any]]:
    """The tools that are needed and some others, in the order of TOOLS."""
    others = [name for name in _ACTIONS if name not in needed]
    names = needed.union(rng.sample(others, max(0, OFFERED - len(needed))))
    return [tool for tool in TOOLS if tool["function"]["name"] in names]


@dataclass(frozen=True)
class _Request:
    """One thing that the user asks for."""

    text: str
    calls: Sequence[tuple[str, str, dict[str, Any]]]
    """Reasoning, tool and arguments of each call that it takes."""
    reply: str
    said: int | None = None
    """The number that the answer has to name."""


def _ask(item: str, price: int, amount: int) -> _Request:
    get = (f"Get the price of {item}.", "get_price", {"item": item})
    return _Request(f"What does {item} cost?", [get], f"{item} costs {price}.", price)


def _set(item: str, price: int, amount: int) -> _Request:
    tens = amount if amount != price // 10 else amount % 9 + 1  # another price: something has to be done
    new = tens * 10 + price % 10
    change = (f"Set {item} to {new}.", "set_price", {"item": item, "price": new})
    return _Request(f"Set the price of {item} to {new}.", [change], f"{item} is set.")


def _remove(item: str, price: int, amount: int) -> _Request:
    return _Request(f"Remove {item}.", [(f"Remove {item}.", "remove", {"item": item})], f"{item} is gone.")


def _raise(item: str, price: int, amount: int) -> _Request:
    new = price + amount
    get = (f"Get the price of {item}.", "get_price", {"item": item})
    change = (f"{price}+{amount}={new}", "set_price", {"item": item, "price": new})
    return _Request(f"Raise the price of {item} by {amount}.", [get, change], f"{item} is set.")


_CALLS = {_ask: 1, _set: 1, _remove: 1, _raise: 2}


def _kinds(rng: random.Random, calls: int) -> list[Callable[[str, int, int], _Request]]:
    """Kinds of requests that take so many calls together."""
    kinds = []
    while calls:
        kinds.append(rng.choice([kind for kind, needed in _CALLS.items() if needed <= calls]))
        calls -= _CALLS[kinds[-1]]
    rng.shuffle(kinds)
    return kinds


def _respond(truth: Any, replies: Sequence[Mapping[str, Any]]) -> list[Message]:
    return _played(truth, replies)[1][-1] if calls_of(replies) else []


def _played(truth: Any, replies: Sequence[Mapping[str, Any]]) -> tuple[Shop, list[list[Message]]]:
    """The shop after all calls, and the results of each assistant's message. Results among the messages are not
    read: an answer cannot claim them."""
    shop, results = Shop(truth["before"]), []
    for i, message in enumerate(replies):
        if message.get("role") == "assistant":
            results.append([tool_result(call, shop.run(call)) for call in calls_of(replies[: i + 1])])
    return shop, results


def _check(truth: Any, replies: Sequence[Mapping[str, Any]]) -> float:
    """1 where the prices are as they should be, and the last message says what was asked for."""
    text = final_text(replies)
    if not text:
        return 0.0
    numbers = "".join(c if c.isdecimal() else " " for c in text).split()
    said = all(str(number) in numbers for number in truth["said"])
    return float(said and _played(truth, replies)[0].prices == truth["after"])


TOOL = Generator(
    "tool", "read and change prices by tool calls", "calls that it takes", (1,), ITEMS, _make, _check, _respond
)

"""Environments with tools: the right calls are rewarded, others not; what TRL's users wrote works here."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest

from nano3.config.errors import UserError
from nano3.rl.environments.banking import Bank, Banking
from nano3.rl.environments.base import EnvironmentFaultError, MultiTurn, Rollout
from nano3.rl.environments.tools import call, tool_of
from nano3.rl.environments.trl import RewardFunctionEnvironment, ToolClassEnvironment
from nano3.rl.environments.workplace import databases
from nano3.rl.environments.workplace.databases import TABLES
from nano3.rl.environments.workplace.environment import WorkplaceAssistant
from nano3.rl.environments.workplace.office import Office


def calling(*calls):
    """An assistant message that makes these calls."""
    made = [
        {"id": str(i), "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def played(environment, task, *turns):
    """A rollout of these assistant messages, with what the environment answers."""
    messages = []
    for turn in turns:
        messages.append(turn)
        messages += environment.step(task, Rollout(tuple(messages)))
    return Rollout(tuple(messages))


SAY = {"role": "assistant", "content": "It is done."}


def test_the_office_has_5_databases_and_26_tools():
    made = WorkplaceAssistant(n=1)
    assert len(TABLES) == 5
    assert len(made.tasks()[0].tools) == 26
    for tool in made.tasks()[0].tools:
        assert tool["function"]["description"]
        for about in tool["function"]["parameters"]["properties"].values():
            assert about["type"]
            assert about["description"]
    assert isinstance(made, MultiTurn)


def test_the_right_calls_are_rewarded_and_others_are_not():
    made = WorkplaceAssistant(n=8, seed=2)
    assert made.tasks() == WorkplaceAssistant(n=8, seed=2).tasks()
    json.dumps([task.truth for task in made.tasks()])
    for task in made.tasks():
        right = [calling(call) for call in task.truth["calls"]]
        assert made.verify(task, played(made, task, *right, SAY)).value == 1.0
        look = calling(
            ("search_emails", {"query": "a"}), ("total_visits_count", {"first_day": "2026", "last_day": "2027"})
        )
        assert made.verify(task, played(made, task, look, *right, SAY)).value == 1.0
        assert made.verify(task, Rollout.of_text("It is done.")).value == 0.0
        extra = calling(("send_email", {"recipient": "a@b.c", "subject": "s", "body": "b"}))
        assert made.verify(task, played(made, task, *right, extra, SAY)).value == 0.0


def test_results_of_tools():
    made = WorkplaceAssistant(n=1)
    [task] = made.tasks()
    turn = calling(("search_emails", {"query": "BUDGET"}), ("no_such", {}), ("delete_email", "{"), ("delete_email", {}))
    results = [message["content"] for message in made.step(task, Rollout((turn,)))]
    emails = json.loads(results[0])
    assert 0 < len(emails) <= 5
    assert all("budget" in (e["subject"] + e["body"]).lower() for e in emails)
    assert results[1].startswith("Error: there is no function no_such")
    assert results[2] == "Error: the arguments are no JSON object"
    assert "missing a required argument" in results[3]
    assert made.step(task, Rollout((SAY,))) == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("delete_email", {"email_id": 10**30}, "Error: there is no number"),
        ("delete_email", {"email_id": "1"}, "must be of type integer"),
        ("delete_email", {"email_id": True}, "must be of type integer"),
        ("update_task", {"task_id": 1, "field": "task_id", "new_value": "2"}, "must be one of name"),
        ("create_event", {"name": "a", "participant": "b@c", "start": "x", "minutes": 10**30}, "Error"),
        ("send_email", {"recipient": "a", "subject": "", "body": ""}, "no email address"),
        ("send_email", {"recipient": "a@b", "subject": "\ud800", "body": ""}, "Error"),
        ("search_emails", {"query": "'; DROP TABLE emails; --"}, "[]"),
    ],
)
def test_calls_that_make_no_sense_change_nothing(name, arguments, message):
    office = Office(0)
    assert message in call(office.functions(), name, arguments)
    assert office.contents() == Office(0).contents()


def test_too_many_calls_are_refused():
    made = WorkplaceAssistant(n=1)
    turn = calling(*[("search_tasks", {"query": "a"})] * 60)
    assert made.step(made.tasks()[0], Rollout((turn,)))[-1]["content"] == "Error: more than 50 calls"


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([{"name": "search_tasks", "arguments": {"query": "a"}}], "change nothing"),
        ([{"name": "delete_task", "arguments": {"task_id": 999}}], "a right call fails"),
        (["x"], "an object with name"),
    ],
)
def test_tasks_that_cannot_be_right_are_refused(truth, message):
    with pytest.raises(UserError, match=message):
        WorkplaceAssistant([{"prompt": "q", "ground_truth": truth}])


def test_a_banking_conversation():
    made = Banking(n=8, seed=1)
    assert isinstance(made, MultiTurn)
    for task in made.tasks():
        (check, pin), (name, wish) = ((entry["name"], entry["arguments"]) for entry in _truth(task))
        ask = {"role": "assistant", "content": "What is your PIN?"}
        rollout = played(made, task, ask, calling((check, pin)), calling((name, wish)), SAY)
        assert rollout.messages[1]["content"].startswith("My PIN is")
        assert rollout.messages[-1]["content"] == "That was all, thank you."
        over = Rollout((*rollout.messages, SAY))
        assert made.step(task, over) == []
        assert made.verify(task, over).value == 1.0
        assert made.verify(task, played(made, task, ask, calling((name, wish)), SAY)).value == 0.0
        assert made.verify(task, Rollout()).value == 0.0


ACCOUNTS = [{"account_id": "1", "name": "A", "pin": "0", "balance": 5, "card": "active"}]
BLOCKED = [
    {"name": "check_pin", "arguments": {"account_id": "1", "pin": "0"}},
    {"name": "set_card", "arguments": {"account_id": "1", "state": "blocked"}},
]


@pytest.mark.parametrize(
    "said",
    [
        {"prompt": "Block my card, PIN 0."},
        {"user_turns": "Block my card, PIN 0."},
        {"prompt": [{"role": "user", "content": "Block my card, PIN 0."}]},
        {"info": {"user_turns": ["Block my card, PIN 0."]}},
    ],
)
def test_what_the_customer_says_may_be_one_text(said):
    [task] = Banking([{"accounts": ACCOUNTS, "ground_truth": BLOCKED, **said}]).tasks()
    assert task.messages[1:] == ({"role": "user", "content": "Block my card, PIN 0."},)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "no column user_turns or prompt"),
        ({"situation": "You are A."}, "needs user_url"),
        ({"user_turns": []}, "says nothing"),
        ({"user_turns": [3]}, "neither text nor"),
    ],
)
def test_a_customer_without_words_is_refused(said, message):
    with pytest.raises(UserError, match=message):
        Banking([{"accounts": ACCOUNTS, "ground_truth": BLOCKED, **said}])


def _truth(task):
    """The right calls of a task made here, found by what they change."""
    [own, other] = task.truth["accounts"][:2]
    [after, _] = task.truth["wanted"][:2]
    number = own["account_id"]
    changed = next(key for key in ("card", "daily_limit", "address", "balance") if own[key] != after[key])
    wish = {
        "card": ("set_card", {"account_id": number, "state": after["card"]}),
        "daily_limit": ("set_limit", {"account_id": number, "daily_limit": after["daily_limit"]}),
        "address": ("change_address", {"account_id": number, "address": after["address"]}),
        "balance": (
            "transfer",
            {"from_account": number, "to_account": other["account_id"], "amount": own["balance"] - after["balance"]},
        ),
    }[changed]
    check = {"name": "check_pin", "arguments": {"account_id": number, "pin": own["pin"]}}
    return [check, {"name": wish[0], "arguments": wish[1]}]


def test_the_bank_keeps_its_rules():
    accounts = [
        {"account_id": "1", "name": "A", "pin": "0000", "balance": 5},
        {"account_id": "2", "name": "B", "pin": "1", "balance": 0},
    ]
    bank = Bank(accounts)
    tools = bank.functions()
    assert "PIN was not checked" in call(tools, "get_account", {"account_id": "1"})
    assert call(tools, "check_pin", {"account_id": "1", "pin": "0001"}) == "false"
    assert call(tools, "check_pin", {"account_id": "1", "pin": "0000"}) == "true"
    assert "pin" not in json.loads(call(tools, "get_account", {"account_id": "1"}))
    for amount in (0, -3, 6):
        given = {"from_account": "1", "to_account": "2", "amount": amount}
        assert call(tools, "transfer", given).startswith("Error")
    assert bank.contents() == accounts


def reward_short(completions, limit, **kwargs):
    return [1.0 if len(text) <= n else 0.25 for text, n in zip(completions, limit, strict=True)]


def reward_messages(prompts, completions):
    return [float(completions[0][-1]["content"] == prompts[0][0]["content"])]


def test_reward_functions_of_trl():
    made = RewardFunctionEnvironment([reward_short, lambda completions: [None]], [{"prompt": "q", "limit": 3}])
    [task] = made.tasks()
    assert made.name == "reward_short"
    assert made.verify(task, Rollout.of_text("abc")).passed
    assert made.verify(task, Rollout.of_text("abcd")).value == 0.25
    chat = RewardFunctionEnvironment(reward_messages, [{"prompt": [{"role": "user", "content": "q"}]}])
    assert chat.verify(chat.tasks()[0], Rollout.of_text("q")).value == 1.0
    for wrong in (lambda completions: [], lambda completions: ["x"], lambda completions: 1 / 0):
        broken = RewardFunctionEnvironment(wrong, [{"prompt": "q"}], name="mine")
        with pytest.raises(EnvironmentFaultError, match="the reward function <lambda> fails"):
            broken.verify(broken.tasks()[0], Rollout.of_text(""))


def think_format(completions, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^<think>(?!.*<think>)(.*?)</think>.*$", text, re.DOTALL) else 0.0 for text in contents]


def too_long(completion_ids, log_metric=None, log_extra=None):
    log_metric("length", len(completion_ids[0]))
    log_extra("first", [ids[0] for ids in completion_ids])
    return [-1.0 if len(ids) > 3 else 0.0 for ids in completion_ids]


async def later(completions, **kwargs):
    return [float(len(text)) for text in completions]


def thought(content, **changes):
    return Rollout(({"role": "assistant", "content": content, "reasoning_content": "Hm."},), **changes)


def test_reward_functions_of_trl_see_what_its_trainer_shows_them():
    chat = RewardFunctionEnvironment(think_format, [{"prompt": [{"role": "user", "content": "q"}]}])
    [task] = chat.tasks()
    assert chat.verify(task, thought("Yes.")).value == 1.0
    assert chat.verify(task, thought("", truncated=True)).value == 0.0
    assert chat.verify(task, Rollout.of_text("Yes.")).value == 0.0
    by_ids = RewardFunctionEnvironment(too_long, [{"prompt": "q"}])
    [task] = by_ids.tasks()
    assert by_ids.verify(task, thought("a", token_ids=[5, 6, 7])).value == 0.0
    found = by_ids.verify(task, thought("a", token_ids=np.array([5, 6, 7, 8], np.int32)))
    assert found.value == -1.0
    assert found.parts == {"length": 4.0, "first": "5", "too_long": -1.0}
    text = RewardFunctionEnvironment(later, [{"prompt": "q"}])
    assert text.verify(text.tasks()[0], thought("Yes.")).value == len("<think>\nHm.\n</think>\nYes.")
    with pytest.raises(UserError, match="reward function <lambda> needs trainer_state"):
        RewardFunctionEnvironment(lambda completions, trainer_state: [0.0], [{"prompt": "q"}])


class Shelf:
    """Its tool fails on what is not there."""

    def reset(self, **kwargs):
        self.things, self.taken = {"pen": 1}, 0

    def take(self, name: str) -> str:
        """Take a thing."""
        self.taken += self.things.pop(name)
        return "taken"


def of_shelves(environments, completions, least, **kwargs):
    return [float(shelf.taken >= n) for shelf, n in zip(environments, least, strict=True)]


def test_errors_of_tools_are_shown_to_the_model_and_reward_functions_see_the_object():
    made = ToolClassEnvironment(Shelf, [{"prompt": "Take the pen.", "least": 1}], of_shelves)
    [task] = made.tasks()
    rollout = played(made, task, calling(("take", {"name": "hat"})), calling(("take", {"name": "pen"})), SAY)
    assert [m["content"] for m in rollout.messages if m["role"] == "tool"] == ["Error: KeyError: 'hat'", "taken"]
    assert made.verify(task, rollout).value == 1.0
    assert made.verify(task, Rollout()).value == 0.0


class Counter:
    """A game in TRL's form."""

    def reset(self, start=0, **kwargs):
        self.n, self.reward = start, 0.0
        return f"The counter shows {start}."

    def add(self, amount: int, sign: Literal["plus", "minus"] = "plus") -> str:
        """Change the counter.

        Args:
            amount: by how much,
                as a number.
            sign: which way.
        """
        self.n += amount if sign == "plus" else -amount
        self.reward = float(self.n == 7)
        return str(self.n)

    def _secret(self):
        pass


def test_environment_classes_of_trl():
    made = ToolClassEnvironment(Counter, [{"prompt": "Reach 7.", "start": 3}])
    [task] = made.tasks()
    assert task.messages[-1]["content"] == "Reach 7.\n\nThe counter shows 3."
    [tool] = [tool["function"] for tool in task.tools]
    assert tool["name"] == "add"
    assert tool["parameters"] == {
        "type": "object",
        "properties": {
            "amount": {"type": "integer", "description": "by how much, as a number."},
            "sign": {"type": "string", "enum": ["plus", "minus"], "description": "which way."},
        },
        "required": ["amount"],
    }
    rollout = played(made, task, calling(("add", {"amount": 5})), calling(("add", {"amount": 1, "sign": "minus"})), SAY)
    assert [m["content"] for m in rollout.messages if m["role"] == "tool"] == ["8", "7"]
    assert made.verify(task, rollout).value == 1.0
    assert made.verify(task, Rollout()).value == 0.0
    with pytest.raises(UserError, match="no reset"):
        ToolClassEnvironment(object, [{"prompt": "q"}])


def test_types_of_arguments():
    def tool(a: str, b: float, c: list[int], d: dict, e: int | None = None):
        """Does it."""

    found = tool_of(tool)["function"]["parameters"]
    assert found["required"] == ["a", "b", "c", "d"]
    assert found["properties"]["c"] == {"type": "array", "items": {"type": "integer"}}
    assert found["properties"]["e"] == {}


def test_offices_are_copies_of_one_that_is_filled_once(monkeypatch):
    """Also where threads ask at the same time; what one changes no other sees."""
    filled, fill = [], databases._fill
    monkeypatch.setattr(databases, "_fill", lambda *given: filled.append(1) or fill(*given))
    seed = 8_231_977
    with ThreadPoolExecutor(4) as pool:
        offices = list(pool.map(Office, [seed] * 8))
    assert len(filled) == 1
    before = offices[0].contents()
    offices[0].create_task("Rest", "ann@office.example", "Backlog", "Design", "2026-04-01")
    assert len(offices[0].contents()["tasks"]) == 1 + len(before["tasks"])
    assert all(office.contents() == before for office in [*offices[1:], Office(seed)])


def test_the_right_calls_are_made_once_and_other_ends_are_worth_nothing(monkeypatch):
    made = WorkplaceAssistant(n=8, seed=5)
    monkeypatch.setattr("nano3.rl.environments.workplace.environment.after", None)
    for task, other in zip(made.tasks(), made.tasks()[1:], strict=False):
        right, wrong = (Rollout(tuple(calling(call) for call in each.truth["calls"])) for each in (task, other))
        assert [made.verify(task, each).value for each in (right, wrong, Rollout())] == [1, 0, 0]

from __future__ import annotations

import json
import random
from itertools import pairwise

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.tasks.catalogue import GENERATORS, check, find_tasks
from nano3.data.tasks.json_objects import fits
from nano3.data.tasks.shop import MOST_CALLS, TOOLS
from nano3.data.tasks.source import TaskSource
from nano3.data.tasks.task import call

EVERY = sorted(GENERATORS)


def said(content: str) -> list[dict]:
    return [{"role": "assistant", "content": content}]


def tasks_of_all_levels(name: str, per_level: int = 20):
    generator = GENERATORS[name]
    for level in range(generator.levels[0], generator.hardest + 1):
        yield from TaskSource(generator, levels=(level,)).tasks(per_level)


@pytest.mark.parametrize("name", EVERY)
def test_solutions_solve_their_task_and_no_other(name):
    tasks = list(tasks_of_all_levels(name))
    for task in tasks:
        assert check(name, task.truth, task.solution) == 1.0, task
        assert all(message["content"] or message.get("tool_calls") for message in task.solution)
        thought = [bool(message["reasoning_content"]) for message in task.solution if message["role"] == "assistant"]
        assert all(thought) or name == "talk", task
    pairs = [(a, b) for a, b in pairwise(tasks) if a.truth != b.truth and a.level == b.level]
    passed = sum(check(name, a.truth, b.solution) for a, b in pairs)
    assert passed < 0.5 * len(pairs)


@pytest.mark.parametrize("name", EVERY)
def test_answers_that_are_none_give_nothing(name):
    task = find_tasks(name).task(0)
    for content in ("", "I do not know", "<think>\n</think>", "{", "NaN", "[" * 5000):
        assert check(name, task.truth, said(content)) == 0.0
    assert check(name, task.truth, []) == 0.0
    assert check(name, task.truth, [{"role": "assistant", "content": None, "tool_calls": [{"function": None}]}]) == 0.0


def test_exact_answers_have_nothing_beside_them():
    task = find_tasks("sort?levels=3").task(0)
    assert check("sort", task.truth, said(f"  {task.truth}\n")) == 1.0
    assert check("sort", task.truth, said(f"It is {task.truth}")) == 0.0


@pytest.mark.parametrize("name", ["count", "spell"])
def test_letters_are_those_of_the_prompt(name):
    apart = 0
    for task in find_tasks(name).tasks(50):
        words = task.prompt[0]["content"].replace("?", "").replace(".", "").replace(":", "").split()
        apart += (spaced := " ".join(words[-task.level :])).count(" ") == task.level - 1 and len(words[-1]) == 1
        if name == "spell":
            assert task.truth[::-1] in words or " ".join(reversed(task.truth)) in " ".join(words)
            continue
        letter = words[words.index("letter") + 1]
        word = spaced.replace(" ", "") if len(words[-1]) == 1 else words[-1]
        assert len(word) == task.level
        assert int(task.truth) == word.count(letter)
    assert 10 < apart < 40


def test_spelled_letters_may_stand_together_or_apart():
    for answer in ("tac", "t a c", " t a\nc "):
        assert check("spell", "tac", said(answer)) == 1.0
    for answer in ("cat", "t-a-c", "It is t a c", "t a", ""):
        assert check("spell", "tac", said(answer)) == 0.0


def test_sums_and_orders_are_right():
    for task in find_tasks("add?levels=1-5").tasks(50):
        numbers = [int(word.strip("?.")) for word in task.prompt[0]["content"].split() if word.strip("?.").isdigit()]
        assert int(task.truth) == sum(numbers)
    for task in find_tasks("sort?levels=2-9").tasks(50):
        numbers = [int(word) for word in task.prompt[0]["content"].split() if word.isdigit()]
        assert [int(word) for word in task.truth.split()] == sorted(numbers)
        assert len(numbers) == task.level


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 105) | st.floats(-5, 105) | st.sampled_from(["red", "blue", "x"]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=5,
)


@given(st.integers(0, 40), st.data())
def test_a_json_object_counts_exactly_where_json_schema_takes_it(index, data):
    task = find_tasks("json").task(index)
    schema = task.truth
    value = json.loads(task.solution[0]["content"])
    for key in data.draw(st.sets(st.sampled_from(list(value)), max_size=2)):
        value[key] = data.draw(VALUES | st.just(float(value[key]) if isinstance(value[key], int) else 0.0))
    if data.draw(st.booleans()):
        value[data.draw(st.sampled_from(["other", next(iter(value))]))] = 1
    assert fits(value, schema) == jsonschema.Draft202012Validator(schema).is_valid(value)


def test_instructions_are_checked_one_by_one():
    truth = {"number": 3, "first": "pear", "last": "fig", "upper": True, "commas": True}
    assert check("instructions", truth, said("PEAR, LIME, FIG")) == 1.0
    for text in (
        "PEAR LIME FIG",
        "PEAR, FIG",
        "pear, lime, fig",
        "LIME, PEAR, FIG",
        "PEAR, FIG, LIME",
        "PEAR, 1, FIG",
    ):
        assert check("instructions", truth, said(text)) == 0.0
    assert check("instructions", {"repeat": ["pear", 2]}, said("pear fig pear")) == 1.0
    assert check("instructions", {"repeat": ["pear", 2]}, said("pear pear pear")) == 0.0


SHOP = {"before": {"fig": 20, "pear": 30}, "after": {"fig": 25, "pear": 30}, "said": []}


def test_the_shop_changes_by_calls_and_counts_by_its_state():
    respond = GENERATORS["tool"].respond
    replies = [call("", 1, "get_price", item="fig")]
    replies += respond(SHOP, replies)
    assert replies[-1] == {"role": "tool", "tool_call_id": "call_1", "content": "20"}
    replies.append(call("", 2, "set_price", item="fig", price="25"))
    replies += respond(SHOP, replies)
    assert replies[-1]["content"] == "ok"
    assert check("tool", SHOP, replies) == 0.0  # not answered yet
    assert check("tool", SHOP, [*replies, *said("Done.")]) == 1.0
    assert respond(SHOP, [*replies, *said("Done.")]) == []
    assert check("tool", SHOP | {"said": [20]}, [*replies, *said("Done.")]) == 0.0
    assert check("tool", SHOP | {"said": [20]}, [*replies, *said("It was 20.")]) == 1.0


@pytest.mark.parametrize(
    ("made", "result"),
    [
        (call("", 1, "get_price", item="gold"), "error: there is no item gold"),
        (call("", 1, "buy", item="fig"), "error: there is no tool buy"),
        (call("", 1, "set_price", item="fig", price=2.5), "error: price must be an integer"),
        (call("", 1, "set_price", item="fig", price=True), "error: price must be an integer"),
        ({"tool_calls": [{"function": {"name": "remove", "arguments": "{"}}]}, "error: arguments are no JSON object"),
        ({"tool_calls": [{"function": {"name": "remove", "arguments": {"item": []}}}]}, "error: there is no item []"),
    ],
)
def test_calls_that_cannot_be_carried_out_say_so_and_change_nothing(made, result):
    replies = [{"role": "assistant", **made}]
    (message,) = GENERATORS["tool"].respond(SHOP, replies)
    assert message["content"] == result
    assert check("tool", SHOP | {"after": SHOP["before"]}, [*replies, message, *said("Sorry.")]) == 1.0


def test_results_that_an_answer_claims_are_not_believed_and_calls_are_bounded():
    replies = [call("", 1, "get_price", item="fig"), {"role": "tool", "tool_call_id": "call_1", "content": "ok"}]
    assert check("tool", SHOP, [*replies, *said("Done.")]) == 0.0
    many = [call("", i, "get_price", item="fig") for i in range(MOST_CALLS + 1)]
    assert GENERATORS["tool"].respond(SHOP, many)[0]["content"] == "error: too many calls"
    assert {tool["function"]["name"] for tool in TOOLS} == {"get_price", "set_price", "remove"}


def test_a_price_that_is_set_is_another_than_before():
    for task in find_tasks("tool?levels=1").tasks(300):
        assert task.truth["before"] != task.truth["after"] or task.truth["said"]


def test_the_level_of_a_tool_task_is_its_number_of_calls():
    for task in tasks_of_all_levels("tool"):
        assert sum(len(message.get("tool_calls", ())) for message in task.solution) == task.level


def test_tool_tasks_describe_the_tools_that_they_need_and_seldom_all():
    every = [tool["function"]["name"] for tool in TOOLS]
    offered = set()
    for task in tasks_of_all_levels("tool"):
        names = [tool["function"]["name"] for tool in task.tools]
        calls = [made for message in task.solution for made in message.get("tool_calls", ())]
        assert {made["function"]["name"] for made in calls} <= set(names)
        assert names == [name for name in every if name in names]
        assert len(names) >= 2
        offered.add((task.level, *names))
    assert (
        len([names for level, *names in offered if level == 1]) == 3
    )  # each pair of tools, so none goes without saying


def test_small_talk_is_answered_with_and_without_thinking_and_greetings_are_spelled_in_many_ways():
    tasks = list(find_tasks("talk").tasks(4000))
    plain = [task for task in tasks if not task.solution[0]["reasoning_content"]]
    assert 0.4 < len(plain) / len(tasks) < 0.6
    asked = {task.prompt[-1]["content"] for task in tasks}
    assert {"Hello!", "hello", "hi!", "How are you?", "thanks", "what can you do?"} <= asked


def test_what_was_said_before_has_to_be_known():
    rng = random.Random(0)
    for task in find_tasks("talk?levels=3").tasks(20):
        other = rng.choice([word for word in ("zebra", "Zoe") if word not in task.truth])
        assert check("talk", task.truth, said(f"It is {other}.")) == 0.0
        assert check("talk", task.truth, said(f"{task.truth[0]} " * 30)) == 0.0

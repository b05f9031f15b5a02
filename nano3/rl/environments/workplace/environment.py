"""Tasks in the office: the state after the model's calls has to be that after the right ones (report section 3.2)."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
from nano3.rl.environments.base import Message, Reward, Rollout, Task, all_or_nothing, check_ids
from nano3.rl.environments.made import given_or_made
from nano3.rl.environments.replay import answer_calls, final_contents
from nano3.rl.environments.rows import Row, calls_of, id_of, prompt_of
from nano3.rl.environments.tools import call, tool_of
from nano3.rl.environments.workplace.databases import OWN_ADDRESS, PEOPLE, TODAY, address
from nano3.rl.environments.workplace.office import Office

SYSTEM = (
    f"Today is {TODAY}. You work for {OWN_ADDRESS}. Do what you are asked by calling functions, then say it is done."
)
Calls = list[tuple[str, dict[str, Any]]]


class WorkplaceAssistant:
    """1 where all five databases hold in the end what they should, else 0.

    Columns: a prompt, `ground_truth`: the right calls, each {"name", "arguments"}, and `office`: the number of the
    databases' contents, 0 by default.
    """

    name = "workplace_assistant"

    def __init__(
        self, rows: str | Path | Iterable[Row] | None = None, n: int = 200, seed: int = 0, split: Split | None = None
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: tasks made here.
            n, seed: of those.
            split: train or heldout, which share no prompt; None: train of made ones, all of given ones.

        Raises:
            UserError: a row without calls, with one that fails, or whose calls change nothing.
        """
        self._wanted: dict[str, bytes] = {}  # by task, so that its right calls are made once
        self._tools = tuple(tool_of(function) for function in Office(0).functions().values())
        found = given_or_made(rows, _made, n, seed, split, self.name, lambda row: row["prompt"])
        where = "environment workplace_assistant"
        self._tasks = check_ids([self._task(row, f"{where}, row {i + 1}") for i, row in enumerate(found)], self.name)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def step(self, task: Task, rollout: Rollout) -> Sequence[Message]:
        """Results of the tools that were called."""
        return answer_calls(Office(task.truth["office"]), rollout)

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """By the final state."""
        wanted = self._wanted.get(task.id)
        if wanted is None:
            wanted = _digest(after(task.truth["office"], [(name, given) for name, given in task.truth["calls"]]))
        found = _digest(final_contents(Office(task.truth["office"]), rollout))
        return all_or_nothing(found == wanted, calls=len(rollout.calls))

    def _task(self, row: Row, where: str) -> Task:
        calls = calls_of(row, "ground_truth", "calls", where=where)
        office = row.get("office", 0)
        if type(office) is not int:
            raise UserError(f"{where}: office is {str(office)[:40]!r}, not a whole number")
        try:
            wanted = after(office, calls)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        if wanted == Office(office).contents():
            raise UserError(f"{where}: the right calls change nothing, so doing nothing would be rewarded")
        prompt = prompt_of(row, where)
        system = () if prompt[0]["role"] == "system" else ({"role": "system", "content": SYSTEM},)
        name = id_of(row)
        self._wanted[name] = _digest(wanted)
        return Task(name, (*system, *prompt), {"office": office, "calls": calls}, self._tools)


def after(office: int, calls: Calls) -> Any:
    """The contents after the right calls. Raises ValueError where one of them fails."""
    state = Office(office)
    functions = state.functions()
    for name, arguments in calls:
        result = call(functions, name, arguments)
        if result.startswith("Error"):
            raise ValueError(f"a right call fails: {name}: {result}")
    return state.contents()


def _digest(contents: Any) -> bytes:
    """Of all rows. SQLite gives the values of a column one type, so equal rows read the same."""
    return hashlib.blake2b(json.dumps(contents, sort_keys=True).encode(), digest_size=16).digest()


def _made(rng: random.Random) -> Iterator[Row]:
    makers = [_delete_latest_email, _new_task, _move_task, _new_event, _customer_status, _plot, _reply, _move_event]
    for i in itertools.count():
        office = rng.randrange(20)
        prompt, calls = makers[i % len(makers)](Office(office), rng)
        truth = [{"name": name, "arguments": given} for name, given in calls]
        yield {"prompt": prompt, "ground_truth": truth, "office": office}


def _inbox(office: Office, rng: random.Random) -> dict[str, Any]:
    emails = [row for row in office.contents()["emails"] if row["folder"] == "inbox"]
    latest = {row["other"]: row for row in sorted(emails, key=lambda row: (row["sent"], -row["email_id"]))}
    return rng.choice(list(latest.values()))


def _delete_latest_email(office: Office, rng: random.Random) -> tuple[str, Calls]:
    email = _inbox(office, rng)
    return f"Delete the last email that I got from {email['other']}.", [
        ("delete_email", {"email_id": email["email_id"]})
    ]


def _reply(office: Office, rng: random.Random) -> tuple[str, Calls]:
    email = _inbox(office, rng)
    body = rng.choice(["Thanks, I will.", "Yes.", "Not this week."])
    prompt = f"Reply to the last email that I got from {email['other']} with the text '{body}'"
    return prompt, [("reply_email", {"email_id": email["email_id"], "body": body})]


def _new_task(office: Office, rng: random.Random) -> tuple[str, Calls]:
    given = {
        "name": rng.choice(["Check logs", "Draw logo", "Plan tests"]), "assignee": address(rng.choice(PEOPLE)),
        "list_name": "Backlog", "board": rng.choice(["Back end", "Front end", "Design"]),
        "due": f"2026-04-{rng.randint(1, 28):02d}",
    }  # fmt: skip
    prompt = (
        f"Create a task '{given['name']}' for {given['assignee']}, in the list Backlog of the board {given['board']}, "
        f"due on {given['due']}."
    )
    return prompt, [("create_task", given)]


def _move_task(office: Office, rng: random.Random) -> tuple[str, Calls]:
    task = rng.choice(office.contents()["tasks"])
    given = {"task_id": task["task_id"], "field": "list", "new_value": "Completed"}
    return f"Move the task '{task['name']}' to the list Completed.", [("update_task", given)]


def _new_event(office: Office, rng: random.Random) -> tuple[str, Calls]:
    given = {
        "name": rng.choice(["Lunch", "Interview", "Retrospective"]), "participant": address(rng.choice(PEOPLE)),
        "start": f"2026-04-{rng.randint(1, 28):02d} {rng.randint(9, 16):02d}:00", "minutes": rng.choice([30, 60]),
    }  # fmt: skip
    when = f"{given['start']}, {given['minutes']} minutes"
    prompt = f"Put '{given['name']}' with {given['participant']} into my calendar: {when}."
    return prompt, [("create_event", given)]


def _move_event(office: Office, rng: random.Random) -> tuple[str, Calls]:
    event = rng.choice(office.contents()["events"])
    start = f"2026-05-{rng.randint(1, 28):02d} 10:00"
    given = {"event_id": event["event_id"], "field": "start", "new_value": start}
    return f"Move the event that starts at {event['start']} to {start}.", [("update_event", given)]


def _customer_status(office: Office, rng: random.Random) -> tuple[str, Calls]:
    customer = rng.choice([row for row in office.contents()["customers"] if row["status"] != "Won"])
    given = {"customer_id": customer["customer_id"], "field": "status", "new_value": "Won"}
    return f"Set the status of the customer {customer['name']} to Won.", [("update_customer", given)]


def _plot(office: Office, rng: random.Random) -> tuple[str, Calls]:
    first = rng.randint(1, 14)
    days = {"first_day": f"2026-02-{first:02d}", "last_day": f"2026-02-{first + rng.randint(3, 13):02d}"}
    kind = rng.choice(["bar", "line"])
    prompt = f"Make a {kind} plot of the total visits from {days['first_day']} to {days['last_day']}."
    return prompt, [("create_plot", {"value": "total_visits", "kind": kind, **days})]

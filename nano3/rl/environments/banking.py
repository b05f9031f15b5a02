"""A bank's customer service: a conversation with a customer, whose account has to be in the right state in the end."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
from nano3.rl.environments.base import Message, Reward, Rollout, Task, all_or_nothing, check_ids
from nano3.rl.environments.judge import Judge
from nano3.rl.environments.made import given_or_made
from nano3.rl.environments.replay import answer_calls, final_contents
from nano3.rl.environments.rows import Row, calls_of, column, find_column, id_of
from nano3.rl.environments.tools import call, public_methods, tool_of

SYSTEM = (
    "You are the customer service of a bank. Look a customer up by name, and check the PIN before you read or change "
    "an account. Ask for what you need to know. Do only what the customer asks for."
)
CUSTOMER = (
    "You play a customer who speaks to a bank's customer service. Your situation: {situation} Write the customer's "
    "next message only, in one or two sentences. Do not say more than you are asked for. When all is done, write DONE."
)
DONE = "DONE"
MOST_TURNS = 12
GREETING = "Hello."
"""What a customer says first whose words a model makes up."""


class Bank:
    """Accounts, and the tools that read and change them."""

    def __init__(self, accounts: Sequence[Mapping[str, Any]]) -> None:
        self._accounts = {account["account_id"]: copy.deepcopy(dict(account)) for account in accounts}
        self._checked: set[str] = set()

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The tools by name."""
        return public_methods(self, without=("functions", "contents"))

    def contents(self) -> Any:
        """All accounts."""
        return list(self._accounts.values())

    def find_customer(self, name: str) -> list:
        """Account numbers of a customer.

        Args:
            name: full name.
        """
        return [number for number, account in self._accounts.items() if account["name"].lower() == name.strip().lower()]

    def check_pin(self, account_id: str, pin: str) -> bool:
        """Check a customer's PIN; the account can be read and changed after that.

        Args:
            account_id: number of the account.
            pin: what the customer says.
        """
        right = self._account(account_id, checked=False)["pin"] == pin
        if right:
            self._checked.add(account_id)
        return right

    def get_account(self, account_id: str) -> dict:
        """Read an account.

        Args:
            account_id: number of the account.
        """
        return {key: value for key, value in self._account(account_id).items() if key != "pin"}

    def transfer(self, from_account: str, to_account: str, amount: int) -> str:
        """Move money.

        Args:
            from_account: number of the account that pays.
            to_account: number of the account that gets it.
            amount: in whole euros.
        """
        payer, payee = self._account(from_account), self._account(to_account, checked=False)
        if not 0 < amount <= payer["balance"]:
            raise ValueError(f"the balance is {payer['balance']}: from 1 to as much can be moved")
        payer["balance"] -= amount
        payee["balance"] += amount
        return "moved"

    def set_card(self, account_id: str, state: Literal["active", "blocked"]) -> str:
        """Block the account's card, or make it active again.

        Args:
            account_id: number of the account.
            state: of the card.
        """
        self._account(account_id)["card"] = state
        return f"the card is {state}"

    def set_limit(self, account_id: str, daily_limit: int) -> str:
        """Change how much may be spent in a day.

        Args:
            account_id: number of the account.
            daily_limit: in whole euros, from 0 to 5000.
        """
        if not 0 <= daily_limit <= 5000:
            raise ValueError("the daily limit is from 0 to 5000")
        self._account(account_id)["daily_limit"] = daily_limit
        return "changed"

    def change_address(self, account_id: str, address: str) -> str:
        """Change the customer's address.

        Args:
            account_id: number of the account.
            address: the new one.
        """
        self._account(account_id)["address"] = address
        return "changed"

    def _account(self, number: str, checked: bool = True) -> dict[str, Any]:
        if number not in self._accounts:
            raise ValueError(f"there is no account {number[:50]}")
        if checked and number not in self._checked:
            raise ValueError("the PIN was not checked")
        return self._accounts[number]


class Banking:
    """1 where the accounts are in the end as they should be, else 0.

    Columns: `accounts`, `user_turns` or `prompt` (what the customer says: one text, or several message by message) or
    `situation` (for a model that plays the customer, after a greeting), and `ground_truth`: the right calls, each
    {"name", "arguments"}.
    """

    name = "banking"

    def __init__(
        self,
        rows: str | Path | Iterable[Row] | None = None,
        user_url: str = "",
        user_model: str = "",
        n: int = 100,
        seed: int = 0,
        split: Split | None = None,
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: conversations made here.
            user_url: an OpenAI-compatible server whose model plays the customer; empty: the turns of the rows.
            user_model: empty: the first that it lists.
            n, seed: of what is made here.
            split: train or heldout, which share no prompt; None: train of made ones, all of given ones.

        Raises:
            UserError: a row without accounts or turns, or whose right calls fail or change nothing.
        """
        self._tools = tuple(tool_of(function) for function in Bank([]).functions().values())
        self._user = Judge(user_url, user_model) if user_url else None
        where = f"environment {self.name}"
        found = given_or_made(rows, _made, n, seed, split, self.name, _first_words)
        self._tasks = check_ids([self._task(row, f"{where}, row {i + 1}") for i, row in enumerate(found)], self.name)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def step(self, task: Task, rollout: Rollout) -> Sequence[Message]:
        """Results of the tools that were called, or what the customer says next."""
        if rollout.messages and rollout.messages[-1].get("tool_calls"):
            return answer_calls(Bank(task.truth["accounts"]), rollout)
        said = sum(message["role"] == "user" for message in rollout.messages)
        if said >= MOST_TURNS:
            return []
        text = self._scripted(task, said) if self._user is None else self._played(task, rollout)
        return [{"role": "user", "content": text}] if text and DONE not in text else []

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """By the final state of all accounts."""
        right = final_contents(Bank(task.truth["accounts"]), rollout) == task.truth["wanted"]
        return all_or_nothing(right, calls=len(rollout.calls))

    def _scripted(self, task: Task, said: int) -> str:
        turns = task.truth["user_turns"]
        return turns[said + 1] if said + 1 < len(turns) else ""

    def _played(self, task: Task, rollout: Rollout) -> str:
        """The roles are the other way round for who plays the customer."""
        assert self._user is not None
        spoken = [m for m in (*task.messages[1:], *rollout.messages) if m["role"] != "tool" and not m.get("tool_calls")]
        roles = {"user": "assistant", "assistant": "user"}
        turned = [{"role": roles[m["role"]], "content": m.get("content") or ""} for m in spoken]
        return self._user.chat([{"role": "system", "content": CUSTOMER.format(**task.truth)}, *turned])

    def _task(self, row: Row, where: str) -> Task:
        accounts = _accounts(column(row, "accounts", where=where), where)
        turns, situation = self._words(row, where)
        bank = Bank(accounts)
        for name, arguments in calls_of(row, "ground_truth", where=where):
            result = call(bank.functions(), name, arguments)
            if result.startswith("Error"):
                raise UserError(f"{where}: a right call fails: {name}: {result}")
        if bank.contents() == Bank(accounts).contents():
            raise UserError(f"{where}: the right calls change nothing, so doing nothing would be rewarded")
        truth = {
            "accounts": accounts, "wanted": bank.contents(), "user_turns": turns,
            "situation": situation,
        }  # fmt: skip
        messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": turns[0]})
        return Task(id_of(row), messages, truth, self._tools)

    def _words(self, row: Row, where: str) -> tuple[list[str], str]:
        """What the customer says, and the situation of one whom a model plays."""
        found, situation = find_column(row, "user_turns", "prompt"), find_column(row, "situation")
        if found is None and (situation is None or self._user is None):
            raise UserError(f"{where}: no column user_turns or prompt; `situation` alone needs user_url")
        found = GREETING if found is None else found
        turns = [_text(turn, where) for turn in (found if isinstance(found, list) else [found])]
        if not turns or not all(turns):
            raise UserError(f"{where}: the customer says nothing")
        return turns, " ".join(turns) if situation is None else str(situation)


def _accounts(found: Any, where: str) -> list[Mapping[str, Any]]:
    """Accounts that every tool can work on."""
    kinds = {"account_id": str, "name": str, "pin": str, "balance": int}
    for account in found if isinstance(found, list) else [None]:
        if not isinstance(account, Mapping) or any(type(account.get(name)) is not kind for name, kind in kinds.items()):
            raise UserError(
                f"{where}: accounts is a list of objects, each with account_id, name and pin as text and balance as a "
                "whole number"
            )
    return found


def _text(turn: Any, where: str) -> str:
    """A turn may be a user's message."""
    text = turn.get("content") if isinstance(turn, Mapping) and turn.get("role") == "user" else turn
    if not isinstance(text, str):
        raise UserError(f"{where}: a turn of the customer is neither text nor a user's message")
    return text


def _made(rng: random.Random) -> Iterator[Row]:
    names = ["Ada Reed", "Bo Stone", "Cy Wolf", "Di Lake", "Ed Marsh"]
    for i in itertools.count():
        chosen = rng.sample(names, 3)
        accounts = [
            {
                "account_id": f"{rng.randrange(1000, 9999)}-{j}", "name": name, "pin": f"{rng.randrange(10000):04d}",
                "balance": rng.randrange(100, 2000), "card": "active", "daily_limit": 500, "address": "1 Main Street",
            }
            for j, name in enumerate(chosen)
        ]  # fmt: skip
        own, other = accounts[0], accounts[1]
        wish, name, given = _wish(i, own["account_id"], other["account_id"], rng)
        turns = [f"Hello, this is {own['name']}. {wish}", f"My PIN is {own['pin']}.", "That was all, thank you."]
        check = {"name": "check_pin", "arguments": {"account_id": own["account_id"], "pin": own["pin"]}}
        calls = [check, {"name": name, "arguments": given}]
        situation = f"You are {own['name']}, your PIN is {own['pin']}. {wish}"
        yield {"accounts": accounts, "user_turns": turns, "ground_truth": calls, "situation": situation}


def _wish(number: int, own: str, other: str, rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    """What a customer wants, and the call that does it."""
    amount, limit, street = rng.randrange(10, 100), 100 * rng.randrange(6, 30), f"{rng.randrange(2, 90)} Mill Lane"
    wishes = [
        ("I lost my card, please block it.", "set_card", {"account_id": own, "state": "blocked"}),
        (
            f"Please move {amount} euros to the account {other}.",
            "transfer",
            {"from_account": own, "to_account": other, "amount": amount},
        ),
        (f"Please set my daily limit to {limit} euros.", "set_limit", {"account_id": own, "daily_limit": limit}),
        (f"I have moved to {street}.", "change_address", {"account_id": own, "address": street}),
    ]
    return wishes[number % len(wishes)]


def _first_words(row: Row) -> str:
    return row["user_turns"][0]

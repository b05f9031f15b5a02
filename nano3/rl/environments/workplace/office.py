"""The tools of the office, which read and change its databases (after WorkBench, arXiv 2405.00823)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from nano3.rl.environments.tools import public_methods
from nano3.rl.environments.workplace.databases import TODAY, Databases

MOST_FOUND = 5
"""Results of a search."""


class Office:
    """The tools, as methods, over databases of their own. A call that makes no sense raises ValueError."""

    def __init__(self, seed: int) -> None:
        self._data = Databases.of(seed)

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The 26 tools by name."""
        return public_methods(self, without=("functions", "contents"))

    def contents(self) -> Any:
        """All rows."""
        return self._data.contents()

    def get_email_information_by_id(self, email_id: int) -> dict:
        """Read one email.

        Args:
            email_id: number of the email.
        """
        return self._one("email", "emails", "email_id", email_id)

    def search_emails(self, query: str, folder: Literal["inbox", "sent"] = "inbox") -> list:
        """Find emails, the newest first, at most five.

        Args:
            query: words in the other person's address, the subject or the body.
            folder: where to look.
        """
        return self._search("email", "emails", ("other", "subject", "body"), query, "sent DESC", folder)

    def send_email(self, recipient: str, subject: str, body: str) -> str:
        """Send an email.

        Args:
            recipient: address.
            subject: its subject.
            body: its text.
        """
        _address(recipient)
        return f"sent as email {self._data.add('email', 'emails', 'sent', recipient, subject, body, TODAY)}"

    def delete_email(self, email_id: int) -> str:
        """Delete an email.

        Args:
            email_id: number of the email.
        """
        return self._delete("email", "emails", "email_id", email_id)

    def forward_email(self, email_id: int, recipient: str) -> str:
        """Forward an email to somebody.

        Args:
            email_id: number of the email.
            recipient: address.
        """
        email = self._one("email", "emails", "email_id", email_id)
        return self.send_email(recipient, f"FW: {email['subject']}", email["body"])

    def reply_email(self, email_id: int, body: str) -> str:
        """Reply to an email.

        Args:
            email_id: number of the email.
            body: text of the reply.
        """
        email = self._one("email", "emails", "email_id", email_id)
        return self.send_email(email["other"], f"RE: {email['subject']}", body)

    def get_event_information_by_id(self, event_id: int) -> dict:
        """Read one event of the calendar.

        Args:
            event_id: number of the event.
        """
        return self._one("calendar", "events", "event_id", event_id)

    def search_events(self, query: str) -> list:
        """Find events, the earliest first, at most five.

        Args:
            query: words in the name, the participant or the start.
        """
        return self._search("calendar", "events", ("name", "participant", "start"), query, "start")

    def create_event(self, name: str, participant: str, start: str, minutes: int) -> str:
        """Put an event into the calendar.

        Args:
            name: what it is called.
            participant: address of the other person.
            start: as in 2026-03-02 14:00.
            minutes: how long it takes.
        """
        _address(participant)
        return f"event {self._data.add('calendar', 'events', name, participant, start, minutes)}"

    def delete_event(self, event_id: int) -> str:
        """Take an event out of the calendar.

        Args:
            event_id: number of the event.
        """
        return self._delete("calendar", "events", "event_id", event_id)

    def update_event(self, event_id: int, field: Literal["name", "participant", "start"], new_value: str) -> str:
        """Change an event.

        Args:
            event_id: number of the event.
            field: what to change.
            new_value: what it becomes.
        """
        return self._update("calendar", "events", "event_id", event_id, field, new_value)

    def get_visitor_information_by_id(self, visitor_id: int) -> dict:
        """Read one visit to the web site.

        Args:
            visitor_id: number of the visitor.
        """
        return self._one("analytics", "visits", "visitor_id", visitor_id)

    def total_visits_count(self, first_day: str, last_day: str) -> int:
        """Count visits to the web site.

        Args:
            first_day: as in 2026-03-02.
            last_day: the same, included.
        """
        return self._visits("COUNT(*)", first_day, last_day)

    def engaged_users_count(self, first_day: str, last_day: str) -> int:
        """Count visitors who did something on the web site.

        Args:
            first_day: as in 2026-03-02.
            last_day: the same, included.
        """
        return self._visits("COALESCE(SUM(engaged), 0)", first_day, last_day)

    def traffic_source_count(self, first_day: str, last_day: str, source: str) -> int:
        """Count visits that came from one source.

        Args:
            first_day: as in 2026-03-02.
            last_day: the same, included.
            source: search, social, direct or referral.
        """
        query = "SELECT COUNT(*) AS n FROM visits WHERE day BETWEEN ? AND ? AND source = ?"
        return self._data.rows("analytics", query, first_day, last_day, source)[0]["n"]

    def get_average_session_duration(self, first_day: str, last_day: str) -> float:
        """Average length of visits in seconds.

        Args:
            first_day: as in 2026-03-02.
            last_day: the same, included.
        """
        return round(self._visits("COALESCE(AVG(seconds), 0)", first_day, last_day), 2)

    def create_plot(
        self,
        value: Literal["total_visits", "engaged_users", "session_duration"],
        kind: Literal["bar", "line"],
        first_day: str,
        last_day: str,
    ) -> str:
        """Draw a plot of the web site's visits and keep it.

        Args:
            value: what to draw.
            kind: of plot.
            first_day: as in 2026-03-02.
            last_day: the same, included.
        """
        return f"plot {self._data.add('analytics', 'plots', value, kind, first_day, last_day)}"

    def get_task_information_by_id(self, task_id: int) -> dict:
        """Read one task.

        Args:
            task_id: number of the task.
        """
        return self._one("tasks", "tasks", "task_id", task_id)

    def search_tasks(self, query: str) -> list:
        """Find tasks, the first due first, at most five.

        Args:
            query: words in the name, the assignee, the list or the board.
        """
        return self._search("tasks", "tasks", ("name", "assignee", "list", "board"), query, "due")

    def create_task(self, name: str, assignee: str, list_name: str, board: str, due: str) -> str:
        """Create a task.

        Args:
            name: what is to be done.
            assignee: address of the one who does it.
            list_name: Backlog, In Progress, In Review or Completed.
            board: Back end, Front end or Design.
            due: day, as in 2026-03-02.
        """
        _address(assignee)
        return f"task {self._data.add('tasks', 'tasks', name, assignee, list_name, board, due)}"

    def delete_task(self, task_id: int) -> str:
        """Delete a task.

        Args:
            task_id: number of the task.
        """
        return self._delete("tasks", "tasks", "task_id", task_id)

    def update_task(
        self, task_id: int, field: Literal["name", "assignee", "list", "board", "due"], new_value: str
    ) -> str:
        """Change a task.

        Args:
            task_id: number of the task.
            field: what to change.
            new_value: what it becomes.
        """
        return self._update("tasks", "tasks", "task_id", task_id, field, new_value)

    def search_customers(self, query: str) -> list:
        """Find customers, at most five.

        Args:
            query: words in the name, the address, the product, the status or the owner.
        """
        columns = ("name", "email", "product", "status", "owner")
        return self._search("customers", "customers", columns, query, "customer_id")

    def update_customer(
        self, customer_id: int, field: Literal["name", "email", "product", "status", "owner"], new_value: str
    ) -> str:
        """Change a customer.

        Args:
            customer_id: number of the customer.
            field: what to change.
            new_value: what it becomes.
        """
        return self._update("customers", "customers", "customer_id", customer_id, field, new_value)

    def add_customer(self, name: str, email: str, product: str, status: str, owner: str) -> str:
        """Add a customer.

        Args:
            name: full name.
            email: address.
            product: Software, Hardware, Services or Training.
            status: Lead, Qualified, Proposal, Won or Lost.
            owner: address of the colleague in charge.
        """
        return f"customer {self._data.add('customers', 'customers', name, email, product, status, owner)}"

    def delete_customer(self, customer_id: int) -> str:
        """Delete a customer.

        Args:
            customer_id: number of the customer.
        """
        return self._delete("customers", "customers", "customer_id", customer_id)

    def _one(self, database: str, table: str, key: str, number: int) -> dict[str, Any]:
        found = self._data.rows(database, f"SELECT * FROM {table} WHERE {key} = ?", _number(number))
        if not found:
            raise ValueError(f"there is no {key} {number}")
        return found[0]

    def _search(
        self, database: str, table: str, columns: tuple[str, ...], query: str, order: str, folder: str = "%"
    ) -> list[dict[str, Any]]:
        where = " OR ".join(f"INSTR(LOWER({column}), ?) > 0" for column in columns)
        inside = "folder LIKE ?" if table == "emails" else "'' LIKE ?"
        text = f"SELECT * FROM {table} WHERE ({where}) AND {inside} ORDER BY {order}, 1 LIMIT {MOST_FOUND}"
        return self._data.rows(database, text, *[query.lower()] * len(columns), folder)

    def _delete(self, database: str, table: str, key: str, number: int) -> str:
        self._one(database, table, key, number)
        self._data.change(database, f"DELETE FROM {table} WHERE {key} = ?", number)
        return "deleted"

    def _update(self, database: str, table: str, key: str, number: int, field: str, value: str) -> str:
        self._one(database, table, key, number)
        # `field` is one of the names that its type allows.
        self._data.change(database, f"UPDATE {table} SET {field} = ? WHERE {key} = ?", value, number)
        return "changed"

    def _visits(self, what: str, first: str, last: str) -> Any:
        query = f"SELECT {what} AS n FROM visits WHERE day BETWEEN ? AND ?"
        return self._data.rows("analytics", query, first, last)[0]["n"]


def _number(number: int) -> int:
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"there is no number {str(number)[:20]}")
    return number


def _address(text: str) -> None:
    if "@" not in text:
        raise ValueError(f"{text[:50]} is no email address")

"""Five SQLite databases in memory, filled in the same way for the same seed."""

from __future__ import annotations

import functools
import random
import sqlite3
import threading
from typing import Any

TODAY = "2026-03-02"
OWN_ADDRESS = "sam@office.example"
PEOPLE = ["ann", "ben", "cleo", "dan", "eva", "finn", "gus", "ida", "jon", "kim"]
TABLES = {
    "email": "emails (email_id INTEGER PRIMARY KEY, folder TEXT, other TEXT, subject TEXT, body TEXT, sent TEXT)",
    "calendar": "events (event_id INTEGER PRIMARY KEY, name TEXT, participant TEXT, start TEXT, minutes INTEGER)",
    "analytics": "visits (visitor_id INTEGER PRIMARY KEY, day TEXT, source TEXT, seconds INTEGER, engaged INTEGER)",
    "tasks": "tasks (task_id INTEGER PRIMARY KEY, name TEXT, assignee TEXT, list TEXT, board TEXT, due TEXT)",
    "customers": "customers (customer_id INTEGER PRIMARY KEY, "
    "name TEXT, email TEXT, product TEXT, status TEXT, owner TEXT)",
}
PLOTS = "plots (plot_id INTEGER PRIMARY KEY, value TEXT, kind TEXT, first_day TEXT, last_day TEXT)"


MOST_KEPT = 64
"""Seeds whose filled databases are kept, to be copied; some 100 KB each."""
_COPYING = threading.Lock()


class Databases:
    """The five connections."""

    def __init__(self) -> None:
        """Empty ones, without tables."""
        self._connections: dict[str, sqlite3.Connection] = {}
        for name in TABLES:
            self._connections[name] = sqlite3.connect(":memory:", check_same_thread=False)
            self._connections[name].row_factory = sqlite3.Row

    @classmethod
    def of(cls, seed: int) -> Databases:
        """Databases of one's own, filled in the same way for the same seed."""
        made = cls()
        with _COPYING:
            source = _filled(seed)
            for name, connection in made._connections.items():
                source._connections[name].backup(connection)
        return made

    def commit(self) -> None:
        """End what was begun, so that the databases can be copied."""
        for connection in self._connections.values():
            connection.commit()

    def rows(self, database: str, query: str, *values: Any) -> list[dict[str, Any]]:
        """What a query finds."""
        return [dict(row) for row in self._connections[database].execute(query, values)]

    def change(self, database: str, query: str, *values: Any) -> None:
        """Run a statement."""
        self._connections[database].execute(query, values)

    def add(self, database: str, table: str, *values: Any) -> int:
        """Insert a row; its number, one above the largest."""
        key = TABLES[database].split("(")[1].split()[0] if table != "plots" else "plot_id"
        [row] = self.rows(database, f"SELECT COALESCE(MAX({key}), 0) + 1 AS next FROM {table}")
        marks = ", ".join("?" * (1 + len(values)))
        self.change(database, f"INSERT INTO {table} VALUES ({marks})", row["next"], *values)
        return row["next"]

    def contents(self) -> dict[str, Any]:
        """All rows of all tables."""
        tables = [(name, table.split()[0]) for name, table in TABLES.items()] + [("analytics", "plots")]
        return {table: self.rows(name, f"SELECT * FROM {table} ORDER BY 1") for name, table in tables}


def address(person: str) -> str:
    """Of a colleague."""
    return f"{person}@office.example"


@functools.lru_cache(MOST_KEPT)
def _filled(seed: int) -> Databases:
    made = Databases()
    for name, table in TABLES.items():
        made.change(name, f"CREATE TABLE {table}")
    made.change("analytics", f"CREATE TABLE {PLOTS}")
    _fill(made, random.Random(f"office {seed}"))
    made.commit()
    return made


def _fill(data: Databases, rng: random.Random) -> None:
    subjects = ["Budget", "Launch plan", "Offsite", "Invoice", "Roadmap", "Survey", "Hiring", "Security review"]
    for i in range(30):
        person, subject, day = rng.choice(PEOPLE), rng.choice(subjects), f"2026-02-{1 + i * 27 // 30:02d}"
        body = f"Please look at the {subject.lower()}."
        data.add("email", "emails", "inbox" if i % 4 else "sent", address(person), subject, body, day)
    for i in range(20):
        name, person = rng.choice(["Stand-up", "Review", "Planning", "One on one", "Demo"]), rng.choice(PEOPLE)
        start = f"2026-03-{3 + i:02d} {rng.randint(9, 16):02d}:00"
        data.add("calendar", "events", name, address(person), start, rng.choice([30, 60]))
    for i in range(60):
        source = rng.choice(["search", "social", "direct", "referral"])
        day = f"2026-02-{1 + i % 28:02d}"
        data.add("analytics", "visits", day, source, rng.randint(5, 900), int(rng.random() < 0.4))
    for i in range(24):
        name = rng.choice(["Fix login", "Write tests", "New icons", "Speed up search", "Clean data", "Update docs"])
        column, board = (
            rng.choice(["Backlog", "In Progress", "In Review"]),
            rng.choice(["Back end", "Front end", "Design"]),
        )
        data.add("tasks", "tasks", f"{name} {i}", address(rng.choice(PEOPLE)), column, board, f"2026-03-{3 + i:02d}")
    for i in range(20):
        name = f"{rng.choice(['Ada', 'Bo', 'Cy', 'Di', 'Ed'])} {rng.choice(['Reed', 'Stone', 'Wolf', 'Lake'])} {i}"
        status = rng.choice(["Lead", "Qualified", "Proposal", "Won", "Lost"])
        product = rng.choice(["Software", "Hardware", "Services", "Training"])
        mail = f"{name.lower().replace(' ', '.')}@customer.example"
        data.add("customers", "customers", name, mail, product, status, address(rng.choice(PEOPLE)))

"""The report of a campaign."""

from __future__ import annotations

from typing import Any

from tests.fuzz.inputs import EXAMPLES, tried


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Inputs by target, of a campaign."""
    if EXAMPLES:
        terminalreporter.section("inputs tried")
        for target, count in sorted(tried.items()):
            terminalreporter.write_line(f"{count:9,} {target}")

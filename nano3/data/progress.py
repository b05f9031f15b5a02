"""Progress of long preparations, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from nano3.progress import Amount

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many bytes of it are done, and how many there are."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar for what is under way, which goes away at the end; a line now and then where stderr is no terminal."""
    with ExitStack() as stack:
        key: tuple[str, int] | None = None
        shown: Amount | None = None

        def show(what: str, done: int, total: int) -> None:
            nonlocal key, shown
            if shown is None or key != (what, total) or done < shown.under_way:
                stack.close()  # a terminal has room for one bar
                key, shown = (what, total), stack.enter_context(Amount(what, total, "bytes"))
            shown.reach(done)

        yield show

"""What the language-model steps of `nano3 data curate` will cost, for people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.cli.data.curate_report import printable
from nano3.config.errors import UserError

MOST_SHOWN = 200
"""Characters of a model's reply in an estimate."""
if TYPE_CHECKING:
    from nano3.curate.ask.estimate import Estimate, Total
    from nano3.curate.run import Plan


def parse_price(text: str) -> tuple[float, float] | None:
    """Prices of a million tokens sent and written, from `0.1,0.4`; None of an empty text.

    Raises:
        UserError: no two prices.
    """
    if not text:
        return None
    try:
        sent, written = map(float, text.split(","))
    except ValueError:
        sent = written = math.nan
    if not (0 <= sent < math.inf and 0 <= written < math.inf):
        raise UserError(f"--price {text}: give two prices of a million tokens, sent and written, as 0.1,0.4")
    return sent, written


def estimate_of(plan: Plan, pilot: int) -> Estimate:
    """The estimate by a pilot of so many documents."""
    from nano3.curate.ask.estimate import estimate

    return estimate(plan, pilot)


def finished_model(folder: Path, name: str) -> tuple[str, str, int] | None:
    """No address, the model's name and context of a run in a folder that is done, so that no server need be there to
    show it; None where it is not done, or another model than `name` is wanted."""
    from nano3.curate.manifest import MANIFEST, read_manifest
    from nano3.curate.report import REPORT

    if not ((folder / REPORT).is_file() and (folder / MANIFEST).is_file()):
        return None
    done = read_manifest(folder)
    return ("", done.model, done.window) if done.model and name in ("", done.model) else None


def print_estimate(found: Estimate, price: tuple[float, float] | None) -> None:
    """Say what all documents will cost, and what that rests on."""
    documents = f"{'' if found.population.counted else 'about '}{found.population.documents:,.0f}"
    print(f"\npilot: {found.reached:,} of {found.drawn:,} documents came as far as the model, which was asked about "
          f"{found.asked:,} of them; {found.kept:,} came out")  # fmt: skip
    for step, reason, documents_dropped, reply in found.dropped:
        print(printable(f"  {step} dropped {documents_dropped:,}: {reason}"))
        if reply:
            print(printable(f"    to one the model said: {' '.join(reply.split())[:MOST_SHOWN]}"))
    if not found.asked:
        print("no estimate: none of them came as far as a step that asks the model; give a larger --pilot")
        return
    totals = found.totals
    print(f"for all {documents}, with the 95 % interval of what is drawn:")
    print(f"  requests        {_total(totals['requests'])}")
    note = "" if found.counted_tokens else "  (by bytes: the server does not count them)"
    print(f"  tokens sent     {_total(totals['sent'])}{note}")
    print(f"  tokens written  {_total(totals['written'])}{note}")
    print(f"  time            {_duration(3600 * found.hours)} at --concurrency {found.concurrency}")
    if price:
        cost = found.cost(price)
        shown = f"{cost:,.2f}" if cost >= 1 or not cost else f"{cost:.2g}"
        print(f"  cost            {shown} at {price[0]:g} and {price[1]:g} a million tokens")
    if found.asked < found.concurrency and found.asked < found.population.documents:
        print(f"the time may be longer: a pilot of {found.asked} leaves places of {found.concurrency} unused")
    if found.left_out:
        print(f"less what {', '.join(found.left_out)} will drop: steps that must see all documents have no pilot")


def _total(total: Total) -> str:
    return f"{total.value:,.0f} ± {total.margin:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 or not seconds else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

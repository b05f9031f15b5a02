"""Options of the verbs that generate text: how it is drawn, and how a conversation is put."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from nano3.config.errors import UserError

Temperature = Annotated[float, typer.Option(help="0 takes the most probable token.", min=0, metavar="X")]
TopP = Annotated[
    float,
    typer.Option(help="Draw from the smallest set of tokens of this probability, above 0.", min=0, max=1, metavar="P"),
]
TopK = Annotated[int, typer.Option(help="Draw from this many most probable tokens; 0: all.", min=0, metavar="N")]
MinP = Annotated[
    float,
    typer.Option(help="Leave out tokens below this share of the best one's probability.", min=0, max=1, metavar="P"),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Same seed, same output. Default: random.",
        min=-(1 << 63),
        max=(1 << 63) - 1,
        metavar="N",
        show_default=False,
    ),
]
System = Annotated[str | None, typer.Option(help="System prompt.", metavar="TEXT", show_default=False)]
Thinking = Annotated[bool, typer.Option("--thinking", metavar="", help="Think before the answer, base models too.")]
NoThinking = Annotated[bool, typer.Option("--no-thinking", metavar="", help="Answer without thinking first.")]
ThinkingBudget = Annotated[
    int | None,
    typer.Option(help="End the thinking part after this many tokens.", min=0, metavar="N", show_default=False),
]


def wanted_thinking(options: Mapping[str, Any]) -> bool | None:
    """What --thinking and --no-thinking come to; None: neither was given.

    Raises:
        UserError: both were.
    """
    on, off = options["thinking"], options["no_thinking"]
    if on and off:
        raise UserError("--thinking and --no-thinking contradict each other; give one of them")
    return on if on or off else None

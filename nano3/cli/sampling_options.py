"""Options of the verbs that generate text: how it is drawn, and how a conversation is put."""

from __future__ import annotations

from typing import Annotated

import typer

PLAIN_TOKENS, CHAT_TOKENS = 512, 8192
"""Most new tokens of a continued text and of an answer, where none are asked for."""
Temperature = Annotated[float, typer.Option(help="0 takes the most probable token.", min=0, metavar="X")]
TopP = Annotated[
    float, typer.Option(help="Draw from the smallest set of tokens of this probability.", min=0, max=1, metavar="P")
]
TopK = Annotated[int, typer.Option(help="Draw from this many most probable tokens; 0: all.", min=0, metavar="N")]
MinP = Annotated[
    float,
    typer.Option(help="Leave out tokens below this share of the best one's probability.", min=0, max=1, metavar="P"),
]
Seed = Annotated[
    int | None, typer.Option(help="Same seed, same output. Default: random.", metavar="N", show_default=False)
]
System = Annotated[str | None, typer.Option(help="System prompt.", metavar="TEXT", show_default=False)]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        metavar="",
        help="Think before the answer, or not. Default: think, but not with a base model.",
        show_default=False,
    ),
]
ThinkingBudget = Annotated[
    int | None,
    typer.Option(help="End the thinking part after this many tokens.", min=0, metavar="N", show_default=False),
]

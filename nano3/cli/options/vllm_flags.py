"""vLLM's names of options, so that a command copied from one of its recipes works on `nano3 serve`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from nano3.config.errors import UserError

PANEL = "vLLM's names"
SAME = {"served_model_name": "served_name", "max_model_len": "max_context", "max_num_seqs": "max_sequences"}
WITHOUT_EFFECT = {
    "tool_call_parser": "nano3 reads the calls of its models itself",
    "reasoning_parser": "nano3 separates the thinking of its models itself",
    "enable_auto_tool_choice": "tools are always there, as a request's tool_choice says",
    "trust_remote_code": "nano3 runs no code from a model's folder",
}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([kmgKMG]?)")

ServedModelName = Annotated[
    str | None,
    typer.Option(help="As --served-name.", metavar="NAME", rich_help_panel=PANEL, show_default=False),
]
MaxModelLen = Annotated[
    str | None,
    typer.Option(
        help="As --max-context; 32k is 32000, 32K is 32768, auto what the model was made for.",
        metavar="N",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
MaxNumSeqs = Annotated[
    int | None,
    typer.Option(help="As --max-sequences.", min=1, metavar="N", rich_help_panel=PANEL, show_default=False),
]
ToolCallParser = Annotated[
    str | None,
    typer.Option(help="Accepted; calls are always read.", metavar="NAME", rich_help_panel=PANEL, show_default=False),
]
ReasoningParser = Annotated[
    str | None,
    typer.Option(
        help="Accepted; thinking is always separated.", metavar="NAME", rich_help_panel=PANEL, show_default=False
    ),
]
EnableAutoToolChoice = Annotated[
    bool, typer.Option("--enable-auto-tool-choice", metavar="", help="Accepted; always on.", rich_help_panel=PANEL)
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", metavar="", help="Accepted; a model's code never runs.", rich_help_panel=PANEL),
]


def with_own_names(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options of `nano3 serve` by nano3's names alone, and a note on each that has no effect.

    Raises:
        UserError: an option is given under both names with two values, or is no number.
    """
    own = {name: value for name, value in options.items() if name not in SAME and name not in WITHOUT_EFFECT}
    for name, same in SAME.items():
        value = options[name]
        if name == "max_model_len" and value is not None:
            value = _count(value)
        if value is None:
            continue
        if own[same] not in (None, value):
            raise UserError(
                f"{_flag(same)} {own[same]} and {_flag(name)} {options[name]} are one option; give one of them"
            )
        own[same] = value
    notes = [f"note: {_flag(name)} has no effect: {why}" for name, why in WITHOUT_EFFECT.items() if options[name]]
    return own, notes


def _count(text: str) -> int | None:
    """Tokens as vLLM reads them; None for what the model was made for."""
    if text in ("auto", "-1"):
        return None
    match = _COUNT.fullmatch(text)
    count = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if count < 2:
        raise UserError(f"--max-model-len {text}: not a number of tokens of at least 2; write it as 32768 or 32K")
    return count


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

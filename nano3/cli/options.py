"""Options that several verbs share, and their shell completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def complete_preset(incomplete: str) -> list[str]:
    """Names of the pretraining presets that begin so."""
    return _presets("pretrain", incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Names of the model presets that begin so."""
    return _presets("models", incomplete)


def complete_setting(incomplete: str) -> list[str]:
    """Keys for `--set` that begin so, each with its equals sign."""
    from nano3.config.schema import PretrainConfig
    from nano3.config.typed import keys

    return [f"{key}=" for key in ["model.preset", *keys(PretrainConfig)] if key.startswith(incomplete)]


def _presets(kind: str, incomplete: str) -> list[str]:
    from nano3.config.presets import preset_names

    return [name for name in preset_names(kind) if name.startswith(incomplete)]


def server_address(url: str) -> str:
    """Where a server is, without a path's /v1; `127.0.0.1:8000` is understood too."""
    return ("" if "://" in url else "http://") + url.rstrip("/").removesuffix("/v1")


HELP = {"help_option_names": ["-h", "--help"]}
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change one setting, for example --set train.tokens=1e6. Repeatable.",
        metavar="KEY=VALUE",
        autocompletion=complete_setting,
        show_default=False,
    ),
]
FromPath = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Start from these weights: a run folder or a Hugging Face folder.",
        metavar="PATH",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", metavar="", help="Continue the run in --out (default: the newest of this preset)."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", metavar="", help="Show settings, size, memory and the difference from the report; run nothing."
    ),
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print the result on stdout as one JSON object.")]


def preset_option(names: str, default: str) -> typer.models.OptionInfo:
    """`--preset` of a stage, its presets named in the help."""
    return typer.Option(
        help=f"Preset to run: {names}, or a TOML file. Default: {default}.",
        metavar="NAME|FILE",
        autocompletion=complete_preset,
        show_default=False,
    )


def out_option(stage: str) -> typer.models.OptionInfo:
    """`--out` of a stage, its default folder named in the help."""
    return typer.Option(
        help=f"Run folder. Default: a new runs/{stage}-PRESET.", metavar="DIR", file_okay=False, show_default=False
    )

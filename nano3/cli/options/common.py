"""Options that several verbs share, and their shell completion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import typer

from nano3.config.errors import UserError


@contextmanager
def named_as_typed(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name options as they were typed, in place of the settings that these stand for (`names`)."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for setting, option in names.items():
            text = text.replace(setting, option)
        if text == str(error):
            raise
        raise UserError(text) from error


def is_for_inner_verb(context: typer.Context, example: str = "") -> bool:
    """Whether another verb stands behind this one, which then does nothing itself.

    Raises:
        typer.BadParameter: options stand before that verb: nobody would read them.
    """
    inner = context.invoked_subcommand
    if inner is not None and any(was_typed(context, name) for name in context.params):
        raise typer.BadParameter(f"give options behind {inner}{f': {example}' if example else ''}")
    return inner is not None


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether a parameter of the verb comes from the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def complete_model(incomplete: str) -> list[str]:
    """Names of the model presets that begin so."""
    return _presets("models", incomplete)


def complete_setting(incomplete: str) -> list[str]:
    """Keys of pretraining for `--set` that begin so, each with its equals sign."""
    from nano3.config.schema import PretrainConfig

    return _settings(PretrainConfig, incomplete)


def complete_context_setting(incomplete: str) -> list[str]:
    """As `complete_setting`, for extend-context."""
    from nano3.config.extend_context import ExtendContextConfig

    return _settings(ExtendContextConfig, incomplete)


def complete_sft_setting(incomplete: str) -> list[str]:
    """As `complete_setting`, for sft."""
    from nano3.config.sft import SftConfig

    return _settings(SftConfig, incomplete)


def complete_rlvr_setting(incomplete: str) -> list[str]:
    """As `complete_setting`, for rlvr."""
    from nano3.config.rlvr import RlvrConfig

    return _settings(RlvrConfig, incomplete)


def complete_rlhf_setting(incomplete: str) -> list[str]:
    """As `complete_setting`, for rlhf."""
    from nano3.config.rlhf import RlhfConfig

    return _settings(RlhfConfig, incomplete)


def complete_genrm_setting(incomplete: str) -> list[str]:
    """As `complete_setting`, for rlhf genrm."""
    from nano3.config.genrm import GenrmConfig

    return _settings(GenrmConfig, incomplete)


def _settings(schema: type, incomplete: str) -> list[str]:
    from nano3.config.typed import keys

    return [f"{key}=" for key in ["model.preset", *keys(schema)] if key.startswith(incomplete)]


def _presets(kind: str, incomplete: str) -> list[str]:
    from nano3.config.presets import preset_names

    return [name for name in preset_names(kind) if name.startswith(incomplete)]


def whole_number(text: str | int) -> int:
    """A count of at least 1 from the command line, as `--set` reads it too: 100000, 100_000 or 1e5.

    Raises:
        typer.BadParameter: it is none.
    """
    try:
        value = float(text)
        number = int(text) if str(text).replace("_", "").isdigit() else int(value)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a whole number of at least 1") from None
    if number < 1 or number != value:
        raise typer.BadParameter(f"{text!r} is not a whole number of at least 1")
    return number


HELP = {"help_option_names": ["-h", "--help"]}


def settings_option(
    complete: Callable[[str], list[str]], options: str = "", example: str = "train.tokens=1e6"
) -> typer.models.OptionInfo:
    """`--set` of a stage; `options`: those with which `nano3 config` lists its settings."""
    return typer.Option(
        "--set",
        help=f"Change one setting, for example --set {example}; nano3 config{options} lists them. Repeatable.",
        metavar="KEY=VALUE",
        autocompletion=complete,
        show_default=False,
    )


Settings = Annotated[list[str] | None, settings_option(complete_setting)]
SftSettings = Annotated[list[str] | None, settings_option(complete_sft_setting, " --preset sft/tiny", "train.steps=50")]
RlvrSettings = Annotated[
    list[str] | None, settings_option(complete_rlvr_setting, " --preset rlvr/tiny", "train.steps=50")
]
RlhfSettings = Annotated[
    list[str] | None, settings_option(complete_rlhf_setting, " --preset rlhf/tiny", "train.steps=50")
]
ContextSettings = Annotated[list[str] | None, settings_option(complete_context_setting)]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Train on this file or folder (PATH::FIELD for another text field). Repeatable: equal shares.",
        metavar="PATH",
        show_default=False,
    ),
]
FromPath = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Start from these weights: a run folder, a Hugging Face folder, a GGUF file, or ORG/NAME\\[@REVISION] of "
        "the Hugging Face hub.",
        metavar="PATH",
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", metavar="", help="Continue the run in --out (default: the newest of this preset)."),
]
GenrmSettings = Annotated[
    list[str] | None, settings_option(complete_genrm_setting, " --preset genrm/tiny", "train.steps=50")
]
Checkpoint = Annotated[
    int | None,
    typer.Option(
        help="With --resume: from the checkpoint of this step, not from the newest.",
        metavar="STEP",
        min=0,
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", metavar="", help="Show settings, size, memory and the difference from the report; run nothing."
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--world", metavar="N", min=1, help="With --dry-run: what each of N processes of torchrun would hold."
    ),
]
Rank = Annotated[
    int | None,
    typer.Option("--rank", metavar="R", min=0, help="With --world: of which process, from 0; else the first."),
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print the result on stdout as one JSON object.")]


def preset_option(stage: str, names: str, default: str) -> typer.models.OptionInfo:
    """`--preset` of a stage, its presets named in the help."""

    def complete(incomplete: str) -> list[str]:
        return _presets(stage, incomplete)

    return typer.Option(
        help=f"Preset to run: {names}, or a TOML file. Default: {default}.",
        metavar="NAME|FILE",
        autocompletion=complete,
        show_default=False,
    )


def out_option(stage: str) -> typer.models.OptionInfo:
    """`--out` of a stage, its default folder named in the help."""
    return typer.Option(
        help=f"Run folder. Default: a new runs/{stage}-PRESET.", metavar="DIR", file_okay=False, show_default=False
    )

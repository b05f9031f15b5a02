"""Options that the verbs of `nano3 eval` share: what is evaluated, and where the result goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.options.common import complete_model
from nano3.cli.options.engine import MODEL_HELP, parse_bytes
from nano3.cli.options.model_choice import choose_model
from nano3.cli.training.run_folder import RUNS
from nano3.config.errors import UserError
from nano3.model.find import check_named

if TYPE_CHECKING:
    from nano3.eval.target import Target

EXIT_SERVER_GONE = 3
LOCAL = {"dtype": "auto", "kv_cache_dtype": "auto", "device": "auto", "memory": None, "max_sequences": None,
         "max_context": None, "engine_name": "native"}  # fmt: skip
"""Options of a model of this machine, and their defaults."""
SERVER = {"model": "", "api_key": "", "tokenizer": "", "concurrency": 8, "timeout": 3600.0, "retries": 6}
"""Options of a server."""

From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help=MODEL_HELP,
        metavar="PATH",
        autocompletion=complete_model,
        show_default=False,
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server, with or without /v1, in place of --from.", metavar="URL", show_default=False
    ),
]
ServedModel = Annotated[
    str,
    typer.Option(
        "--model",
        help="With --url: the server's name of a model. Default: the first listed. Without: as --from.",
        metavar="NAME|PATH",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(envvar="NANO3_API_KEY", help="Key of the server, if it wants one.", metavar="KEY", show_default=False),
]
TokenizerPath = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        help="Folder with the served model's tokenizer.json. Default: the server's own /tokenize.",
        metavar="PATH",
        show_default=False,
    ),
]
Concurrency = Annotated[
    int, typer.Option(help="Requests to a server at once. Default: 8.", metavar="N", min=1, show_default=False)
]
Timeout = Annotated[
    float,
    typer.Option(
        help="Seconds until a request to a server is tried again. Default: 3600.", metavar="SECONDS", min=0.001,
        show_default=False,
    ),
]  # fmt: skip
Retries = Annotated[
    int,
    typer.Option(
        help="Tries after a failed one: after 1, 2, 4, ... seconds. Default: 6.", metavar="N", min=0, show_default=False
    ),
]
Seed = Annotated[int, typer.Option(help="Decides the samples. Default: 0.", metavar="N", show_default=False)]


def out_option(verb: str) -> typer.models.OptionInfo:
    """`--out` of a verb, its default folder named in the help."""
    return typer.Option(
        help=f"Result folder; one with the same settings is gone on with. Default: runs/eval-{verb}-NAME.",
        metavar="DIR", file_okay=False, show_default=False,
    )  # fmt: skip


def with_one_name(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which a model of this machine is `from_`, however it was named.

    Raises:
        UserError: it was named twice.
    """
    if options["url"] is not None or not options["model"]:
        return dict(options)
    if options["from_"] is not None:
        raise UserError("--from and --model name two models; give one of them, or --url with the server of --model")
    return {**options, "from_": options["model"], "model": ""}


def check_target(options: Mapping[str, Any]) -> None:
    """Refuse options that do not name one target, before anything is loaded.

    Args:
        options: from_, url, out and those of LOCAL and SERVER, as the command line gave them (`ctx.params`).

    Raises:
        UserError: two targets, an option of the other kind of target, or a folder that holds something else.
    """
    parse_bytes(options["memory"])
    check_out(options["out"])
    if options["from_"] is not None and options["url"] is not None:
        raise UserError("--from and --url contradict each other; give one of them")
    kind, others = ("--url", LOCAL) if options["url"] is not None else ("--from", SERVER)
    for name, default in others.items():
        # A key in the environment is nobody's wish for this command.
        if name != "api_key" and options.get(name, default) != default:
            flag = "--engine" if name == "engine_name" else f"--{name.replace('_', '-')}"
            other = "a server's model: add --url" if kind == "--from" else "a model of this machine: leave --url out"
            raise UserError(f"{flag} is an option of {other}")


def with_model(options: Mapping[str, Any]) -> dict[str, Any]:
    """Checked options, with the model of this machine where no server is named; raises UserError as choose_model, and
    where there is no such model."""
    if options["url"] is not None:
        return {**options, "from_": None}
    model = choose_model(options["from_"], "--from", server=True)
    check_named(model)
    return {**options, "from_": model}


@dataclass(frozen=True)
class Subject:
    """What checked options name, known before a local model's weights are loaded."""

    name: str
    identity: str
    settings: Mapping[str, Any]
    """What else of the options decides the numbers."""
    notes: tuple[str, ...]
    open: Callable[[], Target]
    """The target itself; a local model is loaded then."""

    @classmethod
    def of(cls, options: Mapping[str, Any], *, max_context: int | None = None, prefix_cache: bool = True) -> Subject:
        """The subject of checked options; the arguments are those of `open_target`.

        Raises:
            UserError: no such model, or no server there.
        """
        if options["url"] is not None:
            target = open_target(options)
            notes = (f"asked of {options['url']}",)
            tokenizer = options.get("tokenizer") or "the server's"
            return cls(target.name, target.identity, {"tokenizer": tokenizer}, notes, lambda: target)
        from nano3.eval.engine_target import model_identity
        from nano3.model.find import model_name

        name, identity = model_name(options["from_"]), model_identity(options["from_"])
        settings = {"engine": options["engine_name"], **number_types(options)}
        return cls(
            name, identity, settings, (),
            lambda: open_target(options, max_context=max_context, prefix_cache=prefix_cache),
        )  # fmt: skip


def open_target(options: Mapping[str, Any], *, max_context: int | None = None, prefix_cache: bool = True) -> Target:
    """The target that checked options name.

    Args:
        options: as `check_target`.
        max_context: most tokens of prompt and output that the evaluation needs; None: what the model was made for. An
            option --max-context goes before it.
        prefix_cache: prompts share beginnings.

    Raises:
        UserError: no such model, no server there, or a wrong option.
    """
    if options["url"] is not None:
        from nano3.client.server import base_address
        from nano3.eval.server_target import ServerTarget

        return ServerTarget(base_address(options["url"]), **{name: options[name] for name in SERVER if name in options})
    if sys.stderr.isatty():
        print(f"loading {options['from_']} …", file=sys.stderr, flush=True)
    from nano3.eval.engine_target import EngineTarget

    return EngineTarget.open(
        options["from_"],
        prefix_cache=prefix_cache,
        dtype=options["dtype"],
        kv_cache_dtype=options.get("kv_cache_dtype", "auto"),
        device=options["device"],
        memory=parse_bytes(options["memory"]),
        max_sequences=options["max_sequences"],
        max_context=options["max_context"] or max_context,
        engine=options["engine_name"],
    )


def number_types(options: Mapping[str, Any]) -> dict[str, str]:
    """What the options say about types of numbers, for the settings of a result; the cache's only where it is another
    than the activations'."""
    cache = options.get("kv_cache_dtype", "auto")
    return {"dtype": options["dtype"], **({"kv_cache_dtype": cache} if cache != "auto" else {})}


def check_out(out: Path | None) -> None:
    """Raise UserError for a result folder that holds something else or cannot be written, before anything is loaded."""
    from nano3.eval.store import check_folder
    from nano3.files import check_writable

    if out is not None:
        check_folder(out)
    check_writable(out or RUNS, "--out" if out else "")


def result_folder(out: Path | None, name: str, settings: Mapping[str, Any], growing: tuple[str, ...] = ()) -> Path:
    """`out`, or runs/NAME with a number behind it where that is taken."""
    from nano3.eval.store import default_folder

    return default_folder(name, settings, growing) if out is None else out


@contextmanager
def cut_short(save: Callable[[], object], folder: Path) -> Iterator[None]:
    """What happens to an evaluation that is interrupted or whose server goes away: `save` writes the partial result,
    and a line says how to go on.

    Raises:
        typer.Exit: with code 3, the server is gone.
        KeyboardInterrupt: as it came.
    """
    from nano3.eval.prompt import ServerGone
    from nano3.eval.store import has_answers

    def how_to_go_on() -> str:
        if not has_answers(folder):
            return "nothing was answered; give the same command again"
        return f"finished samples are in {folder}; give the same command again to go on"

    try:
        yield
    except ServerGone as gone:
        _try(save)
        print(f"error: {gone}; {how_to_go_on()}", file=sys.stderr, flush=True)
        raise typer.Exit(EXIT_SERVER_GONE) from None
    except KeyboardInterrupt:
        _try(save)
        print(how_to_go_on(), file=sys.stderr, flush=True)
        raise
    except UserError:
        _try(save)
        raise


def _try(save: Callable[[], object]) -> None:
    """Write a partial result; that it cannot be written is told beside the reason why it is partial, not in place of
    it."""
    try:
        save()
    except (OSError, UserError) as error:
        print(f"no result was written: {error}", file=sys.stderr, flush=True)

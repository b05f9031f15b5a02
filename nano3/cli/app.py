"""`nano3`: the table of verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from nano3.cli.disk_errors import disk_error
from nano3.cli.help_text import tidy_help
from nano3.cli.options.model_names import accept_both_names
from nano3.cli.unknown_option import unknown_option

VERBS = {
    "pretrain": "nano3.cli.training.pretrain",
    "extend-context": "nano3.cli.training.extend_context",
    "sft": "nano3.cli.training.sft",
    "rlvr": "nano3.cli.training.rlvr",
    "rlhf": "nano3.cli.training.rlhf",
    "quantize": "nano3.cli.quantize.app",
    "merge": "nano3.cli.merge",
    "export": "nano3.cli.export",
    "serve": "nano3.cli.serve",
    "generate": "nano3.cli.generate",
    "chat": "nano3.cli.chat",
    "data": "nano3.cli.data.app",
    "info": "nano3.cli.info",
    "runs": "nano3.cli.training.runs",
    "config": "nano3.cli.config",
    "eval": "nano3.cli.eval.app",
    "bench": "nano3.cli.bench.app",
}
_ROOT_OPTIONS = ("install_completion", "show_completion")
USER_ERRORS = (ValueError, FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
OTHER_RANKS_WAIT_S = 10.0
EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141


class VerbGroup(TyperGroup):
    """A group whose verbs are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the verbs, in the order of a model's life."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb's command, or None when there is no such verb."""
        if cmd_name not in VERBS:
            return None
        command = get_command(import_module(VERBS[cmd_name]).app)
        command.name = cmd_name
        command.params = [p for p in command.params if p.name not in _ROOT_OPTIONS]
        accept_both_names(command)
        tidy_help(command)
        return command

    def get_help_option(self, ctx: Any) -> Any:
        """That of --help; it and those of completion take no value, so none is shown."""
        option = super().get_help_option(ctx)
        for flag in [option, *(p for p in self.params if p.name in _ROOT_OPTIONS)]:
            if flag is not None:
                flag.metavar = ""  # type: ignore[attr-defined]
        return option

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a Ctrl-C that it leaves alone reaches `main`, where typer would end without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise typer.Abort from stop

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that the arguments begin with; for a wrong one, the suggestion comes from all verbs."""
        if args and args[0] not in VERBS:
            self.commands = {verb: self.get_command(ctx, verb) for verb in VERBS}
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=VerbGroup,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: [bold]nano3 pretrain[/] (minutes on a laptop CPU, nothing to download).",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from nano3 import __version__

        print(f"nano3 {__version__}")
        raise typer.Exit


@app.callback()
def nano3(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train hybrid Mamba-2 / attention / mixture-of-experts language models, from a laptop CPU to GPUs.

    The same code runs a tiny model and Nemotron 3 Nano (31.6B parameters): only the preset changes.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
    elif os.environ.get("NANO3_CPU_ISA"):
        # A level that cannot run here is told before a server listens or a run begins. It loads torch.
        from nano3.kernels.cpu.native import native

        native()


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong input or a full disk (one `error:` line on stderr), 130
    interrupted, 141 nobody reads stdout any more.

    NANO3_DEBUG=1 shows the traceback of a wrong input too.
    """
    debug = os.environ.get("NANO3_DEBUG", "") not in ("", "0")
    try:
        code = app(args, prog_name="nano3", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        _exit_with("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        _exit_without_reader()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer has made exit code 1 of it
            _exit_without_reader()
        raise
    except Exception as error:
        usage = hasattr(error, "format_message")
        told = usage or isinstance(error, USER_ERRORS)
        disk = "" if told else disk_error(error)
        if debug or not (told or disk):
            raise
        line = disk or _one_line(error)
        _tell_torchrun(f"error: {line}")
        _let_main_rank_speak()
        _exit_with(f"error: {line}" if line else "", EXIT_USER_ERROR)
    sys.exit(code if isinstance(code, int) else 0)


def _let_main_rank_speak() -> None:
    """Under torchrun most errors are every rank's. The others wait for the main rank to tell it and be ended with it;
    one that is still there after that has an error of its own."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(OTHER_RANKS_WAIT_S)


def _tell_torchrun(message: str) -> None:
    """Leave the error where torchrun looks for it: its report, which comes after our line, then ends with it."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
            Path(file).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")


def _exit_without_reader() -> None:
    """What stdout still holds goes nowhere: nobody reads it any more."""
    sys.stdout = sys.__stdout__
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(EXIT_BROKEN_PIPE)


def _exit_with(message: str, code: int) -> None:
    if message:
        print(_between_words(message), file=sys.stderr)
    sys.exit(code)


def _between_words(message: str) -> str:
    """On a terminal, `message` in lines that break at spaces, where the terminal would break inside words."""
    if not sys.stderr.isatty():
        return message
    columns = shutil.get_terminal_size().columns
    return textwrap.fill(message, columns, break_long_words=False, break_on_hyphens=False)


def _one_line(error: Any) -> str:
    """The error as one line, a file's path first; empty where typer has shown the help in its place."""
    if hasattr(error, "format_message"):
        if not error.format_message():
            return ""
        context = getattr(error, "ctx", None)
        help_hint = f" (see {context.command_path} --help)" if context else ""
        text = (unknown_option(error) or error.format_message().rstrip(".")) + help_hint
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {(error.strerror or 'cannot be used').lower()}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())

"""Options of every verb that opens a generation engine: the model, where it runs, and what it may hold."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.options.common import complete_model
from nano3.config.errors import UserError

if TYPE_CHECKING:
    from nano3.engine.protocol import GenerationEngine

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE)


def parse_bytes(text: str | None) -> int | None:
    """Bytes of a size such as `6GiB`, `512M` or `1073741824`; units are powers of 1024. None stays None.

    Raises:
        UserError: not a size, or nothing.
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise UserError(f"--memory {text}: not a size; write it as 6GiB or 512MiB")
    return size


MODEL_HELP = (
    "A run or Hugging Face folder, a GGUF file, ORG/NAME\\[@REVISION] of the Hugging Face hub, or a model preset "
    "(random weights). Default: NANO3_MODEL, or the newest finished run in runs/."
)
Model = Annotated[
    str | None,
    typer.Option(
        help=MODEL_HELP,
        metavar="MODEL",
        autocompletion=complete_model,
        show_default=False,
    ),
]
Dtype = Annotated[
    str, typer.Option(help="Weights and arithmetic: auto, float32, bfloat16.", metavar="TYPE", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", metavar="NAME", show_default=False)]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Most memory for sequences and the prefix cache, such as 6GiB. Default: a share of what is free.",
        metavar="SIZE",
        show_default=False,
    ),
]
MaxSequences = Annotated[
    int | None,
    typer.Option(
        help="Most sequences computed at once. Default: 64 (chat: 2), fewer where memory is short.",
        min=1,
        metavar="N",
        show_default=False,
    ),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of prompt and output together. Default: what the model was made for.",
        min=2,
        metavar="N",
        show_default=False,
    ),
]
KvCacheDtype = Annotated[
    str,
    typer.Option(
        "--kv-cache-dtype",
        help="Keys and values: auto (as the activations), bfloat16, or fp8 with the scales of a quantized folder, in "
        "which twice as many fit.",
        metavar="TYPE",
        show_default=False,
    ),
]
EngineName = Annotated[
    str,
    typer.Option("--engine", help="native, or vllm (the extra of that name).", metavar="NAME", show_default=False),
]
EngineArg = Annotated[
    list[str] | None,
    typer.Option(
        help="A setting of vLLM's EngineArgs, such as mamba_ssm_cache_dtype=float32. Repeatable.",
        metavar="NAME=VALUE",
        show_default=False,
    ),
]


def parse_engine_args(given: Sequence[str] | None) -> dict[str, Any]:
    """Settings of --engine-arg by name: a value that is JSON (a number, true, a list) is read so, any other is a word.

    Raises:
        UserError: one without =, or a name given twice.
    """
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise UserError(f"--engine-arg {text}: not NAME=VALUE")
        if name in found:
            raise UserError(f"--engine-arg {name}: given twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def open_from(options: Mapping[str, Any]) -> tuple[GenerationEngine, str]:
    """The engine that a verb's options ask for, and the model's name.

    Args:
        options: model, dtype, device, memory, max_sequences, max_context, engine_name, engine_arg, as the command
            line gave them (`ctx.params`).

    Raises:
        UserError: no such model, or a wrong option.
    """
    memory = parse_bytes(options["memory"])
    if sys.stderr.isatty():
        print(f"loading {options['model']} …", file=sys.stderr, flush=True)
    from nano3.engine.launch import open_engine

    return open_engine(
        options["model"],
        dtype=options["dtype"],
        device=options["device"],
        memory=memory,
        max_sequences=options["max_sequences"],
        max_context=options["max_context"],
        engine=options["engine_name"],
        kv_cache_dtype=options.get("kv_cache_dtype", "auto"),
        vllm_arguments=parse_engine_args(options.get("engine_arg")),
    )

"""Options that the benches share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nano3.cli.options.common import Json, complete_model

MODEL = "bench-110m"
UNITS = {"k": 1024, "m": 1024**2}


def token_count(text: str | int) -> int:
    """A number of tokens: 8192, or 8k for as many."""
    written = str(text).strip().lower()
    unit = UNITS.get(written[-1:], 1)
    digits = written[:-1] if unit > 1 else written
    if not digits.isascii() or not digits.isdigit() or int(digits) < 1:
        raise typer.BadParameter(f"{text!r} is no number of tokens, such as 8192 or 8k")
    return int(digits) * unit


Isl = Annotated[int, typer.Option("--isl", parser=token_count, help="Tokens of each prompt; 8k is 8192.", metavar="N")]
Osl = Annotated[int, typer.Option("--osl", parser=token_count, help="Tokens of each answer.", metavar="N")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="A model preset (random weights), a TOML file of sizes, a run folder or a Hugging Face folder.",
        metavar="PRESET|PATH",
        autocompletion=complete_model,
    ),
]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.", metavar="TYPE")]
Threads = Annotated[int | None, typer.Option(help="Threads of every side.", metavar="N", show_default=False, min=1)]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", metavar="NAME")]
Repeat = Annotated[int, typer.Option(help="Counted runs; the median is shown.", metavar="N")]
Against = Annotated[
    list[str] | None,
    typer.Option(
        help="Run these in turn with nano3: transformers, llama.cpp, or in throughput vllm, each with :TYPE if wanted "
        "(llama.cpp:q4_0). Repeatable.",
        metavar="NAME[:TYPE],...",
        show_default=False,
    ),
]
PeerDtype = Annotated[str, typer.Option(help="Types of peers that --against names without one.", metavar="TYPE,TYPE")]
PeerTimeout = Annotated[float, typer.Option(help="Seconds until a run of a peer is given up.", metavar="SECONDS")]
Gguf = Annotated[
    Path | None,
    typer.Option(
        help="A model for llama.cpp instead of nano3's own weights.",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
Profile = Annotated[bool, typer.Option("--profile", metavar="", help="Also show where the time of a run goes.")]
Scaling = Annotated[bool, typer.Option("--scaling", metavar="", help="Also run nano3 with one thread, in turn.")]


ApiKey = Annotated[
    str,
    typer.Option(envvar="NANO3_API_KEY", help="Key of the server, if it wants one.", metavar="KEY", show_default=False),
]


def out_option(files: str) -> typer.models.OptionInfo:
    """`--out` of a bench that writes `files`."""
    return typer.Option(
        help=f"Also write {files} here: a new folder.", metavar="DIR", file_okay=False, show_default=False
    )


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often."""

    model: Model = MODEL
    dtype: Dtype = "auto"
    threads: Threads = None
    repeat: Repeat = 5


@dataclass(frozen=True)
class TinySetting(Setting):
    """The same for what takes long."""

    model: Model = "tiny"


@dataclass(frozen=True)
class Peers:
    """Who else does the work."""

    against: Against = None
    peer_dtype: PeerDtype = "float32,bfloat16"
    peer_timeout: PeerTimeout = 300.0


@dataclass(frozen=True)
class PeersOrFile(Peers):
    """The same where llama.cpp may bring a model of its own."""

    gguf: Gguf = None


@dataclass(frozen=True)
class Extras:
    """What else is measured."""

    scaling: Scaling = False
    profile: Profile = False
    device: Device = "cpu"


@dataclass(frozen=True)
class Output:
    """Where the result goes."""

    out: Annotated[Path | None, out_option("result.json and speed.png")] = None
    as_json: Json = False


def names(*texts: str) -> tuple[str, ...]:
    """Names with commas between them, of one or several options, each once."""
    return tuple(dict.fromkeys(part.strip() for text in texts for part in text.split(",") if part.strip()))

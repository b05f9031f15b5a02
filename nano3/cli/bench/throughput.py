"""`nano3 bench throughput`: the report's headline setting in one command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.bench.compute import progress, settings
from nano3.cli.bench.options import (
    ApiKey,
    Device,
    Isl,
    Osl,
    Output,
    PeersOrFile,
    PeerTimeout,
    Repeat,
    Setting,
    out_option,
)
from nano3.cli.options.engine import parse_bytes
from nano3.cli.options.groups import grouped
from nano3.config.errors import UserError
from nano3.files import check_free, check_writable

if TYPE_CHECKING:
    from nano3.bench.throughput.measure import Load

Concurrency = Annotated[
    str,
    typer.Option(help="Requests at a time: auto (the best that fits in memory), or numbers.", metavar="auto|N,N"),
]
Requests = Annotated[
    int | None,
    typer.Option(help="Requests in all. Default: as many as at a time.", metavar="N", min=1, show_default=False),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="For sequences, such as 6GiB. Default: most of what is free.", metavar="SIZE", show_default=False
    ),
]
Url = Annotated[
    str,
    typer.Option(
        help="Measure this OpenAI-compatible server instead, such as vLLM's.", metavar="URL", show_default=False
    ),
]


@dataclass(frozen=True)
class OnceSetting(Setting):
    """The model, and one run: it takes long."""

    repeat: Repeat = 1


@dataclass(frozen=True)
class PatientPeers(PeersOrFile):
    """Who else does the work, and as long as it takes."""

    peer_timeout: PeerTimeout = 7200.0


@dataclass(frozen=True)
class ChartOutput(Output):
    """Where the result goes."""

    out: Annotated[Path | None, out_option("result.json and throughput.png")] = None


@grouped
def throughput(
    context: typer.Context,
    isl: Isl = 8192,
    osl: Osl = 16384,
    concurrency: Concurrency = "auto",
    requests: Requests = None,
    memory: Memory = None,
    device: Device = "cpu",
    url: Url = "",
    api_key: ApiKey = "",
    *,
    setting: OnceSetting,
    peers: PatientPeers,
    output: ChartOutput,
) -> None:
    """Whole requests of random tokens, without an early end: tokens a second in all and for each user, latency.

    The defaults are the report's setting: 8k tokens in, 16k out, as many requests at a time as is best.

    [dim]In little:[/]  nano3 bench throughput --isl 512 --osl 256 --concurrency 1,8,32

    [dim]A server:[/]   nano3 bench throughput --url http://127.0.0.1:8000 --isl 1k --osl 256
    """
    from nano3.bench.throughput.measure import Load, read_concurrency

    load = Load(isl, osl, read_concurrency(concurrency), requests or 0)
    load.cases()  # refuses numbers that contradict each other
    if url:
        _refuse_with_url(context)
    if output.out is not None:
        check_free(output.out)
        check_writable(output.out, "--out")
    found = (
        _on_server(url, api_key, load) if url else _on_engine(load, setting, peers, device, parse_bytes(memory) or 0)
    )
    from nano3.bench.throughput.report import write

    for path in write(found, output.out) if output.out is not None else []:
        print(f"wrote {path}", file=sys.stderr)
    _show(found, output.as_json)


def _refuse_with_url(context: typer.Context) -> None:
    from nano3.cli.options.common import was_typed

    ours = ("model", "dtype", "threads", "repeat", "memory", "device", "against", "peer_dtype", "peer_timeout", "gguf")
    if given := [f"--{name.replace('_', '-')}" for name in ours if was_typed(context, name)]:
        raise UserError(f"--url measures a server, which has its own: leave out {' and '.join(given)}")


def _on_engine(load: Load, setting: Setting, peers: PeersOrFile, device: str, memory: int) -> dict[str, Any]:
    from nano3.bench.compute import Plan
    from nano3.bench.throughput.measure import measure_engine
    from nano3.cli.hardware import detect

    plan = Plan("throughput", (), **settings(setting, peers), device=device, memory=memory)
    with progress() as say:
        measured, search = measure_engine(plan, load, say)
    from nano3.bench.throughput.report import summary

    return summary(measured, detect().cpu, load, search)


def _on_server(url: str, api_key: str, load: Load) -> dict[str, Any]:
    from nano3.bench.serving_client import Target
    from nano3.bench.throughput.server import measure_server
    from nano3.cli.hardware import detect
    from nano3.client.server import base_address

    target = Target(base_address(url), "completions", "", api_key, timeout=86400.0)
    with progress() as say:
        return measure_server(target, load, None, detect().cpu, say)


def _show(found: dict[str, Any], as_json: bool) -> None:
    from nano3.bench.compute_chart import threads_text
    from nano3.bench.compute_report import cache_notes, failures
    from nano3.bench.throughput.report import auto_text, latency_rows, rate_rows, use_lines
    from nano3.cli.output import plain_table, print_json, print_table, results

    if as_json:
        return print_json(found)
    console, machine, load = results(), found["machine"], found["load"]
    facts = plain_table(f"throughput, {found['model']}: {load['isl']:,} tokens in, {load['osl']:,} out", "", "")
    threads = f", {threads_text(machine['threads'])}" if machine["threads"] else ""
    facts.add_row("machine", f"{machine['cpu']}{threads}")
    facts.add_row("versions", ", ".join(f"{name} {number}" for name, number in found["versions"].items()))
    facts.add_row("seed", str(found["seed"]))
    if ours := found["sides"].get("nano3"):
        facts.add_row("weights, activations", f"{ours['weights']}, {ours['activations']} on {ours['device']}")
    if auto := auto_text(found):
        facts.add_row("auto", auto)
    print_table(console, facts)
    columns = ("output", "all", "a user's", "nano3 is x", "peak memory")
    rates = plain_table("Tokens a second", "at a time", "", *columns, right=("at a time", *columns))
    for row in rate_rows(found):
        rates.add_row(*row)
    print_table(console, rates)
    columns = ("first token", "99 % within", "between tokens", "99 % within ")
    times = plain_table("Milliseconds", "at a time", "", *columns, right=("at a time", *columns))
    for row in latency_rows(found):
        times.add_row(*row)
    print_table(console, times)
    for line in [*use_lines(found), *cache_notes(found), *found["notes"], *failures(found)]:
        console.print(line, markup=False)

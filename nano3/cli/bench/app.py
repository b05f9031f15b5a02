"""`nano3 bench`: measured speed. Each kind of measurement is a verb of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.bench import compare as bench_compare
from nano3.cli.bench import compute as bench_compute
from nano3.cli.bench.kernels import kernels
from nano3.cli.bench.options import ApiKey, out_option
from nano3.cli.bench.roofline import roofline
from nano3.cli.bench.scaling import scaling
from nano3.cli.bench.throughput import throughput
from nano3.cli.options.common import HELP, Json
from nano3.files import check_free, check_writable

if TYPE_CHECKING:
    from nano3.bench.serving import Progress

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", context_settings=HELP, help="Measure speed.")
NOTHING_ANSWERED = 1


Rate = Annotated[
    float | None,
    typer.Option(help="Mean arrivals a second, at random times (Poisson).", metavar="R", show_default=False),
]
Concurrency = Annotated[
    int | None,
    typer.Option(help="Requests under way at a time, without --rate. Default: 8.", metavar="N", show_default=False),
]
PromptTokens = Annotated[
    int | None,
    typer.Option(help="Mean tokens of a prompt of random words. Default: 512.", metavar="N", show_default=False),
]
Dataset = Annotated[
    Path | None,
    typer.Option(
        help="Prompts from a JSONL file: prompt or messages in each line.", metavar="FILE", exists=True, dir_okay=False,
        show_default=False,
    ),
]  # fmt: skip
ModelName = Annotated[
    str,
    typer.Option(help="Model name. Default: the first one the server lists.", metavar="NAME", show_default=False),
]
Out = Annotated[Path | None, out_option("result.json, requests.jsonl and latency.png")]


@app.callback()
def bench() -> None:
    """Measure speed."""


app.command()(bench_compute.train)
app.command()(bench_compute.prefill)
app.command()(bench_compute.decode)
app.command()(bench_compute.rl)
app.command()(throughput)
app.command()(kernels)
app.command()(scaling)
app.command()(bench_compare.compare)
app.command()(roofline)


@app.command()
def serve(
    url: Annotated[str, typer.Option(help="The server, with or without /v1.", metavar="URL")] = "http://127.0.0.1:8000",
    rate: Rate = None,
    concurrency: Concurrency = None,
    requests: Annotated[int, typer.Option(help="Requests to measure.", metavar="N")] = 100,
    prompt_tokens: PromptTokens = None,
    output_tokens: Annotated[int, typer.Option(help="Mean tokens of an answer.", metavar="N")] = 128,
    spread: Annotated[float, typer.Option(help="Lengths lie within this share of the mean.", metavar="SHARE")] = 0.5,
    shared_prefix: Annotated[int, typer.Option(help="Tokens that all prompts begin with.", metavar="N")] = 0,
    dataset: Dataset = None,
    endpoint: Annotated[str, typer.Option(help="chat or completions.", metavar="NAME")] = "chat",
    model: ModelName = "",
    api_key: ApiKey = "",
    warmup: Annotated[int, typer.Option(help="Requests before the clock starts.", metavar="N")] = 2,
    timeout: Annotated[
        float, typer.Option(help="Seconds until a request is given up.", metavar="SECONDS", min=0.001)
    ] = 600.0,
    seed: Annotated[int, typer.Option(help="Decides prompts, lengths and arrival times.", metavar="N")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Send a load to an OpenAI-compatible server; show time to first token, inter-token latency, throughput, errors.

    [dim]Twice a second, at random times:[/]
      nano3 bench serve --rate 2

    [dim]32 users at a time:[/]
      nano3 bench serve --concurrency 32 --out bench/
    """
    from nano3.bench.serving import Workload, measure
    from nano3.bench.serving_client import Target
    from nano3.bench.serving_prompts import Lengths
    from nano3.bench.serving_report import summary, write
    from nano3.client.server import base_address
    from nano3.config.errors import UserError

    if rate is not None and concurrency is not None:
        raise UserError("--rate and --concurrency contradict each other: arrivals come at a rate, or when one is done")
    if dataset is not None and (prompt_tokens is not None or shared_prefix):
        raise UserError("--dataset brings its own prompts: leave out --prompt-tokens and --shared-prefix")
    lengths = Lengths(512 if prompt_tokens is None else prompt_tokens, output_tokens, spread, shared_prefix)
    users = 8 if concurrency is None else concurrency
    workload = Workload(requests, rate, users, lengths, dataset, warmup, seed)
    target = Target(base_address(url), endpoint, model, api_key, timeout)
    if out is not None:
        check_free(out)
        check_writable(out, "--out")
    with _progress(requests) as progress:
        measured = measure(target, workload, progress)
    figures = summary(measured)
    written = write(measured, figures, out) if out is not None else []
    _show(figures, written, as_json)
    if not figures["completed"]:
        raise typer.Exit(NOTHING_ANSWERED)


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    """A bar on stderr that goes away at the end; nothing when stderr is no terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bars:
        task = bars.add_task("requests", total=total)
        yield lambda done, total: bars.update(task, completed=done)


def _show(figures: dict[str, Any], written: list[Path], as_json: bool) -> None:
    from nano3.bench.serving_report import LATENCIES, rows
    from nano3.cli.output import plain_table, print_json, print_table, results

    for note in figures["notes"]:
        print(f"note: {note}", file=sys.stderr)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    if as_json:
        return print_json(figures)
    console = results()
    facts = plain_table(f"{figures['model']} at {figures['url']}", "", "")
    for name, value in rows(figures):
        facts.add_row(name, value)
    print_table(console, facts)
    columns = ("mean", "p50", "p90", "p99", "max")
    times = plain_table("Latency, milliseconds", "", *columns, right=columns)
    for key, name in LATENCIES.items():
        found = figures["latency"][key]
        times.add_row(name, *("" if found is None else f"{found[column] * 1000:,.1f}" for column in columns))
    print_table(console, times)

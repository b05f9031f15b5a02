"""`nano3 bench train`, `prefill`, `decode`, `rl`: speed on this machine, beside peers and the machine's ceilings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.bench.options import Extras, Output, Peers, PeersOrFile, Profile, Setting, TinySetting, names
from nano3.cli.options.groups import grouped
from nano3.files import check_free, check_writable

if TYPE_CHECKING:
    from nano3.bench.compute import Plan

RL_WORKER = "nano3.stages.policy.bench"
"""nano3's side of rl trains with nano3.rl, which nano3.bench does not import."""
RATIO_COLUMN = 2
FEW_OPS = 4
"""Ops of a backend up to which the head of a bench names them."""


@grouped
def train(
    setting: Setting,
    batch: Annotated[int, typer.Option(help="Sequences.", metavar="N")] = 4,
    seq_len: Annotated[str, typer.Option(help="Tokens of each, one or several lengths.", metavar="N,N")] = "1024",
    pattern: Annotated[
        str, typer.Option(help="Other blocks than the preset's.", metavar="SYMBOLS", show_default=False)
    ] = "",
    forward_only: Annotated[bool, typer.Option("--forward-only", metavar="", help="No backward pass.")] = False,
    *,
    peers: Peers,
    extras: Extras,
    output: Output,
) -> None:
    """Forward and backward pass on random tokens: tokens a second, FLOP/s, peak memory.

    [dim]Beside transformers:[/]  nano3 bench train --against transformers
    """
    from nano3.bench.workload import train_cases

    cases = train_cases(batch, seq_len, forward_only)
    measure_and_show("train", cases, setting, peers, output, pattern=pattern, **vars(extras))


@grouped
def prefill(
    setting: Setting,
    prompt_tokens: Annotated[str, typer.Option(help="Lengths of the prompt.", metavar="N,N")] = "4096",
    *,
    peers: PeersOrFile,
    extras: Extras,
    output: Output,
) -> None:
    """One prompt through the engine until the first token.

    [dim]Cost by length:[/]  nano3 bench prefill --prompt-tokens 4096,16384,65536
    """
    from nano3.bench.workload import prefill_cases

    measure_and_show("prefill", prefill_cases(prompt_tokens), setting, peers, output, **vars(extras))


@grouped
def decode(
    setting: Setting,
    sequences: Annotated[str, typer.Option(help="Sequences that run at once.", metavar="N,N")] = "1,8,32",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.", metavar="N")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Tokens that each sequence gets.", metavar="N")] = 64,
    *,
    peers: PeersOrFile,
    extras: Extras,
    output: Output,
) -> None:
    """Greedy decoding through the engine: tokens a second, time and bytes read a step.

    [dim]Beside both peers:[/]  nano3 bench decode --against transformers,llama.cpp:q4_0
    """
    from nano3.bench.workload import decode_cases

    cases = decode_cases(sequences, prompt_tokens, output_tokens)
    measure_and_show("decode", cases, setting, peers, output, **vars(extras))


@grouped
def rl(
    setting: TinySetting,
    prompts: Annotated[int, typer.Option(help="Prompts of a step.", metavar="N")] = 8,
    group: Annotated[int, typer.Option(help="Samples of each prompt.", metavar="N")] = 16,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.", metavar="N")] = 64,
    output_tokens: Annotated[int, typer.Option(help="Tokens of each sample.", metavar="N")] = 64,
    profile: Profile = False,
    *,
    peers: Peers,
    output: Output,
) -> None:
    """One step of reinforcement learning: samples drawn, and the policy's update on them.

    transformers' side is a loop of generate, forward and backward pass, and AdamW's step.

    [dim]Beside transformers:[/]  nano3 bench rl --against transformers
    """
    from nano3.bench.workload import rl_cases

    cases = rl_cases(prompts, group, prompt_tokens, output_tokens)
    measure_and_show("rl", cases, setting, peers, output, profile=profile, worker=RL_WORKER)


def measure_and_show(
    kind: Any, cases: Sequence[Any], setting: Setting, peers: Peers, output: Output, **more: Any
) -> None:
    """Measure the cases, write what is to be written, and print the tables. Raises UserError."""
    from nano3.bench.compute import Plan

    plan = Plan(kind, cases, **settings(setting, peers), **more)
    _run(plan, output.out, output.as_json)


def settings(setting: Setting, peers: Peers) -> dict[str, Any]:
    """Fields of a Plan."""
    return {
        "model": setting.model,
        "dtype": setting.dtype,
        "threads": setting.threads or 0,
        "repeat": setting.repeat,
        "against": names(*peers.against or ()),
        "peer_dtypes": names(peers.peer_dtype),
        "peer_timeout": peers.peer_timeout,
        "gguf": str(getattr(peers, "gguf", None) or ""),
    }


def _run(plan: Plan, out: Path | None, as_json: bool) -> None:
    if out is not None:
        check_free(out)
        check_writable(out, "--out")
    from nano3.bench.compute import measure
    from nano3.cli.hardware import detect

    with progress() as say:
        measured = measure(plan, say)
    # Imports torch, for which a wrong input need not wait.
    from nano3.bench.compute_report import summary, write

    figures = summary(measured, detect().cpu)
    for path in write(figures, out) if out is not None else []:
        print(f"wrote {path}", file=sys.stderr)
    _show(figures, as_json)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """What goes on, on one line of stderr that goes away at the end; a line each where stderr is no terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update


def _show(figures: dict[str, Any], as_json: bool) -> None:
    from nano3.bench.ceilings import TITLES
    from nano3.bench.compute_chart import machine_text
    from nano3.bench.compute_report import (
        cache_notes,
        failures,
        part_rows,
        scaled,
        shown_ceilings,
        speed_rows,
        use_rows,
    )
    from nano3.cli.output import plain_table, print_json, print_table, results

    if as_json:
        return print_json(figures)
    console, machine, ours = results(), figures["machine"], figures["sides"]["nano3"]
    facts = plain_table(f"{figures['kind']}, {figures['model']}", "", "")
    facts.add_row("machine", f"{machine_text(machine)}, torch {machine['torch']}")
    facts.add_row("weights, activations", f"{ours['weights']}, {ours['activations']}")
    facts.add_row("backends", backends_text(figures["backends"]))
    for name in shown_ceilings(figures):
        rate = figures["ceilings"][name]
        text = f"{scaled(rate['median'])}{rate['unit']}"
        if rate["min"] < rate["max"]:
            text += f" ({scaled(rate['min']).strip()} - {scaled(rate['max']).strip()})"
        facts.add_row(TITLES.get(name, name), text)
    print_table(console, facts)
    columns = ("tokens/s", "least - most", "nano3 is x times as fast", "peak memory")
    # Without another side there is no ratio.
    shown = [
        place
        for place in range(len(columns))
        if place != RATIO_COLUMN or any(case["ratios"] for case in figures["cases"])
    ]
    speeds = plain_table("Speed", "", "", *(columns[place] for place in shown), right=columns)
    for case, side, *values in speed_rows(figures):
        speeds.add_row(case, side, *(values[place] for place in shown))
    print_table(console, speeds)
    _show_parts(list(part_rows(figures)))
    for line in failures(figures):
        print(line)
    columns = ("work", "of a matmul", *(("ms a step", "read", "of the best") if figures["kind"] == "decode" else ()))
    uses = plain_table("nano3's use of the machine", "", *columns, right=columns)
    for row in use_rows(figures):
        uses.add_row(*row)
    print_table(console, uses)
    for note in cache_notes(figures):
        console.print(note)
    for case, profile in zip(figures["cases"], figures["profiles"], strict=False):
        for key, title in (("ops", "ops"), ("torch", "ops of PyTorch")):
            _show_profile(f"Self time by {title}, {case['name']}", profile[key])


def _show_parts(rows: Sequence[Sequence[str]]) -> None:
    from nano3.cli.output import plain_table, print_table, results

    if not rows:
        return
    columns = ("drawn/s", "of the time", "nano3 is x", "trained/s", "of the time", "nano3 is x")
    table = plain_table("Tokens drawn and trained on", "", "", *columns, right=columns)
    for row in rows:
        table.add_row(*row)
    print_table(results(), table)


def _show_profile(title: str, rows: Sequence[dict[str, Any]]) -> None:
    from nano3.cli.output import plain_table, print_table, results

    columns = ("calls", "ms", "share")
    table = plain_table(title, "", *columns, right=columns)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['calls']:,}" if row["calls"] else "",
            f"{row['seconds'] * 1000:,.1f}",
            f"{row['share']:.1%}",
        )
    print_table(results(), table)


def backends_text(backends: dict[str, dict[str, str]]) -> str:
    """Which backend runs how many ops, and which those are where they are few: `cpu: 15 ops; eager: attention`."""
    names: dict[str, list[str]] = {}
    for op, choice in backends.items():
        names.setdefault(choice["backend"], []).append(op)
    return "; ".join(
        f"{name}: {', '.join(ops) if len(ops) <= FEW_OPS else f'{len(ops)} ops'}" for name, ops in names.items()
    )

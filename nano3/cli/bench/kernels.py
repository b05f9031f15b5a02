"""`nano3 bench kernels`: each op by itself, against the machine's ceilings and the other backends."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from nano3.cli.bench.compute import progress
from nano3.cli.bench.options import Device, Output, Setting, names, out_option
from nano3.cli.options.groups import grouped
from nano3.config.errors import UserError
from nano3.files import check_free, check_writable

WIDE = 100
"""Columns of a terminal from which on there is room for what bounds an op."""
Ops = Annotated[
    list[str] | None,
    typer.Option("--op", help="Only these ops. Repeatable. Default: all.", metavar="NAME,NAME", show_default=False),
]

CeilingsFile = Annotated[
    Path | None,
    typer.Option(
        help="Take the ceilings of this earlier result of the same machine.", metavar="FILE", show_default=False
    ),
]


@dataclass(frozen=True)
class ChartOutput(Output):
    """Where the result goes."""

    out: Annotated[Path | None, out_option("result.json and kernels.png")] = None


@grouped
def kernels(
    setting: Setting,
    op: Ops = None,
    tokens: Annotated[int, typer.Option(help="Of the sequence that an op takes.", metavar="N")] = 1024,
    sequences: Annotated[int, typer.Option(help="Of which an op of decoding takes a token each.", metavar="N")] = 8,
    context: Annotated[int, typer.Option(help="Positions that such a token attends to.", metavar="N")] = 1024,
    documents: Annotated[int, typer.Option(help="That the tokens are of, one after the other.", metavar="N")] = 1,
    device: Device = "cpu",
    ceilings: CeilingsFile = None,
    forward_only: Annotated[bool, typer.Option("--forward-only", metavar="", help="No backward passes.")] = False,
    no_reference: Annotated[bool, typer.Option("--no-reference", metavar="", help="Leave the slow one out.")] = False,
    *,
    output: ChartOutput,
) -> None:
    """Every op of nano3.kernels at the sizes of a model, by each backend: time, FLOP/s, bytes/s, share of the roofline.

    [dim]Two ops, at the length of your data:[/]  nano3 bench kernels --op attention,ssd_scan --tokens 4096
    """
    if output.out is not None:
        check_free(output.out)
        check_writable(output.out, "--out")
    from nano3.cli.hardware import detect
    from nano3.cli.info import find_model
    from nano3.engine.launch import find_device

    cfg, where = find_model(setting.model), find_device(device)
    from nano3.bench.kernels.cases import Sizes
    from nano3.bench.kernels.measure import Plan, measure

    dtype, threads = _dtype(setting.dtype, where), _threads(setting.threads)
    sizes = Sizes(tokens, sequences, context, documents)
    plan = Plan(cfg, sizes, dtype, names(*op or ()), setting.repeat, forward_only, not no_reference, where,
                _earlier(ceilings) if ceilings else None)  # fmt: skip
    with progress() as say:
        measured = measure(plan, threads, say)
    from nano3.bench.kernels.report import write
    from nano3.bench.versions import device_name, versions
    from nano3.bench.workload import SEED

    cache = measured.pop("cache_bytes")
    versions_, name = versions(), device_name(where)
    found = {
        "kind": "kernels",
        "model": setting.model,
        "dtype": str(dtype).removeprefix("torch."),
        "load": vars(sizes),
        "machine": {"cpu": detect().cpu, "threads": threads, "device": name, "torch": versions_["torch"],
                    "cache_bytes": cache},
        "versions": versions_,
        "seed": SEED,
        "repeat": setting.repeat,
        **measured,
    }  # fmt: skip
    for path in write(found, output.out) if output.out is not None else []:
        print(f"wrote {path}", file=sys.stderr)
    _show(found, output.as_json)


def _earlier(path: Path) -> dict[str, Any]:
    """A result of this bench. Raises UserError."""
    from nano3.bench.compare import read_result

    found = read_result(path)
    if found["kind"] != "kernels":
        raise UserError(f"--ceilings {path}: is of bench {found['kind']}; give a result of nano3 bench kernels")
    return found


def _dtype(name: str, device: Any) -> Any:
    from nano3.bench.peers.types import DTYPES
    from nano3.model.dtype import compute_dtype

    if name not in ("auto", *DTYPES):
        raise UserError(f"--dtype {name}: not known; use auto, {', '.join(DTYPES)}")
    return compute_dtype(name, device)


def _threads(wanted: int | None) -> int:
    import torch

    from nano3.cores import usable_cores

    if (wanted or 1) > (cores := usable_cores()):
        raise UserError(f"--threads is {wanted}, but nano3 may use {cores} cores of this machine")
    return wanted or torch.get_num_threads()


def _show(found: dict[str, Any], as_json: bool) -> None:
    from nano3.bench.ceilings import READS, TITLES
    from nano3.bench.compute_chart import machine_text
    from nano3.bench.compute_report import scaled
    from nano3.bench.kernels.report import failures, rows
    from nano3.cli.output import plain_table, print_json, print_table, results

    if as_json:
        return print_json(found)
    console, machine, load = results(), found["machine"], found["load"]
    facts = plain_table(f"kernels, {found['model']}, {found['dtype']}", "", "")
    facts.add_row("machine", f"{machine_text(machine)}, torch {machine['torch']}")
    of = f" of {load['documents']} documents" if load["documents"] > 1 else ""
    facts.add_row(
        "sizes", f"{load['tokens']:,} tokens{of}; decoding: {load['sequences']} sequences, {load['context']:,} each"
    )
    held = {case["read_ceiling"] for case in found["cases"]}
    for name, rate in found["ceilings"].items():
        if name not in READS or name in held:
            facts.add_row(TITLES[name], f"{scaled(rate['max'])}{rate['unit']}")
    print_table(console, facts)
    columns = ("ms", "x as long", "GFLOP/s", "GB/s", "roofline")
    wide = ("bound by",) if console.width >= WIDE else ()
    table = plain_table("Ops", "", "backend", *columns, *wide, right=columns)
    for row in rows(found):
        table.add_row(*row[: 2 + len(columns) + len(wide)])
    print_table(console, table)
    for line in failures(found):
        print(line)
    cache = f"the cache of {machine['cache_bytes'] / 2**20:,.0f} MiB"
    console.print(
        "roofline: the least time that the ceilings allow over the median time; "
        + (f"{cache} is emptied before each call" if machine["device"]
           else f"what fits {cache} is held against reading as much from there")
    )  # fmt: skip

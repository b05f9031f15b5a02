"""`nano3 bench roofline`: what a GPU can do at the very best, reckoned and not measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nano3.cli.bench.options import Isl, Osl, out_option
from nano3.cli.options.common import Json, complete_model
from nano3.config.errors import UserError
from nano3.files import check_free, check_writable

MODEL, GPU = "nano3-30b-a3b", "h200"


def _rates(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"--tflops {text}: is no number, nor two with a comma between them") from None


def _complete_gpu(incomplete: str) -> list[str]:
    from nano3.bench.roofline.gpus import GPUS

    return [name for name in GPUS if name.startswith(incomplete.lower())]


Model = Annotated[
    str,
    typer.Option(
        help="A model preset, a TOML file of sizes, a run folder or a Hugging Face folder.",
        metavar="PRESET|PATH",
        autocompletion=complete_model,
    ),
]
GpuName = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        help="h100, h200, b200 or l40s. Default: h200, or your own by the three options below.",
        metavar="NAME",
        autocompletion=_complete_gpu,
        show_default=False,
    ),
]
Bandwidth = Annotated[
    float | None,
    typer.Option(help="Of the device's memory, in place of the published figure.", metavar="GB/S", show_default=False),
]
Tflops = Annotated[
    str,
    typer.Option(
        help="Dense TFLOP/s in bf16, and in 8 bits where these differ.", metavar="BF16[,8BIT]", show_default=False
    ),
]
Memory = Annotated[float | None, typer.Option(help="Of the device.", metavar="GB", show_default=False)]
Out = Annotated[Path | None, out_option("result.json and roofline.png")]


def roofline(
    model: Model = MODEL,
    gpu: GpuName = None,
    isl: Isl = 8192,
    osl: Osl = 16384,
    bandwidth: Bandwidth = None,
    tflops: Tflops = "",
    memory: Memory = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The most tokens a second that a GPU allows, for every quantization: from bytes and FLOP, nothing is run.

    [dim]The report's setting:[/]
      nano3 bench roofline --model nano3-30b-a3b --gpu h200 --isl 8k --osl 16k

    [dim]A device of your own:[/]
      nano3 bench roofline --bandwidth 50 --tflops 2 --memory 24 --isl 8k
    """
    from nano3.bench.roofline.gpus import choose_gpu

    own = (bandwidth, tflops, memory)
    chosen = choose_gpu(gpu or (None if all(own) else GPU), bandwidth, _rates(tflops), memory)
    if out is not None:
        check_free(out)
        check_writable(out, "--out")
    from nano3.bench.roofline.bounds import Load
    from nano3.bench.roofline.report import figures, write
    from nano3.cli.info import find_model

    found = figures(model, find_model(model), chosen, Load(isl, osl))
    for path in write(found, out) if out is not None else []:
        print(f"wrote {path}", file=sys.stderr)
    _show(found, as_json)


def _show(found: dict[str, Any], as_json: bool) -> None:
    from nano3.cli.output import plain_table, print_json, print_table, results

    if as_json:
        return print_json(found)
    console, gpu, load = results(), found["gpu"], found["load"]
    facts = plain_table(f"roofline, {found['model']}, {load['isl']:,} tokens in, {load['osl']:,} out", "", "")
    facts.add_row("device", f"one {gpu['name']}: {gpu['memory'] / 1e9:,.4g} GB, {gpu['bandwidth'] / 1e9:,.5g} GB/s, "
                  f"{gpu['flops_16'] / 1e12:,.5g} TFLOP/s bf16, {gpu['flops_8'] / 1e12:,.5g} in 8 bits")  # fmt: skip
    facts.add_row("source", gpu["source"])
    for i, line in enumerate((*found["formula"], found["formula_notes"])):
        facts.add_row("" if i else "formula", line)
    print_table(console, facts)
    sizes = ("all weights, GB", "read for a token, GB", "a sequence at its end, MB", "batch that fits")
    memory = plain_table("Memory", "weights", "cache", *sizes, right=sizes)
    rates = ("prefill", "decoding", "one alone", "output", "ratio")
    speeds = plain_table(
        "Tokens/s at most", "weights", "cache", *rates, "bound: prefill", "decoding", "whole", right=rates
    )
    for row in found["bounds"]:
        gigabytes = (f"{row[name] / 1e9:,.2f}" for name in ("folder_bytes", "token_bytes"))
        memory.add_row(
            row["title"], row["cache"], *gigabytes, f"{row['sequence_bytes'] / 1e6:,.1f}", f"{row['batch']:,}"
        )
        speeds.add_row(row["title"], row["cache"], *_speeds(row))
    print_table(console, memory)
    print_table(console, speeds)
    console.print(
        "prefill, decoding: all sequences of the batch; one alone: decoding, batch of 1; output: of whole requests;"
    )
    console.print(
        "ratio: its output to that of bf16 weights and cache; bound by memory: a larger batch would bring more."
    )
    for note in found["notes"]:
        console.print(note)
    for line in found["report_measured"]:
        console.print(f"measured by the report's authors, not by nano3: {line}", markup=False)


def _speeds(row: dict[str, Any]) -> list[str]:
    if not row["batch"]:
        return [""] * 7 + ["does not fit"]
    prefill, decode = row["prefill"], row["decode"]
    rates = (prefill["rate"], decode["rate"], row["alone"], row["output_rate"])
    ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
    return [*(f"{rate:,.0f}" for rate in rates), ratio, prefill["limit"], decode["limit"], row["limit"]]

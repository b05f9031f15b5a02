"""`nano3 quantize sensitivity`: what FP8 costs, part by part."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nano3.cli.options.common import Json, whole_number
from nano3.cli.quantize.options import Calibrate, From
from nano3.config.errors import UserError
from nano3.files import check_free, check_writable


class By(StrEnum):
    """What is quantized together."""

    part = "part"
    block = "block"
    matrix = "matrix"


ByOption = Annotated[
    By,
    typer.Option(
        "--by",
        help="What is quantized at a time: part (matrices of one kind in a block), block, or matrix.",
        metavar="part|block|matrix",
    ),
]
Samples = Annotated[int, typer.Option("--samples", parser=whole_number, help="Rows to calibrate with.", metavar="N")]
Heldout = Annotated[
    int, typer.Option("--heldout", parser=whole_number, help="Held-out rows to measure the loss on.", metavar="N")
]
Length = Annotated[
    int, typer.Option("--length", parser=whole_number, help="Tokens at which rows are cut.", metavar="N")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Also write result.json and sensitivity.png here: a new folder.",
        metavar="DIR",
        file_okay=False,
        show_default=False,
    ),
]


def sensitivity(
    from_path: From = None,
    by: ByOption = By.part,
    calibrate: Calibrate = None,
    samples: Samples = 100,
    heldout: Heldout = 100,
    length: Length = 1024,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Rank the parts of a model by what FP8 costs: the loss on held-out chat rows with one part quantized at a time.

    [dim]The newest run, as a table and a chart:[/]
      nano3 quantize sensitivity --out sensitivity/

    [dim]Block by block, on your own conversations:[/]
      nano3 quantize sensitivity --by block --calibrate chats.jsonl
    """
    from nano3.cli.options.model_choice import choose_model

    if length < 2:
        raise UserError(f"--length is {length}; it must be at least 2, for one token to predict")
    if out is not None:
        check_free(out)
        check_writable(out, "--out")
    source = choose_model(from_path, "--from")
    from nano3.stages.quantizing import sensitivity as stage
    from nano3.stages.quantizing.rows import Calibration

    found = stage.main(source, Calibration(tuple(calibrate or ()), samples, length), heldout, by.value)
    for path in stage.write(found, out) if out is not None else []:
        print(f"wrote {path}", file=sys.stderr)
    _show(found, as_json)


def _show(found: dict[str, Any], as_json: bool) -> None:
    from nano3.cli.output import count_text, plain_table, print_json, print_table, results

    if as_json:
        return print_json(found)
    columns = ("weights", "loss", "increase", "95 % interval")
    table = plain_table(f"{found['model']}: one {found['by']} in FP8, the costliest first", "", *columns,
                        "report's selection", right=columns)  # fmt: skip
    for part in found["parts"]:
        interval = f"{part['low']:+.3%} to {part['high']:+.3%}"
        table.add_row(part["name"], count_text(part["numbers"]), f"{part['loss']:.5f}", f"{part['increase']:+.3%}",
                      interval, "bf16" if part["kept"] else "FP8")  # fmt: skip
    console = results()
    print_table(console, table)
    console.print(f"loss in bf16: {found['loss']:.5f} nats a token, {found['rows']:,} held-out rows with "
                  f"{found['targets']:,} targets; intervals that overlap do not tell parts apart")  # fmt: skip

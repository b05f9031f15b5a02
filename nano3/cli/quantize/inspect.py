"""`nano3 quantize inspect`: the tensors of a quantized folder."""

from __future__ import annotations

from typing import Annotated

import typer

from nano3.cli.options.common import Json
from nano3.config.errors import UserError

Folder = Annotated[
    str | None,
    typer.Argument(
        help="Run folder or Hugging Face folder. Default: the newest quantized one in runs/.",
        metavar="FOLDER",
        show_default=False,
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        help="The model before quantization, to tell each tensor's error.",
        metavar="PATH",
        show_default=False,
    ),
]
All = Annotated[bool, typer.Option("--all", metavar="", help="Also what is not quantized.")]


QUANTIZED = {"float8_e4m3fn": "FP8", "int8": "int8", "int4": "int4"}


def inspect(folder: Folder = None, reference: Reference = None, everything: All = False, as_json: Json = False) -> None:
    """List the quantized tensors of a folder: type, shape, scales and error. Exit code 2: none is quantized.

    [dim]With errors, from the model that it was made from:[/]
      nano3 quantize inspect runs/sft-tiny-fp8 --reference runs/sft-tiny
    """
    from dataclasses import asdict

    from nano3.cli.options.model_choice import choose_quantized
    from nano3.cli.output import plain_table, print_json, print_table, results
    from nano3.model.find import local_model, model_folder
    from nano3.quantize.inspect import inspect as tensors_of

    before = model_folder(local_model(reference)) if reference else None
    folder = choose_quantized(folder)
    found = list(tensors_of(model_folder(local_model(folder)), before))
    if not everything and all(tensor.scale is None for tensor in found):
        kinds = ", ".join(sorted({tensor.dtype for tensor in found}))
        raise UserError(f"{folder}: is not quantized: {len(found):,} tensors of {kinds}; --all lists them")
    if as_json:
        return print_json([asdict(tensor) for tensor in found])
    shown = [tensor for tensor in found if everything or tensor.scale is not None]
    heads = ("tensor", "type", "shape", "scale", "input scale", "used", "zeros", *(["error"] if before else []))
    table = plain_table("", *heads, right=heads[3:])
    for tensor in shown:
        row = [
            tensor.name.removeprefix("backbone."),
            tensor.dtype.replace("float8_e4m3fn", "e4m3"),
            "x".join(map(str, tensor.shape)),
        ]
        row += ["" if value is None else f"{value:.3g}" for value in (tensor.scale, tensor.input_scale)]
        shares = (tensor.largest, tensor.zeros, *([tensor.error] if before else []))
        table.add_row(*row, *("" if value is None else f"{value:.1%}" for value in shares))
    console = results()
    if shown:
        print_table(console, table)
    left = len(found) - len(shown)
    counts = [(sum(t.dtype == dtype for t in found), what) for dtype, what in QUANTIZED.items()]
    quantized = ", ".join(f"{count:,} {what} tensors" for count, what in counts if count)
    console.print((quantized or "no quantized tensors") + (f"; {left:,} others are not shown (--all)" if left else ""))

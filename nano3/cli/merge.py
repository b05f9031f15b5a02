"""`nano3 merge`: a LoRA adapter added to the weights of its model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nano3.cli.options.common import HELP, Json
from nano3.cli.options.force import Force, check_new_model
from nano3.cli.output import print_json

app = typer.Typer(rich_markup_mode="rich", context_settings=HELP)


@app.command()
def merge(
    adapter: Annotated[
        Path,
        typer.Argument(
            help="Folder with adapter_config.json and adapter_model.safetensors.", metavar="ADAPTER", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder of the merged model.", metavar="DIR", file_okay=False, show_default=False),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="Model that the adapter belongs to: a run folder, a Hugging Face folder, or ORG/NAME\\[@REVISION] of "
            "its hub. Default: what the adapter says.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Add a LoRA adapter to the weights of its model, and write a Hugging Face folder.

    W + alpha/rank * B A in float32, rounded once to the type of W. The adapter may be nano3's or PEFT's.

    [dim]What `nano3 sft --set lora.rank=16` left beside the run's own merged model:[/]
      nano3 merge runs/sft-tiny/adapter --out merged

    [dim]Any other adapter, on a model of this machine:[/]
      nano3 merge my-adapter --base runs/pretrain-tiny --out merged
    """
    from nano3.model.find import adapter_base, local_model
    from nano3.model.lora.merge_folder import merge_folder

    check_new_model(out, force)
    model = local_model(base) if base else adapter_base(adapter)
    report = merge_folder(adapter, model, out)
    for line in report.lines()[:-1]:
        print(line, file=sys.stderr)
    if as_json:
        print_json({"out": str(out), "base": model, "rank": report.rank, "alpha": report.alpha})
    else:
        print(f"merged: {out}")

"""Options that `nano3 quantize` and its verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Model: a run folder, a Hugging Face folder, or ORG/NAME\\[@REVISION] of its hub. Default: NANO3_MODEL, "
        "or the newest finished run in runs/.",
        metavar="PATH",
        show_default=False,
    ),
]
Calibrate = Annotated[
    list[str] | None,
    typer.Option(
        "--calibrate",
        help="Conversations to look at activations with: jsonl, json or Parquet files, folders, hub:NAME or "
        "generate:NAME. Repeatable. Default: the data of the model's sft run, else tasks that nano3 makes.",
        metavar="ROWS",
        show_default=False,
    ),
]

"""`nano3 export`: a model as one file for other programs."""

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
def export(
    file: Annotated[Path, typer.Argument(help="File to write.", metavar="FILE", show_default=False)],
    gguf: Annotated[
        str,
        typer.Option(
            "--gguf",
            help="Type of the matrices: bf16, or q8_0, q5_0 or q4_0 with 8, 5 or 4 bits in blocks of 32 that share a "
            "scale; f32 too.",
            metavar="TYPE",
            show_default=False,
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Model: a run folder, a Hugging Face folder, a LoRA adapter's, or ORG/NAME\\[@REVISION] of its hub. "
            "Default: NANO3_MODEL, else the newest finished run in runs/.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model as a GGUF file, which llama.cpp, Ollama and LM Studio run.

    With the tokenizer and the chat template. A tokenizer that llama.cpp would run otherwise is refused: pretrain with
    [bold]--set data.tokenizer=train:qwen2[/] for one that it has. nano3 reads the file wherever it takes a folder.

    [dim]The newest run, with 8 bits a weight:[/]
      nano3 export --gguf q8_0 model.gguf

    [dim]And run it here:[/]
      nano3 generate --model model.gguf --prompt "def main"
    """
    from nano3.cli.options.model_choice import choose_model
    from nano3.stages.exporting.gguf import main

    if file.exists() and not file.is_dir():
        check_new_model(file, force, "")
    model = choose_model(source, "--from")
    written = main(model, file, gguf)
    for name in written.kept:
        print(f"note: {name} stays bf16: its rows are no multiple of 32", file=sys.stderr)
    if as_json:
        facts = {"tensors": written.tensors, "bytes": written.bytes, "kept_bf16": written.kept}
        print_json({"out": str(file), "from": model, "type": gguf, **facts})
    else:
        print(f"exported: {file} ({written.tensors} tensors, {written.bytes / 1e6:,.1f} MB)")

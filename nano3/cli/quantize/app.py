"""`nano3 quantize`: fewer bits after training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nano3.cli.options.common import HELP, Json, is_for_inner_verb, was_typed, whole_number
from nano3.cli.options.force import Force, check_new_model
from nano3.cli.quantize.inspect import inspect
from nano3.cli.quantize.options import Calibrate, From
from nano3.cli.quantize.sensitivity import sensitivity

app = typer.Typer(rich_markup_mode="rich", context_settings=HELP, invoke_without_command=True)

SelectiveFp8 = Annotated[
    bool,
    typer.Option(
        "--selective-fp8",
        metavar="",
        help="FP8 weights, activations and KV cache; attention and the Mamba-2 block before it stay bf16 (default).",
    ),
]
Int8 = Annotated[
    bool,
    typer.Option(
        "--int8",
        metavar="",
        help="8-bit integers in all matrices, activations rounded as they come: what processors without FP8 are fast "
        "with. Nothing is calibrated.",
    ),
]
Int4 = Annotated[
    bool,
    typer.Option(
        "--int4",
        metavar="",
        help="The same with weights of 4 bits, in groups of 32. With --calibrate or --samples they are chosen for "
        "those conversations (GPTQ), which loses less and takes longer.",
    ),
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="Another choice: selective, everything, attention=fp8|bf16, mamba=fp8|mixed|bf16, kv=fp8|bf16, "
        "edges=fp8|bf16 (first and last two blocks), or a TOML file. Repeatable.",
        metavar="POLICY",
        show_default=False,
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples", parser=whole_number, help="Rows of them. Default: 1000.", metavar="N", show_default=False
    ),
]
Length = Annotated[
    int,
    typer.Option(
        "--length", parser=whole_number, help="Tokens at which rows are cut. Default: 4096.", metavar="N",
        show_default=False,
    ),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder of the quantized model. Default: runs/NAME-fp8 (-int8, -int4).",
        metavar="DIR",
        file_okay=False,
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", metavar="", help="Show what would be quantized, and bytes before and after; run nothing."
    ),
]


@app.callback()
def quantize(
    ctx: typer.Context,
    from_path: From = None,
    selective_fp8: SelectiveFp8 = False,
    int8: Int8 = False,
    int4: Int4 = False,
    policy: PolicyOption = None,
    calibrate: Calibrate = None,
    samples: Samples = 1000,
    length: Length = 4096,
    out: Out = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make an FP8 model of a trained one, in the layout of NVIDIA ModelOpt that vLLM and TensorRT-LLM read; or one of
    integers, in that of compressed-tensors.

    [dim]The newest run, calibrated on 1,000 rows of its sft data:[/]
      nano3 quantize

    [dim]Everything in FP8 but the cache, with your own conversations:[/]
      nano3 quantize --policy everything --policy kv=bf16 --calibrate chats.jsonl

    [dim]Integers, to be fast on a CPU:[/]
      nano3 quantize --from runs/sft-tiny --int8

    [dim]In 4 bits, chosen for 300 conversations of its sft data:[/]
      nano3 quantize --from runs/sft-tiny --int4 --samples 300

    [dim]Random weights in the shape of the published model, to measure with (18 GB):[/]
      nano3 quantize --from nano3-30b-a3b --int4
    """
    if is_for_inner_verb(ctx, f"nano3 quantize {ctx.invoked_subcommand} ..."):
        return
    if int8 or int4:
        others = {"--selective-fp8": selective_fp8, "--policy": policy, "--dry-run": dry_run}
        rows = _rows_of_integers(ctx, int8, int4, [name for name, given in others.items() if given], calibrate)
        calibration = (tuple(calibrate or ()), samples, length) if rows else None
        return _integers(from_path, out, force, "int8" if int8 else "int4", calibration, as_json)
    from nano3.cli.options.model_choice import choose_model
    from nano3.cli.quantize.report import show_plan, show_result
    from nano3.quantize.policy import read_policy

    if selective_fp8 and policy and policy[0] == "everything":
        raise typer.BadParameter("--selective-fp8 and --policy everything contradict each other: give one of them")
    chosen = read_policy(policy or [])
    source = choose_model(from_path, "--from")
    from nano3.stages.quantizing import stage
    from nano3.stages.quantizing.rows import Calibration

    folder, selection = stage.prepare(source, chosen)
    if dry_run:
        return show_plan(folder, selection, chosen, as_json)
    target = _target(out, force, source, "fp8")
    print(f"policy: {chosen}; {len(selection.modules):,} modules become FP8", file=sys.stderr)
    made = stage.main(source, target, chosen, Calibration(tuple(calibrate or ()), samples, length))
    show_result(folder, made, chosen, as_json)


app.command()(inspect)
app.command()(sensitivity)


def _rows_of_integers(
    ctx: typer.Context, int8: bool, int4: bool, others: list[str], calibrate: list[str] | None
) -> bool:
    """Whether 4 bits are calibrated; options that make no sense together are refused."""
    flag = "--int8" if int8 else "--int4"
    if int8 and int4:
        raise typer.BadParameter("--int8 and --int4 contradict each other: give one of them")
    if others:
        raise typer.BadParameter(f"{others[0]} is about FP8, and {flag} quantizes all matrices: leave one of them out")
    of_rows = ["--calibrate"] if calibrate else []
    of_rows += [f"--{name}" for name in ("samples", "length") if was_typed(ctx, name)]
    if of_rows and int8:
        raise typer.BadParameter(f"{of_rows[0]} is about FP8 and 4 bits: for --int8 nothing is calibrated")
    return bool(of_rows)


def _integers(
    from_path: str | None,
    out: Path | None,
    force: bool,
    kind: Literal["int8", "int4"],
    rows: tuple[Sequence[str], int, int] | None,
    as_json: bool,
) -> None:
    """`--int8` or `--int4`; rows: paths, number and length of the conversations to calibrate with."""
    from nano3.cli.options.model_choice import choose_model
    from nano3.cli.output import bytes_text, plain_table, print_json, print_table, results
    from nano3.stages.quantizing import integers
    from nano3.stages.quantizing.rows import Calibration

    source = choose_model(from_path, "--from")
    target = _target(out, force, source, kind)
    policy = f"{kind} in all matrices; embeddings, convolutions, routers and norms stay as they are"
    print(f"policy: {policy}", file=sys.stderr)
    made = integers.main(source, target, 8 if kind == "int8" else 4, None if rows is None else Calibration(*rows))
    before, after = made.bytes_stored, made.bytes
    if as_json:
        facts = {"model": made.source, "out": str(target), "bytes_stored": before, "bytes": after}
        return print_json(facts | {"calibration_rows": made.calibration_rows})
    table = plain_table("", "", "")
    table.add_row("model", f"{target} (a Hugging Face folder)")
    table.add_row("policy", policy)
    if made.calibration_rows is not None:
        table.add_row("calibrated", f"on {made.calibration_rows:,} rows")
    table.add_row("size", bytes_text(after) + (f", {after / before:.2f} of what it was" if before else ""))
    table.add_row("talk to it", f"nano3 chat --model {target}")
    table.add_row("measure it", f"nano3 bench decode --model {target}")
    print_table(results(), table)


def _target(out: Path | None, force: bool, source: str, kind: str) -> Path:
    """Where the model goes: `out`, where nothing is lost there, else a folder that is free."""
    if out is None:
        return _free_folder(source, kind)
    check_new_model(out, force, source=Path(source))
    return out


def _free_folder(source: str, kind: str) -> Path:
    """runs/NAME-KIND, or with a number behind it the first that is free."""
    import itertools

    from nano3.cli.training.run_folder import RUNS
    from nano3.model.find import model_name

    first = RUNS / f"{model_name(source)}-{kind}"
    candidates: Any = itertools.chain([first], (first.with_name(f"{first.name}-{i}") for i in itertools.count(2)))
    chosen = next(path for path in candidates if not path.exists())
    print(f"to: {chosen} (--out names another)", file=sys.stderr)
    return chosen

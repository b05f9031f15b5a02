"""`nano3 data curate` and `nano3 data report`: pipelines over documents, and what they kept and dropped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nano3.cli.data.complete_step import complete_step_setting
from nano3.cli.data.curate_estimate import estimate_of, finished_model, parse_price, print_estimate
from nano3.cli.data.curate_list import check_named, show_file, show_list
from nano3.cli.data.curate_report import printable, show_report
from nano3.cli.options.common import Json, was_typed

if TYPE_CHECKING:
    from nano3.curate.ask.estimate import Estimate
    from nano3.curate.ask.model import Model
    from nano3.curate.pipeline import Pipeline
    from nano3.curate.run import Plan

EXIT_INTERRUPTED = 130
MODEL_OPTIONS = ("url", "model", "answers", "concurrency", "timeout", "deadline")
"""What says which model is asked, and how."""


class Executor(StrEnum):
    """Where tasks run."""

    LOCAL = "local"
    SLURM = "slurm"
    RAY = "ray"


@contextmanager
def server_gone() -> Iterator[None]:
    """Ends the command with exit code 3 where the model's server no longer answers."""
    from nano3.client.asynchronous import ServerGoneError

    try:
        yield
    except ServerGoneError as error:
        from nano3.cli.eval.options import EXIT_SERVER_GONE

        print(f"error: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(EXIT_SERVER_GONE) from None


@contextmanager
def _goes_on() -> Iterator[None]:
    """Says after a Ctrl-C that nothing done is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this run ended", file=sys.stderr, flush=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def complete_pipeline(incomplete: str) -> list[str]:
    """Names of the presets of pipelines that begin so."""
    from nano3.config.presets import preset_names
    from nano3.curate.catalog import PRESETS

    return [name for name in preset_names(PRESETS) if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(
        help="A pipeline: a preset (--list names them) or a TOML file.",
        metavar="PIPELINE",
        show_default=False,
        autocompletion=complete_pipeline,
    ),
]
ListAll = Annotated[bool, typer.Option("--list", metavar="", help="Show all pipelines and steps; run nothing.")]
Show = Annotated[
    bool, typer.Option("--show", metavar="", help="Print the pipeline's TOML, to begin your own with; run nothing.")
]
Paths = Annotated[
    list[str] | None,
    typer.Option("--from", help="File or folder to read. Repeatable.", metavar="PATH", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder to write. Default: curated/PIPELINE.", metavar="DIR", file_okay=False, show_default=False
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        help="Existing texts that the result must not repeat (dedup steps). Repeatable.",
        metavar="PATH",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a setting of a step, as near-dedup.verify=0.9. Repeatable.",
        metavar="STEP.KEY=VALUE",
        autocompletion=complete_step_setting,
    ),
]
Tasks = Annotated[int, typer.Option(min=0, help="Parts of the inputs; 0: by their size. Fixed for a folder.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core (Slurm: no limit).")]
Where = Annotated[
    Executor, typer.Option(help="Where tasks run: here, as job arrays of Slurm, or on Ray (RAY_ADDRESS, else here).")
]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm", help="Option of sbatch for --executor slurm, as partition=cpu. Repeatable.", metavar="KEY=VALUE"
    ),
]
Limit = Annotated[int, typer.Option(min=0, help="Read only so many documents, in one task; 0: all.")]
Url = Annotated[str, typer.Option(help="OpenAI-compatible server, for steps that ask a language model.", metavar="URL")]
ModelName = Annotated[str, typer.Option("--model", help="Model to ask; empty: the first it lists.", metavar="NAME")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests under way at once; fewer while the server is full.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one reply.", metavar="SECONDS")]
Deadline = Annotated[
    float,
    typer.Option(
        min=0.1, help="Seconds to wait for a server that answers nothing; --timeout at the least.", metavar="SECONDS"
    ),
]
Answers = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the model's answers, which are not asked for again. Default: DIR/answers.",
        metavar="DIR",
        file_okay=False,
        show_default=False,
    ),
]
Pilot = Annotated[
    int, typer.Option(min=0, help="With --dry-run and --url: documents to ask about for an estimate; 0: none.")
]
Price = Annotated[
    str,
    typer.Option(help="Price of a million tokens sent and written, for the estimate, as 0.1,0.4.", metavar="IN,OUT"),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        metavar="",
        help="Show inputs, steps, settings; with --url, by a pilot, what the model will cost.",
    ),
]


def curate(
    context: typer.Context,
    name: Name = "",
    list_all: ListAll = False,
    show: Show = False,
    paths: Paths = None,
    out: Out = None,
    against: Against = None,
    overrides: Overrides = None,
    tasks: Tasks = 0,
    workers: Workers = 0,
    executor: Where = Executor.LOCAL,
    slurm: SlurmOptions = None,
    limit: Limit = 0,
    url: Url = "",
    model: ModelName = "",
    concurrency: Concurrency = 32,
    timeout: Timeout = 600.0,
    deadline: Deadline = 900.0,
    answers: Answers = None,
    pilot: Pilot = 32,
    price: Price = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Filter, clean and deduplicate documents by a pipeline of steps; every document dropped is counted with a reason.

    The result is DIR/data (JSON lines) with DIR/blend.toml for training, and DIR/report.json. A run that was ended goes
    on when the same command is given again.

    [dim]A trial, nothing to download:[/]
      nano3 data curate tiny

    [dim]Repositories; web pages, cleaned by a model behind a server:[/]
      nano3 data curate code --from checkouts/
      nano3 data curate cc-code --from crawl.warc.gz --url http://127.0.0.1:8000

    [dim]What there is, a pipeline of your own, and what a run would do:[/]
      nano3 data curate --list
      nano3 data curate code --show > mine.toml
      nano3 data curate code --from checkouts/ --dry-run
    """
    if list_all:
        show_list(as_json)
        return
    if show:
        show_file(name)
        return
    pipeline = _pipeline(name, overrides or [], paths, against, limit, tasks)
    _check_executor(executor, slurm, workers)
    _check_model_options(context, pipeline)
    folder, slurm = out or Path("curated") / pipeline.name, slurm or []
    asked = _model(url, model, concurrency, timeout, deadline, answers, folder, dry_run) if url else None
    from nano3.curate.run import plan_run

    plan = plan_run(pipeline, folder, paths or [], against or [], tasks, limit, asked)
    if dry_run:
        _dry_run(plan, pilot, price, workers, slurm if executor == Executor.SLURM else None, as_json)
    else:
        _carry_out(plan, workers, executor, slurm, as_json)


def _pipeline(
    name: str,
    overrides: list[str],
    paths: list[str] | None,
    against: list[str] | None,
    limit: int,
    tasks: int,
) -> Pipeline:
    """The pipeline, checked together with the options that say what it reads."""
    from nano3.config.errors import UserError

    check_named(name)
    if limit and tasks > 1:
        raise UserError(f"--limit reads in one task; leave out --tasks {tasks}")
    from nano3.curate.pipeline import load_pipeline

    pipeline = load_pipeline(name, overrides)
    for line in pipeline.notices:
        print(printable(f"warning: {line}"), file=sys.stderr)
    if not paths and not pipeline.config.inputs:
        raise UserError(f"pipeline '{name}' has no inputs of its own: give --from PATH")
    if against and not any("dedup" in step.use for step in pipeline.steps):
        raise UserError(f"--against: pipeline '{name}' has no step that removes duplicates, so nothing would read it")
    return pipeline


def _check_model_options(context: typer.Context, pipeline: Pipeline) -> None:
    """Refuse options of a model that nothing would read."""
    from nano3.config.errors import UserError
    from nano3.curate.ask.model import no_model

    given = context.params
    typed = [f"--{name}" for name in MODEL_OPTIONS if given[name] and was_typed(context, name)]
    if typed and not pipeline.model_steps:
        raise UserError(f"{typed[0]}: pipeline '{given['name']}' has no step that asks a language model")
    if pipeline.model_steps and not (given["url"] or given["dry_run"]):
        raise no_model(pipeline.model_steps[0])
    if typed and not given["url"]:
        raise UserError(f"{typed[0]} belongs to --url, the address of the server whose model is asked")
    if given["price"] and not (given["dry_run"] and given["url"] and given["pilot"]):
        raise UserError("--price belongs to the estimate of --dry-run with --url and a --pilot")
    if was_typed(context, "pilot") and not (given["dry_run"] and given["url"]):
        raise UserError("--pilot belongs to the estimate of --dry-run with --url")


def _model(
    url: str,
    name: str,
    concurrency: int,
    timeout: float,
    deadline: float,
    answers: Path | None,
    folder: Path,
    dry_run: bool,
) -> Model:
    """The model that a run in a folder asks; of one that is done its own, without a server."""
    from nano3.curate.ask.model import Model, find_model
    from nano3.curate.run import ANSWERS

    named = (None if dry_run else finished_model(folder, name)) or find_model(url, name)
    return Model(*named, concurrency, timeout, max(deadline, timeout), (answers or folder / ANSWERS).absolute())


def _dry_run(plan: Plan, pilot: int, price: str, workers: int, slurm: list[str] | None, as_json: bool) -> None:
    """Show what a run would do; with options of sbatch, its job scripts too."""
    prices = parse_price(price)
    with server_gone() if plan.model else nullcontext():
        expected = estimate_of(plan, pilot) if plan.model and pilot else None
    scripts = {} if slurm is None else _scripts(plan, workers, slurm)
    _show_plan(plan, as_json, scripts, expected, prices)


def _carry_out(plan: Plan, workers: int, executor: Executor, slurm: list[str], as_json: bool) -> None:
    from nano3.curate.report import is_finished
    from nano3.curate.run import run_pipeline
    from nano3.files import check_writable

    check_writable(plan.out, "--out")
    if plan.manifest.left_out:
        print(printable(f"left out: {plan.manifest.left_out}"), file=sys.stderr)
    if executor == Executor.SLURM:
        _submit(plan, workers, slurm)
        return
    from nano3.curate.slurm import check_none_left

    check_none_left(plan.out)
    done = is_finished(plan.out)
    with _goes_on(), server_gone() if plan.model else nullcontext():
        result = run_pipeline(plan, workers, executor == Executor.RAY)
    if done:
        print(f"nothing was left to do: an earlier run has finished {plan.out}", file=sys.stderr)
    show_report(result, as_json, 0)


def _check_executor(executor: Executor, slurm: list[str] | None, workers: int) -> None:
    from nano3.config.errors import UserError
    from nano3.curate.catalog import is_importable

    if slurm and executor != Executor.SLURM:
        raise UserError("--slurm gives options of sbatch: add --executor slurm")
    if executor == Executor.RAY and workers and os.environ.get("RAY_ADDRESS"):
        raise UserError(f"--workers {workers}: the cluster of RAY_ADDRESS decides how many tasks run at once")
    if executor == Executor.RAY and not is_importable("ray"):
        raise UserError("--executor ray needs ray: pip install ray")


def _scripts(plan: Plan, workers: int, options: list[str]) -> dict[str, str]:
    """Texts of the job scripts, by name."""
    from nano3.curate.slurm import scripts

    return {script.name: script.text for script in scripts(plan, workers, options)}


def _submit(plan: Plan, workers: int, options: list[str]) -> None:
    from nano3.curate.slurm import submit

    jobs = submit(plan, workers, options)
    print(f"submitted {len(jobs)} jobs: {' '.join(jobs)}; the last one writes the report")
    print(f"look: nano3 data report {plan.out}; logs: {plan.out}/slurm; if a job fails, give the same command again")


def report(
    folder: Annotated[Path, typer.Argument(help="What `nano3 data curate` wrote, or is writing.", metavar="DIR")],
    samples: Annotated[int, typer.Option(min=0, help="Dropped documents to show of each reason, and kept ones.")] = 0,
    as_json: Json = False,
) -> None:
    """Show what each step of a curation run kept and dropped, and why; also while it runs."""
    from nano3.curate.report import read_report

    show_report(read_report(folder), as_json, samples)


def _show_plan(
    plan: Plan,
    as_json: bool,
    scripts: dict[str, str],
    expected: Estimate | None,
    prices: tuple[float, float] | None,
) -> None:
    from dataclasses import asdict

    from nano3.cli.output import counted, print_json

    manifest = plan.manifest
    if as_json:
        more = {"estimate": expected.to_json(prices)} if expected else {}
        more |= {"scripts": scripts} if scripts else {}
        print_json(asdict(manifest) | {"folder": str(plan.out)} | more)
        return
    inputs, tasks = counted(len(manifest.inputs), "input"), counted(manifest.tasks, "task")
    print(f"{inputs} in {tasks}, into {plan.out}")
    if manifest.left_out:
        print(printable(f"left out: {manifest.left_out}"))
    for label, settings in manifest.settings.items():
        shown = ", ".join(f"{key} = {value!r}" for key, value in settings.items() if key != "summary")
        print(f"  {label}  {shown}")
    print("executors: " + ", ".join(f"{name} ({counted(n, 'task')})" for name, n in manifest.segments.items()))
    if plan.pipeline.model_steps and not plan.model:
        steps = ", ".join(plan.pipeline.model_steps)
        print(f"asks a language model: {steps}; give --url, with which --dry-run also says what it will cost")
    if expected:
        print_estimate(expected, prices)
    for name, text in scripts.items():
        print(f"\n──── {name}.sbatch ────\n{text}", end="")

"""`nano3 eval tasks`: how many of nano3's own held-out tasks a model solves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.eval import options as shared
from nano3.cli.options import engine as engines
from nano3.cli.options.common import Json

if TYPE_CHECKING:
    from nano3.eval.store import Result, Store
    from nano3.eval.tasks.plan import Plan

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        help="Kinds of tasks, as count or generate:sort?levels=3-5 (docs/tasks.md). Default: the six that nano3 sft "
        "teaches.", metavar="TASKS", show_default=False,
    ),
]  # fmt: skip
Samples = Annotated[
    int, typer.Option(help="Of each kind, all different. Default: 160.", metavar="N", min=1, show_default=False)
]
Thinking = Annotated[
    str, typer.Option(help="on, off, or a budget in tokens. Default: on.", metavar="KIND", show_default=False)
]
MaxTokens = Annotated[
    int,
    typer.Option(help="Most tokens of an answer, reasoning included. Default: 256.", metavar="N", min=1,
                 show_default=False),
]  # fmt: skip
Temperature = Annotated[
    float, typer.Option(help="0, the default: greedy.", metavar="T", min=0.0, max=10.0, show_default=False)
]


def tasks(
    ctx: typer.Context,
    sources: Sources = None,
    from_: shared.From = None,
    samples: Samples = 160,
    thinking: Thinking = "on",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: shared.Seed = 0,
    out: Annotated[Path | None, shared.out_option("tasks")] = None,
    as_json: Json = False,
    dtype: engines.Dtype = "auto",
    kv_cache_dtype: engines.KvCacheDtype = "auto",
    device: engines.Device = "auto",
    memory: engines.Memory = None,
    max_sequences: engines.MaxSequences = None,
) -> None:
    """Held-out tasks of nano3's own generators: how many are solved, and how long the model thinks.

    No task is one of those that any seed of the generators gives to train on. Tools are carried out.

    [dim]After nano3 sft:[/]
      nano3 eval tasks

    [dim]Harder ones, with at most 32 tokens of reasoning:[/]
      nano3 eval tasks 'count?levels=7-9' sort --thinking 32

    [dim]Before and after nano3 rlvr:[/]
      nano3 eval tasks --from runs/sft-tiny --out before
      nano3 eval tasks --from runs/rlvr-tiny --out after
      nano3 eval compare before after --out compare.png
    """
    options = {**ctx.params, "url": None, "max_context": None, "engine_name": "native"}
    shared.check_target(options)
    from nano3.eval.tasks.plan import Plan, parse_sets, parse_thinking

    plan = Plan(parse_sets(sources or ()), samples, seed, parse_thinking(thinking), max_tokens, temperature)
    assert plan.tasks, "there are kinds by default"
    _run(shared.with_model(options), plan)


def _run(options: Mapping[str, Any], plan: Plan) -> None:
    """Evaluate, with the result written however it ends."""
    from nano3.eval.engine_target import EngineTarget
    from nano3.eval.store import open_store
    from nano3.eval.tasks.plan import GROWING
    from nano3.eval.tasks.run import evaluate, summarize
    from nano3.progress import Progress

    subject = shared.Subject.of(options)
    settings = plan.settings(subject.name, subject.identity, **shared.number_types(options))
    folder = shared.result_folder(options["out"], f"eval-tasks-{subject.name}", settings, GROWING)
    with open_store(folder, settings, GROWING) as store:

        def save() -> Result:
            result = summarize(plan, store, subject.name, settings)
            store.finish(result)
            return result

        left = [key for key in plan.order() if key not in store.rows]
        if left:
            _say_start(len(left), plan.samples * len(plan.sets), folder)
            target = shared.open_target(options)
            assert isinstance(target, EngineTarget), "there is no --url"
            try:
                with Progress(len(left), len(left), "tasks", "tasks") as progress, shared.cut_short(save, folder):
                    evaluate(plan, target.engine, store, progress)
            finally:
                target.close()
        _show(plan, store, save(), folder, options["as_json"])


def _say_start(left: int, total: int, folder: Path) -> None:
    done = f"; {total - left} are there" if left < total else ""
    print(f"{left} tasks to answer{done}; results go to {folder}", file=sys.stderr, flush=True)


def _show(plan: Plan, store: Store, result: Result, folder: Path, as_json: bool) -> None:
    from nano3.cli.output import plain_table, print_json, print_table, results
    from nano3.eval.tasks.run import SOLVED, solved_by_level

    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    levels = solved_by_level(plan, store)
    rates = {
        name: {level: 100 * sum(each) / len(each) for level, each in found.items()} for name, found in levels.items()
    }
    if as_json:
        return print_json({**result.document(), "by_level": rates, "folder": str(folder)})
    heads = ("solved (95 % interval)", "tasks", "thinking tokens", "by level")
    title = f"Held-out tasks: {result.model}, thinking {plan.thinking}"
    table = plain_table(title, "", *heads, right=heads[:3])
    scores = {(score.task, score.metric == SOLVED): score for score in result.scores}
    for name in plan.sets:
        solved, thought = scores[name, True], scores[name, False]
        shares = ", ".join(f"{level}: {rate:.0f}%" for level, rate in rates[name].items())
        shown = f"{solved.value:.1f}% ({solved.low:.0f}-{solved.high:.0f})"
        table.add_row(name, shown, str(solved.n), f"{thought.value:.1f}", shares)
    print_table(results(), table)
    print(f"results in {folder}", file=sys.stderr)

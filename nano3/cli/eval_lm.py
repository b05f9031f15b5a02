"""`nano3 eval lm`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli import engine_options as engines
from nano3.cli import eval_options as shared
from nano3.cli.options import Json
from nano3.config.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from nano3.eval.lm_find import Found
    from nano3.eval.lm_run import Options
    from nano3.eval.store import Result, Score
    from nano3.eval.target import Target

MISSING = "nano3 eval lm needs lm-evaluation-harness: pip install 'nano3[eval]'"
PREFIXES = ("bos", "eos")
LIMIT_NOTE = "only the first {limit} documents of each task"
Tasks = Annotated[
    str,
    typer.Option(
        help="Tasks, groups, patterns (mmlu_*) or YAML files; nano3 is a group that needs no download.",
        metavar="NAME,NAME",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Only the first documents of each task.", min=1, metavar="N", show_default=False),
]
NumFewshot = Annotated[
    int | None,
    typer.Option(
        help="Examples in each prompt. Default: the task's own number.", min=0, metavar="K", show_default=False
    ),
]
Include = Annotated[
    list[Path] | None,
    typer.Option(
        help="Folder with task files of your own. Repeatable.", metavar="DIR", exists=True, file_okay=False,
        show_default=False,
    ),
]  # fmt: skip
Chat = Annotated[bool, typer.Option("--chat", metavar="", help="Prompts as conversations, by the chat template.")]
Thinking = Annotated[
    bool, typer.Option("--thinking", metavar="", help="With --chat: the answer follows after a thinking part.")
]
System = Annotated[str | None, typer.Option(help="System prompt; needs --chat.", metavar="TEXT", show_default=False)]
Prefix = Annotated[
    str,
    typer.Option(
        help="What stands before a text without context: bos, as lm-eval's hf model has it, or eos, as documents begin "
        "in nano3's training.",
        metavar="NAME",
    ),
]  # fmt: skip
Seed = Annotated[int, typer.Option(help="Decides which examples are shown, and sampled answers.", metavar="N")]


def lm(
    ctx: typer.Context,
    tasks: Tasks = "nano3",
    from_: shared.From = None,
    url: shared.Url = None,
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
    include: Include = None,
    chat: Chat = False,
    thinking: Thinking = False,
    system: System = None,
    prefix: Prefix = "bos",
    model: shared.ServedModel = "",
    api_key: shared.ApiKey = "",
    tokenizer: shared.TokenizerPath = "",
    concurrency: shared.Concurrency = 8,
    timeout: shared.Timeout = 3600.0,
    retries: shared.Retries = 6,
    seed: Seed = 1234,
    out: Annotated[Path | None, shared.out_option("lm")] = None,
    as_json: Json = False,
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    memory: engines.Memory = None,
    max_sequences: engines.MaxSequences = None,
    max_context: engines.MaxContext = None,
    engine_name: engines.EngineName = "native",
) -> None:
    """Run tasks of lm-evaluation-harness on a model; the scores are those of its hf model.

    [dim]Small tasks that come with nano3:[/]
      nano3 eval lm --from runs/pretrain-tiny

    [dim]Benchmarks (downloads their data):[/]
      nano3 eval lm --from PATH --tasks mmlu,gsm8k --limit 100

    [dim]A server:[/]
      nano3 eval lm --url http://127.0.0.1:8000 --tasks gsm8k --chat
    """
    _check(ctx.params)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars, beside which this command has its own
    from nano3.eval.lm_find import find_tasks
    from nano3.eval.lm_run import Options

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks: give a name, such as nano3 or hellaswag")
    found = find_tasks(names, include or [], {"pretrained": from_ or tokenizer or model})
    options = Options(limit, num_fewshot, chat, system, seed=seed)
    if url is not None:
        _check_served(found, chat)
    target = shared.open_target(_with_room(ctx.params))
    try:
        result = _run(ctx.params, target, found, options)
    finally:
        target.close()
    _show(result, as_json)


def _check(options: dict[str, Any]) -> None:
    """Refuse what cannot work, before anything is loaded."""
    shared.check_target(options)
    if find_spec("lm_eval") is None:
        raise UserError(MISSING)
    if options["prefix"] not in PREFIXES:
        raise UserError(f"--prefix {options['prefix']}: not known; use one of {', '.join(PREFIXES)}")
    for name in ("thinking", "system"):
        if options[name] and not options["chat"]:
            raise UserError(f"--{name} needs --chat: a plain text has no turns")
    if options["url"] is not None and options["prefix"] != "bos":
        raise UserError("--prefix and --url contradict each other: a server decides itself how a text begins")


def _check_served(found: list[Found], chat: bool) -> None:
    scored = [name for one in found for name, task in one.tasks.items() if task.OUTPUT_TYPE != "generate_until"]
    if chat and scored:
        raise UserError(
            f"task {scored[0]} compares likelihoods, which no chat server tells: leave out --chat, or evaluate --from"
        )


def _with_room(options: dict[str, Any]) -> dict[str, Any]:
    """One token more of context: the last token of a text is predicted, and never read."""
    if options["url"] is not None:
        return options
    from nano3.eval.lm import max_positions

    return {**options, "max_context": (options["max_context"] or max_positions(options["from_"])) + 1}


def _open_lm(options: dict[str, Any], target: Target) -> LM:
    if options["url"] is not None:
        from nano3.eval.lm_server import ChatCompletions, Completions
        from nano3.eval.target import ServerTarget

        assert isinstance(target, ServerTarget), "--url opens no other"
        kind = ChatCompletions if options["chat"] else Completions
        return kind(
            target, max_retries=options["retries"] + 1, timeout=options["timeout"], seed=options["seed"],
            header={"Authorization": f"Bearer {options['api_key']}"},
        )  # fmt: skip
    from nano3.eval.lm import Nano3LM
    from nano3.eval.target import EngineTarget

    assert isinstance(target, EngineTarget), "--from opens no other"
    engine, thinking = target.engine, options["thinking"]
    return Nano3LM(
        engine,
        prefix_token_id=engine.tokenizer.eos_id if options["prefix"] == "eos" else None,
        enable_thinking=thinking if options["chat"] else None,
        think_end_token="</think>" if thinking else None,
        seed=options["seed"],
    )


def _settings(options: dict[str, Any], target: Target, found: list[Found]) -> dict[str, Any]:
    from importlib.metadata import version

    names = ("num_fewshot", "chat", "thinking", "system", "prefix", "seed", "dtype", "limit")
    return {
        "kind": "lm",
        "model": target.name,
        "identity": target.identity,
        "max_context": target.max_context,
        "tasks": [one.name for one in found],
        "versions": {name: str(task.VERSION) for one in found for name, task in one.tasks.items()},
        "lm_eval": version("lm_eval"),
        **{name: options[name] for name in names},
    }


def _run(options: dict[str, Any], target: Target, found: list[Found], how: Options) -> Result:
    from nano3.eval.lm_run import run_tasks
    from nano3.eval.progress import Progress
    from nano3.eval.store import Result, open_store

    settings = _settings(options, target, found)
    growing = ("limit",)
    folder = shared.result_folder(options["out"], f"eval-lm-{target.name}", settings, growing)
    scores: list[Score] = []
    notes = [LIMIT_NOTE.format(limit=how.limit)] if how.limit else []

    def result(complete: bool) -> Result:
        return Result("lm", "lm-eval", target.name, complete, settings, tuple(scores), (*notes, *target.notes))

    with open_store(folder, settings, growing) as store:
        print(f"results go to {folder}", file=sys.stderr, flush=True)
        with shared.cut_short(lambda: store.finish(result(False)), folder):
            model = _open_lm(options, target)
            run_tasks(model, found, how, store, lambda n: Progress(n, n, "requests"), scores.extend)
        store.finish(result(True))
    return result(True)


def _show(result: Result, as_json: bool) -> None:
    from nano3.cli.output import plain_table, print_json, print_table, results

    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        return print_json(result.document())
    columns = ("metric", "value", "± stderr", "n")
    table = plain_table(f"{result.model}, lm-eval", "task", *columns, right=columns[1:])
    for score in result.scores:
        error = "" if score.stderr is None else f"{score.stderr:.2f}"
        table.add_row(score.task, score.metric, f"{score.value:.2f}", error, str(score.n))
    print_table(results(), table)

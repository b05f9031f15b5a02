"""`nano3 eval lm`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.eval import options as shared
from nano3.cli.options import engine as engines
from nano3.cli.options.common import Json
from nano3.config.errors import UserError
from nano3.installation import install_command

if TYPE_CHECKING:
    from nano3.eval.lm.find import Found
    from nano3.eval.lm.run import Options
    from nano3.eval.store import Result, Score
    from nano3.eval.target import Target

MISSING = "nano3 eval lm needs lm-evaluation-harness: {command}"
PREFIXES = ("auto", "bos", "eos")
MOST_THINKING = 8192
"""New tokens of an answer with thinking, where nobody says; half the context at the most."""
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
        help="What texts begin with. bos: as with lm-eval's hf model. eos: with the end of the document before, as in "
        "nano3's training. auto: eos for models that nano3 trained; a server's own.",
        metavar="NAME",
    ),
]  # fmt: skip
MaxGenToks = Annotated[
    int | None,
    typer.Option(
        help="Most new tokens of each answer. Default: the task's own number; with --thinking 8192, at most half the "
        "context.",
        min=1, metavar="N", show_default=False,
    ),
]  # fmt: skip
MaxContext = Annotated[
    int | None,
    typer.Option(
        help="Most tokens that a prediction sees; longer prompts are cut from the left. Default: what the model was "
        "made for, or what the server takes.",
        min=2, metavar="N", show_default=False,
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
    prefix: Prefix = "auto",
    max_gen_toks: MaxGenToks = None,
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
    kv_cache_dtype: engines.KvCacheDtype = "auto",
    device: engines.Device = "auto",
    memory: engines.Memory = None,
    max_sequences: engines.MaxSequences = None,
    max_context: MaxContext = None,
    engine_name: engines.EngineName = "native",
) -> None:
    """Run tasks of lm-evaluation-harness on a model.

    The scores are those of the harness's hf model.

    [dim]Small tasks that come with nano3:[/]
      nano3 eval lm --from runs/pretrain-tiny

    [dim]Benchmarks (downloads their data):[/]
      nano3 eval lm --from PATH --tasks mmlu,gsm8k --limit 100

    [dim]A server:[/]
      nano3 eval lm --url http://127.0.0.1:8000 --tasks gsm8k --chat
    """
    options = shared.with_one_name(ctx.params)
    _check(options)
    options = shared.with_model(options)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars, beside which this command has its own
    from nano3.eval.lm.find import find_tasks
    from nano3.eval.lm.run import Options

    found = find_tasks(_names(tasks), include or [], {"pretrained": options["from_"] or tokenizer or model})
    if url is not None:
        _check_served(found, chat)
    target = _open_target(options)
    try:
        how = Options(limit, num_fewshot, chat, system, seed, max_gen_toks)
        result = _run(options, target, found, how)
    finally:
        target.close()
    _show(result, as_json)


def _names(tasks: str) -> list[str]:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks: give a name, such as nano3 or hellaswag")
    return names


def _check(options: dict[str, Any]) -> None:
    """Refuse what cannot work, before anything is loaded."""
    # A server's prompts are cut too.
    shared.check_target(options if options["url"] is None else {**options, "max_context": None})
    if find_spec("lm_eval") is None:
        raise UserError(MISSING.format(command=install_command("eval")))
    if options["prefix"] not in PREFIXES:
        raise UserError(f"--prefix {options['prefix']}: not known; use one of {', '.join(PREFIXES)}")
    for name in ("thinking", "system"):
        if options[name] and not options["chat"]:
            raise UserError(f"--{name} needs --chat: a plain text has no turns")


def _check_served(found: list[Found], chat: bool) -> None:
    scored = [name for one in found for name, task in one.tasks.items() if task.OUTPUT_TYPE != "generate_until"]
    if chat and scored:
        raise UserError(
            f"task {scored[0]} compares likelihoods, which no chat server tells: leave out --chat, or evaluate --from"
        )


def _open_target(options: dict[str, Any]) -> Target:
    """The target; a model of this machine with a context of one token more: the last token of a text is predicted, and
    never read."""
    if options["url"] is not None:
        return shared.open_target(options)
    from nano3.eval.lm.model import max_positions

    wanted = options["max_context"] or max_positions(options["from_"])
    _check_context(options, wanted)
    target = shared.open_target({**options, "max_context": wanted + 1})
    if target.max_context is not None and target.max_context <= wanted:
        target.close()
        raise _no_room(wanted, target.max_context - 1)
    return target


def _check_context(options: dict[str, Any], wanted: int) -> None:
    """Raise UserError for a context that does not fit, before the model is loaded."""
    from nano3.eval.room import find_room

    if options["engine_name"] != "native":
        return
    room = find_room(
        options["from_"], wanted + 1, dtype=options["dtype"], kv_cache_dtype=options["kv_cache_dtype"],
        device=options["device"], memory=engines.parse_bytes(options["memory"]),
    )  # fmt: skip
    if room is not None and room.need > room.memory and room.largest > 1:
        raise _no_room(wanted, room.largest - 1)


def _no_room(wanted: int, most: int) -> UserError:
    # A context that depends on what is free now would give other scores tomorrow.
    return UserError(f"a context of {wanted} tokens does not fit in memory: give --max-context {most} (the most that "
                     "fits), or raise --memory")  # fmt: skip


def _open_lm(options: dict[str, Any], target: Target) -> Any:
    """The model for the harness: an `lm_eval.api.model.LM`, with the tokens of its context and what is to be noted."""
    thinking = options["thinking"]
    if options["url"] is not None:
        from nano3.eval.lm.server import ChatCompletions, Completions
        from nano3.eval.target import ServerTarget

        assert isinstance(target, ServerTarget), "--url opens no other"
        common = {
            "max_context": options["max_context"], "max_retries": options["retries"] + 1, "timeout": options["timeout"],
            "seed": options["seed"], "header": {"Authorization": f"Bearer {options['api_key']}"},
        }  # fmt: skip
        if options["chat"]:
            return ChatCompletions(target, thinking=thinking, **common)  # pyright: ignore[reportAbstractUsage]
        return Completions(target, prefix=options["prefix"], folder=options["tokenizer"], **common)
    from nano3.eval.lm.model import Nano3LM
    from nano3.eval.lm.text import choose_prefix, stage_of
    from nano3.eval.target import EngineTarget

    assert isinstance(target, EngineTarget), "--from opens no other"
    return Nano3LM(
        target.engine,
        prefix=choose_prefix(options["prefix"], stage_of(options["from_"])),
        enable_thinking=thinking if options["chat"] else None,
        think_end_token="</think>" if thinking else None,
        seed=options["seed"],
    )


def _settings(options: dict[str, Any], target: Target, found: list[Found], context: int) -> dict[str, Any]:
    from importlib.metadata import version

    from nano3.eval.lm.find import fingerprints

    served = options["url"] is not None
    names = ("num_fewshot", "chat", "thinking", "system", "prefix", "max_gen_toks", "seed", "limit")
    own = (
        {"url": getattr(target, "url", ""), "tokenizer": options["tokenizer"] or "the server's"} if served
        else {"engine": options["engine_name"], **shared.number_types(options)}
    )  # fmt: skip
    return {
        "kind": "lm",
        "model": target.name,
        "identity": target.identity,
        "max_context": context,
        "tasks": [one.name for one in found],
        "versions": {name: str(task.VERSION) for one in found for name, task in one.tasks.items()},
        "configurations": fingerprints(found),
        "lm_eval": version("lm_eval"),
        **own,
        **{name: options[name] for name in names},
    }


def _run(options: dict[str, Any], target: Target, found: list[Found], how: Options) -> Result:
    from nano3.eval.lm.run import check_room, run_tasks
    from nano3.eval.lm.text import CUT
    from nano3.eval.store import Result, open_store
    from nano3.progress import Progress

    model = _open_lm(options, target)
    context = model.context
    if options["thinking"] and how.max_gen_toks is None:
        how = replace(how, max_gen_toks=min(MOST_THINKING, context // 2))
    check_room(found, context, how.max_gen_toks)
    decided = {**options, "max_gen_toks": how.max_gen_toks, "prefix": model.prefix}
    settings = _settings(decided, target, found, context)
    growing = ("limit",)
    folder = shared.result_folder(options["out"], f"eval-lm-{target.name}", settings, growing)
    scores: list[Score] = []
    notes = [LIMIT_NOTE.format(limit=how.limit)] if how.limit else []

    def result(complete: bool) -> Result:
        told = dict.fromkeys((*notes, *target.notes, *getattr(model, "notes", ())))
        return Result("lm", "lm-eval", target.name, complete, settings, tuple(scores), tuple(told))

    with open_store(folder, settings, growing) as store:
        print(f"results go to {folder}", file=sys.stderr, flush=True)
        notes += [note for note in store.notes() if CUT in note]  # of answers that are not asked for again
        try:
            with shared.cut_short(lambda: store.finish(result(False)), folder):
                run_tasks(model, found, how, store, lambda n: Progress(n, n, "requests", "requests"), scores.extend)
        except Exception:
            store.finish(result(False))
            raise
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

"""`nano3 eval ruler`: how much of a long context a model uses."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.eval import options as shared
from nano3.cli.options import engine as engines
from nano3.cli.options.common import Json
from nano3.config.errors import UserError
from nano3.report import clock, count

if TYPE_CHECKING:
    from nano3.eval.ruler.run import Plan
    from nano3.eval.store import Result, SampleKey
    from nano3.eval.target import Target

Ctx = Annotated[
    str | None,
    typer.Option(
        "--ctx", help="Context lengths in tokens, prompt and answer together: 4096, 4k, 1m. Default: 4k; without "
        "--tasks, 512 to 4k as far as the model was trained.", metavar="LENGTHS", show_default=False,
    ),
]  # fmt: skip
Tasks = Annotated[
    str | None,
    typer.Option(
        help="Tasks or groups of them (niah, qa, all), with commas between. Default: all 13; without --ctx, "
        "niah_single_1 for a first look.", metavar="NAMES", show_default=False,
    ),
]  # fmt: skip
Samples = Annotated[
    int | None,
    typer.Option(help="Of each task at each length. Default: 100; of a first look 20.", metavar="N", min=1,
                 show_default=False),
]  # fmt: skip
Essays = Annotated[
    Path | None,
    typer.Option(
        help="Folder of texts for haystacks of prose, or RULER's own PaulGrahamEssays.json. Default: prose of Python's "
        "documentation.", metavar="PATH", show_default=False,
    ),
]  # fmt: skip
Squad = Annotated[
    Path | None,
    typer.Option(help="SQuAD's dev-v2.0.json for qa_1. Default: built-in questions.", metavar="FILE",
                 show_default=False),
]  # fmt: skip
HotpotQA = Annotated[
    Path | None,
    typer.Option("--hotpotqa", help="HotpotQA's hotpot_dev_distractor_v1.json for qa_2. Default: built-in questions.",
                 metavar="FILE", show_default=False),
]  # fmt: skip
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw", metavar="", help="Through the chat template, thinking off; or as plain text. Default: plain "
        "text for base models and presets, else chat.", show_default=False,
    ),
]  # fmt: skip


def ruler(
    ctx: typer.Context,
    from_: shared.From = None,
    lengths: Ctx = None,
    tasks: Tasks = None,
    samples: Samples = None,
    essays: Essays = None,
    squad: Squad = None,
    hotpotqa: HotpotQA = None,
    chat: Chat = None,
    seed: shared.Seed = 0,
    out: Annotated[Path | None, shared.out_option("ruler")] = None,
    as_json: Json = False,
    url: shared.Url = None,
    model: shared.ServedModel = "",
    api_key: shared.ApiKey = "",
    tokenizer: shared.TokenizerPath = "",
    concurrency: shared.Concurrency = 8,
    timeout: shared.Timeout = 3600.0,
    retries: shared.Retries = 6,
    dtype: engines.Dtype = "auto",
    kv_cache_dtype: engines.KvCacheDtype = "auto",
    device: engines.Device = "auto",
    memory: engines.Memory = None,
    max_sequences: engines.MaxSequences = None,
    engine_name: engines.EngineName = "native",
) -> None:
    """RULER (arXiv 2404.06654): tasks in contexts of given lengths.

    Needles, variables, frequent words and questions, scored as in the paper; needs no download.

    [dim]A first look: 20 samples of one task, at the lengths that the model was trained on:[/]
      nano3 eval ruler --from RUN

    [dim]The needle tasks of a run, at four lengths:[/]
      nano3 eval ruler --from RUN --ctx 512,1k,2k,4k --tasks niah --samples 20

    [dim]All 13 tasks, of a server:[/]
      nano3 eval ruler --url http://127.0.0.1:8000 --tasks all --ctx 4k,8k,64k

    [dim]A million tokens:[/]
      nano3 eval ruler --from PATH --ctx 1m --tasks niah_single_1 --samples 1
    """
    options = {**shared.with_one_name(ctx.params), "max_context": None}
    shared.check_target(options)
    options = shared.with_model(options)
    from nano3.eval.ruler import Sources
    from nano3.eval.ruler.run import Plan

    amount = _amount(lengths, tasks, samples, options["from_"])
    plan = Plan(*amount, seed, _chat(chat, options["from_"]), Sources(essays, squad, hotpotqa))
    _run(options, plan)


def _amount(
    lengths: str | None, tasks: str | None, samples: int | None, model: str | None
) -> tuple[tuple[str, ...], tuple[int, ...], int]:
    """Tasks, lengths and samples: a first look where neither tasks nor lengths are asked for."""
    from nano3.eval.ruler.first import SAMPLES, TASK, first_lengths
    from nano3.eval.ruler.run import length_text, parse_lengths, parse_tasks

    if tasks is not None or lengths is not None:
        wanted = parse_tasks("all" if tasks is None else tasks), parse_lengths("4k" if lengths is None else lengths)
        return *wanted, 100 if samples is None else samples
    shown, samples = first_lengths(model), samples or SAMPLES
    print(f"a first look: {TASK} at {','.join(map(length_text, shown))}, {samples} samples; all of RULER: "
          "--tasks all --ctx 4k,8k", file=sys.stderr, flush=True)  # fmt: skip
    return (TASK,), shown, samples


def _chat(wanted: bool | None, model: str | None) -> bool:
    """Whether the chat template is used: not for models that have never seen a conversation."""
    if wanted is not None or model is None:
        return wanted is not False
    from nano3.engine.launch import is_base_model

    return Path(model).exists() and not is_base_model(model)


def _run(options: Mapping[str, Any], plan: Plan) -> None:
    """Evaluate, with the result written however it ends."""
    from nano3.eval.ruler.report import draw
    from nano3.eval.ruler.run import GROWING, check_samples, evaluate, lasting_notes, summarize
    from nano3.eval.store import open_store
    from nano3.progress import Progress

    longest = plan.lengths[-1]
    subject = shared.Subject.of(options, max_context=longest, prefix_cache=False)
    settings = plan.settings(subject.name, subject.identity, **subject.settings)
    folder = shared.result_folder(options["out"], f"eval-ruler-{subject.name}", settings, GROWING)
    with open_store(folder, settings, GROWING) as store:
        notes = [lasting_notes(store.notes()), subject.notes]

        def save() -> Result:
            result = summarize(plan, store, subject.name, settings, [note for part in notes for note in part])
            store.finish(result)
            return result

        left = [key for key in plan.order() if key not in store.rows]
        if left:
            target = _open(options, subject, longest)
            notes.append(target.notes)
            try:
                check_samples(plan, target)
                _say_start(left, plan.samples * len(plan.tasks) * len(plan.lengths), folder)
                if options["url"] is None:
                    _say_time(target, left, options["from_"])
                with Progress(len(left), sum(key[1] or 0 for key in left)) as progress, shared.cut_short(save, folder):
                    evaluate(plan, target, store, progress)
            finally:
                target.close()
        result = save()
        drawn = draw(plan, store, result)
    _show(result, drawn, folder, options["as_json"])
    if options["url"] is None and result.scores and not any(score.value for score in result.scores):
        print(ALL_ZERO, file=sys.stderr)


def _open(options: Mapping[str, Any], subject: shared.Subject, longest: int) -> Target:
    """The target, with room for the longest context. Raises UserError where there is none."""
    from nano3.eval.room import check_context, too_long

    notes: tuple[str, ...] = ()
    if options["url"] is None and options["engine_name"] == "native":
        notes = check_context(
            options["from_"], longest, dtype=options["dtype"], device=options["device"],
            memory=engines.parse_bytes(options["memory"]), kv_cache_dtype=options["kv_cache_dtype"],
        )  # fmt: skip
    target = subject.open()
    if target.max_context is not None and target.max_context < longest:
        target.close()
        raise UserError(too_long(longest, target.max_context, server=options["url"] is not None))
    target.notes.extend(notes)
    return target


def _say_start(left: Sequence[SampleKey], total: int, folder: Path) -> None:
    done = f"; {total - len(left)} are there" if len(left) < total else ""
    tokens = count(sum(length or 0 for _, length, _ in left))
    print(f"{len(left)} samples to answer ({tokens} tokens){done}; results go to {folder}", file=sys.stderr, flush=True)


LONG = 120.0
"""Seconds from which a cheaper command is named."""


def _say_time(target: Target, left: list[SampleKey], model: str) -> None:
    from nano3.eval.ruler.first import estimate_seconds

    seconds = estimate_seconds(target, left)
    cheap = f"; a first look takes less: nano3 eval ruler --from {model}" if seconds > LONG else ""
    print(f"at most about {clock(seconds)}{cheap}", file=sys.stderr, flush=True)


ALL_ZERO = (
    "every score is 0: small models copy from their context only after training on texts that ask for it; "
    "docs/context-story.md has such a run"
)
BETWEEN, EDGES = 3, 2
"""Blanks between two columns of a table, and at its sides."""


def _show(result: Result, drawn: list[Path], folder: Path, as_json: bool) -> None:
    from nano3.cli.output import plain_table, print_json, print_table, results
    from nano3.eval.ruler.run import AVERAGE, length_text

    for path in drawn:
        print(f"wrote {path}", file=sys.stderr)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        return print_json({**result.document(), "folder": str(folder)})
    scores = {
        (score.task, score.length): f"{score.value:.1f} ({score.low:.0f}-{score.high:.0f})" for score in result.scores
    }
    lengths = sorted({score.length for score in result.scores if score.length})
    tasks = [*dict.fromkeys(score.task for score in result.scores)]
    # Lengths side by side, as many as a line holds; BETWEEN blanks stand between two columns.
    widest = max(map(len, scores.values()), default=1) + BETWEEN
    columns = max(1, (results().width - EDGES - max(map(len, tasks), default=0)) // widest)
    for start in range(0, len(lengths), columns):
        shown = lengths[start : start + columns]
        heads = tuple(length_text(length) for length in shown)
        table = plain_table(f"{result.name}: {result.model}, score (95 % interval)", "", *heads, right=heads)
        for task in tasks:
            if task == AVERAGE:
                table.add_section()
            table.add_row(task, *(scores.get((task, length), "") for length in shown))
        print_table(results(), table)
    print(f"results in {folder}", file=sys.stderr)

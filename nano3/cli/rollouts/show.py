"""`nano3 rlvr show`: what a run's rollouts came to, and each of them as the policy saw and wrote it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.options.common import Json
from nano3.config.errors import UserError

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer
    from nano3.rl.rollout_files import SavedSample
    from nano3.rl.saved.groups import SavedGroup, Selection

    Chosen = tuple[SavedGroup, list[SavedSample]]

STEPS, GROUPS, SAMPLES, PAGE = 15, 40, 4, 40
"""Rows, samples, and samples of a page where no --limit is given."""
RunFolder = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of a run of nano3 rlvr. Default: the newest finished one in runs/.",
        metavar="RUN",
        show_default=False,
    ),
]
KINDS = ("rlvr", "rlhf")
"""Verbs whose runs have rollouts."""
OfEnvironment = Annotated[
    str | None, typer.Option("--env", help="Only of this environment.", metavar="NAME", show_default=False)
]


def show(
    run: RunFolder = None,
    step: Annotated[
        int | None, typer.Option(help="The groups of this step.", metavar="N", min=1, show_default=False)
    ] = None,
    env: OfEnvironment = None,
    task: Annotated[
        str | None, typer.Option(help="The samples of this task, newest first.", metavar="ID", show_default=False)
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", metavar="", help="Samples that do not solve their task.")] = False,
    passed: Annotated[bool, typer.Option("--passed", metavar="", help="Samples that solve it.")] = False,
    truncated: Annotated[
        bool, typer.Option("--truncated", metavar="", help="Samples that reached their limit.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(help="The sample of this number in its group.", metavar="I", min=0, show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Most rows or samples to show.", metavar="N", min=1, show_default=False)
    ] = None,
    as_json: Json = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Write steps and samples to this page instead.", metavar="FILE", show_default=False),
    ] = None,
) -> None:
    """Browse the rollouts that a run of `nano3 rlvr` has saved.

    [dim]All steps and environments:[/]
      nano3 rlvr show runs/rlvr-tiny

    [dim]The groups of a step, then a task's samples as the policy wrote them:[/]
      nano3 rlvr show runs/rlvr-tiny --step 40
      nano3 rlvr show runs/rlvr-tiny --step 40 --task ID

    [dim]Newest answers that were wrong, or a page of them:[/]
      nano3 rlvr show runs/rlvr-tiny --env count --failed
      nano3 rlvr show runs/rlvr-tiny --env count --failed --html wrong.html
    """
    from nano3.cli.options.model_choice import choose_run
    from nano3.rl.saved.groups import Selection, chosen_steps, saved_steps

    if passed and failed:
        raise typer.BadParameter("--passed and --failed exclude each other; leave both out for all samples")
    selection = Selection(env, task, sample, True if passed else False if failed else None, truncated or None)
    run = choose_run(run, KINDS)
    steps = chosen_steps(saved_steps(run), step, step)
    if html is not None:
        return _page(run, steps, selection, limit or PAGE, html)
    if task is not None or selection.of_samples:
        return _samples(run, steps, selection, limit or SAMPLES, as_json)
    if step is not None:
        return _groups(run, steps[step], selection, limit or GROUPS, as_json)
    return _overview(run, steps, selection, limit or STEPS, as_json)


def _overview(run: Path, steps: dict[int, Path], selection: Selection, limit: int, as_json: bool) -> None:
    from nano3.cli.rollouts.tables import Overview, show_overview

    found = Overview.read(run, steps, selection)
    if not any(found.steps.values()):
        raise _nothing(steps, selection)
    if as_json:
        return _print(found.values())
    return show_overview(found, limit)


def _groups(run: Path, path: Path, selection: Selection, limit: int, as_json: bool) -> None:
    from nano3.cli.rollouts.tables import group_values, show_groups
    from nano3.rl.saved.groups import read_groups

    groups = [group for group, _ in selection.groups(read_groups(path))]
    if not groups:
        raise _nothing({0: path}, selection)
    if as_json:
        return _print({"run": str(run), "step": groups[0].step, "groups": [group_values(g) for g in groups]})
    return show_groups(run, groups, limit)


def _samples(run: Path, steps: dict[int, Path], selection: Selection, limit: int, as_json: bool) -> None:
    from nano3.cli.rollouts.conversation import sample_values, show_samples

    chosen, more = newest(steps, selection, limit)
    tokenizer = tokenizer_of(run)
    if as_json:
        values = [sample_values(group, one, tokenizer) for group, samples in chosen for one in samples]
        return _print({"run": str(run), "more": more, "samples": values})
    show_samples(chosen, tokenizer)
    if more:
        print(f"\n{more}", file=sys.stderr)
    return None


def _page(run: Path, steps: dict[int, Path], selection: Selection, limit: int, path: Path) -> None:
    from nano3.cli.rollouts.page import write_samples_page
    from nano3.cli.rollouts.tables import Overview

    chosen, more = newest(steps, selection, limit)
    write_samples_page(Overview.read(run, steps, selection), chosen, more, tokenizer_of(run), path)
    print(f"page: {path}", file=sys.stderr)


def newest(steps: dict[int, Path], selection: Selection, limit: int) -> tuple[list[Chosen], str]:
    """The first `limit` samples that are asked for, those of the last step first, and a line where there are more, or
    steps that were not read for that.

    Raises:
        UserError: there is none.
    """
    from nano3.rl.saved.groups import read_groups

    found, left = [], limit
    for path in reversed(list(steps.values())):
        if not left:
            more = f"--limit {2 * limit}, or one --step"
            return found, f"the first {limit} samples; steps before {found[-1][0].step} are not read for more: {more}"
        if not selection.may_be_in(path):
            continue
        for group, samples in selection.groups(read_groups(path)):
            if not left:
                return found, f"the first {limit} samples; there are more: --limit {2 * limit}, or one --step or --task"
            found.append((group, samples[:left]))
            left -= len(found[-1][1])
            if len(samples) > len(found[-1][1]):
                return found, f"the first {limit} samples; there are more: --limit {2 * limit}, or one --sample"
    if not found:
        raise _nothing(steps, selection)
    return found, ""


def tokenizer_of(run: Path) -> Tokenizer | None:
    """The tokenizer that the run used; None where its folder has none."""
    from nano3.data.tokens.tokenizer import Tokenizer

    for folder in (run / "tokenizer", run / "model"):
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.load(folder)
    print(f"{run} has no tokenizer: messages are shown in place of tokens", file=sys.stderr)
    return None


def _nothing(steps: dict[int, Path], selection: Selection) -> UserError:
    """What is wrong where nothing is found."""
    groups = list(_all_groups(steps))
    names = list(dict.fromkeys(group.environment for group in groups))
    if selection.environment is not None and selection.environment not in names:
        return UserError(f"--env {selection.environment}: there are rollouts of {', '.join(names)}")
    tasks = {g.task: None for g in groups if selection.environment in (None, g.environment)}
    if selection.task is not None and selection.task not in tasks:
        near = difflib.get_close_matches(selection.task, tasks, 3) or list(tasks)[:3]
        return UserError(f"--task {selection.task}: there is no such task in these steps; there is {', '.join(near)}")
    return UserError("no saved sample is of that kind; leave out --sample, --failed, --passed or --truncated")


def _all_groups(steps: dict[int, Path]) -> Iterator[SavedGroup]:
    from nano3.rl.saved.groups import read_groups

    for path in steps.values():
        yield from read_groups(path)


def _print(values: dict[str, Any]) -> None:
    from nano3.cli.output import print_json

    print_json(values)

"""`nano3 rlvr rescore`: saved rollouts measured again by the environments of today, without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.options.common import Json
from nano3.cli.rollouts.show import OfEnvironment, RunFolder
from nano3.cli.training.run_folder import CONFIG
from nano3.config.errors import UserError

if TYPE_CHECKING:
    from nano3.config.rlvr import EnvironmentsConfig
    from nano3.rl.rollout_files import SavedSample
    from nano3.rl.saved.rescore import Rescored
    from nano3.rl.training.domains import Domain

CHANGED_EXIT = 1


def rescore(
    run: RunFolder = None,
    env: OfEnvironment = None,
    step: Annotated[
        str | None,
        typer.Option(help="Only of these steps: N, N..M, N.. or ..M.", metavar="N..M", show_default=False),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", metavar="", help="Exit code 1 where a reward has changed or is gone.")
    ] = False,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a line for each sample to this jsonl file.", metavar="FILE", dir_okay=False,
                     show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Measure a run's saved rollouts again, with the environments as they are installed now.

    Shows how many rewards are equal, and where the code of an environment is another one than when they were given.

    [dim]In CI, after an update of an environment:[/]
      nano3 rlvr rescore runs/rlvr-tiny --check
    """
    from nano3.cli.options.model_choice import choose_run
    from nano3.cli.rollouts.rescored import Report, line_of, show_reports
    from nano3.files import check_writable, write_atomic
    from nano3.rl.saved.groups import chosen_steps, saved_steps

    run = choose_run(run, ("rlvr",))
    steps = chosen_steps(saved_steps(run), *step_range(step))
    if out is not None:
        check_writable(out.parent, "--out")
    cfg = _settings(run)
    domains = _open(run, cfg, [env] if env else _environments(steps))
    reports = {name: Report(domain.source) for name, domain in domains.items()}
    lines = []
    for one in _measured(cfg, steps, domains):
        reports[one.saved.environment].add(one)
        lines += [json.dumps(line_of(one))] if out else []
    if out is not None:
        write_atomic(out, "".join(f"{line}\n" for line in lines))
    show_reports(run, reports, as_json)
    changed = any(report.counts.outcomes[name] for report in reports.values() for name in ("changed", "fault"))
    if check and changed:
        raise typer.Exit(CHANGED_EXIT)


def step_range(text: str | None) -> tuple[int | None, int | None]:
    """First and last step of `N`, `N..M`, `N..` or `..M`; None for what is left open.

    Raises:
        UserError: it is none of these.
    """
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d*)(?:(\.\.)(\d*))?", text)
    if not match or not (match[1] or match[3]):
        raise UserError(f"--step {text}: give N, N..M, N.. or ..M")
    first, last = (int(part) if part else None for part in (match[1], match[3] if match[2] else match[1]))
    if first is not None and last is not None and first > last:
        raise UserError(f"--step {text}: the first step comes after the last")
    return first, last


def _environments(steps: dict[int, Path]) -> list[str]:
    from nano3.rl.rollout_files import read_rollouts

    return list(dict.fromkeys(sample.environment for path in steps.values() for sample in read_rollouts(path)))


def _settings(run: Path) -> EnvironmentsConfig:
    from nano3.config.presets import load_rlvr

    path = run / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: no such file; it names the environments that the rollouts are measured with")
    return load_rlvr(str(path), []).environments


def _open(run: Path, cfg: EnvironmentsConfig, names: Iterable[str]) -> dict[str, Domain]:
    """The environments of these names as the run's settings make them today.

    Raises:
        UserError: the run has no such environment, or one cannot be made any more.
    """
    from nano3.rl.training.domains import open_domains

    found = {}
    for name in names:
        if name not in cfg.weights:
            raise UserError(f"{run / CONFIG} has no environment {name}: there is {', '.join(cfg.weights) or 'none'}")
        only = {table: _only(getattr(cfg, table), name) for table in ("weights", "specs", "options")}
        try:
            found |= open_domains(replace(cfg, **only), 0)
        except UserError as error:
            others = "; others can be measured with --env NAME" if len(cfg.weights) > 1 else ""
            raise UserError(f"{error}{others}") from error
    return found


def _only(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: table[name]} if name in table else {}


def _measured(cfg: EnvironmentsConfig, steps: dict[int, Path], domains: dict[str, Domain]) -> Iterator[Rescored]:
    from nano3.rl.saved.rescore import rescore as measure

    environments = {name: domain.environment for name, domain in domains.items()}
    found = False
    for one in measure(_samples(steps, domains), environments, cfg.workers, cfg.seconds):
        found = True
        yield one
    if not found:
        raise UserError(f"no saved rollout of {', '.join(domains)} in these steps")


def _samples(steps: dict[int, Path], domains: dict[str, Domain]) -> Iterator[SavedSample]:
    from nano3.rl.rollout_files import read_rollouts

    return (one for path in steps.values() for one in read_rollouts(path) if one.environment in domains)

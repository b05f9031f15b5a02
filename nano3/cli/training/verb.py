"""What the verbs that train share: choose a folder, load settings, show or run, print the result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from nano3.cli.options.common import named_as_typed
from nano3.cli.training.run_folder import CONFIG, choose_run_dir, is_main_rank
from nano3.cli.training.summary import show_summary
from nano3.config.presets import command_of, stage_of
from nano3.reading import read_toml

INTERRUPTED, STOPPED = 130, 3
"""Exit codes of a run that a signal ended, and of one that a stop rule did."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for; see cli.options."""

    preset: str | None
    settings: list[str]
    from_path: str | None
    out: Path | None
    resume: bool
    dry_run: bool
    as_json: bool
    data: list[str]
    checkpoint: int | None = None
    world: int | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Parts:
    """What differs between verbs that train on text and those that train on conversations."""

    own_data: Callable[[list[str], Any], list[str]]
    """`--set` overrides that make the paths of --data the data of a run with these `data` settings."""
    check_data: Callable[[Any], None]
    """Raises UserError for data that are not there."""
    adopt: Callable[[Any, Path], Any]
    """Settings with the architecture of the model in a folder, for a dry run."""
    show_summary: Callable[[str, dict[str, Any], bool], None]
    """Prints a verb's result, as JSON or not."""
    check_settings: Callable[[Any, int], None] | None = None
    """Raises an error for settings that contradict each other, given the number of ranks that read different
    sequences; None: as for training on sequences."""
    show_dry_run: Callable[[Any, str, bool], None] | None = None
    """Prints what a run with these settings, of a preset, would be; None: as for training on text."""
    starts_from: tuple[str, ...] = ()
    """Stages whose newest finished run a run starts from that names no model; empty: any."""


def run_verb(
    verb: str,
    load: Callable[[str, list[str]], Any],
    stage: str,
    default: str,
    request: Request,
    needs_model: bool = False,
    parts: Parts | None = None,
) -> None:
    """Run `main` of the module `stage`, or show what it would do.

    Args:
        verb: the stage, by its name in presets; names the run folder.
        load: settings from a preset's name and overrides.
        stage: module with main(cfg, run_dir, from_path, resume, checkpoint=).
        default: preset to run when none is named.
        request: what the command line asks for.
        needs_model: the stage goes on from weights; where none are named, those of cli.model_choice.
        parts: what differs from training on text.

    Raises:
        UserError: wrong settings, or settings and options that contradict each other.
    """
    from nano3.config.errors import UserError

    parts = parts or TEXT
    preset = request.preset
    if request.checkpoint is not None and not request.resume:
        raise UserError(f"--checkpoint {request.checkpoint} says where a run goes on: add --resume")
    _check_processes(request)
    run_dir = choose_run_dir(request.out, f"{verb}-{Path(preset or default).stem}", request.resume)
    if request.resume:
        _check_verb(verb, run_dir)
    name = preset or (str(run_dir / CONFIG) if request.resume else default)
    cfg = _load(load, name, request, parts)
    if request.from_path is not None and any(text.startswith("model.") for text in request.settings):
        raise UserError("--set model.* and --from contradict each other: the model's sizes come with its weights")
    source = _source(request, needs_model and not request.resume and not request.dry_run, parts.starts_from)
    if request.dry_run:
        show = parts.show_dry_run or partial(_show_dry_run, world=request.world, rank=request.rank)
        with named_as_typed(_data_as_typed(request)):
            return show(cfg if source is None else parts.adopt(cfg, source), name, request.as_json)
    with named_as_typed(_data_as_typed(request)):
        _check(cfg, run_dir, parts, None if request.resume else source)
    try:
        main = import_module(stage).main
        result = main(cfg, run_dir, source, request.resume, checkpoint=request.checkpoint).summary()
    except KeyboardInterrupt:
        if is_main_rank() and (run_dir / CONFIG).is_file():
            print(f"continue: {_resume_command(verb, run_dir)}", file=sys.stderr)
        raise
    if is_main_rank():
        parts.show_summary(verb, result, request.as_json)
    if result.get("stopped"):
        raise typer.Exit(STOPPED)
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)


def _data_as_typed(request: Request) -> dict[str, str]:
    """What the errors about data call them, and what the command line does."""
    from nano3.config.own_texts import category_names

    return {f"data.sources.{name}:": "--data:" for name in category_names(request.data)}


def _check(cfg: Any, run_dir: Path, parts: Parts, source: Path | None) -> None:
    """Refuse folders, settings and data that cannot be: nothing here imports torch, for which a wrong input need not
    wait.

    Args:
        cfg: settings.
        run_dir: of the run.
        parts: of the verb.
        source: the model whose architecture the run takes; None: it has that of `cfg`.
    """
    from nano3.data.tokens.tokenizer import tokenizer_file
    from nano3.files import check_writable
    from nano3.splits import SPLITS, TRAINED
    from nano3.stages.new_run import TOKENIZER
    from nano3.stages.settings import check_parallel, check_settings

    if is_main_rank():
        check_writable(run_dir, "--out")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    check_parallel(cfg if source is None else _with_model_of(cfg, source), processes)
    readers = processes // cfg.parallel.readers_of_one
    (parts.check_settings or check_settings)(cfg, readers)
    parts.check_data(cfg)
    tokenizer = getattr(cfg.data, "tokenizer", TRAINED)  # conversations take the model's own
    if tokenizer not in ("", *SPLITS) and not (run_dir / TOKENIZER).is_dir():  # which a resume goes on with
        tokenizer_file(tokenizer)


def _with_model_of(cfg: Any, source: Path) -> Any:
    """`cfg` with the architecture of the model in `source`, where it has a section `model`."""
    import dataclasses

    from nano3.model.find import model_folder
    from nano3.model.hf.config import read_config

    return dataclasses.replace(cfg, model=read_config(model_folder(source))) if hasattr(cfg, "model") else cfg


def _load(load: Callable[[str, list[str]], Any], name: str, request: Request, parts: Parts) -> Any:
    """Settings of the preset with the data of --data, then with --set."""
    if not request.data:
        return load(name, request.settings)
    return load(name, [*parts.own_data(request.data, load(name, []).data), *request.settings])


def _own_texts(paths: list[str], data: Any) -> list[str]:
    from nano3.config.own_texts import own_texts

    return own_texts(paths, data)


def _check_texts(cfg: Any) -> None:
    from nano3.cache import cache_root
    from nano3.data.texts.sources import check_paths
    from nano3.files import check_writable

    if is_main_rank():
        check_writable(cache_root(cfg.data.cache_dir), "data.cache_dir")
    check_paths(cfg.data)


def _source(request: Request, needed: bool, stages: tuple[str, ...]) -> Path | None:
    """The folder to start from: the one named, or where weights are needed the one that cli.model_choice finds."""
    from nano3.cli.options.model_choice import choose_model
    from nano3.model.find import model_folder
    from nano3.model.hf.config import read_config

    if request.from_path is None and not needed:
        return None
    source = Path(choose_model(request.from_path, "--from", stages=stages))
    if not request.resume:
        read_config(model_folder(source))
    return source


def _show_dry_run(cfg: Any, preset: str, as_json: bool, world: int | None, rank: int | None) -> None:
    from nano3.cli.training.dry_run import show_dry_run

    show_dry_run(cfg, preset, as_json, world, rank or 0)


def _check_processes(request: Request) -> None:
    """Refuse options about the processes of a run that is not there."""
    from nano3.config.errors import UserError

    if request.world is not None and not request.dry_run:
        raise UserError(f"--world {request.world} is for a run that is not started: add --dry-run, or start torchrun")
    if request.rank is not None and request.rank >= (request.world or 0):
        which = f"one of 0 to {request.world - 1}" if request.world else "one of those of --world N"
        raise UserError(f"--rank {request.rank}: name {which}")


def _resume_command(verb: str, run_dir: Path) -> str:
    return f"nano3 {command_of(verb)} --resume --out {run_dir}"


def _check_verb(verb: str, run_dir: Path) -> None:
    """Raise UserError where `run_dir` holds the run of another verb, known by the sections of its settings."""
    from nano3.config.errors import UserError

    try:
        settings = read_toml(run_dir / CONFIG)
    except (OSError, ValueError):
        return  # whoever loads it tells what is wrong
    own = stage_of(settings)
    if own != verb:
        article = "an" if own[0] in "aeiou" else "a"
        raise UserError(f"{run_dir} is {article} {own} run: {_resume_command(own, run_dir)}")


def take_architecture(cfg: Any, source: Path) -> Any:
    """`cfg` with the architecture of the model in `source`, for a stage that takes no more from it.

    Raises:
        UserError: weights that do not fit it.
    """
    from nano3.stages.start import check_weights

    cfg = _with_model_of(cfg, source)
    check_weights(cfg.model, source)
    return cfg


def _adopt(cfg: Any, source: Path) -> Any:
    """`cfg` with the architecture of the model in `source`; what a run would say of these weights goes to stderr."""
    from nano3.stages.start import check_start, heldout_warning
    from nano3.stages.training import adopt

    cfg = adopt(cfg, source)
    check_start(cfg, source)
    if warning := heldout_warning(cfg, source):
        print(warning, file=sys.stderr)
    return cfg


TEXT = Parts(_own_texts, _check_texts, _adopt, show_summary)

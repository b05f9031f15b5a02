"""The folder of a training run: where it starts, the processes that share it, the model that it leaves."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from nano3.config.errors import UserError
from nano3.config.genrm import GenrmConfig
from nano3.config.model import ModelConfig
from nano3.config.presets import to_toml
from nano3.config.rlhf import AnyPolicyConfig
from nano3.config.run import RunConfig
from nano3.config.schema import ExportConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.files import atomic_folder, write_atomic
from nano3.model.dtype import compute_dtype
from nano3.model.hf.folder import save
from nano3.model.lm import LM
from nano3.parallel.layout import axes_of
from nano3.reading import read_json
from nano3.stages.new_run import CONFIG, START, TOKENIZER, check_new_run
from nano3.stages.settings import check_parallel, fit_micro_batch
from nano3.train.checkpoint.checkpointer import step_folders
from nano3.train.numerics import tuned_process
from nano3.train.parallel import check_device
from nano3.train.shared_folder import check_shared
from nano3.train.world import World, attempt, init_world, n_processes

Config = TypeVar("Config", bound=RunConfig)


@contextmanager
def processes(cfg: RunConfig | AnyPolicyConfig | GenrmConfig, run_dir: Path) -> Iterator[World]:
    """The processes of the run, arranged as `cfg` says and set up for numerical work.

    Raises:
        UserError: they cannot be arranged so, the stage cannot use it, or they do not share `run_dir`.
    """
    check_parallel(cfg, n_processes())
    world = init_world(axes_of(cfg.parallel))
    try:
        check_device(cfg.parallel, compute_dtype(cfg.train.dtype, world.device), world)
        check_shared(run_dir, world)
        with tuned_process(world.device):
            yield world
    finally:
        world.close()


def start(run_dir: Path, from_path: str | Path | None, resume: bool) -> tuple[Path | None, bool]:
    """Where the weights come from, and whether the run begins: it does not where a resume finds a checkpoint.

    Raises:
        UserError: the folder holds files or a run that is not resumed, or a resume names other weights than it began
            with.
    """
    if not resume:
        check_new_run(run_dir)
    return _source(run_dir, from_path, resume), not (resume and step_folders(run_dir / "checkpoints"))


def fit(cfg: Config, world: World) -> Config:
    """`cfg` with micro-batches that these processes can share the batch in; a smaller one than asked for is told."""
    fitted = fit_micro_batch(cfg, world.data.size)
    if world.is_main and fitted is not cfg:
        say(
            f"train.micro_batch_size {cfg.train.micro_batch_size} becomes {fitted.train.micro_batch_size}: "
            f"{world.data.size} processes share the {cfg.train.batch_size} sequences of a step"
        )
    return fitted


def empty_model(cfg: ModelConfig) -> LM:
    """The model without weights."""
    with torch.device("meta"):
        return LM(cfg)


def with_token_ids(cfg: Config, tokenizer: Tokenizer) -> Config:
    """`cfg` with the special tokens of the text that the model is trained on."""
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **ids))


def keep_start(run_dir: Path, source: Path | None, tokenizer: Tokenizer, world: World) -> None:
    """Write down, on the main rank, what a resume needs to know; an error there, as of a full disk, ends all ranks.

    Args:
        run_dir: the run folder.
        source: where the weights came from.
        tokenizer: of the run.
        world: the ranks; every one must call.
    """

    def keep() -> None:
        with atomic_folder(run_dir / TOKENIZER) as folder:
            tokenizer.save(folder)
        write_atomic(run_dir / START, json.dumps({"from": str(source) if source else None}) + "\n")

    world.agree(attempt(keep) if world.is_main else None)


def keep_settings(run_dir: Path, cfg: Any, world: World) -> None:
    """Write RUN/config.toml, on the main rank and with the same of errors. Every rank must call."""
    world.agree(attempt(lambda: write_atomic(run_dir / CONFIG, to_toml(cfg))) if world.is_main else None)


def export(model: LM, folder: Path, cfg: ExportConfig, world: World, extra: Callable[[Path], None]) -> None:
    """The model as a Hugging Face folder, and what `extra` writes into it, appearing together."""
    model.eval()
    save(model, folder, getattr(torch, cfg.dtype), extra=extra)
    world.barrier()


def say(message: str) -> None:
    """A line to the user, on stderr."""
    print(message, file=sys.stderr, flush=True)


def _source(run_dir: Path, from_path: str | Path | None, resume: bool) -> Path | None:
    """Where the weights of the run come from; a resume looks it up in the run folder."""
    given = Path(from_path).resolve() if from_path is not None else None
    file = run_dir / START
    if not resume or not file.is_file():
        return given
    try:
        recorded = read_json(file)["from"]
    except (LookupError, TypeError) as error:
        raise UserError(f"{file}: is damaged, it does not say where the run began") from error
    if given is not None and str(given) != recorded:
        raise UserError(f"{run_dir} started from {recorded or 'new weights'}, not {given}: resume it without --from")
    return Path(recorded) if recorded else None

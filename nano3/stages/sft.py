"""`nano3 sft`: a trained model learns from conversations to chat, to think and to call tools (report section 3.1)."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from nano3.config.errors import UserError
from nano3.config.sft import SftConfig
from nano3.data.chat.rows import Rows
from nano3.data.chat.sets import set_sources
from nano3.data.chat.steps import ChatSteps, HeldoutRows, TrainingSet
from nano3.data.tokens.steps import Plan
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.files import exclusive
from nano3.model.find import model_folder
from nano3.model.hf.folder import fill, read_config
from nano3.stages import adapters
from nano3.stages.answers import score_answers
from nano3.stages.chat_folder import write_chat
from nano3.stages.room import check_room
from nano3.stages.run_folder import (
    TOKENIZER,
    empty_model,
    export,
    fit,
    keep_settings,
    keep_start,
    processes,
    say,
    start,
    with_token_ids,
)
from nano3.stages.settings import check_settings
from nano3.stages.sft_outcome import SftResult
from nano3.stages.sft_rows import prepare_rows
from nano3.stages.sft_tokenizer import find_tokenizer
from nano3.stages.start import check_weights
from nano3.train.freeze import frozen_names
from nano3.train.heldout import Heldout
from nano3.train.tracking.progress import Progress
from nano3.train.trainer import Trainer
from nano3.train.world import World, attempt

STAGE = "sft"


def main(
    cfg: SftConfig,
    run_dir: str | Path,
    from_path: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    checkpoint: int | None = None,
) -> SftResult:
    """Train the model at `from_path` on conversations and leave a run folder: config.toml, rows/, rejects.jsonl,
    data.json, metrics.jsonl, checkpoints/, charts/, tokenizer/ and model/; with lora.rank also adapter/.

    Args:
        cfg: all settings.
        run_dir: the run folder; with `resume`, one that holds this run.
        from_path: run folder or Hugging Face folder to start from; its architecture replaces cfg's. A resume knows it
            from the run folder.
        resume: continue from the newest checkpoint of `run_dir`, or begin as it began if there is none yet.
        progress: where training reports; the terminal by default.
        checkpoint: with `resume`, continue from that of this step instead.

    Raises:
        UserError: data, model or settings that cannot be used, or neither `from_path` nor `resume` is given.
        NonFiniteError: the loss became NaN or infinite.
    """
    run_dir = Path(run_dir)
    source, fresh = start(run_dir, from_path, resume)
    if source is None:
        raise UserError("sft goes on from a trained model: name a run or Hugging Face folder with --from")
    if fresh or from_path is not None:
        cfg = dataclasses.replace(cfg, model=read_config(model_folder(source)))
    with processes(cfg, run_dir) as world:
        cfg = adapters.settle(fit(cfg, world), source)
        _check(cfg, source if fresh else None, world)
        tokenizer = _tokenizer(cfg, source, run_dir / TOKENIZER if resume else None)
        cfg = with_token_ids(cfg, tokenizer)
        with exclusive(run_dir) if world.is_main else nullcontext():
            reports, sets = prepare_rows(cfg, tokenizer, run_dir, fresh, world)
            steps = _steps(cfg, sets, tokenizer, world)
            trainer = _trainer(cfg, steps, sets, tokenizer, run_dir, progress, world)
            if not resume or trainer.resume(checkpoint) is None:
                fill(trainer.model, model_folder(source))
                adapters.begin(trainer.model, cfg.data.seed, world.rank)
                keep_start(run_dir, source, tokenizer, world)
            keep_settings(run_dir, cfg, world)
            training = trainer.fit()
            epochs = steps.epochs(training.step)
            if training.interrupted:
                return SftResult(run_dir, training, reports, epochs)
            write = partial(write_chat, tokenizer)
            with adapters.export(trainer.model, cfg.lora, run_dir, source, write):
                export(trainer.model, run_dir / "model", cfg.export, world, write)
            answers = score_answers(cfg, run_dir / "model", tokenizer, sets) if world.is_main else {}
            return SftResult(run_dir, training, reports, epochs, answers)


def _check(cfg: SftConfig, begins_from: Path | None, world: World) -> None:
    """Refuse what cannot be before any work; `begins_from`: where a run that begins takes its weights from."""
    if begins_from is not None:
        check_weights(cfg.model, begins_from)
    check_settings(cfg, world.data.size)
    model = empty_model(cfg.model)
    adapters.add(model, cfg.lora)
    frozen_names(model, cfg.train.freeze)
    set_sources(cfg.data)
    world.agree(attempt(lambda: check_room(cfg, world)))


def _tokenizer(cfg: SftConfig, source: Path, kept: Path | None) -> Tokenizer:
    """That of the run to resume, else of the settings or the model."""
    return Tokenizer.load(kept) if kept is not None and kept.is_dir() else find_tokenizer(cfg.data.tokenizer, source)


def _steps(cfg: SftConfig, sets: dict[str, Rows], tokenizer: Tokenizer, world: World) -> ChatSteps:
    plan = Plan(cfg.train.batch_size, cfg.train.micro_batch_size, world.data.rank, world.data.size)
    blend = [TrainingSet(name, rows, cfg.data.blend[name]) for name, rows in sets.items()]
    return ChatSteps(blend, plan, cfg.data.pack_length, tokenizer.pad_id, cfg.data.seed)


def _trainer(
    cfg: SftConfig,
    steps: ChatSteps,
    sets: dict[str, Rows],
    tokenizer: Tokenizer,
    run_dir: Path,
    progress: Progress | None,
    world: World,
) -> Trainer:
    """The training loop with a model without weights, and the held-out rows."""
    model = empty_model(cfg.model)
    model.stage = STAGE
    adapters.add(model, cfg.lora, say if world.is_main else None)
    length = cfg.data.pack_length
    rows = HeldoutRows(list(sets.values()), length, tokenizer)
    heldout = Heldout(cfg.heldout, {length: rows}, cfg.train.micro_batch_size * length)
    inputs = {"tokenizer": tokenizer.fingerprint()[:16]}
    inputs |= {f"rows of {name}": one.fingerprint for name, one in sets.items()}
    return Trainer(cfg, model, steps, run_dir, heldout, progress=progress, world=world, inputs=inputs)

"""Training on packed text, from data to a Hugging Face folder: what pretraining and context extension share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from nano3.config.errors import UserError
from nano3.config.schema import PretrainConfig
from nano3.data.progress import progress_bar
from nano3.data.texts.readings import check_fills, reading_lines, readings, tokens_of_run
from nano3.data.tokens.prepare import Prepared, prepare
from nano3.data.tokens.shards import finished_shards
from nano3.data.tokens.source import TokenSource
from nano3.data.tokens.steps import TextSteps, make_plans
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.files import exclusive
from nano3.installation import which_kernels, which_nano3
from nano3.model.find import model_folder
from nano3.model.hf.config import PRETRAINED, read_stage
from nano3.model.hf.folder import fill, read_config
from nano3.splits import SPLITS
from nano3.stages.finished import finished_result, keep_result
from nano3.stages.new_run import TOKENIZER
from nano3.stages.outcome import TrainingResult, compressors, opening_of, write_samples
from nano3.stages.room import check_room
from nano3.stages.run_folder import (
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
from nano3.stages.start import check_start, heldout_warning
from nano3.train.freeze import frozen_names
from nano3.train.heldout import Heldout
from nano3.train.position import Result
from nano3.train.tracking.progress import Progress
from nano3.train.trainer import Trainer
from nano3.train.world import World, attempt

Config = TypeVar("Config", bound=PretrainConfig)


def train_on_text(
    cfg: PretrainConfig,
    run_dir: str | Path,
    from_path: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    checkpoint: int | None = None,
) -> TrainingResult:
    """Train a model and leave a run folder: config.toml, metrics.jsonl, tokenizer/, checkpoints/, charts/ and model/.

    Args:
        cfg: all settings.
        run_dir: the run folder; with `resume`, one that holds this run.
        from_path: run folder or Hugging Face folder to start from; its architecture and tokenizer replace cfg's. A
            resume knows it from the run folder.
        resume: continue from the newest checkpoint of `run_dir`, or begin as it began if there is none yet.
        progress: where training reports; the terminal by default.
        checkpoint: with `resume`, continue from that of this step instead.

    Raises:
        UserError: data, model or settings that cannot be used; nothing is written then.
        NonFiniteError: the loss became NaN or infinite.
    """
    run_dir = Path(run_dir)
    source, fresh = start(run_dir, from_path, resume)
    if source is not None and (fresh or from_path is not None):
        cfg = adopt(cfg, source)
    with processes(cfg, run_dir) as world:
        cfg = fit(cfg, world)
        if resume and checkpoint is None and (before := finished_result(cfg, run_dir)):
            if world.is_main:
                say(f"{run_dir} is already finished; to train it for longer, raise train.tokens or train.steps")
            return before
        _check(cfg, source if fresh else None, fresh, world)
        prepared = _prepare(_keep_tokenizer(cfg, run_dir) if resume else cfg, world)
        if not resume:
            check_fills(prepared.n_train_tokens, cfg)
        cfg = with_token_ids(cfg, prepared.tokenizer)
        with exclusive(run_dir) if world.is_main else nullcontext():
            rows = {length: prepared.train.with_seq_len(length, cfg.lengths) for length in cfg.lengths}
            if world.is_main:
                _say_readings(cfg, rows)
            trainer = _trainer(cfg, prepared, rows, run_dir, source, progress, world)
            if not resume or trainer.resume(checkpoint) is None:
                _begin(trainer, cfg, prepared.tokenizer, run_dir, source, world)
            keep_settings(run_dir, cfg, world)
            training = trainer.fit()
            if training.interrupted:
                return TrainingResult(run_dir, training, readings=readings(rows, cfg.lengths, training.tokens))
            export(trainer.model, run_dir / "model", cfg.export, world, prepared.tokenizer.save)
            return _result(cfg, prepared, rows, run_dir, training, world)


def _check(cfg: PretrainConfig, source: Path | None, fresh: bool, world: World) -> None:
    """Refuse what cannot be before any work; `source`: where a run that begins takes its weights from."""
    if fresh:
        check_start(cfg, source)
    check_settings(cfg, world.data.size)
    frozen_names(empty_model(cfg.model), cfg.train.freeze)
    world.agree(attempt(lambda: check_room(cfg, world)))
    if source is not None and world.is_main and (warning := heldout_warning(cfg, source)):
        say(warning)


def _say_readings(cfg: PretrainConfig, rows: dict[int, TokenSource]) -> None:
    for line in reading_lines(readings(rows, cfg.lengths, tokens_of_run(cfg))):
        say(line)


def _trainer(
    cfg: PretrainConfig,
    prepared: Prepared,
    rows: dict[int, TokenSource],
    run_dir: Path,
    source: Path | None,
    progress: Progress | None,
    world: World,
) -> Trainer:
    """The training loop with a model without weights, the rows of each step, and the held-out text."""
    model = empty_model(cfg.model)
    model.stage = _stage_after(source)
    steps = TextSteps(rows, make_plans(cfg, world.data.rank, world.data.size))
    texts = {length: prepared.heldout.with_seq_len(length) for length in cfg.heldout_lengths}
    heldout = Heldout(cfg.heldout, texts, cfg.train.micro_batch_size * cfg.data.seq_len)
    inputs = fingerprints(prepared)
    return Trainer(cfg, model, steps, run_dir, heldout, progress=progress, world=world, inputs=inputs)


def _result(
    cfg: PretrainConfig,
    prepared: Prepared,
    rows: dict[int, TokenSource],
    run_dir: Path,
    training: Result,
    world: World,
) -> TrainingResult:
    """On the main rank with samples of the exported model, and compressors on the text that it scored."""
    if not world.is_main:
        return TrainingResult(run_dir, training)
    samples = write_samples(run_dir / "model", prepared, cfg.sample)
    scored = training.heldout.bytes if training.heldout else 0
    read = readings(rows, cfg.lengths, training.tokens)
    opening = opening_of(prepared.heldout_texts())
    return keep_result(TrainingResult(run_dir, training, compressors(prepared, scored), samples, read, opening))


def adopt(cfg: Config, source: Path) -> Config:
    """`cfg` with the architecture of the model in `source`, and its tokenizer unless cfg names one."""
    folder = model_folder(source)
    model, data = read_config(folder), cfg.data
    if data.tokenizer in SPLITS:
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder} has no tokenizer.json: name its tokenizer with --set data.tokenizer=PATH")
        data = dataclasses.replace(data, tokenizer=str(folder))
    return dataclasses.replace(cfg, model=model, data=data)


def fingerprints(prepared: Prepared) -> dict[str, str]:
    """What a resume must find again: hashes of the tokenizer and of each category's tokens."""
    found = {"tokenizer": prepared.tokenizer.fingerprint()[:16]}
    for name, folders in prepared.folders.items():
        shards = [[m.documents, m.tokens, m.bytes, m.bin_crc32] for f in folders for m in finished_shards(f)]
        found[f"text of {name}"] = hashlib.blake2b(json.dumps(shards).encode(), digest_size=8).hexdigest()
    return found


def _prepare(cfg: PretrainConfig, world: World) -> Prepared:
    """The main rank builds the cache, the others read it."""
    if not world.is_main:
        world.barrier()
        return prepare(cfg.prepared_data, cfg.model.vocab_size)
    say(f"{which_nano3()}, {which_kernels() if world.device.type == 'cpu' else world.device}")
    say(f"preparing data: {', '.join(cfg.data.blend)}")
    with progress_bar() as show:
        prepared = prepare(cfg.prepared_data, cfg.model.vocab_size, show)
    world.barrier()
    for note in prepared.notes:
        say(note)
    train, heldout = prepared.n_train_tokens, prepared.heldout
    say(f"{train:,} training tokens, {heldout.n_tokens:,} held out ({heldout.n_bytes:,} bytes)")
    return prepared


def _stage_after(source: Path | None) -> str:
    """A base model, unless the weights come from one that may have seen conversations."""
    try:
        return PRETRAINED if source is None else read_stage(model_folder(source))
    except UserError:  # a resume: the folder that the run began with is gone
        return PRETRAINED


def _keep_tokenizer(cfg: PretrainConfig, run_dir: Path) -> PretrainConfig:
    """`cfg` for data preparation, with the tokenizer that the run began with."""
    folder = run_dir / TOKENIZER
    if not folder.is_dir():
        return cfg
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, tokenizer=str(folder)))


def _begin(
    trainer: Trainer, cfg: PretrainConfig, tokenizer: Tokenizer, run_dir: Path, source: Path | None, world: World
) -> None:
    """Fill the model from wherever the run starts, then write down what a resume needs to know."""
    if cfg.train.continue_state:
        assert source is not None, "check_start has seen to it"
        trainer.continue_from(source)
    elif source is not None:
        fill(trainer.model, model_folder(source))
    else:
        trainer.model.init_weights(cfg.train.seed)
    keep_start(run_dir, source, tokenizer, world)
